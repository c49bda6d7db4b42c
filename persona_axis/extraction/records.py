"""What a run has decided, on record before it acts on it: its plan, its rounds, batches that memory forced into parts.

    plan.json        settings, batch size found; written once
    rounds.json      how far each role is drawn in each round
    splits.json      which batches are drawn in parts, and how large
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from persona_axis.errors import ExtractionError
from persona_axis.extraction.disk import damaged, read_json, write_atomically

_PLAN = {"settings", "batch_size", "trial", "surroundings"}


class Recorded(NamedTuple):
    """A round on record: how far each order is drawn at its end, the default's first, and what it reached; None before
    it is finished."""

    stop: tuple[int, ...]
    expected: float | None = None
    low: float | None = None


class Records:
    """Those of the run in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_plan(self) -> dict[str, Any] | None:
        """What `write_plan` wrote, or None in a new directory."""
        path = self.path / "plan.json"
        if not path.exists():
            return None
        plan = read_json(path, path.read_bytes(), self.path)
        if not isinstance(plan, dict) or not set(plan) >= _PLAN:
            raise damaged(path, f"a plan is an object with {', '.join(sorted(_PLAN))}", self.path)
        return plan

    def engine(self) -> str:
        """Who draws this run's rollouts, as its plan says. Raises `ExtractionError` where there is none yet."""
        plan = self.read_plan()
        if plan is None:
            raise ExtractionError(f"{self.path} has no plan yet: nothing was drawn in it")
        return str(plan["settings"]["engine"])

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        write_atomically(self.path / "plan.json", json.dumps(plan, indent=1).encode())

    def read_rounds(self, roles: int) -> list[Recorded]:
        """The rounds of a plan with so many roles."""
        path = self.path / "rounds.json"
        rounds = read_json(path, path.read_bytes(), self.path) if path.exists() else []
        if not isinstance(rounds, list) or not all(_is_round(part, 1 + roles) for part in rounds):
            raise damaged(path, f"expected rounds, each with the places of {roles} roles to stop at", self.path)
        found = [Recorded(tuple(part["stop"]), part["expected"], part["low"]) for part in rounds]
        for first, second in zip(found, found[1:], strict=False):
            if any(a > b for a, b in zip(first.stop, second.stop, strict=True)):
                raise damaged(path, "a round stops before the one before it", self.path)
        return found

    def write_rounds(self, rounds: Iterable[Recorded]) -> None:
        content = json.dumps([part._asdict() for part in rounds]).encode()
        write_atomically(self.path / "rounds.json", content)

    def read_splits(self) -> list[tuple[int, int, int, int]]:
        """(round, block, batch, most rollouts at once) in the order they were recorded; each holds for all that
        follows it."""
        path = self.path / "splits.json"
        splits = read_json(path, path.read_bytes(), self.path) if path.exists() else []
        if not isinstance(splits, list) or not all(_is_split(split) for split in splits):
            raise damaged(path, "expected a list of [round, block, batch, most rollouts at once]", self.path)
        return [(part, block, batch, most) for part, block, batch, most in splits]

    def write_splits(self, splits: Iterable[tuple[int, int, int, int]]) -> None:
        write_atomically(self.path / "splits.json", json.dumps(list(splits)).encode())


def _is_round(part: Any, orders: int) -> bool:
    if not isinstance(part, dict) or part.keys() != set(Recorded._fields):
        return False
    stop, reached = part["stop"], (part["expected"], part["low"])
    plain = isinstance(stop, list) and all(type(n) is int and 0 <= n < 2**40 for n in stop)
    return plain and len(stop) == orders and all(n is None or (type(n) is float and 0 <= n <= 1) for n in reached)


def _is_split(split: Any) -> bool:
    return (
        isinstance(split, list)
        and len(split) == 4
        and all(type(number) is int for number in split)
        and min(split) >= 0
        and split[3] > 0
    )
