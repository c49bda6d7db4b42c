"""The command `signals`. Imports are local to it, as in cli.py."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import click

from persona_axis._judge_names import OF_SIGNALS
from persona_axis.commands.judge_options import JudgeOf, judge_options, judge_settings
from persona_axis.commands.options import load_for, load_model, loading_options, names, refuse_overwriting
from persona_axis.commands.terminal import debuggable, reader_may_leave


@click.command(short_help="Score conversations: consistency, and its price.")
@click.argument("conversations", type=click.Path(path_type=Path))
@click.option("--signals", "wanted", metavar="LIST", callback=names,
              help="Such as adherence,relevance.  [default: all that can be had with the options given]")  # fmt: skip
@click.option("--personas", type=click.Path(path_type=Path), metavar="FILE",
              help="Who speaks, as JSON lines.  [default: what each system message says]")  # fmt: skip
@click.option("--judge", type=JudgeOf(OF_SIGNALS),
              help="Who judges: Troupe's parser, the agent as its own listener, a model behind an API, "
              "a model of inference.")  # fmt: skip
@judge_options
@click.option("--model", metavar="MODEL", help="The agent itself, for signals that read or ask it.  [default: AXIS's]")
@loading_options
@click.option("--axis", type=click.Path(path_type=Path), metavar="FILE", help="Axis file, for projection.")
@click.option("--layer", type=click.IntRange(0), metavar="L", help="Layer of projection.  [default: recommended]")
@click.option("--cap", "caps", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Cap to read and ask the agent under; may be repeated.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Score the first N conversations.")
@click.option("--skip-bad", is_flag=True, help="Pass over conversations that cannot be read, and count them.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Save all rows, as .csv or .parquet.")
@debuggable
def signals(conversations: Path, wanted: tuple[str, ...] | None, personas: Path | None, judge: str | None,
            model: str | None, revision: str | None, dtype: str, device_map: str | None, stack: str | None,
            axis: Path | None, layer: int | None, caps: tuple[Path, ...], limit: int | None, skip_bad: bool,
            out: Path | None, **given: Any) -> None:  # fmt: skip
    """Score the conversations in a file of JSON lines, {"messages": [...]} each.

    Without a judge or a model: what is copied and repeated. With --judge: does it stay in its persona, agree with
    itself, answer. With --model: how much a reply owes to the user's message, and what the agent answers when it is
    asked for its facts. With --axis: how near it lies to the Assistant. Every figure has a 95% interval over
    conversations, and what could not be judged is counted and in no figure.
    """
    about_judge = judge_settings(judge, given)
    if layer is not None and axis is None:
        raise click.UsageError("--layer is of an axis file: name one with --axis")
    if caps and not (model or axis):
        raise click.UsageError("--cap is for the agent: name it with --model")
    refuse_overwriting({"CONVERSATIONS": conversations, "--personas": personas, "--axis": axis}, {"--out": out})

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.conversations import read_conversations
    from persona_axis.display.signals import show_signals
    from persona_axis.display.tables import Output
    from persona_axis.drift import TableWriter
    from persona_axis.judges import named, of_signals
    from persona_axis.persona import read_personas
    from persona_axis.signals import together
    from persona_axis.signals.choosing import Means, chosen, made
    from persona_axis.talks.transcripts import require_writable

    if out:
        require_writable(out)
    bad: list[str] = []
    talks = list(islice(read_conversations(conversations, skip_bad, bad.append), limit))
    who = None if personas is None else read_personas(personas)
    ruler = None if axis is None else Axis.load(axis)
    held = [Cap.load(path) for path in caps]
    loading = revision, dtype, device_map, stack
    chat = load_for(ruler, model, *loading) if ruler else load_model(model, *loading) if model else None
    asked = of_signals(named(judge, chat=chat, **about_judge)) if judge else None
    means = Means(talks, who, asked, chat, ruler, layer, held)
    found = list(made(chosen(wanted, means), means))
    if out:
        with TableWriter(out) as table:
            table.append(together(found))
    for line in bad:
        click.echo(f"passed over {line}", err=True)
    with reader_may_leave():
        show_signals(Output(), found)
        if out:
            click.echo(f"saved {out}")
    if spent := getattr(asked, "spent", None):
        click.echo(f"the judge took {spent}", err=True)
