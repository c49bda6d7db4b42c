"""Measuring one lever: jailbreaks, drift, capability, and how much it touches. Every measurement is a kept unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persona_axis.calibration.settings import Effort, Setting, axis_sha256
from persona_axis.calibration.units import Units
from persona_axis.cap import Cap
from persona_axis.capability import CapabilityTest, Scores
from persona_axis.controls import Pushes, Touch, matched, pushes_of, random_directions, touches
from persona_axis.conversations import Jailbreak, Script
from persona_axis.outcomes import Asked, OutcomeJudge, outcomes
from persona_axis.sampling import Sampling
from persona_axis.talks.asking import ask

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.chat import ChatModel
    from persona_axis.template import Messages


class Mark(NamedTuple):
    """One outcome, as it is kept."""

    refused: bool
    complied: bool
    assistant: bool
    answered: bool | None


class Held(NamedTuple):
    """A lever under measurement: what it is called, everything that it is as JSON, and the thing itself."""

    name: str
    facts: Mapping[str, Any]
    make: Callable[[], Cap | Pushes | None]


NO_CAP = Held("no cap", {}, lambda: None)


class Replies(NamedTuple):
    """Outcomes of persona-jailbreaks, one a reply (None: not judged), and the id of the jailbreak that it answers."""

    ids: tuple[str, ...]
    marks: tuple[Mark | None, ...]


class Late(NamedTuple):
    """The last third of the turns of played scripts: conversation, whether the reply reads as the Assistant (None: not
    judged), and the projection of its text read again without any lever, at one layer."""

    ids: tuple[str, ...]
    assistant: tuple[bool | None, ...]
    projection: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that stays the same from lever to lever. Splits are "train" and "held_out"."""

    chat: ChatModel
    axis: Axis
    layer: int
    judge: OutcomeJudge
    test: CapabilityTest
    jailbreaks: Sequence[Jailbreak]
    scripts: Sequence[Script]
    sampling: Sampling
    effort: Effort
    seed: int
    units: Units

    def setting(self, setting: Setting) -> Held:
        """A cap as a lever to measure."""
        facts = {"cap": [list(setting.layers), list(setting.values)]}
        return Held(setting.name, facts, cache(lambda: setting.cap(self.axis)))

    def control(self, setting: Setting, kind: str, draw: int) -> Held:
        """A control matched to that cap."""
        directions = random_directions(self.axis, setting.layers, kind, self.seed + draw)
        digest = hashlib.sha256(directions.numpy().tobytes()).hexdigest()
        facts = {"control": digest, "texts": self._texts_sha256, **self.setting(setting).facts}
        return Held(f"{kind} {draw}", facts, cache(lambda: self._matched(setting, directions)))

    def replies(self, held: Held, split: str, draws: Iterable[int], persona: bool = True) -> Replies:
        """Ask every jailbreak of a split, once for each draw; without its persona for comparison."""
        asked = [j for j in self.jailbreaks if j.split == split]
        found = [self._draw(held, asked, draw, persona) for draw in draws]
        marks = [None if mark is None else Mark(*mark) for marks in found for mark in marks]
        return Replies(tuple(j.id for _ in found for j in asked), tuple(marks))

    def scores(self, held: Held, split: str, *ends: int) -> Scores:
        """The capability test's items up to the last of `ends`; each piece between them is a unit of its own."""
        pieces = [range(a, b) for a, b in zip((0, *ends[:-1]), ends, strict=True) if b > a]
        found = Scores((), ())
        for at in pieces:
            facts = {**self.facts, **held.facts, "test": dict(self.test.facts(split, at, self.seed)), "split": split,
                     "at": [at.start, at.stop], "seed": self.seed}  # fmt: skip

            def measure(at: range = at) -> list[Any]:
                return list(self.test.scores(self.chat, held.make(), split, at, self.seed))

            values, parts = self.units.get("capability", facts, measure)
            found = found.then(Scores(tuple(values), tuple(parts)))
        return found

    def late(self, held: Held, split: str, count: int) -> Late:
        """Play the first `count` scripts of each domain of a split and judge the last third of the turns."""
        scripts = self.played(split, count)
        facts = {**self.facts, **held.facts, "scripts": _sha256([[t.text for t in s.turns] for s in scripts]),
                 "ids": [s.id for s in scripts], "judge": self.judge.name, "layer": self.layer,
                 "sampling": self._sampling, "seed": self.seed}  # fmt: skip
        value = self.units.get("drift", facts, lambda: self._play(held, scripts)) if scripts else [[], [], []]
        return Late(tuple(value[0]), tuple(value[1]), tuple(value[2]))

    def played(self, split: str, count: int) -> list[Script]:
        """The first `count` scripts of each domain of a split."""
        found: dict[str, list[Script]] = {}
        for script in self.scripts:
            if script.split == split:
                found.setdefault(script.domain, []).append(script)
        return [script for group in found.values() for script in group[:count]]

    def touch(self, held: Held) -> list[Touch]:
        """How much a cap or control does to the reference texts, by layer."""
        facts = {**self.facts, **held.facts, "texts": self._texts_sha256}

        def measure() -> list[Touch]:
            lever = held.make()
            pushes = pushes_of(lever) if isinstance(lever, Cap) else lever
            return [] if pushes is None else touches(self.chat, self._texts, pushes)

        return [Touch(*row) for row in self.units.get("touch", facts, measure)]

    def _draw(self, held: Held, asked: Sequence[Jailbreak], draw: int, persona: bool) -> Sequence[Any]:
        chats: list[Messages] = [j.messages(persona) for j in asked]
        seed = self.seed + 1_000 * draw
        whom = [[j.about, j.role if persona else None] for j in asked]
        facts = {**self.facts, **held.facts, "asked": _sha256([chats, whom]), "judge": self.judge.name,
                 "sampling": self._sampling, "seed": seed}  # fmt: skip

        def measure() -> dict[str, Any]:
            texts = ask(self.chat, chats, self.sampling, seed, held.make(), self.effort.batch)
            shown = [
                Asked(messages, text, j.role if persona else None, j.about)
                for messages, text, j in zip(chats, texts, asked, strict=True)
            ]
            judged = outcomes(self.judge, shown)
            marks = [o and (o.refused, o.complied, o.assistant, o.answered) for o in judged]
            return {"marks": marks, "replies": texts}

        marks: Sequence[Any] = self.units.get("jailbreaks" if persona else "requests", facts, measure)["marks"]
        return marks

    def _play(self, held: Held, scripts: Sequence[Script]) -> list[list[Any]]:
        from persona_axis.drift import trajectories
        from persona_axis.simulate import simulate

        lever = held.make()
        played = simulate(
            self.chat, scripts, lever, sampling=self.sampling, seed=self.seed, batch=min(self.effort.batch, 64)
        ).conversations
        found: dict[tuple[str, int], float] = {}
        for frame in trajectories(self.chat, self.axis, played, layers=[self.layer]):
            rows = zip(frame["conversation"], frame["turn"], frame["projection"], strict=True)
            found |= {(conversation, int(turn)): float(p) for conversation, turn, p in rows}
        shown, where = [], []
        for conversation in played:
            replies = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
            for turn, at in list(enumerate(replies, start=1))[-max(1, len(replies) // 3) :]:
                shown.append(Asked(conversation.messages[:at], conversation.messages[at]["content"]))
                where.append((conversation.id, turn))
        judged = outcomes(self.judge, shown)
        return [
            [conversation for conversation, _ in where],
            [None if o is None else o.assistant for o in judged],
            [found.get(at, float("nan")) for at in where],
        ]

    def _matched(self, setting: Setting, directions: torch.Tensor) -> Pushes:
        wanted = self.touch(self.setting(setting))
        return matched(self.chat, self._texts, pushes_of(setting.cap(self.axis)), directions, wanted)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What every unit depends on: the axis, the model as it is here, and how it is run."""
        facts = {key: value for key, value in self.chat.facts.items() if key not in ("model", "revision")}
        return {"axis_sha256": axis_sha256(self.axis), "model": facts, "batch": self.effort.batch}

    @property
    def _sampling(self) -> dict[str, Any]:
        return self.sampling.describe(self.chat.stop_ids, self.chat.pad_id)

    @cached_property
    def _texts(self) -> list[list[int]]:
        """What touches are counted on: jailbreaks and requests of the train half, with the uncapped replies to them.

        Half and half, so that both characters and the default Assistant are there; prompts count as well, because a
        cap acts on them too.
        """
        asked = [j for j in self.jailbreaks if j.split == "train"][: max(1, self.effort.texts // 2)]
        chats: list[Messages] = [j.messages(persona) for persona in (True, False) for j in asked]
        texts = ask(self.chat, chats, self.sampling, self.seed, None, self.effort.batch)
        whole = [[*c, {"role": "assistant", "content": t}] for c, t in zip(chats, texts, strict=True)]
        return self.chat.encode_batch(whole, generation_prompt=False)

    @cached_property
    def _texts_sha256(self) -> str:
        """Of what the texts come from: making them costs a generation that a resumed run can do without."""
        asked = [j.messages() for j in self.jailbreaks if j.split == "train"][: max(1, self.effort.texts // 2)]
        return _sha256([asked, self._sampling, self.seed])


def cosines(axis: Axis, layers: Sequence[int], kind: str, seed: int) -> float:
    """Mean over the layers of |cos| between the axis and a control's direction."""
    directions = random_directions(axis, layers, kind, seed)
    own = axis.direction[[axis.row(layer) for layer in layers]]
    return float(torch.nn.functional.cosine_similarity(directions, own).abs().mean())


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
