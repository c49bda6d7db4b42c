"""The command `bench`. Imports are local to it, as in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from persona_axis._judge_names import OF_SIGNALS
from persona_axis.commands.judge_options import JudgeOf, judge_options, judge_settings
from persona_axis.commands.options import load_model, model_options, names, sampling_options
from persona_axis.commands.terminal import debuggable, reader_may_leave


@click.command(short_help="Compare ways to hold a persona.")
@model_options
@click.option("--axis", type=click.Path(path_type=Path), metavar="FILE",
              help="Axis file, for cap, steer, random and the projection.")  # fmt: skip
@click.option("--cap", "held", type=click.Path(path_type=Path), metavar="FILE",
              help="Cap file.  [default: AXIS's recommended layer, floor default_tokens:p25]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Where tables, picture and all that was held are kept.")  # fmt: skip
@click.option("--levers", metavar="LIST", callback=names,
              help="Such as cap,listener.  [default: all that can be had]")  # fmt: skip
@click.option("--conversations", type=click.IntRange(1), default=16, show_default=True, metavar="N",
              help="Conversations of each suite: drift, personas, jailbreaks.")  # fmt: skip
@click.option("--turns", type=click.IntRange(1), metavar="N",
              help="Hold the first N turns.  [default: all: drift 15, personas 5 to 40, jailbreaks 1]")  # fmt: skip
@click.option("--signals", "wanted", metavar="LIST", callback=names,
              help="Such as adherence,relevance.  [default: all]")  # fmt: skip
@click.option("--items", type=click.IntRange(1), default=200, show_default=True, metavar="N",
              help="Items of the test of capability.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0), default=2.0, show_default=True, metavar="A",
              help="How strongly the speaker heeds the listener.")  # fmt: skip
@click.option("--judge", type=JudgeOf(OF_SIGNALS),
              help="Who judges.  [default: Troupe's parser for Troupe, else nobody]")  # fmt: skip
@judge_options
@sampling_options("48 for Troupe, else 128")
@debuggable
def bench(model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None, axis: Path | None,
          held: Path | None, out: Path, levers: tuple[str, ...] | None, conversations: int, turns: int | None,
          wanted: tuple[str, ...] | None, items: int, alpha: float, judge: str | None, seed: int,
          **given: Any) -> None:  # fmt: skip
    """Hold the same conversations with MODEL under every lever and read the same signals, with their prices.

    Levers: none, repeat (the system prompt again before every message but the first), cap, steer, listener,
    cap+listener, and random (Gaussian directions), a control that should not work. Suites: drift (the Assistant in
    four domains), personas (a character with facts in 5 to 40 turns), jailbreaks (a character that would do what the
    Assistant refuses). Signals have a 95% interval over conversations, where there are 5 of them or more, and their
    difference from "none" over the same ones; costs have no interval. A conversation that grows longer than MODEL can
    read, as a lever tells it, is not held under that lever, and a note says which. A bench that was stopped goes on
    when the same command is given again.
    """
    about_judge = judge_settings(judge, given)
    if held is not None and axis is None:
        raise click.UsageError("--cap goes with the axis that it is compared along: name one with --axis")

    from persona_axis.axis import Axis
    from persona_axis.bench import bench as run_bench
    from persona_axis.bench.levers import LEVERS, require_known
    from persona_axis.bench.printed import markdown, show_bench
    from persona_axis.cap import Cap
    from persona_axis.display.tables import Output
    from persona_axis.errors import BenchError
    from persona_axis.judges import named, of_signals
    from persona_axis.levers.listener import Listener
    from persona_axis.plots.bench import pareto
    from persona_axis.sampling import Sampling
    from persona_axis.talks.following import Told

    ruler = None if axis is None else Axis.load(axis)
    chosen = levers or tuple(name for name, (needs_axis, _) in LEVERS.items() if ruler or not needs_axis)
    for name in chosen:
        require_known(name, ruler)  # told before a large model is loaded
    chat = load_model(model, revision, dtype, device_map, stack)
    sampled = {"max_new_tokens": 48 if chat.is_troupe else 128} | {k: v for k, v in given.items() if v is not None}
    asked = of_signals(named(judge, chat=chat, **about_judge)) if judge else None
    told = Told()
    try:
        found = run_bench(
            chat, chosen, out=out, axis=ruler, cap=None if held is None else Cap.load(held),
            listener=Listener(alpha), conversations=conversations, turns=turns, items=items,
            signals=wanted, seed=seed, judge=asked,
            sampling=Sampling(**sampled), progress=told.progress,
        )  # fmt: skip
    finally:
        told.close()
    for note in found.notes:
        told.line(f"note: {note}")
    saved = [out / name for name in ("table.csv", "rows.csv", "table.md")]
    saved[-1].write_text(markdown(found.table, found.notes), encoding="utf-8")
    try:
        figure = pareto(found.table, chat.display_name)
    except BenchError as error:
        told.line(f"no picture: {error}")
    else:
        saved.append(out / "bench.png")
        figure.savefig(saved[-1])
    with reader_may_leave():
        show_bench(Output(), found.table)
        for path in saved:
            click.echo(f"saved {path}")
    if spent := getattr(asked, "spent", None):
        click.echo(f"the judge took {spent}", err=True)
