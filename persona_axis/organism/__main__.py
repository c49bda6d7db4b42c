"""python -m persona_axis.organism train | check"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..commands.terminal import debuggable, run

if TYPE_CHECKING:
    from rich.console import Console

    from .check import Figure


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@debuggable
def app() -> None:
    """Troupe, the model organism: train it from nothing, check what it can do."""


@app.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("troupe"),
              help="Folder for both checkpoints and the states.")  # fmt: skip
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--base-steps", type=click.IntRange(1), help="Steps of stage one.  [default: the shipped recipe]")
@click.option("--chat-steps", type=click.IntRange(1), help="Steps of stage two.  [default: the shipped recipe]")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of weights and data.")
@click.option("--save-every", type=click.IntRange(1), default=100, help="Steps between states to resume from.")
@debuggable
def train(out: Path, device: str, base_steps: int | None, chat_steps: int | None, seed: int, save_every: int) -> None:
    """Train both stages; run the same command again to go on after an interruption."""
    from dataclasses import replace

    from .train import Recipe
    from .train import train as run_training

    recipe = Recipe(seed=seed)
    recipe = replace(recipe, base_steps=base_steps or recipe.base_steps, chat_steps=chat_steps or recipe.chat_steps)
    run_training(recipe, out, device, save_every, click.echo)


@app.command()
@click.argument("model", default="troupe")
@click.option("--count", type=click.IntRange(1), default=600, help="Items a figure.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--split", type=click.Choice(["held_out", "train"]), default="held_out", help="Which wordings.")
@click.option("--turns", type=click.IntRange(0), default=15, help="Turns of the drift conversations; 0: none.")
@debuggable
def check(model: str, count: int, seed: int, split: str, turns: int) -> None:
    """Print what MODEL (a checkpoint folder; default: the shipped one) can do, with 95% intervals.

    Exits with 1 if a figure lies below what is needed.
    """
    from rich.console import Console
    from rich.table import Table

    from ..chat import ChatModel
    from . import check as exam

    console, chat = Console(), ChatModel.load(model)
    title = f"{chat.name}: {split} wordings, T=0.7, top-p=0.9"
    table = Table("figure", "share", "95% interval", "items", "needed", title=title)
    figures = exam.check(chat, count, seed, split)
    for f in figures:
        needed = "" if f.needed != f.needed else f"{f.needed:.2f}"
        table.add_row(f.name, f"{f.value:.3f}", f"{f.low:.3f}-{f.high:.3f}", str(f.items), needed)
    console.print(table)
    ones, twos = exam.perplexity(chat, "base"), exam.perplexity(chat, "chat")
    console.print(f"perplexity a reply token: stage one {ones:.2f}, stage two {twos:.2f}")
    if turns:
        _print_drift(console, exam.drift(chat, turns, seed=seed))
    sys.exit(int(any(f.value < f.needed for f in figures)))


def _print_drift(console: Console, drift: dict[str, list[Figure]]) -> None:
    from rich.table import Table

    table = Table("turn", *drift, title="share of the default's replies that read as the Assistant")
    for turn, row in enumerate(zip(*drift.values(), strict=True), 1):
        table.add_row(str(turn), *(f"{f.value:.2f}" for f in row))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run(app, name="python -m persona_axis.organism"))
