"""Extraction: ask a model in many roles and in none, and find the axis between them.

    from persona_axis import ChatModel, load_probes
    from persona_axis.extract import extract
    found = extract(ChatModel.load("troupe"), load_probes(), out="troupe.safetensors")
    found.axis.project(hidden, layer=found.recommended_layer)

Rollouts are drawn in planned batches while their means are read from the residual stream; a judge decides
which count; sums are kept by role and question group, so that neither memory nor disk grows with the number
of rollouts (only the text log does). A run that is killed goes on where it was, and ends as if it had not been,
bit for bit but for engines that mix rollouts as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from persona_axis._asked import path_of, require
from persona_axis.chat import ChatModel
from persona_axis.errors import ArgumentError, ExtractionError
from persona_axis.extraction.engines import Local, MakesEngine
from persona_axis.extraction.events import (
    Calibrating,
    Event,
    Listener,
    Note,
    Planned,
    Progress,
    Rounded,
    Saved,
    silent,
)
from persona_axis.extraction.finish import finish, run_metadata
from persona_axis.extraction.options import Options
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.report import Counts, Extraction, LayerFigures
from persona_axis.extraction.rolloutpca import KeptPca, space_path
from persona_axis.extraction.rollouts import drawn_so_far
from persona_axis.extraction.running import draw_rounds, planned
from persona_axis.extraction.sources import Asked, Given
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.traits import finish_traits
from persona_axis.files.safefile import refuse_replacing
from persona_axis.files.spacefile import save_space
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
    "Rounded",
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
    engine: MakesEngine = Local,
    progress: Listener = silent,
) -> Extraction:
    """Extract a model's axis into the file `out` and give the report.

    Without `options` the plan is `Options.preset(chat, probes)`; without `judge`, Troupe is judged by its parser and
    any other model by nobody (`all`). `engine` makes what draws the rollouts (see `extraction.engines`). `progress` is
    called with events (see `extraction.events`), first with `Planned`; an exception it raises there calls the run off.
    The run's state is kept in `run_dir`; calling again with the same arguments goes on from it, other settings are
    refused. With `options.rollout_pca` a space of single rollouts is saved beside the axis (`rolloutpca.space_path`).
    Raises `ExtractionError`, `JudgeError`, `AxisFileError`, and `Interrupted` on Ctrl-C.
    """
    _require(chat, probes, options, judge, progress, engine)
    options = Options.preset(chat, probes) if options is None else options
    judge = default_judge(chat) if judge is None else judge
    _require_free(chat, judge, engine)
    source = Asked(chat, probes, options, engine)
    if (most := source.plan(1).per_role) < options.min_accepted:
        raise ExtractionError(
            f"min_accepted={options.min_accepted}, but a role gets at most {most} replies: none would have a vector; "
            f"ask more prompts or questions, or lower min_accepted (--min-accepted) to {most} or less"
        )
    return _run(chat, source, _free(out, options), run_dir, judge, progress, finish)


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
    _require(chat, probes, options, judge, progress)
    options = Options() if options is None else options
    path = _free(out, options)
    given = Given(chat, path_of("responses", responses), probes, options, judge)
    return _run(chat, given, path, run_dir, given.judge, progress, finish)


def extract_traits(
    chat: ChatModel,
    probes: Probes,
    traits: Sequence[Trait],
    options: Options | None = None,
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    judge: Judge | None = None,
    engine: MakesEngine = Local,
    progress: Listener = silent,
) -> Traits:
    """Extract trait vectors into the file `out`: every trait's two poles answer the same questions of `probes`.

    The run is that of `extract` with the instructions for roles ("warm + 1" to a judge, with the description of its
    pole), and so are its options (`prompts` are pairs of instructions; instead of `roles`, name fewer `traits`) and its
    errors. Without `options` the plan is `Options.traits_preset(chat)`; without `judge` every reply counts: Troupe's
    parser knows no traits.
    """
    _require(chat, probes, options, judge, progress, engine)
    _require_free(chat, judge, engine)
    options = Options.traits_preset(chat) if options is None else options
    if options.rollout_pca is not None:
        raise ExtractionError("rollout_pca goes with an axis: the PCA is of roles' rollouts")
    if options.roles is not None:
        raise ExtractionError(f"roles={options.roles}: traits are not counted off, name the ones to ask for")
    refuse_replacing(out, "persona-traits")
    pairs = options.prompts or min((len(trait.positive) for trait in traits), default=0)
    questions = options.questions or len(probes.questions)
    poles = as_roles(traits, probes, pairs)
    if (most := pairs * questions) < options.min_accepted:
        raise ExtractionError(
            f"min_accepted={options.min_accepted}, but a pole of a trait gets only {most} replies ({pairs} "
            f"instructions x {questions} questions): no trait would have a vector; ask more questions, or "
            f"lower min_accepted (--min-accepted) to {most} or less"
        )
    # Percentiles of single replies are read for an axis only, so nothing is to be read again.
    options = replace(options, prompts=1, calibration=1, precision=1)
    made = partial(finish_traits, traits=traits)
    source = Asked(chat, poles, options, engine)
    return _run(chat, source, path_of("out", out), run_dir, judge or AcceptAll(), progress, made)


def _require(
    chat: ChatModel, probes: Probes, options: Options | None, judge: Judge | None, progress: Listener,
    engine: MakesEngine = Local,
) -> None:  # fmt: skip
    require("chat", chat, ChatModel)
    if not callable(engine) or not isinstance(getattr(engine, "name", None), str):
        raise ArgumentError(
            f"engine={engine!r} makes no engine: take one by its name, persona_axis.extraction.engines.named('vllm')"
        )
    require("probes", probes, Probes)
    require("progress", progress, Callable)  # type: ignore[arg-type]
    if options is not None:
        require("options", options, Options)
    if judge is not None:
        require("judge", judge, Judge)


def _require_free(chat: ChatModel, judge: Judge | None, engine: MakesEngine) -> None:
    """Raise `ExtractionError` where the judge would run the model while the engine generates with it."""
    if getattr(engine, "takes_the_model", False) and getattr(judge, "chat", None) is chat:
        raise ExtractionError(
            f"judge {getattr(judge, 'name', '?')} reads with the model that the engine {engine.name} generates with at "
            "the same time: take the engine transformers (--engine transformers), or another judge"
        )


def _free(out: str | Path, options: Options) -> Path:
    """`out` as a path. Raises `AxisFileError` where a file of another kind is in the way."""
    path = path_of("out", out)
    refuse_replacing(path, "persona-axis")
    if options.rollout_pca is not None:
        refuse_replacing(space_path(path), "persona-space")
    return path


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
    if out.is_dir():
        raise ExtractionError(f"cannot write {out}: it is a directory")
    if not out.parent.is_dir():
        raise ExtractionError(f"cannot write {out}: there is no directory {out.parent}")
    began = time.monotonic()
    directory = run_directory(out) if run_dir is None else path_of("run_dir", run_dir)
    if isinstance(source, Given) and source.responses.path.resolve().parent == directory.resolve():
        raise ExtractionError(f"{source.responses.path} lies in this run's own directory: name another with --run-dir")
    with RunStore.open(directory) as store:
        try:
            plan = planned(chat, source, judge, store, progress)
            for note in (*chat.notes, *source.notes):
                progress(Note(note))
            pca = KeptPca.of(plan, chat.hidden_size, store.path)
            if pca is not None:
                pca.resume(drawn_so_far(plan, store))
            draw_rounds(chat, plan, judge, store, source.engine(chat, plan, store), progress, pca)
            found = make(chat, plan, judge, store, out, progress, time.monotonic() - began)
            if pca is not None:
                about = {**run_metadata(chat, plan, judge, store), "layer": pca.layer, "rollouts": pca.pca.rollouts}
                save_space(pca.pca.result(plan.options.min_accepted), space_path(out), about)
                progress(Saved(str(space_path(out))))
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"stopped; finished batches are kept in {directory}, and the same command goes on from there"
            ) from stop
    progress(Saved(str(out)))
    return found
