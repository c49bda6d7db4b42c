"""persona-axis: probe a model, look at its axis, make a cap, talk under it. Thin: everything is done elsewhere.

Imports are local to the commands: --help needs none of them, and `show` gets by without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from persona_axis import __version__
from persona_axis._cli_bench import bench
from persona_axis._cli_calibrate import calibrate
from persona_axis._cli_chat import chat
from persona_axis._cli_drift import drift
from persona_axis._cli_serve import serve, sglang
from persona_axis._cli_signals import signals
from persona_axis._cli_vectors import export, import_
from persona_axis._judge_names import OF_ROLES
from persona_axis._judge_options import JudgeOf, judge_options, judge_settings
from persona_axis._listening import Listening, imagine, listener_options
from persona_axis._options import (
    allow_option,
    arguments,
    bound,
    drawing,
    layers,
    layers_or_all,
    load_model,
    model_options,
    names,
    refuse_overwriting,
    sampling_options,
    scores,
    slug,
)
from persona_axis._terminal import debuggable, run

_OF_AXES = {
    "roles": "--roles", "calibration": "--calibration", "role_layers": "--role-layers",
    "bfloat16_roles": "--bf16-roles", "rollout_pca": "--rollout-pca",
    "precision": "--precision",
}  # fmt: skip
_OF_DRAWING = (
    "roles", "prompts", "questions", "default_samples", "precision", "max_new_tokens", "temperature", "top_p",
    "engine", "engine_option", "ray", "workers", "worker_gpus",
)  # fmt: skip
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="persona-axis")
@debuggable
def app() -> None:
    """Find where a language model keeps its persona, watch it move, and hold it in place."""


@app.command(short_help="Probe a model and write its axis.")
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

    from persona_axis._progress import Display
    from persona_axis._safefile import refuse_replacing
    from persona_axis._tables import Output, show_axis
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
        from persona_axis._trait_tables import show_traits

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


@app.command(short_help="Show an axis file, or how traits lie to it.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--plot", "plot", is_flag=False, flag_value="", metavar="[DIR]",
              help="Save the pictures as PNGs in DIR.  [default: beside FILE, in FILE's name + -plots]")  # fmt: skip
@click.option("--layer", type=click.IntRange(0), metavar="L", help="Layer to look at.  [default: recommended]")
@click.option("--traits", type=click.Path(path_type=Path), help="Traits file: how its traits lie to the axis in FILE.")
@click.option("--verify", is_flag=True, help="Read and check every role vector, which showing a large file does not.")
@allow_option
@debuggable
def show(file: Path | None, plot: str | None, layer: int | None, traits: Path | None, verify: bool,
         allow: tuple[str, ...]) -> None:  # fmt: skip
    """Show the axis in FILE: what it was made from, its figures at each layer, who lies where.

    With --traits, the traits' cosines with the axis; a traits file for FILE is listed by itself.
    """
    if file is None and plot:  # `show --plot FILE` reads as if FILE were the directory
        file, plot = Path(plot), ""
    if file is None:
        raise click.UsageError("name the axis FILE to show")

    from persona_axis._safefile import stated_format
    from persona_axis._tables import Output, layer_to_show, show_axis
    from persona_axis.axis import Axis

    if traits is None and stated_format(file).startswith("persona-space/"):
        from persona_axis._spacefile import load_space
        from persona_axis._tables import show_space

        if plot is not None or layer is not None:
            raise click.UsageError(f"{file} is a space of rollouts at one layer: --plot and --layer go with an axis")
        show_space(Output(), load_space(file))
        return
    if traits is None and stated_format(file).startswith("persona-traits/"):
        from persona_axis._trait_tables import show_traits
        from persona_axis.traits import Traits

        if plot is not None:
            raise click.UsageError(f"the picture of traits needs an axis: show AXIS --traits {file} --plot")
        held = Traits.load(file)
        if verify:
            click.echo(f"verified: {file} is sound")
        show_traits(Output(), held, layer)
        return
    axis = Axis.load(file)
    if verify:
        found = axis.verify()
        click.echo(f"verified: {file} is sound, and so are its role vectors at {found} layers")
    pictures = Path(plot) if plot else file.with_name(f"{file.stem}-plots")
    if traits is None:
        show_axis(Output(), axis, layer)
        if plot is not None:
            from persona_axis._pictures import save_pictures

            _say_saved(save_pictures(axis, pictures, layer))
        return

    from persona_axis._trait_tables import show_trait_cosines
    from persona_axis.traits import Traits, controls

    held, at = Traits.load(traits), layer_to_show(axis, layer)
    cosines, compared = held.cosines(axis, at, allow), controls(axis, at)
    show_trait_cosines(Output(), held, cosines, compared, at)
    if plot is not None:
        from persona_axis._pictures import save_trait_picture

        _say_saved(save_trait_picture(cosines, compared, at, pictures))


def _say_saved(paths: Iterable[Path]) -> None:
    for path in paths:
        click.echo(f"saved {path}")


@app.command(short_help="Make a cap from an axis file.")
@click.argument("axis", type=click.Path(path_type=Path))
@click.option(
    "--layers", metavar="LIST", callback=layers, help="Layers to cap, such as 2-3.  [default: the recommended one]"
)
@click.option(
    "--floor", metavar="BOUND", callback=bound, help="Lowest projection: a number, or such as default_tokens:p25."
)
@click.option("--ceiling", metavar="BOUND", callback=bound, help="Highest projection, likewise.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Cap file to write.")
@debuggable
def cap(axis: Path, layers: tuple[int, ...] | None, floor: Any, ceiling: Any, out: Path) -> None:
    """Make a cap from the axis file AXIS.

    Percentiles are of the distributions in the file: default and roles (means of replies), default_tokens and
    roles_tokens (single tokens).
    """
    if floor is None and ceiling is None:
        raise click.UsageError("a cap needs a --floor or a --ceiling")
    refuse_overwriting({"AXIS": axis}, {"the cap": out})

    from persona_axis._tables import Output, show_cap
    from persona_axis.axis import Axis

    made = Axis.load(axis).cap(layers=layers, floor=floor, ceiling=ceiling)
    made.save(out)
    show_cap(Output(), made)
    click.echo(f"saved {out}")


@app.command(short_help="Talk to a model, with caps and without.")
@model_options
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to say; again for the next turn.")
@click.option("--system", default="", help="System prompt, such as a character to play.")
@click.option("--cap", "caps", multiple=True, type=click.Path(path_type=Path), help="Cap file; may be repeated.")
@click.option("--axis", type=click.Path(path_type=Path), help="Axis file to read projections on.  [default: the caps']")
@listener_options
@sampling_options("128")
@allow_option
@debuggable
def generate(model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None,
             prompts: tuple[str, ...], system: str, caps: tuple[Path, ...], axis: Path | None,
             allow: tuple[str, ...], seed: int, listening: Listening | None, distractors: tuple[str, ...],
             **sampling: Any) -> None:  # fmt: skip
    """Talk to MODEL (Troupe if none is given), with the caps and the listener and without them, side by side.

    Under each reply stands its projection on the axis: the mean over its tokens, larger = more Assistant.
    """
    from persona_axis._tables import Output, show_conversation
    from persona_axis._talk import Said, Talk, directions_of
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.sampling import Sampling

    ruler = Axis.load(axis) if axis else None
    held = [Cap.load(path) for path in caps]
    imagined = imagine(listening, distractors, system, seed)
    how = Sampling(**{name: value for name, value in sampling.items() if value is not None})
    chat = load_model(model, revision, dtype, device_map, stack)
    if ruler:
        ruler.require(chat.model, chat.template.source, allow, stack)
    directions = directions_of(ruler, held)

    def replies(*under: Cap, **listened: Any) -> list[Said]:
        talk = Talk(chat, how, system=system, caps=under, directions=directions, seed=seed, allow=allow, **listened)
        return [talk.say(prompt) for prompt in prompts]

    names = " and ".join(["the cap"] * bool(held) + ["the listener"] * bool(imagined))
    changed = replies(*held, **imagined) if names else []  # first, because a cap also checks that it fits
    runs = [(f"without {names}", replies()), (f"with {names}", changed)]
    show_conversation(Output(), prompts, runs[: 1 + bool(names)])


for command in (drift, signals, bench, calibrate, chat, serve, sglang, import_, export):
    app.add_command(command)


def main() -> None:
    """The console script."""
    sys.exit(run(app, name="persona-axis"))


if __name__ == "__main__":
    main()
