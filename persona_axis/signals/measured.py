"""Signals that are read in the model: where a turn lies on the axis, how much a reply owes to what it answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from persona_axis._asked import require
from persona_axis.axis import Axis
from persona_axis.capability import CapabilityTest
from persona_axis.chat import ChatModel
from persona_axis.conversations import Conversation
from persona_axis.drift import context_limit, trajectories
from persona_axis.model.layout import text_config
from persona_axis.signals.lines import Given, Line, lines, opened
from persona_axis.signals.table import Row, Signal, signal

if TYPE_CHECKING:
    from persona_axis.levers import Levers

_LOGITS_AT_ONCE = 1 << 28  # in one batch, padding included: they are most of its memory


def projection(
    chat: ChatModel, axis: Axis, conversations: Given, *, layer: int | None = None, lever: Levers = None
) -> Signal:
    """A row a turn: mean projection of the reply's tokens at `layer` (the recommended one), larger = more Assistant.

    In units of the residual stream, unbounded; a reply without tokens is not judged. Raises what `trajectory` raises.
    """
    require("chat", chat, ChatModel)
    require("axis", axis, Axis)
    at = axis.recommended_layer if layer is None else layer
    told = [one for one in opened(conversations) if lines(one)]
    rows = []
    for one, frame in zip(told, trajectories(chat, axis, told, layers=at, lever=lever), strict=True):
        for turn, value, tokens in zip(frame["turn"], frame["projection"], frame["tokens"], strict=True):
            rows.append(Row(one, int(turn), float(value), tokens=int(tokens)))
    return signal("projection", rows, f"more Assistant (layer {at})", -math.inf, math.inf)


def relevance(
    chat: ChatModel, conversations: Given, *, lever: Levers = None, after: Collection[int] | None = None
) -> Signal:
    """A row a turn: nats a token that the user's message adds to the reply's likelihood.

    (log p(reply | history) - log p(reply | history, the message emptied)) / tokens: the pointwise mutual information
    of message and reply under the model, by token, unbounded. The user's turn stays and says nothing, because many
    templates refuse a history in which nobody spoke. In bfloat16 a row is as exact as the model's logits: read in
    another batch it moves by hundredths at most (Troupe: standard deviation .003, .03 the most), in float32 by 1e-6.
    `after` names the turns to read (all of them). Not judged: a reply without tokens, a line nobody asked for, a
    conversation longer than the model's context. Raises `ModelError` and what the levers raise.
    """
    require("chat", chat, ChatModel)
    told = [(one, line) for one in opened(conversations) for line in lines(one) if after is None or line.turn in after]
    texts = [_both(one, line) if line.message else None for one, line in told]
    encoded = [None if both is None else [chat.encode_turns(messages) for messages in both] for both in texts]
    limit = context_limit(chat)
    rows: list[Row] = []
    fit: list[tuple[int, list[int], tuple[int, int]]] = []
    for at, pair in enumerate(encoded):
        why = _unfit(pair, limit)
        one, line = told[at]
        tokens = None if pair is None else pair[0][1][-1][1] - pair[0][1][-1][0]
        rows.append(Row(one, line.turn, math.nan, tokens=tokens, about=why))
        if pair is not None and why is None:
            fit += [(at, ids, ranges[-1]) for ids, ranges in pair]
    with chat.under(lever):
        found = _log_likelihoods(chat, [(ids, own) for _, ids, own in fit])
    for place in range(0, len(fit), 2):
        at = fit[place][0]
        tokens = rows[at].tokens or 1
        rows[at] = rows[at]._replace(value=(found[place] - found[place + 1]) / tokens)
    return signal("relevance", rows, "the reply owes more to the user's message", -math.inf, math.inf)


def capability(
    chat: ChatModel, test: CapabilityTest, items: int = 100, *, lever: Levers = None, split: str = "held_out",
    seed: int = 0,
) -> Signal:  # fmt: skip
    """A row an item of a capability test, in [0, 1], as if each item were a conversation of one turn; the domain is
    the part of the test. Raises what the test raises."""
    require("chat", chat, ChatModel)
    require("test", test, CapabilityTest)
    scores = test.scores(chat, lever, split, range(items), seed)
    rows = [
        Row(Conversation(f"item {i}", (), part, split), 1, value)
        for i, (value, part) in enumerate(zip(scores.values, scores.parts, strict=True))
    ]
    right_or_wrong = set(scores.values) <= {0.0, 1.0}
    return signal("capability", rows, "more items are right", judge=test.name, yes_or_no=right_or_wrong)


def _both(one: Conversation, line: Line) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The conversation up to this line, and the same with the message before it emptied."""
    whole = list(one.messages[: line.place + 1])
    asked = max(i for i in range(line.place) if whole[i]["role"] == "user")
    return whole, [*whole[:asked], {"role": "user", "content": ""}, *whole[asked + 1 :]]


Turns = tuple[list[int], list[tuple[int, int]]]


def _unfit(pair: Sequence[Turns] | None, limit: int | None) -> str | None:
    if pair is None:
        return "no message of the user before it"
    with_message, without = (ids[slice(*ranges[-1])] for ids, ranges in pair)
    if not with_message:
        return "the reply has no tokens"
    if with_message != without:
        return "the template writes the reply otherwise after an empty message"
    if limit is not None and len(pair[0][0]) > limit:
        return f"longer than the {limit} tokens that the model can read"
    return None


def _log_likelihoods(chat: ChatModel, sequences: Sequence[tuple[list[int], tuple[int, int]]]) -> list[float]:
    """Of the tokens in each range given all before them, in nats, summed in float64."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    found = [0.0] * len(sequences)
    most = _LOGITS_AT_ONCE // text_config(chat.model).vocab_size
    while order:
        count = 1
        while count < len(order) and (count + 1) * len(sequences[order[count]][0]) <= most:
            count += 1
        batch, order = order[:count], order[count:]
        padded = chat.pad_right([sequences[i][0] for i in batch])
        with torch.inference_mode():
            logits = chat.model(input_ids=padded.ids, attention_mask=padded.mask, use_cache=False).logits
        for row, i in enumerate(batch):
            ids, (start, end) = sequences[i]
            own = torch.tensor(ids[start:end], device=logits.device)
            scores = logits[row, start - 1 : end - 1].double().log_softmax(-1)
            found[i] = float(scores.gather(1, own[:, None]).sum())
    return found
