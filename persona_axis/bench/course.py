"""A bench on its way: lever after lever, suite after suite, each piece of work a kept unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from persona_axis.bench.dialogues import Dialogue, sha256
from persona_axis.bench.levers import NONE, Setup
from persona_axis.bench.measure import CAPABILITY, Measures
from persona_axis.bench.play import BATCH, Cost, Held, conversation, held
from persona_axis.bench.table import TEST
from persona_axis.errors import BenchError
from persona_axis.model.windows import context_limit

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.conversations import Conversation
    from persona_axis.levers.agents import Agent
    from persona_axis.levers.listener import Listener
    from persona_axis.sampling import Sampling
    from persona_axis.signals.table import Signal

_TEXTS = 48
"""Conversations that the bite of a cap is measured on, spread over all."""


@dataclass(frozen=True, eq=False)
class Course:
    """What all levers have in common, and what was held and measured so far, by lever."""

    measures: Measures
    dialogues: Sequence[Dialogue]
    sampling: Sampling
    seed: int
    progress: Callable[[str], None]
    notes: list[str]
    talks: dict[str, list[Conversation]] = field(default_factory=dict)
    signals: dict[str, dict[tuple[str, str], Signal]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self, one: Agent) -> None:
        """Hold every suite under the agent and measure it."""
        self.talks[one.name], self.signals[one.name] = [], {}
        costs = []
        for suite in dict.fromkeys(d.suite for d in self.dialogues):
            own = [d for d in self.dialogues if d.suite == suite]
            parts = self._held(one, own)
            costs += [part.cost for part in parts]
            messages = [m for part in parts for m in part.messages]
            turns = [n for part in parts for n in part.turns]
            said = [conversation(d, m) for d, m in zip(own, messages, strict=True) if m is not None]
            if len(said) < len(own):
                self._tell(one.name, own, turns, len(said))
                own = [d for d, m in zip(own, messages, strict=True) if m is not None]
            self.talks[one.name] += said
            for name in self.measures.names(own, said) if said else ():
                self.progress(f"{one.name}, {suite}: {name}")
                found = self.measures.of(name, one, own, said)
                if found.rows:
                    self.signals[one.name][suite, name] = found
        self.progress(f"{one.name}: {CAPABILITY}")
        if (scores := self.measures.capability(one)) is not None:
            self.signals[one.name][TEST, CAPABILITY] = scores
        seconds, forwards, tokens = (sum(column) for column in zip(*costs, strict=True))
        whole = max(1, tokens)
        self.costs[one.name] = {"seconds a token": seconds / whole, "forwards a token": forwards / whole}

    def setup(self, axis: Axis | None, cap: Cap | None, listener: Listener) -> Setup:
        """What levers are made from."""
        chat, units = self.measures.chat, self.measures.units
        of = sha256([[d.facts for d in self.dialogues], self._sampling, self.seed, self.measures.model])
        return Setup(chat, axis, cap, self.dialogues, listener, self.seed, self._texts, of, units)

    def _held(self, one: Agent, own: Sequence[Dialogue]) -> list[Held]:
        found = []
        for number, first in enumerate(range(0, len(own), BATCH)):
            batch, seed = own[first : first + BATCH], self.seed + 10_007 * number  # further apart than turns
            self.progress(f"{one.name}, {own[0].suite}: conversations {first + 1}-{first + len(batch)} of {len(own)}")
            facts = {"agent": [one.name, dict(one.facts)], "dialogues": [d.facts for d in batch], "seed": seed,
                     "sampling": self._sampling, "model": self.measures.model}  # fmt: skip
            hold = partial(held, self.measures.chat, one, batch, self.sampling, seed)
            messages, cost, turns = self.measures.units.get("talks", facts, hold)
            found.append(Held(messages, Cost(*cost), turns))
        return found

    def _tell(self, lever: str, own: Sequence[Dialogue], turns: Sequence[int], there: int) -> None:
        """What was not held, and how many turns could be. Raises `BenchError` where nothing is left to compare with."""
        long = {d.id: n for d, n in zip(own, turns, strict=True) if n < len(d.says)}
        few = min(long.values())
        more = f"hold {few} turns (--turns {few}), or allow shorter replies" if few else "hold shorter dialogues"
        limit = f"the {context_limit(self.measures.chat)} tokens that the model can read"
        if lever == NONE and not there:
            raise BenchError(
                f"lever {NONE!r}: each conversation of the suite {own[0].suite} grows longer, with "
                f"{self.sampling.max_new_tokens} for the reply, than {limit}: there is nothing to compare with; {more}"
            )
        self.notes.append(
            f"lever {lever!r}: {len(long)} of the {len(own)} conversations of the suite {own[0].suite} were not held, "
            f"because as they are told they grow longer than {limit}: {', '.join(long)}; its figures are those of the "
            f"others, and its differences from {NONE!r} are over what both held; to hold them all, {more}"
        )

    def _texts(self) -> list[list[int]]:
        """Token ids of conversations as they were held without a lever, which comes first."""
        talks = self.talks[NONE]
        few = talks[:: -(-len(talks) // _TEXTS)]
        return self.measures.chat.encode_batch([talk.messages for talk in few], generation_prompt=False)

    @cached_property
    def _sampling(self) -> dict[str, Any]:
        return self.sampling.describe(self.measures.chat.stop_ids, self.measures.chat.pad_id)
