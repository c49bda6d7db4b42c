"""What `persona-axis drift` measures: suites that are played, or conversations that were held already, as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.status import Status

from persona_axis.conversations import Conversation, Script, load_scripts
from persona_axis.drift import trajectories
from persona_axis.errors import ConversationError, DriftError, ProbeError
from persona_axis.model.windows import windows
from persona_axis.sampling import Sampling
from persona_axis.simulate import BATCH, BATCH_SEEDS, simulate

if TYPE_CHECKING:
    import pandas as pd

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.chat import ChatModel
    from persona_axis.talks.transcripts import Transcripts

_LINE_EVERY = 15.0


class Course(NamedTuple):
    """What playing and reading have in common."""

    chat: ChatModel
    axis: Axis
    layers: Sequence[int] | None
    caps: Sequence[Cap]
    allow: Collection[str]


class First:
    """The conversation that came first: a picture of one shows its text as well."""

    def __init__(self) -> None:
        self.conversation: Conversation | None = None

    def __call__(self, conversations: Iterable[Conversation]) -> Iterator[Conversation]:
        """The same conversations. Raises `ConversationError` where there is none."""
        for conversation in conversations:
            self.conversation = self.conversation or conversation
            yield conversation
        if self.conversation is None:
            raise ConversationError("no conversation can be measured: all of them were passed over")


class _Remarks(Console):
    """Nobody need listen: where the reader has gone (2>&1 | head) the rest is not said."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Told:
    """Remarks on the standard error: lines, and how far the work is; nothing of it is markup."""

    def __init__(self) -> None:
        self.console = _Remarks(stderr=True)
        self._began = self._said = time.monotonic()
        self._status: Status | None = None

    def line(self, text: str) -> None:
        """One remark."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, text: str) -> None:
        """In a terminal a line that changes, elsewhere a line now and then."""
        if self.console.is_terminal:
            if self._status is None:
                self._status = self.console.status("")
                self._status.start()
            self._status.update(text.replace("[", r"\["))
        elif time.monotonic() - self._said > _LINE_EVERY:
            self._said = time.monotonic()
            self.line(text)

    def close(self) -> None:
        """Take the line away that changes."""
        if self._status is not None:
            self._status.stop()


class Passed:
    """Conversations that were passed over: the first few are told as they come, the rest counted."""

    def __init__(self, told: Told, shown: int = 5) -> None:
        self.told, self.shown, self.count = told, shown, 0

    def __call__(self, reason: str) -> None:
        self.count += 1
        if self.count <= self.shown:
            self.told.line(f"passed over: {reason}")

    def sum_up(self) -> None:
        """How many there were, if any."""
        if self.count:
            self.told.line(f"passed over {self.count:,} conversation{'s' * (self.count > 1)} that cannot be measured")


def own_sampling(axis: Axis, **changes: Any) -> Sampling:
    """How the replies behind the axis file's distributions were drawn, as far as it says, with these changes."""
    stated = axis.metadata.get("sampling")
    stated = stated if isinstance(stated, dict) else {}
    names = ("temperature", "top_p", "max_new_tokens")
    how = {name: stated[name] for name in names if isinstance(stated.get(name), (int, float))}
    return Sampling(**how | {name: value for name, value in changes.items() if value is not None})


def chosen_scripts(
    probes: Path | None, suites: Iterable[str] | None, split: str | None, limit: int | None
) -> tuple[Script, ...]:
    """The scripts to play; of at most `limit` each suite gives as many as the others, as far as it has them."""
    scripts = load_scripts(probes, suites, split)
    if not scripts:
        raise ProbeError(f"the suites hold no script of the split {split!r}")
    by_suite = {script.domain: [other for other in scripts if other.domain == script.domain] for script in scripts}
    turns = [script for row in zip_longest(*by_suite.values()) for script in row if script is not None]
    kept = {script.id for script in turns[:limit]}
    return tuple(script for script in scripts if script.id in kept)


def played(
    course: Course, scripts: Sequence[Script], system: str, turns: int | None, sampling: Sampling, seed: int,
    transcript: Transcripts | None, first: First, told: Told,
) -> Iterator[pd.DataFrame]:  # fmt: skip
    """Tables of scripts played under the caps, a batch at a time; what was said goes to the `transcript`.

    A batch that fails late takes none of those before it along.
    """
    for number, start in enumerate(range(0, len(scripts), BATCH)):
        batch = scripts[start : start + BATCH]

        def progress(done: int, total: int, first_of: int = start + 1, last: int = start + len(batch)) -> None:
            told.progress(f"conversations {first_of}-{last} of {len(scripts)}: {done:,} of {total:,} replies")

        found = simulate(
            course.chat, batch, course.caps or None, axis=course.axis, layers=course.layers, system=system, turns=turns,
            sampling=sampling, seed=seed + number * BATCH_SEEDS, batch=BATCH, allow=course.allow, progress=progress,
        )  # fmt: skip
        for note in found.notes:
            told.line(f"note: {note}")
        talks = list(first(found.conversations))
        if transcript is not None:
            transcript.conversations = [*transcript.conversations, *talks]
        yield found.frame


def read(
    course: Course, conversations: Iterable[Conversation], speakers: Collection[str], overflow: str,
    on_bad: Callable[[str], None] | None, first: First, told: Told,
) -> Iterator[pd.DataFrame]:  # fmt: skip
    """Tables of conversations that were held already, one after another; `on_bad` None stops at a bad one."""
    if on_bad is not None:
        conversations = _readable(course.chat, conversations, speakers, overflow, on_bad)
    turns = 0
    for frame in trajectories(
        course.chat, course.axis, first(conversations), layers=course.layers, speakers=speakers,
        overflow=overflow, lever=course.caps or None, allow=course.allow,
    ):  # fmt: skip
        yield frame
        turns += len(frame) // max(1, frame["layer"].nunique())
        told.progress(f"{turns:,} turns read")


def _readable(
    chat: ChatModel, conversations: Iterable[Conversation], speakers: Collection[str], overflow: str,
    on_bad: Callable[[str], None],
) -> Iterator[Conversation]:  # fmt: skip
    """Those that the model's template and context take in every window: a table is whole, or has nothing of one."""
    for conversation in conversations:
        try:
            for _ in windows(chat, conversation.messages, overflow, speakers, f"conversation {conversation.id!r}"):
                pass
        except DriftError as error:
            on_bad(str(error))
        else:
            yield conversation
