"""What represents a user's message: the model's own mean activation over it, or a sentence embedding of its text.

Both come as a table with one row for each assistant turn, which represents what that turn answers: everything the
user said since the assistant's turn before. Rows are found by (conversation, turn), never by their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame, MultiIndex

from persona_axis.errors import DriftError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from persona_axis.chat import ChatModel
    from persona_axis.conversations import Conversation

KEYS = ("conversation", "turn")
_TOKENS_AT_ONCE = 8192  # in one prefill batch, padding included


class _Read(NamedTuple):
    """One sequence to feed, and the token ranges to be averaged in it by (conversation, turn)."""

    ids: list[int]
    spans: dict[tuple[str, int], list[tuple[int, int]]]


def message_vectors(
    chat: ChatModel, conversations: Iterable[Conversation], layer: int, *, alone: bool = False
) -> DataFrame:
    """The model's mean activation at `layer` over the tokens of what each assistant turn answers.

    One forward pass a conversation, so a vector also holds what was said before; with `alone` each message is read
    without the conversation it stands in, which says how much the message by itself tells. Returns float32 columns
    0 ... hidden - 1, means accumulated in float32, indexed by (conversation, turn); a turn that answers nobody, or
    words without a token, has no row. Raises `DriftError` for an id given twice, a conversation longer than the model's
    context, activations that are not finite, words that the template changes, and where no message is left.
    """
    keys: list[tuple[str, int]] = []
    means: list[NDArray[np.float32]] = []
    for batch in _batches(_reads(chat, conversations, alone)):
        keys += [key for read in batch for key in read.spans]
        means.append(_means(chat, layer, batch))
    found = np.concatenate(means) if means else np.empty((0, chat.hidden_size), np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(found).all(axis=1))):
        conversation, turn = keys[bad[0]]
        raise DriftError(f"conversation {conversation!r}, turn {turn}: NaN or infinite activations at layer {layer}")
    return _keyed(keys, found)


def sentence_vectors(name: str, conversations: Iterable[Conversation]) -> DataFrame:
    """Embeddings of what each assistant turn answers by the sentence-transformers model `name` (hub name or path).

    The same rows as `message_vectors`. Needs the extra `embeddings`; raises `DriftError` where that or the model is
    missing.
    """
    try:
        library = import_module("sentence_transformers")
    except ImportError as error:
        raise DriftError(
            "sentence vectors need sentence-transformers: pip install 'persona-axis[embeddings]'"
        ) from error
    try:
        model = library.SentenceTransformer(name)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DriftError(f"cannot load the sentence-transformers model {name!r}: {reason}") from error
    texts = {}
    for conversation in _once(conversations):
        for turn, places in _answered(conversation.messages).items():
            said = [conversation.messages[i]["content"] for i in places]
            if any(text.strip() for text in said):
                texts[conversation.id, turn] = "\n\n".join(said)
    encoded = model.encode(list(texts.values()), show_progress_bar=False, convert_to_numpy=True) if texts else ()
    return _keyed(list(texts), np.asarray(encoded, dtype=np.float32))


def _keyed(keys: Sequence[tuple[str, int]], vectors: NDArray[np.float32]) -> DataFrame:
    if not keys:
        raise DriftError("no assistant turn answers a user's message: there is nothing to represent")
    return DataFrame(vectors, index=MultiIndex.from_tuples(keys, names=KEYS))


def _once(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    """The conversations as they come, each id once."""
    seen: set[str] = set()
    for conversation in conversations:
        if conversation.id in seen:
            raise DriftError(f"two conversations have the id {conversation.id!r}: their turns cannot be told apart")
        seen.add(conversation.id)
        yield conversation


def _answered(messages: Sequence[Mapping[str, str]]) -> dict[int, list[int]]:
    """Places of the user's messages that each assistant turn answers, by turn from 1; none: left out."""
    answered: dict[int, list[int]] = {}
    since: list[int] = []
    turn = 0
    for place, message in enumerate(messages):
        if message["role"] == "user":
            since.append(place)
        elif message["role"] == "assistant":
            turn += 1
            if since:
                answered[turn], since = since, []
    return answered


def _reads(chat: ChatModel, conversations: Iterable[Conversation], alone: bool) -> Iterator[_Read]:
    from persona_axis.model.windows import context_limit

    limit = context_limit(chat)
    for conversation in _once(conversations):
        for messages, answered in _pieces(conversation, alone):
            try:
                ids, ranges = chat.encode_messages(messages, ("user",))
            except ModelError as error:
                raise DriftError(f"conversation {conversation.id!r}: {error}") from error
            if limit is not None and len(ids) > limit:
                raise DriftError(
                    f"conversation {conversation.id!r} has {len(ids)} tokens where the model's context has {limit}: "
                    "shorten it" + ("" if alone else ", or read each message alone")
                )
            spans = {
                (conversation.id, turn): [ranges[i] for i in places if ranges[i][1] > ranges[i][0]]
                for turn, places in answered.items()
            }
            yield _Read(ids, {key: found for key, found in spans.items() if found})


def _pieces(conversation: Conversation, alone: bool) -> Iterator[tuple[list[dict[str, str]], dict[int, list[int]]]]:
    """What is fed at once: messages, and where in them each turn's messages stand."""
    answered = _answered(conversation.messages)
    if not alone:
        yield list(conversation.messages), answered
        return
    for turn, places in answered.items():
        yield [conversation.messages[i] for i in places], {turn: list(range(len(places)))}


def _batches(reads: Iterable[_Read]) -> Iterator[list[_Read]]:
    """Neighbours together, as many as fit when padded to the longest; those without a message are passed over."""
    batch: list[_Read] = []
    longest = 0
    for read in reads:
        if not read.spans:
            continue
        longest = max(longest, len(read.ids))
        if batch and longest * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch, longest = [], len(read.ids)
        batch.append(read)
    if batch:
        yield batch


def _means(chat: ChatModel, layer: int, batch: Sequence[_Read]) -> NDArray[np.float32]:
    """Mean activations [messages, hidden] of one batch; nothing else of the layer's output is kept."""
    import torch

    from persona_axis.residual import reading

    padded = chat.pad_right([read.ids for read in batch])
    rows: list[Tensor] = []

    def average(_layer: int, hidden: Tensor) -> None:
        for row, read in zip(hidden, batch, strict=True):
            rows.extend(torch.cat([row[a:b] for a, b in spans]).float().mean(0) for spans in read.spans.values())

    with torch.inference_mode(), reading(chat.model, [layer], average, stack=chat.layers):
        # The decoder without its head: logits of every token would need more memory than all the rest.
        chat.model.base_model(input_ids=padded.ids, attention_mask=padded.mask, use_cache=False)
    if len(rows) != sum(len(read.spans) for read in batch):
        raise DriftError(f"layer {layer} did not show its activations: is the model compiled?")
    means: NDArray[np.float32] = torch.stack(rows).cpu().numpy()
    return means
