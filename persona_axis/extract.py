"""Extraction: ask a model in many roles and in none, and find the axis between them.

    from persona_axis import ChatModel, load_probes
    from persona_axis.extract import extract
    found = extract(ChatModel.load("troupe"), load_probes(), out="troupe.safetensors")
    found.axis.project(hidden, layer=found.recommended_layer)

Rollouts are drawn in planned batches while their means are read from the residual stream; a judge decides
which count; sums are kept by role and question group, so that neither memory nor disk grows with the number
of rollouts (only the text log does). A run that is killed goes on where it was, and ends bit for bit as if it
had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from persona_axis._spacefile import save_space
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.events import (
    Calibrating,
    Event,
    Listener,
    Note,
    Planned,
    Progress,
    Saved,
    silent,
)
from persona_axis.extraction.finish import finish, run_metadata
from persona_axis.extraction.options import Options
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.report import Counts, Extraction, LayerFigures
from persona_axis.extraction.rolevectors import require_layers
from persona_axis.extraction.rolloutpca import KeptPca, space_path
from persona_axis.extraction.rollouts import draw, drawn_so_far
from persona_axis.extraction.settings import settings, surroundings
from persona_axis.extraction.sources import Asked, Given
from persona_axis.extraction.store import RunStore, refuse_difference
from persona_axis.extraction.traits import finish_traits
from persona_axis.extraction.trial import Trial
from persona_axis.judges import AcceptAll, Judge, default_judge
from persona_axis.probes import Probes
from persona_axis.trait_probes import Trait, as_roles
from persona_axis.traits import Traits

__all__ = [
    "Calibrating",
    "Counts",
    "Event",
    "Extraction",
    "Interrupted",
    "LayerFigures",
    "Listener",
    "Note",
    "Options",
    "Plan",
    "Planned",
    "Progress",
    "Saved",
    "extract",
    "extract_responses",
    "extract_traits",
    "run_directory",
]

Made = TypeVar("Made")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: nothing finished is lost, and the text says how to go on."""


def run_directory(out: str | Path) -> Path:
    """Where a run is kept unless told otherwise: beside the file it makes."""
    return Path(f"{out}.run")


def extract(
    chat: ChatModel,
    probes: Probes,
    options: Options | None = None,
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    judge: Judge | None = None,
    progress: Listener = silent,
) -> Extraction:
    """Extract a model's axis into the file `out` and give the report.

    Without `options` the plan is `Options.preset(chat)`; without `judge`, Troupe is judged by its parser and
    any other model by nobody (`all`). `progress` is called with events (see `extraction.events`), first with
    `Planned`; an exception it raises there calls the run off. The run's state is kept in `run_dir`; calling
    again with the same arguments goes on from it, other settings are refused. With `options.rollout_pca` a space of
    single rollouts is saved beside the axis (`rolloutpca.space_path`). Raises `ExtractionError`, `JudgeError`,
    `AxisFileError`, and `Interrupted` on Ctrl-C.
    """
    options = Options.preset(chat) if options is None else options
    judge = default_judge(chat) if judge is None else judge
    return _run(chat, Asked(chat, probes, options), Path(out), run_dir, judge, progress, finish)


def extract_responses(
    chat: ChatModel,
    responses: str | Path,
    probes: Probes,
    options: Options | None = None,
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    judge: Judge | None = None,
    progress: Listener = silent,
) -> Extraction:
    """`extract` of rollouts that exist already: a file of JSON lines, or the directory of a run (`extraction.responses`
    says what a line holds).

    Nothing is generated: one prefill reads each response. `probes` tell what roles are and what numbers in the file
    mean; of the options, those count that are not about what to draw. Scores in the file are the judge's, `judge` is
    asked where there is none. Raises what `extract` does, with the file's line where one is at fault.
    """
    options = Options() if options is None else options
    given = Given(chat, Path(responses), probes, options, judge)
    return _run(chat, given, Path(out), run_dir, given.judge, progress, finish)


