"""The command line run inside the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from persona_axis.commands.terminal import run


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


def command_in(
    folder: Path, app: click.Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`command("show", path)` runs `app` with `folder` as its working directory."""
    monkeypatch.chdir(folder)

    def command(*args: object) -> Ended:
        code = run(app, [str(arg) for arg in args], name="persona-axis")
        return Ended(code, *capsys.readouterr())

    return command
