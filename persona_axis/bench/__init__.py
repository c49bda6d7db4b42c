"""The bench: every lever on the same conversations, read by the same signals, with its price beside it.

    from persona_axis.bench import bench
    found = bench(chat, axis=axis, out="bench", levers=["none", "cap", "listener"])
    found.table

A lever is an `Agent`; those of this package are known by name, any other is passed as one. What was held and measured
is kept in `out`: a bench that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pandas as pd

from persona_axis._asked import path_of, require, require_each, shown, whole
from persona_axis.axis import Axis
from persona_axis.bench.course import Course
from persona_axis.bench.dialogues import SUITES, Dialogue, check, dialogues, sha256
from persona_axis.bench.levers import HEEDING, LEVERS, NONE, agent, require_known
from persona_axis.bench.measure import Measures, left_out
from persona_axis.bench.printed import by_suite
from persona_axis.bench.table import COLUMNS, table
from persona_axis.calibration.units import Units
from persona_axis.cap import Cap
from persona_axis.capability import CapabilityTest, tasks_for
from persona_axis.chat import ChatModel
from persona_axis.errors import ArgumentError, BenchError, CalibrationError
from persona_axis.files.tablefile import TableWriter
from persona_axis.judges.listener import ListenerJudge
from persona_axis.judges.questions import SignalJudge
from persona_axis.judges.troupe import TroupeParser
from persona_axis.levers.agents import Agent
from persona_axis.levers.listener import Listener
from persona_axis.outcomes import OutcomeJudge, judge_for
from persona_axis.sampling import Sampling

if TYPE_CHECKING:
    from persona_axis.conversations import Conversation

__all__ = [
    "COLUMNS", "LEVERS", "SUITES", "Agent", "Bench", "Dialogue", "Interrupted", "bench", "by_suite", "dialogues",
]  # fmt: skip

Progress = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a bench: nothing that was held is lost, and the text says how to go on."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What came of it."""

    table: pd.DataFrame
    """A row a lever, suite and signal: `COLUMNS`."""
    rows: pd.DataFrame
    """The rows of all signals, with lever and suite."""
    conversations: dict[str, list[Conversation]]
    """What was said, by lever: what grew longer than the model can read under a lever is not there."""
    notes: tuple[str, ...]
    """What a reader of the table should know: what was left out or not held, and who judges whom."""


