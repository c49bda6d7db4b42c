"""Shows an extraction while it runs: a live bar in a terminal, a line now and then in a pipe or a log."""

from __future__ import annotations

import sys
import time
import warnings
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from persona_axis.extraction.events import Calibrating, Event, Note, Planned, Rounded, Saved
from persona_axis.extraction.events import Progress as Drawn

LONG_SECONDS = 600.0
_LINE_EVERY = 15.0


class Display:
    """A listener for `extract`. Asks before a long run if somebody is there to answer and `ask` is set.

    `preset` says which plan the options given were changes to, `roles` what is asked for in their place.
    """

    def __init__(self, console: Console, *, ask: bool, preset: str, roles: str = "roles") -> None:
        self.console = console
        self.preset, self.roles = preset, roles
        self.ask = ask and console.is_terminal and sys.stdin.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), console=console,
            transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("probing", total=None, what="")
        self._said = time.monotonic()
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> Display:
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", "the chat template has no system role")  # comes as a Note as well
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._warnings.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        match event:
            case Planned():
                self._plan(event)
            case Note(text):
                self.console.print(f"note: {text}", markup=False, highlight=False)
            case Drawn():
                what = (
                    f"{event.rollouts:,}/{event.of_rollouts:,} rollouts, round {event.round}, "
                    f"{event.rollouts_per_second:.1f} rollouts/s, {clock(event.seconds_left)} left"
                )
                self._show("probing", event.rollouts, event.of_rollouts, what)
            case Rounded(number, rollouts, expected, low, more):
                then = f"{more:,} more" if more else "done"
                found = f"expected cosine {expected:.4f}, at least {low:.4f}: {then}"
                self.console.print(f"round {number}: {rollouts:,} rollouts, {found}", markup=False, highlight=False)
            case Calibrating(done, total):
                self._show("calibrating", done, total, f"{done:,}/{total:,} rollouts read")
            case Saved(path):
                self._close()
                self.console.print(f"saved {path}", markup=False, highlight=False)

    def _close(self) -> None:
        if self.console.is_terminal:  # elsewhere the bar was never started, and stopping it prints a line
            self._bar.stop()

    def _plan(self, plan: Planned) -> None:
        asked = (
            f"plan ({self.preset}, changed by what options say): {plan.roles} {self.roles} x {plan.prompts} prompts "
            f"x {plan.questions} questions "
            f"+ {plan.default_rollouts:,} of the default = {plan.rollouts:,} rollouts, "
            f"at most {plan.tokens:,} tokens, in batches of {plan.batch_size}"
        )
        rounds = (
            f"drawn in rounds, the first of {plan.first_round:,}, until its cosine is certain to {plan.precision:g}"
            if plan.precision < 1
            else "all of them are drawn"
        )
        given = (
            f"reading {plan.rollouts:,} rollouts that exist already, of {plan.roles} {self.roles} and "
            f"{plan.default_rollouts:,} of the default, in batches of {plan.batch_size}"
        )
        now, whole = plan.round_seconds, plan.seconds
        time = "time: not known for an engine that runs elsewhere"
        if now is not None and whole is not None:
            which = "this round" if plan.done else "the first round"
            time = f"time: at most {clock(now)}" + (f" for {which}, {clock(whole)} for all" if now < whole else "")
        lines = [
            *([given] if plan.given else [asked, rounds]),
            f"{time}; state in {plan.run_dir}",
        ]
        if plan.done:
            lines.append(f"going on: {plan.done:,} rollouts are there already")
        for line in lines:
            self.console.print(line, markup=False, highlight=False)
        if self.ask and (now is None or now > LONG_SECONDS) and not click.confirm("Start?", err=True):
            click.echo("called off, nothing was drawn", err=True)
            raise click.exceptions.Exit(1)

    def _show(self, description: str, done: int, total: int, what: str) -> None:
        if self.console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, description=description, completed=done, total=total, what=what)
        elif done == total or time.monotonic() - self._said > _LINE_EVERY:
            self._said = time.monotonic()
            self.console.print(f"{description}: {what}", markup=False, highlight=False)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss, rounded up."""
    whole = int(-(-max(0.0, seconds) // 1)) if seconds < 1e9 else 0
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
