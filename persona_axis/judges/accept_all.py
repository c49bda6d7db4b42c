"""The judge that accepts everything: role vectors are then means over all of a role's rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_axis.judges.base import Judged


@dataclass(frozen=True)
class AcceptAll:
    """Scores every rollout 3."""

    name: str = "all"

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        return [3] * len(rollouts)
