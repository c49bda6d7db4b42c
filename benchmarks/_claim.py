"""One line of the replication table."""

from __future__ import annotations

from dataclasses import dataclass, field

from persona_axis.stats.intervals import Estimate


@dataclass(frozen=True)
class Claim:
    """One line of the table. `criterion` says when it holds; `holds` None: the figure is told, nothing is claimed."""

    claim: str
    published: str
    troupe: str
    criterion: str
    holds: bool | None
    figures: dict[str, object] = field(default_factory=dict)


def told(e: Estimate, scale: float = 1, digits: int = 2) -> str:
    value, low, high = (f"{scale * x:.{digits}f}" for x in e)
    return f"{value} ({low} to {high})"
