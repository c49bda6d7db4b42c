"""The commands `drift` and `chat`. Imports are local to them, as in cli.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from persona_axis._options import (
    Alert,
    alert_when,
    load_for,
    load_model,
    loading_options,
    model_options,
    names,
    sampling_options,
    speakers,
)
from persona_axis._options import layers as layer_list
from persona_axis._terminal import debuggable

if TYPE_CHECKING:
    from persona_axis.axis import Axis

ALERTED = 3
"""Exit code of a `drift` that raised an alert."""
_OF_SUITES = ("suite", "split", "turns_per_script", "system", "probes", "transcripts", "seed", "max_new_tokens",
              "temperature", "top_p")  # fmt: skip
_OF_FILES = ("turns", "skip_bad", "overflow")
_CHAT_TOKENS = 256
_ALLOW = click.option(
    "--allow", multiple=True, type=click.Choice(["weights", "chat_template", "architecture", "num_layers"]),
    help="A deliberate difference from the model that a file was made for.",
)  # fmt: skip


@click.command(short_help="Follow conversations along an axis.")
@click.argument("axis", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="Directory or hub name.  [default: the one AXIS was made for]")
@loading_options
@click.option("--suite", metavar="LIST", callback=names,
              help="Scripted conversations to play, such as emotional,coding.  [default: all suites]")  # fmt: skip
@click.option("--split", type=click.Choice(["held_out", "train", "all"]), default="held_out", show_default=True,
              help="Which half of the suites.")  # fmt: skip
@click.option("--turns-per-script", type=click.IntRange(1), metavar="N", help="Play the first N turns only.")
@click.option("--system", default="", help="System prompt to play the suites under.")
@click.option("--probes", type=click.Path(path_type=Path), metavar="DIR", help="Your own suites.")
@click.option("--transcripts", type=click.Path(path_type=Path), metavar="FILE",
              help="Save what was said as JSON lines, which --conversations reads.")  # fmt: skip
@sampling_options
@click.option("--conversations", type=click.Path(path_type=Path), metavar="FILE",
              help='Read these instead: JSON lines, {"messages": [...]} each.')  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Pass over conversations that cannot be measured, and count them.")
@click.option("--overflow", type=click.Choice(["refuse", "window"]), default="refuse", show_default=True,
              help="What to do with conversations longer than the model's context.")  # fmt: skip
@click.option("--turns", default="assistant", show_default=True, metavar="LIST", callback=speakers,
              help="Whose turns --out holds: assistant,user,system or all.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N conversations; of suites in equal parts.")
@click.option("--cap", "caps", multiple=True, type=click.Path(path_type=Path), help="Cap file; may be repeated.")
@click.option("--layers", metavar="LIST", callback=layer_list, help="Layers that --out holds.  [default: all in AXIS]")
@click.option("--layer", type=click.IntRange(0), metavar="L",
              help="Layer of summary, figure and alerts.  [default: recommended]")  # fmt: skip
@click.option("--alert", metavar="P[:N]", callback=alert_when,
              help="Exit with 3 if a reply lies below percentile P of the default's; with :N only if N in a row do. "
              "About P% of healthy turns lie below P.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Table to write, .csv or .parquet.")
@_ALLOW
@debuggable
def drift(axis: Path, model: str | None, revision: str | None, dtype: str, device_map: str | None, stack: str | None,
          suite: tuple[str, ...] | None, split: str, turns_per_script: int | None, system: str, probes: Path | None,
          transcripts: Path | None, seed: int, conversations: Path | None, skip_bad: bool, overflow: str,
          turns: tuple[str, ...], limit: int | None, caps: tuple[Path, ...], layers: tuple[int, ...] | None,
          layer: int | None, alert: Alert | None, out: Path | None, allow: tuple[str, ...],
          **sampling: Any) -> None:  # fmt: skip
    """Follow conversations along the axis in the file AXIS: where each of the model's turns lies.

    Scripted suites are played, the model answering (unless told otherwise as when AXIS was made); or conversations that
    were held already are read from a file, each in one pass. A summary is printed, a figure saved (beside --out, or as
    drift.png), with --out the whole table. Exit code 3 says that --alert raised one.
    """
    _refuse(_OF_FILES if conversations is None else _OF_SUITES)

    from persona_axis._account import Account, gathered, marked
    from persona_axis._drift_report import place_in, save_figure, show_account, show_alerts
    from persona_axis._follow import Course, First, Passed, Told, chosen_scripts, own_sampling, played, read
    from persona_axis._tables import Output
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.conversations import read_conversations
    from persona_axis.drift import Alarm, TableWriter

    ruler = Axis.load(axis)
    at = _summary_layer(ruler, layer, layers)
    alarm = Alarm(ruler, alert.percentile, at, alert.run) if alert else None
    held = [Cap.load(path) for path in caps]
    account, told, first = Account(at), Told(), First()
    passed = Passed(told)
    with ExitStack() as stack_:
        stack_.callback(told.close)
        table = stack_.enter_context(TableWriter(out)) if out else None
        if conversations is None:
            scripts = chosen_scripts(probes, suite, None if split == "all" else split, limit)
            how = own_sampling(ruler, **sampling)
            chat = load_for(ruler, model, revision, dtype, device_map, stack)
            course = Course(chat, ruler, layers, held, allow)
            frames = played(course, scripts, system, turns_per_script, how, seed, transcripts, first, told)
        else:
            talks = islice(read_conversations(conversations, skip_bad, passed), limit)
            chat = load_for(ruler, model, revision, dtype, device_map, stack)
            course = Course(chat, ruler, layers, held, allow)
            whose = {"assistant", *turns}
            frames = read(course, talks, whose, overflow, passed if skip_bad else None, first, told)
        frames = gathered(frames)
        for frame in marked(frames, alarm) if alarm else frames:
            account.add(frame)
            if table:
                table.append(frame[frame["speaker"].isin(turns)])
    passed.sum_up()
    if any(at in cap.layers for cap in held):
        told.line(f"note: layer {at} is capped: its projection lies inside the bounds by construction")
    output = Output()
    show_account(output, account, place_in(ruler, at))
    if alarm and alert:
        show_alerts(output, account, alarm, alert.percentile)
    picture = out.with_suffix(".png") if out else Path("drift.png")
    drawn = save_figure(account, ruler, picture, first.conversation)
    for saved in (out, transcripts, picture if drawn else None):
        if saved:
            click.echo(f"saved {saved}")
    if account.alerts:
        raise click.exceptions.Exit(ALERTED)


@click.command(short_help="Chat with a model and watch the meter.")
@model_options
@click.option("--axis", type=click.Path(path_type=Path), metavar="FILE", help="Axis file for the meter.")
@click.option("--cap", "caps", multiple=True, type=click.Path(path_type=Path), help="Cap file; may be repeated.")
@click.option("--layer", type=click.IntRange(0), metavar="L", help="Layer of the meter.  [default: recommended]")
@click.option("--band", type=click.FloatRange(0, 100), default=1.0, show_default=True, metavar="P",
              help="Percentile of the default's replies where the safe band ends.")  # fmt: skip
@click.option("--system", default="", help="System prompt, such as a character to play.")
@sampling_options
@_ALLOW
@debuggable
def chat(model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None, axis: Path | None,
         caps: tuple[Path, ...], layer: int | None, band: float, system: str, seed: int, allow: tuple[str, ...],
         **sampling: Any) -> None:  # fmt: skip
    """Chat with MODEL (Troupe if none is given) in the terminal, under caps or without.

    After each reply a meter shows its projection on the axis, and a warning when it leaves the safe band. /new begins a
    new conversation, /quit or the end of the input ends it. Input may come from a pipe, a message a line.
    """
    from rich.text import Text

    from persona_axis._follow import Told
    from persona_axis._tables import Output, printable
    from persona_axis._talk import Meter, Ruler, Talk
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.errors import DriftError
    from persona_axis.sampling import Sampling

    ruled = Axis.load(axis) if axis else None
    held = [Cap.load(path) for path in caps]
    ruler = Ruler.of(ruled, held, layer)
    how: dict[str, Any] = {"max_new_tokens": _CHAT_TOKENS}
    answering = Sampling(**how | {name: value for name, value in sampling.items() if value is not None})
    output, told = Output(), Told()
    plain, width = output.options.ascii_only, min(40, output.width - 30)
    meter = Meter(ruler, band, width=width, ascii_only=plain) if ruler else None
    speaking = load_model(model, revision, dtype, device_map, stack)
    if ruled:
        ruled.require(speaking.model, speaking.template.source, allow, stack)
    talk = Talk(speaking, answering, system=system, caps=held, ruler=ruler, seed=seed, allow=allow)
    told.line(meter.legend() if meter else "no meter: name an axis file with --axis (`persona-axis extract` makes one)")
    for line in _lines(output):
        if line == "/quit":
            break
        if line == "/new":
            talk.begin()
            told.line("a new conversation")
            continue
        try:
            said = talk.say(line)
        except DriftError as error:
            told.line(f"{error} by /new")
            continue
        output.print(Text(f"{speaking.display_name}: {printable(said.text) or '(an empty reply)'}"))
        if meter and said.projection is not None:
            output.print(meter.line(said))
            if warning := meter.warning(said):
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


def _summary_layer(axis: Axis, layer: int | None, layers: tuple[int, ...] | None) -> int:
    """The layer to sum up: the one asked for, else the recommended one, else the only one there is."""
    from persona_axis._tables import layer_to_show

    for one in layers or ():
        axis.row(one)
    at = layer_to_show(axis, layer)
    if layers is None or at in layers:
        return at
    if layer is None and len(layers) == 1:
        return layers[0]
    raise click.UsageError(f"layer {at} is not among --layers {','.join(map(str, layers))}: choose one by --layer")


def _refuse(names: tuple[str, ...]) -> None:
    """Options of the other kind of conversation would be ignored, so they are an error."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name in names and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            other = "the suites that are played" if name in _OF_SUITES else "--conversations"
            raise click.UsageError(f"{option.opts[0]} is for {other} only")
