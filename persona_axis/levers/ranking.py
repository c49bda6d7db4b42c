"""What a speaker would rather say: one true answer among lines that contradict, follow from, or ignore the persona.

Each context has a gold reply and candidates of three kinds. A speaker ranks all of them by their mean log-probability
a token (the paper ranks by perplexity); Hits@1, Contradict@1, Entail@1 and Rand@1 are the shares of contexts in which
the gold reply, or one of each kind, comes first, and add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from persona_axis._asked import require, require_each, require_messages, whole
from persona_axis.errors import ListenerError
from persona_axis.levers.hearing import continuations, log_s1, reply_ids
from persona_axis.levers.listener import Listener
from persona_axis.levers.worlds import encode_worlds, persona_worlds
from persona_axis.stats import intervals
from persona_axis.stats.intervals import Estimate

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel

KINDS = ("gold", "contradicting", "entailing", "random")


@dataclass(frozen=True)
class Context:
    """A persona, what was said so far (user first and last), and what could be said next, at least one of a kind.

    `distractors` are personas to tell this one from; where there are none, whoever ranks brings them. Raises
    `ListenerError` for a persona that says nothing, a conversation that does not end with the user, no gold reply,
    no other candidate, and one that is there twice.
    """

    persona: str
    said: tuple[Mapping[str, str], ...]
    candidates: Mapping[str, tuple[str, ...]]
    distractors: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        require("persona", self.persona, str)
        require("candidates", self.candidates, Mapping)
        for kind, given in self.candidates.items():
            require_each(f"candidates[{kind!r:.40}]", given, str, ListenerError)
        require_each("distractors", self.distractors, str, ListenerError)
        if self.said:
            require_messages(self.said)
        if not self.persona.strip():
            raise ListenerError("the persona is empty: without facts nothing can contradict it")
        if not self.said or self.said[-1]["role"] != "user":
            raise ListenerError("the context must end with what the user says")
        if unknown := sorted(set(self.candidates) - set(KINDS)):
            raise ListenerError(f"candidates of an unknown kind {unknown[0]!r}: the kinds are {', '.join(KINDS)}")
        if len(self.candidates.get("gold", ())) != 1:
            raise ListenerError(f"expected one gold candidate, got {len(self.candidates.get('gold', ()))}")
        if not any(self.candidates.get(kind) for kind in KINDS[1:]):
            raise ListenerError("zero candidates beside the gold one: there is nothing to rank")
        lines = [line for _, line in self.lines]
        if silent := [kind for kind, line in self.lines if not line.strip()]:
            raise ListenerError(f"a {silent[0]} candidate is empty")
        if twice := [line for line in lines if lines.count(line) > 1]:
            raise ListenerError(f"a candidate is given twice: {twice[0][:60]!r}")

    @property
    def lines(self) -> list[tuple[str, str]]:
        """(kind, candidate), the gold one first."""
        return [(kind, line) for kind in KINDS for line in self.candidates.get(kind, ())]

    @property
    def messages(self) -> list[Mapping[str, str]]:
        """The conversation with the persona as its system prompt."""
        return [{"role": "system", "content": self.persona}, *self.said]


class Place(NamedTuple):
    """In one context: the kind that came first, and the gold reply's log-probability (nats) and tokens."""

    first: str
    log_gold: float
    tokens: int


@dataclass(frozen=True)
class Ranking:
    """What one listener put first, a `Place` for each context."""

    listener: Listener
    places: tuple[Place, ...]

    def share(self, kind: str) -> Estimate:
        """Share of contexts in which `kind` came first, with a 95% bootstrap interval over contexts; Wilson's where it
        was all or none, which drawing again would call certain."""
        hits = self._hits(kind)
        if len(set(hits)) == 1:
            return intervals.wilson(int(sum(hits)), len(hits))
        return intervals.mean(hits)

    def rise(self, base: Ranking, kind: str = "gold") -> Estimate:
        """By how much `base`'s share rose, over the same contexts."""
        return intervals.paired_difference(base._hits(kind), self._hits(kind))

    def fall(self, base: Ranking, kind: str = "contradicting") -> Estimate:
        """By how much of itself `base`'s share fell, over the same contexts: .25 is a quarter less."""
        return intervals.relative_reduction(base._hits(kind), self._hits(kind))

    @property
    def perplexity(self) -> Estimate:
        """Of the gold replies, a token."""
        rows = np.array([[place.tokens, -place.log_gold] for place in self.places], dtype=np.float64)
        return intervals.bootstrap(rows, lambda s: np.exp(s[..., 1] / s[..., 0]))

    def _hits(self, kind: str) -> list[float]:
        return [float(place.first == kind) for place in self.places]


