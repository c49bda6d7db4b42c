"""Trajectories: where each turn of a conversation lies on an axis, read in one pass over the conversation.

    frame = trajectory(chat, axis, messages)
    frame[frame["layer"] == axis.recommended_layer].plot("turn", "projection")

A turn's projection is the mean over its own tokens; which these are is asked of the chat template. Only scalars are
kept of what the model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from persona_axis._asked import layers_of, require
from persona_axis.axis import Axis
from persona_axis.chat import ChatModel
from persona_axis.conversations import Conversation, check_messages
from persona_axis.edits.arithmetic import projected
from persona_axis.errors import DriftError
from persona_axis.files.tablefile import TableWriter
from persona_axis.levers import Lever, Levers, listed
from persona_axis.model.outofmemory import is_out_of_memory
from persona_axis.model.windows import OVERFLOWS, Window, context_limit, windows
from persona_axis.residual import reading
from persona_axis.template import SPEAKERS
from persona_axis.trajectories.alerts import Alarm, add_percentiles, alerts, percentiles
from persona_axis.trajectories.frame import COLUMNS, TOKEN_COLUMNS, Array, TokenRows, TurnRows, said

__all__ = [
    "COLUMNS", "TOKEN_COLUMNS", "Alarm", "TableWriter", "add_percentiles", "alerts", "context_limit", "percentiles",
    "trajectories", "trajectory",
]  # fmt: skip

Given = Conversation | Sequence[Mapping[str, str]]

_TOKENS_AT_ONCE = 16384  # in one batch, padding included
_TOKENS_AHEAD = 4 * _TOKENS_AT_ONCE  # encoded and waiting, so that conversations of a length come together
_ROWS_AT_ONCE = 10_000  # of a conversation that is read in windows


def trajectory(
    chat: ChatModel,
    axis: Axis,
    conversation: Given,
    *,
    layers: Iterable[int] | int | None = None,
    speakers: Collection[str] = ("assistant",),
    tokens: bool = False,
    overflow: str = "refuse",
    lever: Levers = None,
    allow: Collection[str] = (),
) -> pd.DataFrame:
    """The projections of one conversation, a row for each turn and layer, from one forward pass.

    `layers` are all of the axis unless given; `speakers` whose messages are read, among system, user, assistant.
    `tokens` True gives the table of single tokens instead (`TOKEN_COLUMNS`). A conversation that is longer than the
    model's context is an error, or with `overflow` "window" read in several passes, each beginning with the system
    prompt and about half a context of history. Under a `lever` `projection` is what it leaves, `projection_before`
    what it finds at that layer. `allow` names deliberate differences from the model that the axis was made for.
    A message without tokens has NaN.

    Raises `ConversationError`, `AxisMismatchError`, and `DriftError` for a conversation that cannot be measured.
    """
    frames = list(
        trajectories(
            chat, axis, [conversation], layers=layers, speakers=speakers, tokens=tokens, overflow=overflow,
            lever=lever, allow=allow,
        )
    )  # fmt: skip
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def trajectories(
    chat: ChatModel,
    axis: Axis,
    conversations: Iterable[Given],
    *,
    layers: Iterable[int] | int | None = None,
    speakers: Collection[str] = ("assistant",),
    tokens: bool = False,
    overflow: str = "refuse",
    lever: Levers = None,
    allow: Collection[str] = (),
) -> Iterator[pd.DataFrame]:
    """`trajectory` of many conversations, in their order, with memory that does not grow with their number.

    Short ones are read in batches. One that is read in windows comes in several frames, one after another, so that
    its length does not matter either. Conversations without a name are called "conversation 1" and so on.
    """
    require("chat", chat, ChatModel)
    require("axis", axis, Axis)
    require("conversations", conversations, Iterable)
    axis.require(chat.model, chat.template.source, allow, chat.layers)
    wanted = axis.layers if layers is None else sorted(set(layers_of(layers, DriftError)))
    whose = () if isinstance(speakers, str) or not isinstance(speakers, Iterable) else tuple(speakers)
    if not whose or any(speaker not in SPEAKERS for speaker in whose):
        raise DriftError(f"speakers={speakers!r}: expected some of {', '.join(SPEAKERS)}")
    if overflow not in OVERFLOWS:
        raise DriftError(f"overflow={overflow!r}: expected {' or '.join(OVERFLOWS)}")
    directions = {layer: axis.direction[axis.row(layer)] for layer in wanted}
    return _Reader(chat, axis, directions, whose, tokens, overflow, listed(lever), allow).frames(conversations)


class _Waiting:
    """A conversation, how it is read, and its rows so far."""

    def __init__(
        self, where: str, conversation: Conversation, reads: Iterator[Window], rows: TurnRows | TokenRows
    ) -> None:
        self.where = where
        self.said = said(conversation)
        self.reads = reads
        self.window = next(reads)
        self.rows = rows


@dataclass(frozen=True)
class _Reader:
    """The settings of one call."""

    chat: ChatModel
    axis: Axis
    directions: dict[int, Tensor]
    speakers: tuple[str, ...]
    tokens: bool
    overflow: str
    levers: tuple[Lever, ...]
    allow: Collection[str]
    text: dict[int, str] = field(default_factory=dict)

    def frames(self, conversations: Iterable[Given]) -> Iterator[pd.DataFrame]:
        waiting: list[_Waiting] = []
        for number, given in enumerate(conversations, 1):
            one = self._opened(given, f"conversation {number}")
            if one.window.whole:
                waiting.append(one)
            if not one.window.whole or sum(len(w.window.ids) for w in waiting) >= _TOKENS_AHEAD:
                yield from self._together(waiting)
                waiting = []
            if not one.window.whole:
                yield from self._in_windows(one)
        yield from self._together(waiting)

    def _opened(self, given: Given, name: str) -> _Waiting:
        one = given if isinstance(given, Conversation) else Conversation(name, check_messages(given, name))
        where = one.id if one.id == name else f"conversation {one.id!r}"
        messages = check_messages(one.messages, where)
        reads = windows(self.chat, messages, self.overflow, self.speakers, where)
        shape = list(self.directions), 2 if self.levers else 1
        rows = TokenRows(one, *shape, self.text) if self.tokens else TurnRows(one, *shape)
        return _Waiting(where, one, reads, rows)

    def _together(self, waiting: Sequence[_Waiting]) -> Iterator[pd.DataFrame]:
        order = sorted(range(len(waiting)), key=lambda i: len(waiting[i].window.ids))
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(waiting[order[count]].window.ids) <= _TOKENS_AT_ONCE:
                count += 1
            self._read([waiting[i] for i in order[:count]])
            order = order[count:]
        for one in waiting:
            yield self._taken(one)

    def _in_windows(self, one: _Waiting) -> Iterator[pd.DataFrame]:
        self._read([one])
        for window in one.reads:
            one.window = window
            self._read([one])
            if len(one.rows) >= _ROWS_AT_ONCE:
                yield self._taken(one)
        if len(one.rows):
            yield self._taken(one)

    def _taken(self, one: _Waiting) -> pd.DataFrame:
        frame = one.rows.take()
        return frame if self.tokens else add_percentiles(frame, self.axis)

    def _read(self, batch: Sequence[_Waiting]) -> None:
        """One pass over the current window of each conversation; in halves where memory does not suffice."""
        batch = [one for one in batch if one.window.messages]
        if not batch:
            return
        try:
            sequences = [one.window.ids for one in batch]
            found = token_projections(self.chat, self.directions, sequences, self.levers, self.allow)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._read(batch[: len(batch) // 2])
            self._read(batch[len(batch) // 2 :])
            return
        for row, one in enumerate(batch):
            for place, (start, end) in one.window.messages:
                own = [stream[:, row, start:end] for stream in found]
                self._check(own, one, place)
                ids = one.window.ids[start:end]
                if self.tokens and (new := sorted(set(ids) - self.text.keys())):
                    self.text.update(zip(new, self.chat.tokenizer.batch_decode([[i] for i in new]), strict=True))
                one.rows.add(one.said[place], ids, own)

    def _check(self, own: Sequence[Array], one: _Waiting, place: int) -> None:
        for stream in own:
            if len(bad := np.flatnonzero(~np.isfinite(stream).all(axis=1))):
                layer, said = list(self.directions)[bad[0]], one.said[place]
                raise DriftError(
                    f"{one.where}, turn {said.turn} ({said.speaker}): NaN or infinite activations at layer {layer}"
                )


@singledispatch
def token_projections(
    chat: ChatModel,
    directions: Mapping[int, Tensor],
    sequences: Sequence[Sequence[int]],
    levers: Sequence[Lever],
    allow: Collection[str],
) -> list[Array]:
    """<h, axis> of every token, [layers, batch, longest] each: after the levers, then, if any, before them.

    Dispatched on the kind of `chat`: a substrate reads otherwise.
    """
    after: dict[int, Tensor] = {}
    before: dict[int, Tensor] = {}

    def read_into(streams: dict[int, Tensor]) -> ExitStack:
        def project(layer: int, hidden: Tensor) -> None:
            streams[layer] = projected(hidden, directions[layer].to(hidden.device)).cpu()

        entered = ExitStack()
        entered.enter_context(reading(chat.model, directions, project, stack=chat.layers))
        return entered

    padded = chat.pad_right(sequences)
    with torch.inference_mode(), ExitStack() as held:
        if levers:  # hooks act in the order they are entered
            held.enter_context(read_into(before))
            held.enter_context(chat.under(levers, allow))
        held.enter_context(read_into(after))
        # The decoder without its head: logits of every token would need more memory than all the rest.
        chat.model.base_model(input_ids=padded.ids, attention_mask=padded.mask, use_cache=False)
    if missed := [layer for layer in directions if layer not in after]:
        raise DriftError(f"layers {missed} did not show their activations: is the model compiled?")
    streams = [after, before] if levers else [after]
    return [torch.stack([stream[layer] for layer in directions]).numpy() for stream in streams]
