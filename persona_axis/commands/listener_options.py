"""The options of the imaginary listener on the command line, and what they make of a talk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_SHAPE = "such as alpha=2,beta=1,prior=posterior,distractors=2,choose=random"


class Listening(NamedTuple):
    """`--listener`: how it listens, how many distractors it is given (2), and how they are chosen ("random")."""

    alpha: float = 2.0
    beta: float = 1.0
    prior: str = "posterior"
    distractors: int | None = None
    choose: str | None = None


_KINDS = {"alpha": float, "beta": float, "prior": str, "distractors": int, "choose": str}


def _listening(_context: click.Context, _option: click.Parameter, value: str | None) -> Listening | None:
    """Settings with commas between them, each once; all may be left out."""
    if value is None:
        return None
    found: dict[str, Any] = {}
    for part in filter(None, value.split(",")):
        name, _, given = (piece.strip() for piece in part.partition("="))
        if name not in _KINDS or name in found or not given:
            raise click.BadParameter(f"{part!r} is not a setting of a listener, each once, {_SHAPE}")
        try:
            found[name] = _KINDS[name](given)
        except ValueError:
            raise click.BadParameter(f"{part!r}: {given!r} is not a number") from None
    if found.get("choose") not in (None, "random", "similar"):
        raise click.BadParameter(f"choose={found['choose']}: distractors are chosen random or similar")
    if found.get("distractors", 1) < 1:
        raise click.BadParameter(f"distractors={found['distractors']}: at least one is needed")
    return Listening(**found)


def listener_options(command: F) -> F:
    """How replies are chosen so that they tell the persona; `imagine` takes both."""
    for decorate in (
        click.option("--distractor", "distractors", multiple=True, metavar="PERSONA",
                     help="Persona that the listener tells this one from; may be repeated.  [default: roles]"),
        click.option("--listener", "listening", metavar="SETTINGS", callback=_listening,
                     help=f"Say what tells the persona from others: settings {_SHAPE}."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def imagine(listening: Listening | None, distractors: tuple[str, ...], system: str, seed: int) -> dict[str, Any]:
    """What a `Talk` is told of a listener: nothing without one. Raises `ListenerError` for unfit settings."""
    if listening is None:
        if distractors:
            raise click.UsageError("--distractor is for a listener: it goes with --listener")
        return {}
    from persona_axis.levers.distractors import at_random, similar
    from persona_axis.levers.listener import Listener
    from persona_axis.levers.worlds import persona_worlds
    from persona_axis.probes import load_probes

    # a prior that is none is told by the listener itself
    listener = Listener(listening.alpha, listening.beta, listening.prior)  # type: ignore[arg-type]
    if distractors:
        if listening.choose or listening.distractors not in (None, len(distractors)):
            raise click.UsageError(
                f"--distractor names all {len(distractors)} that the listener tells the persona from, and --listener "
                "asks for others to be chosen (distractors=, choose=): leave one of the two out"
            )
        persona_worlds([{"role": "system", "content": system}], distractors)
    else:
        pool = [role.prompts[0] for role in load_probes().roles]
        count = 2 if listening.distractors is None else listening.distractors
        chosen = similar(system, pool, count) if listening.choose == "similar" else None
        distractors = tuple(chosen or at_random(system, pool, count, seed))
    return {"listener": listener, "distractors": distractors}
