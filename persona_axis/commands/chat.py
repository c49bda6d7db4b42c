"""The command `chat`. Imports are local to it, as in cli.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from persona_axis.commands.listener_options import Listening, imagine, listener_options
from persona_axis.commands.options import allow_option, load_model, model_options, sampling_options
from persona_axis.commands.terminal import debuggable

_TOKENS = 256
_NO_METER = "no meter: name an axis file with --axis (`persona-axis extract` makes one)"


@click.command(short_help="Chat with a model and watch the meter.")
@model_options
@click.option("--axis", type=click.Path(path_type=Path), metavar="FILE", help="Axis file for the meter.")
@click.option("--cap", "caps", multiple=True, type=click.Path(path_type=Path), help="Cap file; may be repeated.")
@click.option("--layer", type=click.IntRange(0), metavar="L",
              help="Layer of the meter.  [default: recommended; if capped, the nearest that is not]")  # fmt: skip
@click.option("--band", type=click.FloatRange(0, 100), default=1.0, show_default=True, metavar="P",
              help="Percentile of the default's replies where the safe band ends; needs --axis.")  # fmt: skip
@click.option("--system", default="", help="System prompt, such as a character to play.")
@listener_options
@sampling_options(str(_TOKENS))
@allow_option
@debuggable
def chat(model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None, axis: Path | None,
         caps: tuple[Path, ...], layer: int | None, band: float, system: str, seed: int, allow: tuple[str, ...],
         listening: Listening | None, distractors: tuple[str, ...], **sampling: Any) -> None:  # fmt: skip
    """Chat with MODEL (Troupe if none is given) in the terminal, under caps and a listener or without.

    After each reply a meter shows its projection on the axis, and a warning when it leaves the safe band. /new begins a
    new conversation, /quit or the end of the input ends it. Input may come from a pipe, a message a line.
    """
    if axis is None and click.get_current_context().get_parameter_source("band") is not ParameterSource.DEFAULT:
        raise click.UsageError("--band is of an axis file: name one with --axis")

    from rich.text import Text

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.display.meter import Meter
    from persona_axis.display.tables import Output, printable
    from persona_axis.errors import DriftError
    from persona_axis.sampling import Sampling
    from persona_axis.talks.following import Told
    from persona_axis.talks.ruler import Ruler
    from persona_axis.talks.talk import Talk

    ruled = Axis.load(axis) if axis else None
    held = [Cap.load(path) for path in caps]
    ruler = Ruler.of(ruled, held, layer)
    how: dict[str, Any] = {"max_new_tokens": _TOKENS}
    answering = Sampling(**how | {name: value for name, value in sampling.items() if value is not None})
    output, told = Output(), Told()
    meter = Meter(ruler, band, columns=output.width, ascii_only=output.options.ascii_only) if ruler else None
    speaking = load_model(model, revision, dtype, device_map, stack)
    if ruled:
        ruled.require(speaking.model, speaking.template.source, allow, stack)
    directions = {ruler.layer: ruler.direction} if ruler else {}
    talk = Talk(speaking, answering, system=system, caps=held, directions=directions, seed=seed, allow=allow,
                **imagine(listening, distractors, system, seed))  # fmt: skip
    told.line(f"{meter.legend() if meter else _NO_METER}\n/new begins again, /quit ends")
    for line in _lines(output):
        if line == "/quit":
            break
        if line == "/new":
            talk.begin()
            told.line("a new conversation")
            continue
        if line.startswith("/"):
            told.line("no such command: /new, /quit")
            continue
        try:
            said = talk.say(line)
        except DriftError as error:
            told.line(f"{error} by /new")
            continue
        output.print(Text(f"{speaking.display_name}: {printable(said.text) or '(an empty reply)'}"))
        if meter and said.projections:
            value = said.projections[meter.ruler.layer]
            output.print(meter.line(value, said.before.get(meter.ruler.layer)))
            if warning := meter.warning(value):
                output.print(warning)


def _lines(output: Any) -> Iterator[str]:
    """What is typed, without blank lines; from a pipe it is printed, so that the conversation can be read."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` a history

        with contextlib.suppress(EOFError):
            while True:
                if typed := input("you: ").strip():
                    yield typed
        return
    from rich.text import Text

    for line in sys.stdin.buffer:
        if said := line.decode("utf-8", "replace").strip():
            output.print(Text(f"you: {said}"))
            yield said
