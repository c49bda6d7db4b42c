"""What an extraction says about itself while it runs. Whoever shows it (a terminal, a notebook) renders
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """Before anything is generated. An exception raised by the listener here calls the run off.

    `rollouts` are those of the whole plan, drawn only as far as the `precision` needs them (1: all of them),
    `first_round` of them before anything is decided. `tokens` is the most that can be generated; `seconds` an upper
    estimate from a timed trial, calibration included, and `round_seconds` the same for the round that comes now, or
    for all where none is decided on; None where nothing was tried out, for an engine that runs elsewhere. `done`
    rollouts were there already and are kept. `given`: replies exist already and are read only.
    """

    roles: int
    prompts: int
    questions: int
    rollouts: int
    default_rollouts: int
    tokens: int
    seconds: float | None
    batch_size: int
    done: int
    run_dir: str
    precision: float
    first_round: int
    round_seconds: float | None
    given: bool = False


@dataclass(frozen=True)
class Note:
    """One sentence that a reader of the results should know."""

    text: str


@dataclass(frozen=True)
class Progress:
    """After each batch: rollouts finished of those that this round goes up to, which round it is (from 1), the speed,
    and what is left of the round at that speed."""

    rollouts: int
    of_rollouts: int
    round: int
    rollouts_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Rounded:
    """After each round (from 1): rollouts so far, and the axis' expected cosine with the noise-free one at the least
    certain of the chosen layers, with the lower end of its 95% interval. `more` are drawn next, 0 for none."""

    round: int
    rollouts: int
    expected: float
    low: float
    more: int


@dataclass(frozen=True)
class Calibrating:
    """During the calibration pass: rollouts read so far."""

    rollouts: int
    of_rollouts: int


@dataclass(frozen=True)
class Saved:
    """The axis file is complete on disk."""

    path: str


Event = Planned | Note | Progress | Rounded | Calibrating | Saved
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that listens to nothing."""