def bench(
    chat: ChatModel,
    levers: Sequence[str | Agent] = tuple(LEVERS),
    *,
    out: str | Path,
    axis: Axis | None = None,
    cap: Cap | None = None,
    layer: int | None = None,
    listener: Listener | None = None,
    given: Sequence[Dialogue] | None = None,
    conversations: int = 16,
    turns: int | None = None,
    judge: SignalJudge | None = None,
    outcomes: OutcomeJudge | None = None,
    test: CapabilityTest | None = None,
    items: int = 200,
    signals: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    progress: Progress = lambda _text: None,
) -> Bench:
    """Hold the dialogues (`conversations` of each suite, of at most `turns` turns, or those `given`) under each lever.

    "none" is always there and comes first: differences are to it. `cap` is that of the levers with a cap (the axis's
    recommended layer at default_tokens:p25); `layer` that of the projection. For Troupe `judge`, `outcomes` and `test`
    are its parser and its tasks; for another model signals without their judge are left out and the notes say which.
    `items` are the test's. A dialogue that grows longer than the model can read, as a lever tells it, is not held under
    that lever: a note says so, and differences are over what both held. The table, all rows and what was measured are
    written into the directory `out`.

    Raises `BenchError` for levers, signals or dialogues that cannot be, `AxisMismatchError` for another model's axis,
    what levers and signals raise, and `Interrupted` on Ctrl-C.
    """
    require("chat", chat, ChatModel)
    if axis is not None:
        require("axis", axis, Axis)
        axis.require(chat.model, chat.template.source, (), chat.layers)
        layer = axis.recommended_layer if layer is None else layer
    for name, one, kind in (
        ("cap", cap, Cap), ("judge", judge, SignalJudge), ("outcomes", outcomes, OutcomeJudge),
        ("test", test, CapabilityTest), ("listener", listener, Listener), ("sampling", sampling, Sampling),
    ):  # fmt: skip
        if one is not None:
            require(name, one, kind)
    require("progress", progress, Callable)  # type: ignore[arg-type]
    whole("items", items, BenchError, 1)
    whole("seed", seed, BenchError)
    wanted = None if signals is None else require_each("signals", signals, str, BenchError)
    told = (
        dialogues(chat, conversations, turns, seed) if given is None
        else require_each("given", given, Dialogue, BenchError)
    )  # fmt: skip
    check(told)
    if chat.is_troupe:
        judge, outcomes = judge or TroupeParser(), outcomes or judge_for(chat)
        test = test or tasks_for(chat)
    sampling = sampling or Sampling(max_new_tokens=48 if chat.is_troupe else 128)
    directory, notes = path_of("out", out), list(chat.notes)
    levers = _checked(levers, axis, notes)
    if axis is not None and cap is None and any(isinstance(name, str) and LEVERS[name][0] for name in levers):
        cap = axis.cap(floor="default_tokens:p25")
    if isinstance(judge, ListenerJudge) and (pleased := [name for name in levers if name in HEEDING]):
        notes.append(
            f"the judge is the model's own listener, and the lever {pleased[0]!r} chooses its words to please one: its "
            "adherence by this judge says nothing of how well it holds the persona; ask another judge"
        )
    notes += left_out(wanted, judge=judge, axis=axis, test=test)
    try:
        with Units.open(directory, notes.append) as units:
            measures = Measures(chat, axis, layer, judge, outcomes, test, items, wanted, seed, units)
            course = Course(measures, told, sampling, seed, progress, notes)
            setup = course.setup(axis, cap, listener or Listener())
            for lever in levers:
                course.run(agent(lever, setup) if isinstance(lever, str) else lever)
    except CalibrationError as error:
        raise BenchError(str(error).replace("calibrating", "measuring")) from error
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; what was held and measured is kept in {directory}, and the same command goes on from there"
        ) from stop
    found = Bench(table(course.signals, course.costs, NONE), _rows(course), course.talks, tuple(notes))
    for name, frame in (("table.csv", found.table), ("rows.csv", found.rows)):
        with TableWriter(directory / name) as writer:
            writer.append(frame)
    return found


def _checked(levers: Sequence[str | Agent], axis: Axis | None, notes: list[str]) -> list[str | Agent]:
    """The levers with "none" first. Raises `BenchError` before anything is held."""
    made: list[str | Agent] = []
    names: list[str] = []
    for lever in require_each("levers", levers, object):
        if not isinstance(lever, (str, Agent)):
            raise ArgumentError(f"levers: expected names and Agents, got {shown(lever)}")
        if isinstance(lever, str):
            require_known(lever, axis)
        made.append(lever if isinstance(lever, str) else _of_this_run(lever, notes))
        names.append(lever if isinstance(lever, str) else lever.name)
    if twice := [name for name in names if names.count(name) > 1]:
        raise BenchError(f"two levers are called {twice[0]!r}: a table could not tell them apart")
    return [NONE, *(lever for lever, name in zip(made, names, strict=True) if name != NONE)]


def _of_this_run(one: Agent, notes: list[str]) -> Agent:
    """The agent with facts that nothing kept can match, where it does something and does not say what it is made of.

    Two functions of one name look alike from outside: only what its maker states can tell this run's from the last's.
    """
    if one.name == NONE and one.acts:
        raise BenchError(f"the lever {NONE!r} is the model as it is, which all others are compared with: rename yours")
    try:
        sha256(dict(one.facts))
    except (TypeError, ValueError) as error:
        raise BenchError(f"lever {one.name!r}: facts must be what JSON can hold: {error}") from error
    if not one.acts or one.facts:
        return one
    notes.append(
        f"lever {one.name!r} states no facts, so nothing that it said is used again: a run that is started again holds "
        "it anew; say what it is made of (Agent(facts=...)) and change that whenever the lever changes"
    )
    return replace(one, facts={"run": uuid4().hex})


def _rows(course: Course) -> pd.DataFrame:
    """All rows of all signals, with lever and suite before them."""
    frames = []
    for lever, signals in course.signals.items():
        for (suite, _), one in signals.items():
            frame = one.frame.copy()
            frame.insert(0, "suite", suite)
            frame.insert(0, "lever", lever)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)
