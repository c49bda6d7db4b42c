"""The command `drift`. Imports are local to it, as in cli.py."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_axis.commands.drift_options import (
    figure_file,
    refuse_capped_alert,
    refuse_others,
    result_options,
    summary_layer,
)
from persona_axis.commands.options import (
    allow_option,
    load_for,
    loading_options,
    names,
    refuse_overwriting,
    sampling_options,
)
from persona_axis.commands.terminal import debuggable, reader_may_leave

if TYPE_CHECKING:
    from persona_axis.commands.options import Alert

ALERTED = 3
"""Exit code of a `drift` that raised an alert."""
_AS_MADE = "as for AXIS"


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
@sampling_options(_AS_MADE, _AS_MADE, _AS_MADE)
@click.option("--conversations", type=click.Path(path_type=Path), metavar="FILE",
              help='Read these instead: JSON lines, {"messages": [...]} each.')  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Pass over conversations that cannot be measured, and count them.")
@click.option("--overflow", type=click.Choice(["refuse", "window"]), default="refuse", show_default=True,
              help="What to do with conversations longer than the model's context.")  # fmt: skip
@result_options
@allow_option
@debuggable
def drift(axis: Path, model: str | None, revision: str | None, dtype: str, device_map: str | None, stack: str | None,
          suite: tuple[str, ...] | None, split: str, turns_per_script: int | None, system: str, probes: Path | None,
          transcripts: Path | None, seed: int, conversations: Path | None, skip_bad: bool, overflow: str,
          turns: tuple[str, ...], limit: int | None, caps: tuple[Path, ...], layers: tuple[int, ...] | None,
          layer: int | None, alert: Alert | None, out: Path | None, figure: Path | None, no_figure: bool,
          allow: tuple[str, ...], **sampling: Any) -> None:  # fmt: skip
    """Follow conversations along the axis in the file AXIS: where each of the model's turns lies.

    Scripted suites are played, the model answering (unless told otherwise as when AXIS was made); or conversations that
    were held already are read from a file, each in one pass (with --overflow window a long one in several). A summary
    is printed, a figure saved, with --out the whole table. Exit code 3 says that --alert raised one.
    """
    refuse_others(are_read=conversations is not None)
    picture = figure_file(figure, no_figure, out)
    read_from = {"AXIS": axis, "--conversations": conversations, **{f"the cap {cap}": cap for cap in caps}}
    refuse_overwriting(read_from, {"--out": out, "--transcripts": transcripts, "the figure": picture})

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.conversations import read_conversations
    from persona_axis.display.drift import place_in, save_figure, show_account, show_alerts
    from persona_axis.display.tables import Output
    from persona_axis.drift import Alarm, TableWriter
    from persona_axis.talks.following import Course, First, Passed, Told, chosen_scripts, own_sampling, played, read
    from persona_axis.talks.transcripts import Transcripts, require_writable
    from persona_axis.trajectories.account import Account, gathered, marked

    ruler = Axis.load(axis)
    at = summary_layer(ruler, layer, layers)
    held = [Cap.load(path) for path in caps]
    if alert:
        refuse_capped_alert(at, held)
    alarm = Alarm(ruler, alert.percentile, at, alert.run) if alert else None
    for path in filter(None, (out, transcripts, figure)):
        require_writable(path)
    account, told, first = Account(at), Told(), First()
    passed = Passed(told)
    with ExitStack() as stack_:
        stack_.callback(told.close)
        # Left in the other order: the table is saved before the transcripts, and neither takes the other down.
        transcript = stack_.enter_context(Transcripts(transcripts)) if transcripts else None
        table = stack_.enter_context(TableWriter(out)) if out else None
        if conversations is None:
            scripts = chosen_scripts(probes, suite, None if split == "all" else split, limit)
            how = own_sampling(ruler, **sampling)
            chat = load_for(ruler, model, revision, dtype, device_map, stack)
            course = Course(chat, ruler, layers, held, allow)
            frames = played(course, scripts, system, turns_per_script, how, seed, transcript, first, told)
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
    if picture and not save_figure(account, ruler, picture, first.conversation, told.line):
        picture = None
    with reader_may_leave():
        output = Output()
        show_account(output, account, place_in(ruler, at))
        if alarm and alert:
            show_alerts(output, account, alarm, alert.percentile)
        for saved in filter(None, (out, transcripts, picture)):
            click.echo(f"saved {saved}")
    if account.alerts:
        raise click.exceptions.Exit(ALERTED)