def extract_traits(
    chat: ChatModel,
    probes: Probes,
    traits: Sequence[Trait],
    options: Options | None = None,
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    judge: Judge | None = None,
    progress: Listener = silent,
) -> Traits:
    """Extract trait vectors into the file `out`: every trait's two poles answer the same questions of `probes`.

    The run is that of `extract` with the instructions for roles ("warm + 1" to a judge, with the description of its
    pole), and so are its options (`prompts` are pairs of instructions; instead of `roles`, name fewer `traits`) and its
    errors. Without `options` the plan is `Options.traits_preset(chat)`; without `judge` every reply counts: Troupe's
    parser knows no traits.
    """
    options = Options.traits_preset(chat) if options is None else options
    if options.rollout_pca is not None:
        raise ExtractionError("rollout_pca goes with an axis: the PCA is of roles' rollouts")
    if options.roles is not None:
        raise ExtractionError(f"roles={options.roles}: traits are not counted off, name the ones to ask for")
    poles = as_roles(traits, probes, options.prompts)
    # Percentiles of single replies are read for an axis only, so nothing is to be read again.
    options = replace(options, prompts=1, calibration=1)
    made = partial(finish_traits, traits=traits)
    return _run(chat, Asked(chat, poles, options), Path(out), run_dir, judge or AcceptAll(), progress, made)


def _run(
    chat: ChatModel,
    source: Asked | Given,
    out: Path,
    run_dir: str | Path | None,
    judge: Judge,
    progress: Listener,
    make: Callable[[ChatModel, Plan, Judge, RunStore, Path, Listener, float], Made],
) -> Made:
    """Draw what is missing and `make` the file of it."""
    if not out.parent.is_dir():
        raise ExtractionError(f"cannot write {out}: there is no directory {out.parent}")
    began = time.monotonic()
    directory = run_directory(out) if run_dir is None else Path(run_dir)
    if isinstance(source, Given) and source.responses.path.resolve().parent == directory.resolve():
        raise ExtractionError(f"{source.responses.path} lies in this run's own directory: name another with --run-dir")
    with RunStore.open(directory) as store:
        try:
            plan = _planned(chat, source, judge, store, progress)
            for note in (*chat.notes, *source.notes):
                progress(Note(note))
            pca = KeptPca.of(plan, chat.hidden_size, store.path)
            draw(chat, plan, judge, store, progress, pca, source.take)
            found = make(chat, plan, judge, store, out, progress, time.monotonic() - began)
            if pca is not None:
                about = {**run_metadata(chat, plan, judge), "layer": pca.layer, "rollouts": pca.pca.rollouts}
                save_space(pca.pca.result(plan.options.min_accepted), space_path(out), about)
                progress(Saved(str(space_path(out))))
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"stopped; finished batches are kept in {directory}, and the same command goes on from there"
            ) from stop
    progress(Saved(str(out)))
    return found


def _planned(chat: ChatModel, source: Asked | Given, judge: Judge, store: RunStore, progress: Listener) -> Plan:
    """The plan of this run: the one on disk if it is the same, else a new one with a batch size that was
    tried out."""
    stored = store.read_plan()
    draft = source.plan(stored["batch_size"] if stored else source.options.batch_size or 1)
    require_layers(draft)
    KeptPca.of(draft, chat.hidden_size, store.path)
    wanted = settings(chat, draft, judge)
    if stored is not None:
        refuse_difference(store.path, stored["settings"], wanted)
        plan, trial = draft, Trial(**stored["trial"])
        if stored["surroundings"] != surroundings():
            progress(
                Note(
                    "this run began with other library versions or threads: "
                    "the last bits may differ from a run in one go"
                )
            )
    else:
        trial = source.try_out(draft)
        plan = source.plan(trial.batch_size)
    done, _ = drawn_so_far(plan, store)
    store.cut_rollouts()
    batches = (plan.rollouts - done) / plan.batch_size
    progress(
        Planned(
            roles=len(plan.roles),
            prompts=plan.options.prompts,
            questions=len(plan.questions),
            rollouts=plan.rollouts,
            default_rollouts=plan.default_rollouts,
            tokens=0 if source.take else (plan.rollouts - done) * plan.options.sampling.max_new_tokens,
            given=source.take is not None,
            seconds=batches * trial.batch_seconds + trial.calibration_seconds,
            batch_size=plan.batch_size,
            done=done,
            run_dir=str(store.path),
        )
    )
    if stored is None:
        record = {
            "settings": wanted,
            "batch_size": trial.batch_size,
            "trial": trial._asdict(),
            "surroundings": surroundings(),
        }
        store.write_plan(record)
    return plan
