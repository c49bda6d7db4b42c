"""The command `extract`. Imports are local to it, as in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from persona_axis._judge_names import OF_ROLES
from persona_axis.commands.judge_options import JudgeOf, judge_options, judge_settings
from persona_axis.commands.options import (
    arguments,
    drawing,
    layers,
    layers_or_all,
    load_model,
    model_options,
    names,
    sampling_options,
    scores,
    slug,
)
from persona_axis.commands.terminal import debuggable

_OF_AXES = {
    "roles": "--roles", "calibration": "--calibration", "role_layers": "--role-layers",
    "bfloat16_roles": "--bf16-roles", "rollout_pca": "--rollout-pca",
    "precision": "--precision",
}  # fmt: skip
_OF_DRAWING = (
    "roles", "prompts", "questions", "default_samples", "precision", "max_new_tokens", "temperature", "top_p",
    "engine", "engine_option", "ray", "workers", "worker_gpus",
)  # fmt: skip


@click.command(short_help="Probe a model and write its axis.")
@model_options
@click.option("--out", type=click.Path(path_type=Path),
              help="File to write.  [default: MODEL-axis.safetensors, MODEL-traits.safetensors]")  # fmt: skip
@click.option("--roles", type=click.IntRange(2), metavar="N", help="How many roles, spread from near to far.")
@click.option("--prompts", type=click.IntRange(1), metavar="N", help="System prompts of each role.  [default: all]")
@click.option("--questions", type=click.IntRange(2), metavar="N", help="Questions for each prompt.  [default: all]")
@click.option("--default-samples", type=click.IntRange(1), metavar="N", help="Replies of the default to each question.")
@sampling_options("48 for Troupe, else 128; 512 with --full")
@click.option("--judge", type=JudgeOf(OF_ROLES),
              help="Who accepts: everybody, Troupe's parser, the model as its own listener, "
              "one behind an API.")  # fmt: skip
@judge_options
@click.option("--accept", metavar="LIST", callback=scores, help="Scores that count for a role vector.  [default: 3]")
@click.option("--min-accepted", type=click.IntRange(1), metavar="N", help="Replies a role needs.  [default: 10]")
@click.option("--calibration", type=click.IntRange(1), metavar="N", help="Rollouts read again for the percentiles.")
@click.option(
    "--layers", metavar="LIST", callback=layers, help="Layers to read, such as 12, 2-3 or 4,6.  [default: all]"
)
@click.option("--precision", type=click.FloatRange(0, 1, min_open=True), metavar="COSINE",
              help="Draw until the axis is this certain; 1 draws the whole plan.  [default: 0.99]")  # fmt: skip
@click.option("--role-layers", metavar="LIST", callback=layers_or_all,
              help="Layers whose role vectors are stored, or all.  [default: all that fit in 512 MiB]")
@click.option("--rollout-pca", type=click.IntRange(0), metavar="LAYER",
              help="A PCA of single rollouts at a layer as well, saved beside the axis.")
@click.option("--bf16-roles", "bfloat16_roles", is_flag=True, help="Store role vectors in bfloat16, at half the size.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Rollouts at once.  [default: found]")
@click.option("--engine", type=click.Choice(["transformers", "continuous", "vllm"]),
              help="Who draws the replies and reads them; a run keeps the one it began with.  [default: transformers]")
@click.option("--engine-option", "engine_options", metavar="NAME=VALUE", multiple=True, callback=arguments,
              help="An argument of vLLM's LLM, such as tensor_parallel_size=2; again for more.")  # fmt: skip
@click.option("--probes", type=click.Path(path_type=Path), metavar="DIR", help="Your own probes.")
@click.option("--responses", type=click.Path(path_type=Path), metavar="FILE",
              help="Rollouts that exist already, as JSON lines or a run's directory: they are read, nothing is drawn.")
@click.option("--full", is_flag=True, help="The published size: every role, and replies of up to 512 tokens.")
@click.option("--traits", is_flag=True, help="Trait vectors in place of an axis: positive minus negative instructions.")
@click.option("--only", metavar="NAME,...", callback=names, help="With --traits: only these.  [default: all]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where the run is kept.  [default: OUT.run]")
@click.option("--ray", metavar="ADDRESS", help="Draw on Ray workers: local starts them here, auto or HOST:PORT joins.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="With --ray: how many.  [default: 2]")
@click.option("--worker-gpus", type=click.FloatRange(0), metavar="N", help="With --ray: GPUs of each.")
@click.option("--yes", "-y", is_flag=True, help="Start a long run without asking.")
@debuggable
def extract(model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None,
            out: Path | None, judge: str | None, probes: Path | None, responses: Path | None, full: bool, traits: bool,
            only: tuple[str, ...] | None, run_dir: Path | None, engine: str | None, engine_options: dict[str, Any],
            ray: str | None, workers: int | None, worker_gpus: float | None, yes: bool,
            **plan: Any) -> None:  # fmt: skip
    """Probe MODEL (a directory or a hub name; Troupe if none is given) and write its axis.

    Without options Troupe gets the demo's plan (every role) and any other model a modest one (100 roles), of which
    only so much is drawn as --precision needs. A run that was stopped goes on when the same command is given again.
    With --responses the rollouts are in FILE; the lines' scores count, and --judge gives those that are missing.
    With --traits every trait is asked for: 2 pairs of instructions (--prompts) x 16 questions, the same for both poles.
    """
    if only and not traits:
        raise click.UsageError("--only names traits: it goes with --traits")
    if traits and (unfit := [name for name in _OF_AXES if plan[name] not in (None, False)]):
        raise click.UsageError(f"{_OF_AXES[unfit[0]]} goes with an axis; traits are named with --only")
    told = plan | {
        "engine": engine, "engine_option": engine_options or None, "ray": ray, "workers": workers,
        "worker_gpus": worker_gpus,
    }  # fmt: skip
    if responses and (unfit := [f"--{name.replace('_', '-')}" for name in _OF_DRAWING if told[name] is not None]):
        raise click.UsageError(f"{unfit[0]} says what is drawn: with --responses nothing is")
    if responses and (full or traits):
        raise click.UsageError(f"--{'full' if full else 'traits'} says what is drawn: with --responses nothing is")
    if traits and judge not in (None, "all"):
        raise click.UsageError(f"--judge {judge} scores roles, no traits: leave it out")
    if ray is not None and engine not in (None, "transformers"):
        raise click.UsageError(f"Ray's workers draw with transformers, not with {engine}: leave --ray or --engine out")
    if ray is None and (workers or worker_gpus is not None):
        raise click.UsageError("--workers and --worker-gpus go with --ray ADDRESS (local, auto or HOST:PORT)")
    about_judge = judge_settings(judge, plan)

    from rich.console import Console

    from persona_axis.display.progress import Display
    from persona_axis.display.tables import Output, show_axis
    from persona_axis.files.safefile import refuse_replacing
    from persona_axis.probes import load_probes
    from persona_axis.trait_probes import load_traits

    chosen = load_probes(probes)
    asked = load_traits(probes, only) if traits else ()
    engines = drawing(engine, engine_options, ray, workers or 2, worker_gpus, device_map)
    kind = "traits" if traits else "axis"
    path = out or Path(f"{slug(model)}-{kind}.safetensors")
    refuse_replacing(path, f"persona-{kind}")  # told before a large model is loaded
    chat = load_model(model, revision, dtype, device_map, stack)

    from persona_axis.extract import Options, extract_responses, extract_traits
    from persona_axis.extract import extract as run_extraction
    from persona_axis.judges import named, of_roles

    if traits:
        from persona_axis.display.traits import show_traits

        options = Options.traits_preset(chat, full=full, **plan)
        preset = "every question" if full else "a modest one"
        shown = Display(Console(stderr=True), ask=not yes, preset=preset, roles="instructions")
        with engines as drawn_by, shown as display:
            made = extract_traits(
                chat, chosen, asked, options, out=path, run_dir=run_dir, engine=drawn_by, progress=display
            )
        show_traits(Output(), made)
        return

    options = Options.preset(chat, chosen, full=full, **plan)
    who = of_roles(named(judge, chat=chat, probes=chosen, **about_judge)) if judge else None
    preset = "the published size" if full else "the demo's" if chat.is_troupe else "a modest one"
    with engines as drawn_by, Display(Console(stderr=True), ask=not yes, preset=preset) as display:
        if responses:
            found = extract_responses(
                chat, responses, chosen, options, out=path, run_dir=run_dir, judge=who, progress=display
            )
        else:
            found = run_extraction(
                chat, chosen, options, out=path, run_dir=run_dir, judge=who, engine=drawn_by, progress=display
            )
    show_axis(Output(), found.axis)
    if spent := getattr(who, "spent", None):
        click.echo(f"the judge took {spent}", err=True)
