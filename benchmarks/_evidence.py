"""What the replication table rests on: every measurement it needs, each made once and kept while the table is made.

Held-out scripts throughout, and held-out wordings and personas (of requests that the other half knows in other words);
the axis comes from the probes and the cap from a calibration on the other half, so nothing here was tuned on what is
measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from pandas import DataFrame, concat

from persona_axis import Axis, Cap, ChatModel, PersonaAxisError
from persona_axis.calibration import settings as calibration
from persona_axis.calibration.measure import NO_CAP, Bench, Held, Replies
from persona_axis.calibration.units import Units
from persona_axis.capability import Scores, tasks_for
from persona_axis.controls import KINDS, MIXTURE
from persona_axis.conversations import Conversation, Script, Turn, load_jailbreaks, load_scripts
from persona_axis.levers import Levers
from persona_axis.organism.exam import SAMPLING, Marked, paper, sit
from persona_axis.organism.voices import archetypes, band
from persona_axis.outcomes import Asked, judge_for, outcomes
from persona_axis.simulate import Simulation, simulate
from persona_axis.space import PersonaSpace
from persona_axis.stats.intervals import Estimate, mean
from persona_axis.steer import add

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    plays: int = 3  # of every held-out script
    jailbreaks: int = 4  # draws of every held-out prompt
    items: int = 2000  # of the capability test
    asked: int = 300  # single questions a figure
    pairs: int = 6  # conversations of two turns for each of the held-out requests
    controls: int = 10  # draws of each kind
    steering_controls: int = 10
    draws: int = 1000  # of a bootstrap


QUICK = Effort(plays=1, jailbreaks=1, items=200, asked=60, pairs=1, controls=1, steering_controls=1, draws=200)
ALPHAS = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)  # times the mean norm of the stream


@dataclass(frozen=True, eq=False)
class Evidence:
    """The measurements, made when they are first asked for."""

    chat: ChatModel
    axis: Axis
    base_axis: Axis
    cap: Cap
    effort: Effort
    units: Units
    seed: int = 0

    @cached_property
    def bench(self) -> Bench:
        """What calibration measures with; its seed is another one, so its replies are drawn anew."""
        return Bench(
            self.chat, self.axis, self.layer, judge_for(self.chat), tasks_for(self.chat), load_jailbreaks(),
            load_scripts(), SAMPLING, calibration.Effort(), self.seed + 1, self.units,
        )  # fmt: skip

    @cached_property
    def setting(self) -> calibration.Setting:
        """The cap as calibration knows it. Raises `PersonaAxisError` where it is not a floor along this axis."""
        rows = [self.axis.row(layer) for layer in self.cap.layers]
        if self.cap.floor is None or not torch.equal(self.cap.direction, self.axis.direction[rows]):
            raise PersonaAxisError("the cap was not made from this axis: calibrate it again")
        return calibration.Setting(self.cap.layers, "floor", tuple(self.cap.floor.tolist()))

    @property
    def held(self) -> Held:
        """The cap, to be measured."""
        return self.bench.setting(self.setting)

    @property
    def layer(self) -> int:
        """Where drift is read: the layer that the axis file recommends."""
        return self.axis.recommended_layer

    @cached_property
    def far(self) -> list[str | None]:
        return [name for name, voice in archetypes().items() if band(voice.likeness) == "far"]

    def over_roles(self, figure: str, layer: int) -> Estimate:
        """A figure of persona space ("pc1", "cosine", "components") with a bootstrap over roles."""
        row, rng = self.axis.row(layer), np.random.default_rng(self.seed)
        roles, default = self.axis.array("roles")[:, row], self.axis.array("default")[row]

        def of(which: Array | slice) -> float:
            space = PersonaSpace.fit(roles[which], default)
            if figure == "pc1":
                return float(space.explained_variance_ratio[0])
            return abs(space.cosine_axis_pc1) if figure == "cosine" else float(space.n_components_for(0.7))

        draws = [of(rng.integers(0, len(roles), len(roles))) for _ in range(min(200, self.effort.draws))]
        return Estimate(of(slice(None)), *np.quantile(draws, [0.025, 0.975]).tolist())

    def base_cosine(self, layer: int) -> Estimate:
        """Cosine between the base checkpoint's axis and the chat model's, with a bootstrap over the roles of both."""
        names = sorted(set(self.axis.role_names) & set(self.base_axis.role_names))
        both = []
        for axis in (self.base_axis, self.axis):
            at = [axis.role_names.index(name) for name in names]
            row = axis.row(layer)
            both.append((axis.array("default")[row].astype(float), axis.array("roles")[at, row].astype(float)))
        rng = np.random.default_rng(self.seed)

        def of(which: Array | slice) -> float:
            a, b = (default - roles[which].mean(axis=0) for default, roles in both)
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        draws = [of(rng.integers(0, len(names), len(names))) for _ in range(self.effort.draws)]
        return Estimate(of(slice(None)), *np.quantile(draws, [0.025, 0.975]).tolist())

    def played(self, lever: Levers = None, domains: Sequence[str] | None = None) -> Simulation:
        """Every held-out script, several times."""
        scripts = load_scripts(domains=domains, split="held_out")
        found = [
            simulate(
                self.chat, scripts, lever, axis=self.axis, sampling=SAMPLING, seed=self.seed + 100_000 * k, batch=64
            )
            for k in range(self.effort.plays)
        ]
        frames = [f.frame.assign(conversation=f.frame["conversation"] + f"/{k}") for k, f in enumerate(found)]
        conversations = tuple(
            Conversation(f"{c.id}/{k}", c.messages, c.domain, c.split, c.kinds)
            for k, f in enumerate(found)
            for c in f.conversations
        )
        return Simulation(concat(frames, ignore_index=True), conversations, found[0].notes)

    @cached_property
    def uncapped(self) -> Simulation:
        return self.played()

    @cached_property
    def capped(self) -> Simulation:
        return self.played(self.cap)

    def voices(self, played: Simulation) -> DataFrame:
        """Whether each reply reads as the Assistant: conversation, script, domain, turn, assistant (nan: unjudged)."""
        rows, asked = [], []
        for conversation in played.conversations:
            replies = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
            for turn, at in enumerate(replies, 1):
                rows.append((conversation.id, script_of(conversation.id), conversation.domain, turn))
                asked.append(Asked(conversation.messages[:at], conversation.messages[at]["content"]))
        marks = outcomes(judge_for(self.chat), asked)
        frame = DataFrame(rows, columns=["conversation", "script", "domain", "turn"])
        return frame.assign(assistant=[float(m.assistant) if m else np.nan for m in marks])

    def jailbreaks(self, held: Held = NO_CAP, persona: bool = True, draws: int | None = None) -> Replies:
        """What became of each held-out persona-jailbreak, or of its request alone, under a lever."""
        return self.bench.replies(held, "held_out", range(draws or self.effort.jailbreaks), persona)

    def scores(self, held: Held = NO_CAP) -> Scores:
        return self.bench.scores(held, "held_out", self.effort.items)

    def controls(self) -> list[tuple[str, int, Held]]:
        """Kind, draw and edit along another direction, matched to the cap as in a calibration; and mixtures."""
        return [
            (kind, draw, self.bench.control(self.setting, kind, draw))
            for kind in (*KINDS, MIXTURE)
            for draw in range(self.effort.controls)
        ]

    def questions(self, roles: list[str | None], lever: Levers = None) -> list[Marked]:
        """Ordinary questions to these characters, held-out prompts and wordings."""
        items = paper(random.Random(f"replication-{self.seed}"), "question", roles, self.effort.asked, "held_out")
        if lever is None:
            return sit(self.chat, items, self.seed)
        return sit(self.chat, items, self.seed, lambda: self.chat.under(lever))

    def steered(self, direction: torch.Tensor, alpha: float, roles: list[str | None]) -> Estimate:
        """Share of replies that read as the Assistant under h + alpha * mean||h|| * direction at one layer."""
        size = alpha * float(self.axis.mean_norm[self.axis.row(self.layer)])
        lever = add(direction[None], [self.layer], size) if alpha else None
        marked = self.questions(roles, lever)
        # The same test for everybody, default or role: the Assistant's voice against nobody's in particular.
        read = [float(m.reading.reads_as_assistant()) for m in marked]
        return mean(read, [m.item.message.key for m in marked], draws=self.effort.draws, seed=self.seed)

    def two_turns(self) -> tuple[Array, Array, list[str]]:
        """Projections of first replies, compliance in second ones, roles: a question, then a held-out request."""
        rng = random.Random(f"two-turns-{self.seed}")
        names, requests = sorted(archetypes()), load_jailbreaks(split="held_out")
        asked = [requests[i % len(requests)] for i in range(self.effort.pairs * len(requests))]
        roles = [rng.choice(names) for _ in asked]
        items = [paper(rng, "question", [role], 1, "held_out")[0] for role in roles]
        scripts = [
            Script(
                f"pair-{i}", "coding", "held_out", role, (Turn("how-to", it.message.text), Turn("how-to", j.request))
            )
            for i, (role, it, j) in enumerate(zip(roles, items, asked, strict=True))
        ]
        systems = [it.chat[0]["content"] if it.chat[0]["role"] == "system" else "" for it in items]
        found = simulate(
            self.chat, scripts, axis=self.axis, layers=[self.layer], system=systems, sampling=SAMPLING, seed=self.seed,
            batch=128,
        )  # fmt: skip
        first = found.frame[found.frame["turn"] == 1]["projection"].to_numpy()
        shown = [
            Asked(c.messages[:-1], c.messages[-1]["content"], role, j.about)
            for c, role, j in zip(found.conversations, roles, asked, strict=True)
        ]
        marks = outcomes(judge_for(self.chat), shown)
        judged = [i for i, mark in enumerate(marks) if mark is not None and np.isfinite(first[i])]
        harm = np.array([float(mark.complied) for i in judged if (mark := marks[i]) is not None])
        return first[judged], harm, [roles[i] for i in judged]


def script_of(conversation: str) -> str:
    """The script that a conversation is a play of."""
    return conversation.rpartition("/")[0]
