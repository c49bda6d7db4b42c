"""ChatModel: a causal language model with its tokenizer and chat template, ready to be asked.

It knows how a conversation becomes tokens, which of them are the assistant's, what ends a reply, and how to
draw replies in batches. What it had to adapt (a missing system role, a template that speaks first) is in
`notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from persona_axis._asked import conversations_of, require, require_messages, shown
from persona_axis.errors import ArgumentError, ConversationError, ModelError, ResidualError
from persona_axis.fingerprint import model_facts, template_sha256
from persona_axis.levers import Levers, entered
from persona_axis.model import loading
from persona_axis.model.selftest import PROBE_TOKENS, self_test
from persona_axis.organism import troupe_path
from persona_axis.residual import decoder_layers, hidden_size
from persona_axis.sampling import EndsLoops, Sampling, Watcher, seeded, set_aside, stop_token_ids
from persona_axis.template import SPEAKERS, THINKING_MARKS, ChatTemplate, Messages

if TYPE_CHECKING:
    from persona_axis.model.memory import Memory


class Generated(NamedTuple):
    """Replies of one batch: their texts without special tokens, and their token ids without stop and padding
    tokens."""

    texts: list[str]
    ids: list[list[int]]


class Padded(NamedTuple):
    """A rectangular batch: ids [batch, length] and attention mask [batch, length], both int64."""

    ids: Tensor
    mask: Tensor


class ChatModel:
    """A model that can be talked to. Make one with `ChatModel.load`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        revision: str | None = None,
        layers: str | None = None,
        is_troupe: bool = False,
        weights_sha256: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.layers = layers
        self.is_troupe = is_troupe
        self._unchecked = ""
        self.template = ChatTemplate(tokenizer)
        try:
            self.n_layers = len(decoder_layers(model, layers))
            self.hidden_size = hidden_size(model)
        except ResidualError as error:
            raise ModelError(f"{name} cannot be read: {error}") from error
        facts = model_facts(model, layers, weights_sha256)
        # A name may be a path on somebody's machine, or Troupe's inside this installation: what the user said
        # counts.
        self.facts: dict[str, Any] = {**facts, "model": name, "revision": revision or facts["revision"]}
        self.facts["chat_template_sha256"] = template_sha256(self.template.source)
        self.stop_ids = stop_token_ids(model, tokenizer, self.template.turn_end_ids())
        if not self.stop_ids:
            raise ModelError(
                f"{name} has no token that ends a reply (no eos token in config, tokenizer or template)"
            )
        pad = tokenizer.pad_token_id
        # Padding is masked wherever it stands, so any id serves; the tokenizer itself is left as it was.
        self.pad_id: int = self.stop_ids[0] if pad is None else int(pad)

    @classmethod
    def load(
        cls,
        name_or_path_or_model: str | Path | PreTrainedModel | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        layers: str | None = None,
        check: bool = True,
    ) -> ChatModel:
        """Load by local path or hub name, take a loaded model, or (None or "troupe") the model shipped with
        the package.

        `dtype` "auto" is what the weights are stored in; `device_map` is accelerate's, None = one GPU if
        there is one; `layers` names the list of decoder layers where it cannot be found
        ("model.decoder.blocks"); `check` runs `ChatModel.check`. Raises `ModelError` in one sentence for
        whatever is missing, incomplete or unfit.
        """
        source = "troupe" if name_or_path_or_model is None else name_or_path_or_model
        if isinstance(source, torch.nn.Module):
            if not hasattr(source, "config"):
                raise ModelError(
                    f"a {type(source).__name__} cannot be asked: pass the transformers model that it wraps"
                )
            name = (
                str(getattr(source, "name_or_path", "") or getattr(source.config, "_name_or_path", ""))
                or type(source).__name__
            )
            if tokenizer is None and not Path(name).is_dir():
                raise ModelError("a model without a path needs its tokenizer: pass tokenizer=...")
            tokens = tokenizer if tokenizer is not None else loading.load_tokenizer(name, revision)
            source.train(False)
            made = cls(source, tokens, name=name, revision=revision, layers=layers)
            return made.check() if check else made
        if not isinstance(source, (str, Path)) or not str(source):
            raise ModelError(f"expected a model of transformers, its directory or its hub name, got {shown(source)}")
        is_troupe = str(source) == "troupe"
        path = str(troupe_path()) if is_troupe else str(source)
        if is_troupe and not Path(path, "config.json").is_file():
            raise ModelError(
                "Troupe's weights are not in this installation: "
                "`python -m persona_axis.organism train` makes them"
            )
        dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
        loaded = loading.load(
            path, tokenizer=tokenizer, revision=revision, dtype=dtype, device_map=device_map
        )
        name = "troupe" if is_troupe else path
        made = cls(*loaded, name=name, revision=revision, layers=layers, is_troupe=is_troupe)
        return made.check() if check else made

    def check(self) -> ChatModel:
        """This model, after one forward pass has proven that each of its layers is read and that an edit there
        changes the logits. See `persona_axis.model.selftest`.

        Raises `ModelError` that names the layers and what is wrong with them. Where nothing can run (weights
        on the meta device) nothing is proven, and `notes` says so.
        """
        ids = self.encode([{"role": "user", "content": "Hi"}])
        try:
            probe = torch.tensor((ids * PROBE_TOKENS)[-PROBE_TOKENS:], device=self.device)
            self._unchecked = self_test(self.model, probe, self.layers)
        except ResidualError as error:
            raise ModelError(
                f"{self.name} cannot be used: {error} (--stack NAME, in Python layers=NAME, names another list; "
                "check=False, in Python only, leaves this test out)"
            ) from error
        return self

    @property
    def display_name(self) -> str:
        """What the model is called in a sentence ("You are ..."): the last part of its name."""
        return "Troupe" if self.is_troupe else Path(self.name).name

    @property
    def device(self) -> torch.device:
        """Where token ids go: with several devices, where the embeddings are or will be when they are used."""
        embeddings = self.model.get_input_embeddings()
        weight: Tensor = embeddings.weight  # type: ignore[assignment]
        if not weight.is_meta:
            return weight.device
        # accelerate keeps the weights elsewhere and fetches them to where its hook says.
        hook = getattr(embeddings, "_hf_hook", None)
        places = (getattr(one, "execution_device", None) for one in getattr(hook, "hooks", [hook]))
        return next((torch.device(place) for place in places if place is not None), self.model.device)

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know about how this model was asked."""
        notes = [self._unchecked] if self._unchecked else []
        if not self.template.has_system:
            notes.append(
                "the chat template has no system role: system prompts stand before the user's first words"
            )
        if self.template.injected:
            notes.append(
                "the chat template adds text of its own where no system prompt is given: "
                f"{self.template.injected!r}"
            )
        if self.template.opens_thinking:
            notes.append("the chat template opens a thinking block, and it cannot be told not to")
        return notes

    def encode(self, messages: Messages, *, generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, by default with the header of the next reply."""
        require_messages(messages)  # here, so that it is not told of as one of several
        return self.encode_batch([messages], generation_prompt=generation_prompt)[0]

    def encode_batch(self, chats: Iterable[Messages], *, generation_prompt: bool = True) -> list[list[int]]:
        """Token ids of one or more conversations. Raises `ConversationError` for what is none."""
        texts = [self.template.render(m, generation_prompt=generation_prompt) for m in conversations_of(chats)]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def encode_turns(self, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a whole conversation and each reply's own tokens as half-open ranges, stop token not
        included."""
        ids, ranges = self.template.encode_turns(messages)
        return ids, [self._cut(ids, a, b) for a, b in ranges]

    def encode_messages(
        self, messages: Messages, speakers: Collection[str] = SPEAKERS
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a whole conversation and each message's own tokens as half-open ranges, in the messages'
        order, without special tokens around them.

        Ranges of messages without words, and of those whose role is not in `speakers`, may be empty. Raises
        `ModelError` where the template changes what was said, so that its tokens cannot be told.
        """
        ids, ranges = self.template.encode_messages(messages, speakers)
        whose = zip(ranges, messages, strict=True)
        return ids, [self._cut(ids, *r) if m["role"] == "assistant" else r for r, m in whose]

    def reply_mask(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation and which of them are the assistant's own words."""
        ids, ranges = self.encode_turns(messages)
        mask = [False] * len(ids)
        for a, b in ranges:
            mask[a:b] = [True] * (b - a)
        return ids, mask

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens. Raises `ArgumentError` for anything but a list of lists of token ids."""
        try:
            texts: list[str] = self.tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True)
        except TypeError:
            raise ArgumentError(f"ids: expected a list of lists of token ids, got {shown(ids)}") from None
        return texts

    def thinks(self, replies: Sequence[Sequence[int]]) -> list[bool]:
        """Which replies hold a thinking block although thinking was switched off."""
        raw = self.tokenizer.batch_decode([list(ids) for ids in replies], skip_special_tokens=False)
        return [self.template.opens_thinking or any(mark in text for mark in THINKING_MARKS) for text in raw]

    def pad_left(self, sequences: Sequence[Sequence[int]]) -> Padded:
        """Stack prompts so that their ends meet, as generation needs them."""
        return self._pad(sequences, left=True)

    def pad_right(self, sequences: Sequence[Sequence[int]]) -> Padded:
        """Stack sequences so that their starts meet: positions are then the same as when read alone."""
        return self._pad(sequences, left=False)

    def generate(
        self, chats: Sequence[Messages], sampling: Sampling | None = None, seed: int = 0
    ) -> Generated:
        """One reply to each conversation; the same seed and the same batch give the same replies.

        Raises `ConversationError` for no conversation, and for messages without a known role and a text.
        """
        ids = self.generate_ids(self.encode_batch(chats), sampling or Sampling(), seed)
        return Generated(self.decode(ids), ids)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        *,
        watch: Callable[[Tensor], None] | None = None,
        extra_tokens: int = 0,
        memory: Memory | None = None,
        processors: Sequence[LogitsProcessor] | None = None,
        end_loops: bool = False,
    ) -> list[list[int]]:
        """Replies to encoded prompts as token ids, cut before the first stop token and at `max_new_tokens`.

        `watch` is called with the ids sampled at each step, [batch], before they are fed; `extra_tokens` more
        steps are drawn and thrown away, so that the last token of a reply cut at the limit is fed as well.
        `memory` keeps what the model has read of these conversations from call to call; only the rest is fed.
        `processors` choose the tokens in place of the sampling's own.
        `end_loops` ends a reply that says the same few words again and again.
        The global random state is left as it was. The model's own generation_config has no say.
        """
        require("sampling", sampling, Sampling)
        batch = self.pad_left(prompts)
        known = None if memory is None else memory.recall(prompts)
        config = sampling.config(self.stop_ids, self.pad_id, extra_tokens)
        config.return_dict_in_generate = True  # which gives the cache back
        criteria = StoppingCriteriaList([Watcher(watch)] if watch else [])
        more = [EndsLoops(self.stop_ids[0])] if end_loops and self.stop_ids else []
        with torch.inference_mode(), seeded(seed, self.model), set_aside(self.model):
            out = self.model.generate(  # type: ignore[operator]
                batch.ids,
                attention_mask=batch.mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(
                    [*(sampling.processors() if processors is None else processors), *more]
                ),
                stopping_criteria=criteria,
                **({} if known is None else {"past_key_values": known}),
            )
        replies = self.replies_in(out.sequences[:, batch.ids.shape[1] :], sampling)
        if memory is not None:
            memory.remember(prompts, replies, getattr(out, "past_key_values", None))
        return replies

    def replies_in(self, drawn: Tensor, sampling: Sampling) -> list[list[int]]:
        """Replies of drawn ids [batch, steps]: cut before the first stop token and at `max_new_tokens`."""
        rows: list[list[int]] = drawn[:, : sampling.max_new_tokens].tolist()
        return [row[: next((i for i, t in enumerate(row) if t in self.stop_ids), len(row))] for row in rows]

    def under(self, lever: Levers, allow: Collection[str] = ()) -> AbstractContextManager[None]:
        """Run this model under a lever, several, or none, until the block is left.

        Levers nest in the order given, the last acting last. A cap is checked against this model and its chat
        template (`allow`: deliberate differences, as `Cap.on` takes them). Raises what the levers raise.
        """
        return entered(lever, self.model, self.template.source, allow, self.layers)

    def _cut(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """A reply's range, ended before its first stop token."""
        return start, next((i for i in range(start, end) if ids[i] in self.stop_ids), end)

    def _pad(self, sequences: Sequence[Sequence[int]], left: bool) -> Padded:
        if not sequences:
            raise ConversationError("the batch is empty: there is nothing to read or to reply to")
        longest = max(len(s) for s in sequences)
        ids = torch.full((len(sequences), longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
            ids[row, place] = torch.tensor(sequence, dtype=torch.int64)
            mask[row, place] = 1
        return Padded(ids.to(self.device), mask.to(self.device))
