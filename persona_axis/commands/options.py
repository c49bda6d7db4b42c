"""Command-line options that several commands share, and the kinds of value they take."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.chat import ChatModel
    from persona_axis.extraction.engines import MakesEngine

F = TypeVar("F", bound=Callable[..., Any])
SPEAKERS = ("assistant", "user", "system")


def layers(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Layer indices from 0, such as 12, 2-3 or 4,6,8-11; rising and each once."""
    if value is None:
        return None
    found: list[int] = []
    try:
        for part in value.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        found = []
    if not found or found != sorted(set(found)):
        raise click.BadParameter(f"{value!r} is not a list of rising layer indices such as 12, 2-3 or 4,6,8-11")
    return tuple(found)


def layers_or_all(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...] | Literal["all"] | None:
    """Layer indices as `layers` takes them, or all of them by that word."""
    return "all" if value == "all" else layers(context, option, value)


def bound(_context: click.Context, _option: click.Parameter, value: str | None) -> float | str | None:
    """A number, or a percentile of a named distribution such as default_tokens:p25."""
    try:
        return None if value is None else float(value)
    except ValueError:
        if value is None or ":" not in value:
            message = f"{value!r} is neither a number nor a percentile such as default_tokens:p25"
            raise click.BadParameter(message) from None
        return value


def scores(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A judge's scores from 0 to 3, such as 3 or 2,3."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part in ("0", "1", "2", "3") for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of scores from 0 to 3 such as 2,3")
    return tuple(int(part) for part in parts)


class Alert(NamedTuple):
    """When `--alert` raises one: below this percentile of the default, so many turns in a row."""

    percentile: float
    run: int


def alert_when(_context: click.Context, _option: click.Parameter, value: str | None) -> Alert | None:
    """A percentile of the default's replies, such as 5, or one with a run of turns, such as 5:3."""
    if value is None:
        return None
    percentile, colon, run = value.partition(":")
    with suppress(ValueError):
        found = Alert(float(percentile), int(run) if colon else 1)
        if 0 <= found.percentile <= 100 and found.run >= 1:
            return found
    raise click.BadParameter(f"{value!r} is neither a percentile such as 5 nor one with a run of turns such as 5:3")


def device_map(_context: click.Context, _option: click.Parameter, value: str | None) -> str | dict[str, Any] | None:
    """A name that accelerate knows, such as auto, or which part goes where: a JSON object, or a .json file of one."""
    if value is None or not value.startswith("{") and not value.endswith(".json"):
        return value
    try:
        found = json.loads(value if value.startswith("{") else Path(value).read_bytes())
        if isinstance(found, dict) and found and all(type(place) in (str, int) for place in found.values()):
            return found
        why = "it names no device for any part"
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    raise click.BadParameter(
        f"{value!r} is neither a name such as auto nor a JSON object of parts and devices "
        f'such as {{"model.layers.0": "disk"}} ({why})'
    )


def arguments(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE, several; a value is JSON, or a text where it is none."""
    found: dict[str, Any] = {}
    for one in value:
        name, equals, given = one.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{one!r} is not NAME=VALUE, such as tensor_parallel_size=2")
        try:
            found[name] = json.loads(given)
        except ValueError:
            found[name] = given
    return found


def names(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names with commas between them, each once."""
    if value is None:
        return None
    found = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if not all(found):
        raise click.BadParameter(f"{value!r} is not a list of names with commas between them")
    return found


def speakers(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Whose turns: assistant, user, system, several, or all."""
    found = SPEAKERS if value == "all" else names(context, option, value) or ()
    if unknown := [name for name in found if name not in SPEAKERS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(SPEAKERS)}, all")
    return found


def model_options(command: F) -> F:
    """MODEL and how to load it; `load_model` takes them."""
    return click.argument("model", default="troupe")(loading_options(command))


def loading_options(command: F) -> F:
    """How to load a model."""
    dtypes = click.Choice(["auto", "float32", "bfloat16", "float16"])
    for decorate in (
        click.option("--stack", metavar="NAME", help="Attribute path of the decoder layers, if it is not found."),
        click.option("--device-map", metavar="MAP", callback=device_map,
                     help="accelerate's device map for large models: auto, or JSON of parts and devices."),
        click.option("--dtype", type=dtypes, default="auto", help="Precision of the weights; auto = as stored."),
        click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def sampling_options(tokens: str, temperature: str = "0.7", top_p: str = "0.9") -> Callable[[F], F]:
    """How replies are drawn; the texts are what the help of this command states as its defaults."""

    def decorated(command: F) -> F:
        mass, longest = click.FloatRange(0, 1, min_open=True), click.IntRange(1)
        for decorate in (
            click.option("--top-p", type=mass, help=f"Nucleus mass.  [default: {top_p}]"),
            click.option("--temperature", type=click.FloatRange(0), help=f"0 is greedy.  [default: {temperature}]"),
            click.option("--max-new-tokens", type=longest, metavar="N",
                         help=f"Longest reply in tokens.  [default: {tokens}]"),
            click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sampling."),
        ):  # fmt: skip
            command = decorate(command)
        return command

    return decorated


def allow_option(command: F) -> F:
    """Differences between the model and the one a file was made for that are deliberate."""
    return click.option(
        "--allow", multiple=True, type=click.Choice(["weights", "chat_template", "architecture", "num_layers"]),
        help="A deliberate difference from the model that a file was made for.",
    )(command)  # fmt: skip


def load_model(model: str, revision: str | None, dtype: str, device_map: Any, stack: str | None) -> ChatModel:
    """The model of `model_options`. transformers is told to keep its remarks and bars to itself."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    from persona_axis.chat import ChatModel

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return ChatModel.load(model, revision=revision, dtype=dtype, device_map=device_map, layers=stack)


def drawing(
    engine: str | None, arguments: dict[str, Any], ray: str | None, workers: int, gpus: float | None,
    device_map: str | None,
) -> AbstractContextManager[MakesEngine]:  # fmt: skip
    """What draws rollouts: an engine by its name, or Ray workers at the address `ray`, for as long as the block."""
    from persona_axis.extraction.choosing import named
    from persona_axis.extraction.engines import Local
    from persona_axis.extraction.ray_engine import over_ray, require_ray

    made = named(engine or Local.name, arguments)
    if ray is None:
        return nullcontext(made)
    require_ray()
    return over_ray(ray, workers, gpus=gpus, load={"device_map": device_map})


def load_for(
    axis: Axis, model: str | None, revision: str | None, dtype: str, device_map: str | None, stack: str | None
) -> ChatModel:
    """The model named, or else the one that the axis was made for, at the revision that the axis states."""
    if model is None:
        model = axis.facts.get("model")
        if not isinstance(model, str):
            raise click.UsageError(f"{axis.source} does not say which model it was made for: name it with --model")
        revision = revision or axis.facts.get("revision")
    return load_model(model, revision, dtype, device_map, stack)


def slug(model: str) -> str:
    """A model's name as part of a file name."""
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else model.split("/")[-1]
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name) or "model"


def refuse_overwriting(inputs: Mapping[str, Path | None], outputs: Mapping[str, Path | None]) -> None:
    """What is written must not fall on what is read, nor two results on one file; names are as the user knows them."""
    taken = {path.resolve(): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if other := taken.get(path.resolve()):
            raise click.UsageError(f"{name} would be written over {other}, {path}: name another file")
        taken[path.resolve()] = name
