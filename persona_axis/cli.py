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
from persona_axis.commands.bench import bench
from persona_axis.commands.calibrate import calibrate
from persona_axis.commands.chat import chat
from persona_axis.commands.drift import drift
from persona_axis.commands.extract import extract
from persona_axis.commands.listener_options import Listening, imagine, listener_options
from persona_axis.commands.options import (
    allow_option,
    bound,
    layers,
    load_model,
    model_options,
    refuse_overwriting,
    sampling_options,
)
from persona_axis.commands.serve import serve, sglang
from persona_axis.commands.signals import signals
from persona_axis.commands.terminal import debuggable, run
from persona_axis.commands.vectors import export, import_

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="persona-axis")
@debuggable
def app() -> None:
    """Find where a language model keeps its persona, watch it move, and hold it in place."""


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

    from persona_axis.axis import Axis
    from persona_axis.display.tables import Output, show_axis
    from persona_axis.files.safefile import stated_format
    from persona_axis.talks.ruler import layer_to_show

    if traits is None and stated_format(file).startswith("persona-space/"):
        from persona_axis.display.tables import show_space
        from persona_axis.files.spacefile import load_space

        if plot is not None or layer is not None:
            raise click.UsageError(f"{file} is a space of rollouts at one layer: --plot and --layer go with an axis")
        show_space(Output(), load_space(file))
        return
    if traits is None and stated_format(file).startswith("persona-traits/"):
        from persona_axis.display.traits import show_traits
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
            from persona_axis.display.pictures import save_pictures

            _say_saved(save_pictures(axis, pictures, layer))
        return

    from persona_axis.display.traits import show_trait_cosines
    from persona_axis.traits import Traits, controls

    held, at = Traits.load(traits), layer_to_show(axis, layer)
    cosines, compared = held.cosines(axis, at, allow), controls(axis, at)
    show_trait_cosines(Output(), held, cosines, compared, at)
    if plot is not None:
        from persona_axis.display.pictures import save_trait_picture

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

    from persona_axis.axis import Axis
    from persona_axis.display.tables import Output, show_cap

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
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.display.tables import Output, show_conversation
    from persona_axis.sampling import Sampling
    from persona_axis.talks.talk import Said, Talk, directions_of

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


for command in (extract, drift, signals, bench, calibrate, chat, serve, sglang, import_, export):
    app.add_command(command)


def main() -> None:
    """The console script."""
    sys.exit(run(app, name="persona-axis"))


if __name__ == "__main__":
    main()