def rank(
    chat: ChatModel,
    contexts: Sequence[Context],
    listeners: Sequence[Listener],
    choose: Callable[[Context], Sequence[str]] | None = None,
    batch: int = 32,
    done: Callable[[int], None] = lambda _: None,
) -> list[Ranking]:
    """One ranking for each listener. alpha = 0 is the base model; all of them share the same forward passes.

    `choose` gives each context's distractors in place of its own. `batch` is how many candidates are read at once,
    `done` is told after each context how many are. Raises `ListenerError`, with the context's number, where one has no
    distractors, or what `encode_worlds` refuses.
    """
    from persona_axis.chat import ChatModel

    require("chat", chat, ChatModel)
    contexts = require_each("contexts", contexts, Context, ListenerError)
    listeners = require_each("listeners", listeners, Listener, ListenerError)
    whole("batch", batch, ListenerError, 1)
    if not contexts or not listeners:
        raise ListenerError("nothing to rank: give at least one context and one listener")
    found: list[list[Place]] = [[] for _ in listeners]
    for number, context in enumerate(contexts):
        try:
            places = _places(chat, context, listeners, choose(context) if choose else context.distractors, batch)
        except ListenerError as error:
            raise ListenerError(f"context {number}: {error}") from error
        for kept, place in zip(found, places, strict=True):
            kept.append(place)
        done(number + 1)
    return [Ranking(listener, tuple(kept)) for listener, kept in zip(listeners, found, strict=True)]


def _places(
    chat: ChatModel, context: Context, listeners: Sequence[Listener], distractors: Sequence[str], batch: int
) -> list[Place]:
    lines = context.lines
    said = [reply_ids(chat, context.messages, line) for _, line in lines]
    for i, ids in enumerate(said):
        if ids in said[:i]:
            pair = f"{lines[said.index(ids)][1]!r:.60} and {lines[i][1]!r:.60}"
            raise ListenerError(f"two candidates are the same tokens: {pair}")
    (prompts,) = encode_worlds(chat, [persona_worlds(context.messages, distractors)], room=max(map(len, said)))
    worlds = [continuations(chat, prompt, said, batch) for prompt in prompts]
    totals: list[list[float]] = [[] for _ in listeners]
    for ids, *each in zip(said, *worlds, strict=True):
        log_s0 = torch.stack(each, 1)
        for kept, listener in zip(totals, listeners, strict=True):
            kept.append(float(log_s1(listener, log_s0, ids).double().sum()))
    return [_place([kind for kind, _ in lines], kept, [len(ids) for ids in said]) for kept in totals]


def _place(kinds: Sequence[str], totals: Sequence[float], tokens: Sequence[int]) -> Place:
    """Which kind comes first, from each candidate's log-probability. The gold reply, which is candidate 0, has to be
    above all others: nothing is gained by a tie."""
    mean = [total / count for total, count in zip(totals, tokens, strict=True)]
    if any(map(math.isnan, mean)):
        raise ListenerError(f"a {kinds[list(map(math.isnan, mean)).index(True)]} candidate's probability is no number")
    best = max(range(len(mean)), key=lambda i: (mean[i], i > 0))
    return Place(kinds[best], totals[0], tokens[0])


def grid(alphas: Sequence[float], betas: Sequence[float]) -> list[Listener]:
    """Listeners for every pair, the base (alpha 0, for which beta is all one) first and once."""
    return [Listener(0.0), *(Listener(a, b) for b in betas for a in alphas if a > 0 and math.isfinite(a))]
