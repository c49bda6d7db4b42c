"""The imaginary listener as a judge: a reply is in its role when the model itself can tell the role by it.

It needs nothing but the model. The reply is read after the question in several worlds: under the role's system
prompt, under none, and under those of a few other roles. What the model would have said in each of them gives the
posterior of each (see `persona_axis.levers.listener`). A signal's question whether a line fits a persona is the same
one; of facts, contradictions and answers it knows nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from persona_axis._asked import require, whole
from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.judges.base import Judged
from persona_axis.judges.questions import Fits, Question, cannot
from persona_axis.probes import Probes

if TYPE_CHECKING:
    from persona_axis.levers.hearing import Heard
    from persona_axis.levers.worlds import Worlds

OTHERS = 2
"""Other roles that a role is told from, beside the default."""


class _Asked(NamedTuple):
    """Does the line, said to the message, tell whoever the system prompt describes? `role` is the name, if known."""

    role: str | None
    system: str
    message: str
    line: str


@dataclass(frozen=True, eq=False)
class ListenerJudge:
    """3: the posterior of the role is above `threshold`. 1: that of the default is the highest. 2: neither.
    None: an empty reply, one longer than the model can read, and a role that no system prompt states. It never gives 0:
    a refusal is for a listener what the Assistant says.

    Of signals' questions it answers `Fits`: the chance is the posterior with prior odds that put `threshold` at 1/2, so
    that a line fits where a rollout would be in its role.

    `roles` are (name, system prompt) of the roles to tell from, one more than `others`, so that each role is told from
    as many others than itself. The threshold is chance among four worlds: above it the reply made the listener
    believe more in the role than before. `batch` is how many worlds are read at once.
    """

    kinds: ClassVar[tuple[type, ...]] = (Fits,)

    chat: ChatModel
    roles: tuple[tuple[str, str], ...]
    others: int = OTHERS
    threshold: float = 0.25
    beta: float = 1.0
    batch: int = 64

    def __post_init__(self) -> None:
        require("chat", self.chat, ChatModel)
        whole("others", self.others, JudgeError)
        whole("batch", self.batch, JudgeError, 1)
        if not isinstance(self.threshold, (int, float)) or not 0 < self.threshold < 1:
            raise JudgeError(f"threshold must lie between 0 and 1, got {self.threshold!r}")
        if len(self.roles) <= self.others or self.others < 0:
            raise JudgeError(
                f"a listener that tells each role from {self.others} others needs {max(self.others, 0) + 1} roles to "
                f"choose from, there are {len(self.roles)}"
            )

    @classmethod
    def of(cls, chat: ChatModel, probes: Probes, others: int = OTHERS, threshold: float | None = None) -> ListenerJudge:
        """One that tells from roles spread over the probes' list, which goes from near to far.

        Without a `threshold` it is chance, 1 of all worlds.
        """
        require("probes", probes, Probes)
        bound = 1 / (whole("others", others, JudgeError, 0) + 2) if threshold is None else threshold
        count, there = others + 1, len(probes.roles)
        spread = dict.fromkeys((2 * i + 1) * there // (2 * count) for i in range(count))
        return cls(chat, tuple((probes.roles[i].name, probes.roles[i].prompts[0]) for i in spread), others, bound)

    @property
    def name(self) -> str:
        """With all that a verdict depends on beside the model."""
        told = hashlib.sha256(repr(self.roles).encode()).hexdigest()[:8]
        return f"listener(others={self.others}, roles={told}, threshold={self.threshold:g}, beta={self.beta:g})"

    def hear(self, rollouts: Sequence[Judged]) -> list[Heard]:
        """What the listener makes of each reply: world 0 is the role, 1 the default, then the others."""
        asked = [_Asked(r.role, r.system, r.question, r.reply) for r in rollouts]
        return self._heard([self._worlds(one) for one in asked], asked)

    def told_from(self, role: str) -> dict[str, str]:
        """The other roles that `role` is told from: system prompts by name."""
        return dict([(name, prompt) for name, prompt in self.roles if name != role][: self.others])

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        asked = [_Asked(r.role, r.system, r.question, r.reply) for r in rollouts]
        heard = self._where_it_can(asked)
        return [
            None if found is None or not one.system.strip() else self._verdict(found)
            for one, found in zip(asked, heard, strict=True)
        ]

    def answer(self, questions: Sequence[Question]) -> list[float | None]:
        """Verdicts as `SignalJudge` says."""
        asked = []
        for question in questions:
            if not isinstance(question, Fits):
                raise cannot(self, type(question))
            asked.append(_Asked(question.persona.role, question.persona.text, question.message, question.line))
        return [None if found is None else self._chance(found) for found in self._where_it_can(asked)]

    def _worlds(self, asked: _Asked) -> Worlds:
        """It is told from nobody in particular and from `others` roles, or where it is nobody from one role more.

        A role of its own name comes last, for it would be told from itself.
        """
        from persona_axis.levers.worlds import persona_worlds, same_persona

        roles = [prompt for _, prompt in sorted(self.roles, key=lambda role: role[0] == asked.role)]
        others = [text for text in ("", *roles) if not same_persona(text, asked.system)]
        told = [{"role": "system", "content": asked.system}] if asked.system.strip() else []
        return persona_worlds([*told, {"role": "user", "content": asked.message}], others[: self.others + 1])

    def _where_it_can(self, asked: Sequence[_Asked]) -> list[Heard | None]:
        worlds = [self._worlds(one) for one in asked]
        able = [i for i, one in enumerate(asked) if one.line.strip() and self._fits_in(worlds[i], one.line)]
        found: list[Heard | None] = [None] * len(asked)
        if able:
            for i, heard in zip(able, self._heard([worlds[i] for i in able], [asked[i] for i in able]), strict=True):
                found[i] = heard
        return found

    def _fits_in(self, worlds: Worlds, line: str) -> bool:
        from persona_axis.levers.hearing import reply_ids
        from persona_axis.model.windows import context_limit

        limit = context_limit(self.chat)
        if limit is None:
            return True
        return max(map(len, self.chat.encode_batch(worlds))) + len(reply_ids(self.chat, worlds[0], line)) <= limit

    def _heard(self, worlds: Sequence[Worlds], asked: Sequence[_Asked]) -> list[Heard]:
        from persona_axis.levers.hearing import posterior
        from persona_axis.levers.listener import Listener

        return posterior(self.chat, worlds, [one.line for one in asked], Listener(beta=self.beta), self.batch)

    def _verdict(self, heard: Heard) -> int | None:
        if not heard.ids:
            return None
        if heard.true > self.threshold:
            return 3
        return 1 if int(heard.log_posterior[-1].argmax()) == 1 else 2

    def _chance(self, heard: Heard) -> float:
        odds = heard.log_odds - math.log(self.threshold / (1 - self.threshold))
        return 1 / (1 + math.exp(-max(odds, -700.0)))  # exp(700) is the largest that a float holds
