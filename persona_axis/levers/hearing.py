"""The listener hears a reply that was said: its posterior over the worlds after every token."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persona_axis._asked import require, require_each, whole
from persona_axis.errors import ListenerError
from persona_axis.levers.listener import Listener, log_s0_of, undecided
from persona_axis.levers.worlds import Worlds, encode_worlds
from persona_axis.model.memory import unfit_cache

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.template import Messages


@dataclass(frozen=True, eq=False)
class Heard:
    """A reply's tokens, their log S0 in each world and the log posterior after each, [tokens, worlds], float64."""

    ids: list[int]
    log_s0: Tensor
    log_posterior: Tensor

    @property
    def true(self) -> float:
        """The posterior of the true world after the last token; for an empty reply that of all worlds alike."""
        return float(self._last[0].exp())

    @cached_property
    def log_odds(self) -> float:
        """log of the true world's posterior against that of all others together; keeps its grades where `true` is 1."""
        return float(self._last[0] - self._last[1:].logsumexp(0))

    @property
    def _last(self) -> Tensor:
        if not self.ids:
            return undecided(torch.zeros(self.log_posterior.shape[1], dtype=torch.float64))
        return self.log_posterior[-1]


def posterior(
    chat: ChatModel,
    worlds: Sequence[Worlds],
    replies: Sequence[str | Sequence[int]],
    listener: Listener | None = None,
    batch: int = 32,
) -> list[Heard]:
    """What the listener makes of one given reply (text or token ids) to each conversation in its worlds.

    Its alpha has no part in this. `batch` is how many worlds are read at once. Raises `ListenerError` as
    `encode_worlds` does and unless there are as many replies as conversations.
    """
    from persona_axis.chat import ChatModel

    require("chat", chat, ChatModel)
    listener = Listener() if listener is None else listener
    require("listener", listener, Listener)
    whole("batch", batch, ListenerError, 1)
    worlds, replies = (
        require_each(name, given, Sequence, ListenerError) for name, given in (("worlds", worlds), ("replies", replies))
    )
    if len(worlds) != len(replies):
        raise ListenerError(f"{len(replies)} replies to {len(worlds)} conversations: give one to each")
    pairs = zip(worlds, replies, strict=True)
    said = [reply_ids(chat, row[0], reply) if isinstance(reply, str) else list(reply) for row, reply in pairs]
    most: Any = chat.model.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    if odd := [token for ids in said for token in ids if type(token) is not int or not 0 <= token < most]:
        raise ListenerError(f"a reply holds {odd[0]!r}, which is no token of {chat.name}: ids go from 0 to {most - 1}")
    rows = encode_worlds(chat, worlds, room=max(map(len, said), default=0))
    prompts = [prompt for row in rows for prompt in row]
    each = [ids for ids, row in zip(said, rows, strict=True) for _ in row]
    found = []
    for ids, log_s0 in zip(each, next_tokens(chat, prompts, each, batch), strict=True):
        chosen = torch.tensor(ids, dtype=torch.int64, device=log_s0.device)[:, None]
        found.append(log_s0.gather(-1, chosen)[:, 0].double().cpu())
    count = len(rows[0])
    tables = [torch.stack(found[i : i + count], 1) for i in range(0, len(found), count)]
    return [Heard(ids, table, heard(listener, table)) for ids, table in zip(said, tables, strict=True)]


def heard(listener: Listener, log_s0: Tensor) -> Tensor:
    """log posterior after each token [tokens, worlds], from log S0 of the tokens said, of that shape."""
    prior, found = undecided(log_s0.new_empty(log_s0.shape[1])), []
    for said in log_s0:
        found.append(listener.posterior(said, prior))
        prior = listener.after(said, prior)
    return torch.stack(found) if found else torch.empty_like(log_s0)


def log_s1(listener: Listener, log_s0: Tensor, ids: Sequence[int]) -> Tensor:
    """log S1 [tokens] of each token of a given reply, from log S0 [tokens, worlds, vocabulary]; world 0 is true."""
    chosen = torch.tensor(ids, dtype=torch.int64, device=log_s0.device)[:, None, None]
    said = log_s0.gather(-1, chosen.expand(-1, log_s0.shape[1], 1))[..., 0]
    priors = [undecided(said[0])]
    for heard in said[:-1]:
        priors.append(listener.after(heard, priors[-1]))
    return listener.speak(log_s0, torch.stack(priors)).gather(-1, chosen[:, 0])[:, 0]


def next_tokens(
    chat: ChatModel, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], batch: int
) -> Iterator[Tensor]:
    """log S0 [tokens, vocabulary] of what could stand for each token of each reply, one reply after another."""
    for first in range(0, len(prompts), batch):
        pairs = list(zip(prompts[first : first + batch], replies[first : first + batch], strict=True))
        padded = chat.pad_right([[*prompt, *reply] for prompt, reply in pairs])
        with torch.inference_mode():
            logits = chat.model(input_ids=padded.ids, attention_mask=padded.mask, use_cache=False).logits
        for (prompt, reply), row in zip(pairs, logits, strict=True):
            yield log_s0_of(row[len(prompt) - 1 : len(prompt) + len(reply) - 1])


def continuations(
    chat: ChatModel, prompt: Sequence[int], replies: Sequence[Sequence[int]], batch: int
) -> Iterator[Tensor]:
    """`next_tokens` for several replies to one prompt, which is read once where the model's cache can be shared."""
    with torch.inference_mode():
        start = torch.tensor([list(prompt[:-1])], device=chat.device)
        cache = chat.model(input_ids=start, use_cache=True).past_key_values if start.shape[1] else None
    if cache is None or unfit_cache(cache):
        yield from next_tokens(chat, [prompt] * len(replies), replies, batch)
        return
    for first in range(0, len(replies), batch):
        part = replies[first : first + batch]
        padded = chat.pad_right([[prompt[-1], *reply] for reply in part])
        shared = copy.deepcopy(cache)
        shared.batch_repeat_interleave(len(part))
        seen = torch.ones(len(part), start.shape[1], dtype=padded.mask.dtype, device=padded.mask.device)
        with torch.inference_mode():
            logits = chat.model(
                input_ids=padded.ids, attention_mask=torch.cat([seen, padded.mask], 1), past_key_values=shared
            ).logits
        for reply, row in zip(part, logits, strict=True):
            yield log_s0_of(row[: len(reply)])


def reply_ids(chat: ChatModel, messages: Messages, reply: str) -> list[int]:
    """The tokens of a reply as they stand after `messages`; raises `ModelError` where the template changes it."""
    if not reply.strip():
        return []
    ids, ranges = chat.encode_turns([*messages, {"role": "assistant", "content": reply}])
    start, end = ranges[-1]
    return ids[start:end]
