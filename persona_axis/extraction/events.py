"""What an extraction says about itself while it runs. Whoever shows it (a terminal, a notebook) renders
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """Before anything is generated. An exception raised by the listener here calls the run off.

    `tokens` is the most that can be generated, `seconds` an upper estimate from a timed trial, calibration
    included; `done` rollouts were there already and are kept. `given`: replies exist already and are read only.
    """

    roles: int
    prompts: int
    questions: int
    rollouts: int
    default_rollouts: int
    tokens: int
    seconds: float
    batch_size: int
    done: int
    run_dir: str
    given: bool = False


@dataclass(frozen=True)
class Note:
    """One sentence that a reader of the results should know."""

    text: str


@dataclass(frozen=True)
class Progress:
    """After each batch: rollouts and roles finished, the speed, and what is left at that speed."""

    rollouts: int
    of_rollouts: int
    roles: int
    of_roles: int
    rollouts_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Calibrating:
    """During the calibration pass: rollouts read so far."""

    rollouts: int
    of_rollouts: int


@dataclass(frozen=True)
class Saved:
    """The axis file is complete on disk."""

    path: str


Event = Planned | Note | Progress | Calibrating | Saved
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that listens to nothing."""
