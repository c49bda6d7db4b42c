"""python -m persona_axis.organism train | check"""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, help="Troupe, the model organism: train it from nothing, check what it can do.")


@app.callback()
def organism() -> None:
    """Troupe, the model organism."""


@app.command()
def train(
    out: Path = typer.Option(Path("troupe"), help="Folder for both checkpoints and the state to resume from."),
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


if __name__ == "__main__":
    app()
