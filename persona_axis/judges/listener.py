"""The imaginary listener as a judge: a reply is in its role when the model itself can tell the role by it.

It needs nothing but the model. The reply is read after the question in several worlds: under the role's system
prompt, under none, and under those of a few other roles. What the model would have said in each of them gives the
posterior of each (see `persona_axis.levers.listener`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_axis.errors import JudgeError
from persona_axis.judges.base import Judged

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.levers.hearing import Heard
    from persona_axis.probes import Probes

OTHERS = 2
"""Other roles that a role is told from, beside the default."""


@dataclass(frozen=True, eq=False)
class ListenerJudge:
    """3: the posterior of the role is above `threshold`. 1: that of the default is the highest. 2: neither.
    None: an empty reply. It never gives 0: a refusal is for a listener what the Assistant says.

    `roles` are (name, system prompt) of the roles to tell from, one more than `others`, so that each role is told from
    as many others than itself. The threshold is chance among four worlds: above it the reply made the listener
    believe more in the role than before. `batch` is how many worlds are read at once.
    """

    chat: ChatModel
    roles: tuple[tuple[str, str], ...]
    others: int = OTHERS
    threshold: float = 0.25
    beta: float = 1.0
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
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
        bound = 1 / (others + 2) if threshold is None else threshold
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
        from persona_axis.levers.hearing import posterior
        from persona_axis.levers.listener import Listener
        from persona_axis.levers.worlds import persona_worlds

        worlds = [
            persona_worlds(
                [{"role": "system", "content": r.system}, {"role": "user", "content": r.question}],
                ["", *self.told_from(r.role).values()],
            )
            for r in rollouts
        ]
        return posterior(self.chat, worlds, [r.reply for r in rollouts], Listener(beta=self.beta), self.batch)

    def told_from(self, role: str) -> dict[str, str]:
        """The other roles that `role` is told from: system prompts by name."""
        return dict([(name, prompt) for name, prompt in self.roles if name != role][: self.others])

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        return [self._verdict(heard) for heard in self.hear(rollouts)] if rollouts else []

    def _verdict(self, heard: Heard) -> int | None:
        if not heard.ids:
            return None
        if heard.true > self.threshold:
            return 3
        return 1 if int(heard.log_posterior[-1].argmax()) == 1 else 2
