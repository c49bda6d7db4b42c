"""What a calibration says about itself while it runs. Whoever shows it (a terminal, a notebook) renders it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from persona_axis.extraction.events import Note, Saved

__all__ = ["Event", "Listener", "Note", "Planned", "Saved", "Stage", "silent"]


@dataclass(frozen=True)
class Planned:
    """Before anything is measured: settings to try, and the most replies that this takes. Raising here calls it off."""

    settings: int
    replies: int
    run_dir: str


@dataclass(frozen=True)
class Stage:
    """After each step of a stage: how many of its steps are done, and what the last one showed."""

    stage: str
    done: int
    of: int
    what: str


Event = Planned | Stage | Note | Saved
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that listens to nothing."""
