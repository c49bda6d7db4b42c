"""The command line's options for a judge that needs a model of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from persona_axis._judge_names import ALL, unfit

F = TypeVar("F", bound=Callable[..., Any])


_FIT = {"api": ("judge_model", "judge_url", "judge_cache", "judge_prices"), "nli": ("judge_model",)}


def judge_settings(judge: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `judges.named`; what `judge_options` added to a command's arguments is taken out of them.

    Raises click's error for options that do not go with this judge.
    """
    taken = {name: given.pop(name) for name in _FIT["api"]}
    fit = _FIT.get(judge or "", ())
    if unfit := [name for name, value in taken.items() if value is not None and name not in fit]:
        raise click.UsageError(f"--{unfit[0].replace('_', '-')} does not go with --judge {judge or '(none)'}")
    if judge == "api":
        taken["judge_cache"] = taken["judge_cache"] or _cache_home() / "persona-axis" / "judge"
    return {name.removeprefix("judge_"): taken[name] for name in fit}


class JudgeOf(click.Choice[str]):
    """A judge's name; of one that is there for something else, the error says for what."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in ALL and value not in self.choices:
            self.fail(unfit(value, tuple(self.choices)), param, ctx)
        return super().convert(value, param, ctx)


def judge_options(command: F) -> F:
    """The model behind a judge; `judge_settings` takes them."""
    for decorate in (
        click.option("--judge-prices", type=(float, float), metavar="IN OUT",
                     help="Money a million tokens of prompts and of answers, to show the cost."),
        click.option("--judge-cache", type=click.Path(path_type=Path), metavar="DIR",
                     help="Where a judge behind an API keeps its answers.  [default: the user's cache]"),
        click.option("--judge-url", metavar="URL",
                     help="With --judge api: endpoint, such as http://127.0.0.1:8000/v1.  [default: OpenAI's]"),
        click.option("--judge-model", metavar="NAME", help="Model behind --judge."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
