"""The signals of the bench: those of `persona_axis.signals`, on what was said, and whether a request was refused.

All agents are read with one ruler: projection and relevance are those of the text read again by the model without any
lever. Under a cap a projection lies inside its bound by construction and would prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from persona_axis.bench.dialogues import LENGTHS, Dialogue, sha256
from persona_axis.calibration.settings import axis_sha256
from persona_axis.calibration.units import Units
from persona_axis.chat import ChatModel
from persona_axis.errors import BenchError
from persona_axis.judges.questions import SignalJudge
from persona_axis.outcomes import Asked, OutcomeJudge, outcomes
from persona_axis.signals import asked, measured
from persona_axis.signals.choosing import SIGNALS, Means, chosen, made, untold
from persona_axis.signals.lines import lines
from persona_axis.signals.table import DTYPES, Row, Signal, signal

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.capability import CapabilityTest
    from persona_axis.conversations import Conversation
    from persona_axis.levers.agents import Agent

REFUSED, CAPABILITY, FACTS = "refused", "capability", "fact_consistency"
AFTER = (1, *LENGTHS)
"""Turns after which facts are asked for."""
READ = range(1, 1 + max(LENGTHS), 3)
"""Turns whose relevance is read: each costs two readings of all before it."""


@dataclass(frozen=True, eq=False)
class Measures:
    """What the signals are made from, and which are wanted (None: all that can be had)."""

    chat: ChatModel
    axis: Axis | None
    layer: int | None
    judge: SignalJudge | None
    outcomes: OutcomeJudge | None
    test: CapabilityTest | None
    items: int
    wanted: Sequence[str] | None
    seed: int
    units: Units

    def names(self, dialogues: Sequence[Dialogue], talks: Sequence[Conversation]) -> list[str]:
        """The signals of these conversations: those wanted, as far as there is what they need."""
        found = chosen(None, self._means(dialogues, talks))
        if self.outcomes is not None and any(d.about for d in dialogues):
            found.append(REFUSED)
        return [name for name in found if self.wanted is None or name in self.wanted]

    def of(self, name: str, agent: Agent, dialogues: Sequence[Dialogue], talks: Sequence[Conversation]) -> Signal:
        """One signal of what was said, from its unit if it was measured before."""
        said = sha256([[c.id, c.messages] for c in talks])
        facts: dict[str, Any] = {"signal": name, "said": said, "model": self.model, "who": [d.facts for d in dialogues]}
        if name == FACTS:
            facts |= {"agent": [agent.name, dict(agent.facts)], "after": AFTER, "seed": self.seed}
        if name == "relevance":
            facts["after"] = list(READ)
        if name == "projection" and self.axis is not None:
            facts |= {"axis": axis_sha256(self.axis), "layer": self.layer}
        facts["judge"] = identity(self.outcomes if name == REFUSED else self.judge)
        return self._unit(name, facts, lambda: self._make(name, agent, dialogues, talks))

    def capability(self, agent: Agent) -> Signal | None:
        """The test's items under the agent; None without a test or where it is not wanted."""
        if self.test is None or (self.wanted is not None and CAPABILITY not in self.wanted):
            return None
        test = self.test
        facts = {"agent": [agent.name, dict(agent.facts)], "model": self.model, "seed": self.seed,
                 "test": dict(test.facts("held_out", range(self.items), self.seed))}  # fmt: skip

        def measure() -> Signal:
            return measured.capability(self.chat, test, self.items, lever=agent, seed=self.seed)

        return self._unit(CAPABILITY, facts, measure)

    def _make(self, name: str, agent: Agent, dialogues: Sequence[Dialogue], talks: Sequence[Conversation]) -> Signal:
        if name == REFUSED:
            assert self.outcomes is not None
            return refused(dialogues, talks, self.outcomes)
        if name == FACTS:
            assert self.judge is not None
            return asked.fact_consistency(
                self.chat, talks, self.judge, personas(dialogues), lever=agent, seed=self.seed, after=AFTER
            )
        if name == "relevance":
            return measured.relevance(self.chat, talks, after=READ)
        (found,) = made([name], self._means(dialogues, talks))
        return found

    def _means(self, dialogues: Sequence[Dialogue], talks: Sequence[Conversation]) -> Means:
        return Means(talks, personas(dialogues), self.judge, self.chat, self.axis, self.layer)

    def _unit(self, name: str, facts: Mapping[str, Any], measure: Callable[[], Signal]) -> Signal:
        def kept() -> dict[str, Any]:
            found = measure()
            rows = found.frame.astype(object).where(found.frame.notna(), None)
            about = [found.low, found.high, found.means, found.judge, found.yes_or_no]
            return {"rows": rows.to_numpy().tolist(), "about": about}

        value = self.units.get(f"signal-{name}", facts, kept)
        columns = list(zip(*value["rows"], strict=True)) or [()] * len(DTYPES)
        frame = pd.DataFrame({
            key: pd.Series(list(column), dtype=dtype)
            for (key, dtype), column in zip(DTYPES.items(), columns, strict=True)
        })  # fmt: skip
        return Signal(name, frame, *value["about"])

    @cached_property
    def model(self) -> dict[str, Any]:
        """The model under test, as JSON."""
        return as_it_is(self.chat)


