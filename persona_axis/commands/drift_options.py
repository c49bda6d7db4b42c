"""Which results `persona-axis drift` is asked for, and which of its options do not go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from persona_axis.commands.options import alert_when, speakers
from persona_axis.commands.options import layers as layer_list

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap

F = TypeVar("F", bound=Callable[..., Any])

FIGURES = (".png", ".svg", ".pdf")
_OF_SUITES = ("suite", "split", "turns_per_script", "system", "probes", "transcripts", "seed", "max_new_tokens",
              "temperature", "top_p")  # fmt: skip
_OF_FILES = ("turns", "skip_bad", "overflow")


def _figure(_context: click.Context, _option: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in FIGURES:
        raise click.BadParameter(f"a figure is written as {', '.join(FIGURES)}; name a file that ends so")
    return value


def result_options(command: F) -> F:
    """Which turns, at which layers, under which caps, when an alert is raised, and what is written where."""
    file = click.Path(path_type=Path)
    for decorate in reversed((
        click.option("--turns", default="assistant", show_default=True, metavar="LIST", callback=speakers,
                     help="Whose turns --out holds: assistant,user,system or all."),
        click.option("--limit", type=click.IntRange(1), metavar="N",
                     help="At most N conversations; of suites in equal parts."),
        click.option("--cap", "caps", multiple=True, type=file, help="Cap file; may be repeated."),
        click.option("--layers", metavar="LIST", callback=layer_list,
                     help="Layers that --out holds.  [default: all in AXIS]"),
        click.option("--layer", type=click.IntRange(0), metavar="L",
                     help="Layer of summary, figure and alerts.  [default: recommended]"),
        click.option("--alert", metavar="P[:N]", callback=alert_when,
                     help="Exit with 3 if a reply lies below percentile P of the default's; with :N only if N in a row "
                     "do. About P% of healthy turns lie below P."),
        click.option("--out", type=file, metavar="FILE", help="Table to write, .csv or .parquet."),
        click.option("--figure", type=file, metavar="FILE", callback=_figure,
                     help=f"Figure to write, {', '.join(FIGURES)}; one that is there is replaced.  "
                     "[default: beside --out, else drift.png]"),
        click.option("--no-figure", is_flag=True, help="Write no figure."),
    )):  # fmt: skip
        command = decorate(command)
    return command


def figure_file(figure: Path | None, no_figure: bool, out: Path | None) -> Path | None:
    """Where the figure goes; None for nowhere."""
    if not no_figure:
        return figure or (out.with_suffix(".png") if out else Path("drift.png"))
    if figure is not None:
        raise click.UsageError("--figure and --no-figure exclude each other")
    return None


def summary_layer(axis: Axis, layer: int | None, layers: tuple[int, ...] | None) -> int:
    """The layer to sum up: the one asked for, else the recommended one, else the only one there is."""
    from persona_axis.talks.ruler import layer_to_show

    for one in layers or ():
        axis.row(one)
    at = layer_to_show(axis, layer)
    if layers is None or at in layers:
        return at
    if layer is None and len(layers) == 1:
        return layers[0]
    raise click.UsageError(f"layer {at} is not among --layers {','.join(map(str, layers))}: choose one by --layer")


def refuse_capped_alert(layer: int, caps: Sequence[Cap]) -> None:
    """An alert looks at what a cap leaves, which says nothing of the model where the cap acts."""
    there = [cap for cap in caps if layer in cap.layers]
    if there:
        lifted = any(cap.floor is not None for cap in there)
        why = "no turn can lie low there by construction" if lifted else "how low turns lie there is the cap's doing"
        raise click.UsageError(f"layer {layer} is capped, so {why}: choose a --layer that is not capped")


def refuse_others(are_read: bool) -> None:
    """Options of the other kind of conversation would be ignored, so they are an error."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        others = _OF_SUITES if are_read else _OF_FILES
        if name in others and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            meant = "the suites that are played" if are_read else "--conversations"
            raise click.UsageError(f"{option.opts[0]} is for {meant} only")
