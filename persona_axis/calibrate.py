"""Calibration: which layers and which floor hold a persona and cost nothing, measured by outcomes.

    from persona_axis.calibrate import calibrate
    found = calibrate(chat, axis, out="cap.safetensors")
    found.chosen, found.table, found.held_out

Every setting (a window of layers, a floor) is screened on few items, the promising ones on more, the best in full, all
on one half of the prompts and scripts. The rule takes one of them; the other half then shows what it does, beside
controls that are matched to it. What has been measured is kept: a run that is killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from persona_axis._asked import path_of, require
from persona_axis.axis import Axis
from persona_axis.calibration.events import Event, Listener, Note, Planned, Saved, Stage, silent
from persona_axis.calibration.measure import Bench
from persona_axis.calibration.report import Calibration, write
from persona_axis.calibration.settings import FLOORS, Effort, Setting, settings, windows_of
from persona_axis.calibration.sweep import Sweep
from persona_axis.calibration.tables import conversation_table
from persona_axis.calibration.units import Units
from persona_axis.capability import CapabilityTest, tasks_for
from persona_axis.chat import ChatModel
from persona_axis.conversations import Jailbreak, Script, load_jailbreaks, load_scripts
from persona_axis.errors import CalibrationError
from persona_axis.outcomes import OutcomeJudge, judge_for
from persona_axis.sampling import Sampling

__all__ = [
    "FLOORS", "Calibration", "Effort", "Event", "Interrupted", "Listener", "Note", "Planned",
    "Saved", "Setting", "Stage", "calibrate", "run_directory", "windows_of",
]  # fmt: skip

DRIFTING = ("emotional", "meta-reflective")
"""The suites in which models drift."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a calibration: nothing measured is lost, and the text says how to go on."""


def run_directory(out: str | Path) -> Path:
    """Where measured units are kept unless told otherwise: beside the cap's file."""
    return Path(f"{out}.run")


def calibrate(
    chat: ChatModel,
    axis: Axis,
    *,
    out: str | Path,
    windows: Iterable[Sequence[int]] | None = None,
    floors: Iterable[str] = FLOORS,
    bound: float = 1.0,
    sure: bool = False,
    items: int | None = None,
    controls: int | None = None,
    effort: Effort | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    layer: int | None = None,
    judge: OutcomeJudge | None = None,
    test: CapabilityTest | None = None,
    jailbreaks: Sequence[Jailbreak] | None = None,
    scripts: Sequence[Script] | None = None,
    sampling: Sampling | None = None,
    progress: Listener = silent,
) -> Calibration:
    """Find the cap that the rule takes (`calibration.choose.RULE`), save it as `out`, and show the other half.

    `windows` are lists of layers (`windows_of` makes them), `floors` percentiles such as "default_tokens:p25", or
    "conversations:logs.jsonl:p5": of the single assistant tokens of those conversations, read without a cap. The
    `bound` is on the estimated loss, with `sure` on the whole of its 95% interval. `items`
    and `controls` override those of `effort`. Drift is read at `layer` (the axis' recommended one). For Troupe `judge`
    and `test` are its parser and its tasks; another model needs both. Jailbreaks and scripts are the shipped ones
    unless given. Tables, pictures and a report are written beside `out`; measured units are kept in `run_dir`.

    Raises `CalibrationError` for what cannot be set up, and where no jailbreak succeeds in the first place;
    `JudgeError` without a judge or a test; `Interrupted` on Ctrl-C. Where no setting keeps the bound, the result has
    no cap, and none is written.
    """
    require("chat", chat, ChatModel)
    require("axis", axis, Axis)
    out = path_of("out", out)
    if not out.parent.is_dir():
        raise CalibrationError(f"cannot write {out}: there is no directory {out.parent}")
    if out.is_dir():
        raise CalibrationError(f"cannot write {out}: it is a directory")
    if not bound >= 0:
        raise CalibrationError(f"bound must be a number of points from 0 on, got {bound!r}")
    axis.require(chat.model, chat.template.source, (), chat.layers)
    effort = effort or Effort()
    effort = effort if items is None else effort.with_items(items)
    effort = effort if controls is None else replace(effort, controls=controls)
    directory = run_directory(out) if run_dir is None else Path(run_dir)
    early: list[str] = []
    with Units.open(directory, early.append) as units:
        bench = Bench(
            chat=chat, axis=axis, layer=axis.recommended_layer if layer is None else axis.layers[axis.row(layer)],
            judge=judge_for(chat) if judge is None else judge, test=tasks_for(chat) if test is None else test,
            jailbreaks=_both_halves(load_jailbreaks() if jailbreaks is None else jailbreaks),
            scripts=load_scripts(domains=DRIFTING) if scripts is None else scripts,
            sampling=sampling or Sampling(max_new_tokens=40 if chat.is_troupe else 256),
            effort=effort, seed=seed, units=units,
        )  # fmt: skip
        at = windows_of(axis.layers) if windows is None else windows
        try:
            tried = settings(axis, at, floors, lambda path: conversation_table(bench, path, early.append))
            sweep = Sweep(bench, tried, bound, sure, progress)
            units.note = sweep.note
            for text in early:
                sweep.note(text)
            result = sweep.result()
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"stopped; what was measured is kept in {directory}, and the same command goes on from there"
            ) from stop
    files = write(result, out)
    for path in files:
        progress(Saved(str(path)))
    return replace(result, files=files)


def _both_halves(jailbreaks: Sequence[Jailbreak]) -> Sequence[Jailbreak]:
    for split in ("train", "held_out"):
        if not any(jailbreak.split == split for jailbreak in jailbreaks):
            raise CalibrationError(f"there is no persona-jailbreak of the half {split!r}: both halves need some")
    return jailbreaks
