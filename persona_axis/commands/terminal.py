"""How commands end: one line and an exit code for each way, a traceback only with --debug."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from persona_axis.errors import PersonaAxisError

F = TypeVar("F", bound=Callable[..., Any])

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def debuggable(command: F) -> F:
    """Add --debug to a command; `run` reads it."""

    def keep(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.find_root().meta["debug"] = True

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=keep, help="Show the traceback of a failure."
    )(command)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """What is printed in the block ends where the reader of a pipe (head, less) has seen enough; that is no failure."""
    try:
        yield
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(app: click.Group, args: Sequence[str] | None = None, *, name: str) -> int:
    """Run `app` and give the exit code: 0, 2 usage, 1 a failure with its reason in one line, 130 interrupted."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments  # also when the arguments themselves are at fault
    warnings.showwarning = _one_line_warning
    code: Any = DONE
    try:
        with reader_may_leave():
            code = app.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        if debug:
            raise
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        # click turns a Ctrl-C into its own Abort; an extraction's says how to go on
        said = str(stop.__cause__ if isinstance(stop, click.Abort) and stop.__cause__ else stop)
        click.echo(said or "stopped", err=True)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        click.echo(f"error: {_reason(error)}", err=True)
        return FAILED
    return code if isinstance(code, int) else DONE


def _reason(error: Exception) -> str:
    """One line. What this package did not raise on purpose also names its kind."""
    text = " ".join(str(error).split())
    if isinstance(error, PersonaAxisError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


def _one_line_warning(message: Warning | str, *_where: Any, **_more: Any) -> None:
    click.echo(f"note: {' '.join(str(message).split())}", err=True)