def as_it_is(chat: ChatModel) -> dict[str, Any]:
    """A model as JSON, whatever it is called and wherever it was loaded from."""
    return {key: value for key, value in chat.facts.items() if key not in ("model", "revision")}


def identity(judge: SignalJudge | OutcomeJudge | None) -> list[Any]:
    """All that tells this judge from another, as JSON: its name; its facts where it states some (an endpoint); the
    model that it listens with."""
    heard = getattr(judge, "chat", None)
    with_model = as_it_is(heard) if isinstance(heard, ChatModel) else None
    return [getattr(judge, "name", ""), getattr(judge, "facts", None), with_model]


def left_out(wanted: Sequence[str] | None, *, judge: SignalJudge | None, **means: object) -> list[str]:
    """What a reader should know of signals that cannot be had for want of a judge who can tell, an axis or a test.

    Raises `BenchError` where one of them is `wanted`, and for a wanted name that is no signal's.
    """
    if unknown := [name for name in wanted or () if name not in (*SIGNALS, REFUSED)]:
        raise BenchError(f"no signal is called {unknown[0]!r}: there are {', '.join((*SIGNALS, REFUSED))}")
    needs = {name: needs for name, (needs, _) in SIGNALS.items()} | {CAPABILITY: ("test",)}
    notes = []
    if judge is not None and (silent := untold(judge)):
        if asked_for := [name for name in silent if name in (wanted or ())]:
            raise BenchError(f"judge {judge.name} cannot tell {asked_for[0]}: take another, or leave it out")
        if wanted is None:
            notes.append(f"judge {judge.name} cannot tell these signals, which are left out: {', '.join(silent)}")
    for mean in (mean for mean, there in {"judge": judge, **means}.items() if there is None):
        names, a = [name for name, of in needs.items() if mean in of], "an" if mean == "axis" else "a"
        if asked_for := [name for name in names if name in (wanted or ())]:
            raise BenchError(f"the signal {asked_for[0]} needs {a} {mean}: give one, or leave it out")
        if wanted is None:
            notes.append(f"without {a} {mean} these signals are left out: {', '.join(names)}")
    return notes


def personas(dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Who the agents are meant to be, by conversation; those that are nobody are left out."""
    return {d.id: d.persona for d in dialogues if d.persona}


def refused(dialogues: Sequence[Dialogue], talks: Sequence[Conversation], judge: OutcomeJudge) -> Signal:
    """A row a turn of the dialogues that ask for something forbidden: 1 if the reply refuses, else 0."""
    rows, shown = [], []
    for one, talk in zip(dialogues, talks, strict=True):
        for line in lines(talk) if one.about else ():
            role = one.persona.role if one.persona else None
            shown.append(Asked(talk.messages[: line.place], line.text, role, one.about))
            rows.append(Row(talk, line.turn, math.nan, about="the judge cannot tell"))
    found = outcomes(judge, shown)
    rows = [
        row if outcome is None else row._replace(value=float(outcome.refused), about=None)
        for row, outcome in zip(rows, found, strict=True)
    ]
    return signal(REFUSED, rows, "more forbidden requests are refused", judge=judge.name, yes_or_no=True)
