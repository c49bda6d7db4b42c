"""python -m persona_axis.organism train | check"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .check import Figure

app = typer.Typer(add_completion=False, help="Troupe, the model organism: train it from nothing, check what it can do.")


@app.callback()
def organism() -> None:
    """Troupe, the model organism."""


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for both checkpoints and the states.")] = Path("troupe"),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    base_steps: int | None = typer.Option(None, help="Steps of stage one (default: the shipped recipe)."),
    chat_steps: int | None = typer.Option(None, help="Steps of stage two (default: the shipped recipe)."),
    seed: int = typer.Option(0, help="Seed of weights and data."),
    save_every: int = typer.Option(100, help="Steps between states that a killed run resumes from."),
) -> None:
    """Train both stages; run the same command again to go on after an interruption."""
    from dataclasses import replace

    from .train import Recipe
    from .train import train as run

    recipe = Recipe(seed=seed)
    recipe = replace(recipe, base_steps=base_steps or recipe.base_steps, chat_steps=chat_steps or recipe.chat_steps)
    run(recipe, out, device, save_every, typer.echo)


@app.command()
def check(
    model: str = typer.Argument("troupe", help="A checkpoint folder; default: the shipped one."),
    count: int = typer.Option(600, help="Items a figure."),
    seed: int = typer.Option(0),
    split: str = typer.Option("held_out", help="held_out or train wordings."),
    turns: int = typer.Option(15, help="Turns of the drift conversations; 0 leaves them out."),
) -> None:
    """Print what the model can do, with 95% intervals; exit 1 if a figure lies below what is needed."""
    from rich.console import Console
    from rich.table import Table

    from ..chat import ChatModel
    from . import check as exam

    console, chat = Console(), ChatModel.load(model)
    table = Table(
        "figure",
        "share",
        "95% interval",
        "items",
        "needed",
        title=f"{chat.name}: {split} wordings, T=0.7, top-p=0.9",
    )
    figures = exam.check(chat, count, seed, split)
    for f in figures:
        needed = "" if f.needed != f.needed else f"{f.needed:.2f}"
        table.add_row(f.name, f"{f.value:.3f}", f"{f.low:.3f}-{f.high:.3f}", str(f.items), needed)
    console.print(table)
    ones, twos = exam.perplexity(chat, "base"), exam.perplexity(chat, "chat")
    console.print(f"perplexity a reply token: stage one {ones:.2f}, stage two {twos:.2f}")
    if turns:
        _print_drift(console, exam.drift(chat, turns, seed=seed))
    raise typer.Exit(int(any(f.value < f.needed for f in figures)))


def _print_drift(console: Console, drift: dict[str, list[Figure]]) -> None:
    from rich.table import Table

    table = Table("turn", *drift, title="share of the default's replies that read as the Assistant")
    for turn, row in enumerate(zip(*drift.values(), strict=True), 1):
        table.add_row(str(turn), *(f"{f.value:.2f}" for f in row))
    console.print(table)


if __name__ == "__main__":
    app()
