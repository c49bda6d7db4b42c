"""The command `calibrate`. Imports are local to it, as in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from persona_axis.commands.options import layers, load_for, loading_options, refuse_overwriting, slug
from persona_axis.commands.terminal import debuggable


def _windows(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, ...], ...] | None:
    return tuple(layers(context, option, value) or () for value in values) or None


@click.command(short_help="Choose a cap by what it does.")
@click.argument("axis", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="Directory or hub name.  [default: the one AXIS was made for]")
@loading_options
@click.option("--layers", "windows", multiple=True, metavar="LIST", callback=_windows,
              help="A window to try, such as 3-5; may be repeated.  [default: by --widths and --starts]")  # fmt: skip
@click.option("--widths", metavar="LIST", callback=layers, help="Widths of the windows, such as 1-3.")
@click.option("--starts", metavar="LIST", callback=layers, help="First layers of the windows, such as 1,4,8.")
@click.option("--floor", "floors", multiple=True, metavar="BOUND",
              help="A floor to try, such as default_tokens:p25 or conversations:FILE:p5; may be repeated.")  # fmt: skip
@click.option("--bound", type=click.FloatRange(0), default=1.0, show_default=True, metavar="POINTS",
              help="The most capability that the chosen cap may cost.")  # fmt: skip
@click.option("--sure", is_flag=True, help="Hold the whole 95% interval of the loss to the bound, not the estimate.")
@click.option("--items", type=click.IntRange(1), metavar="N",
              help="Paired items of capability.  [default: 2000; 500 with --quick]")  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="NAME",
              help="Test capability by this task of lm-evaluation-harness; may be repeated. Replies are told apart by "
              "Troupe's judge all the same.")  # fmt: skip
@click.option("--controls", type=click.IntRange(0), metavar="N",
              help="Draws of each kind of control.  [default: 10; 3 with --quick]")  # fmt: skip
@click.option("--layer", type=click.IntRange(0), metavar="L", help="Layer to read drift at.  [default: recommended]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sampling.")
@click.option("--out", type=click.Path(path_type=Path), help="Cap file to write.  [default: MODEL-cap.safetensors]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where measured units are kept.  [default: OUT.run]")
@click.option("--quick", is_flag=True, help="Few settings, items and controls: a look, no claim.")
@debuggable
def calibrate(axis: Path, model: str | None, revision: str | None, dtype: str, device_map: str | None,
              stack: str | None, windows: tuple[tuple[int, ...], ...] | None, widths: tuple[int, ...] | None,
              starts: tuple[int, ...] | None, floors: tuple[str, ...], bound: float, sure: bool, items: int | None,
              tasks: tuple[str, ...], controls: int | None, layer: int | None, seed: int, out: Path | None,
              run_dir: Path | None, quick: bool) -> None:  # fmt: skip
    """Try caps made from the axis file AXIS and keep the one that lowers harm most at no real cost.

    Every window of layers is tried with every floor: how many persona-jailbreaks succeed, how far emotional and
    self-reflective conversations drift, what is lost in capability. All of that on one half of the prompts; the other
    half, and controls that are matched to the chosen cap, are shown at the end. Floors are percentiles of a
    distribution in AXIS (default, roles: means of replies; default_tokens, roles_tokens: single tokens) or of the
    single reply tokens of your own conversations. Tables, pictures and a report are written beside the cap. A run that
    was stopped goes on when the same command is given again; what another run has in common with it is reused.

    From the command line only Troupe can be calibrated: whether a reply refuses or complies is read by its parser, with
    --task too. Another model needs a judge of your own, in Python (persona_axis.calibrate).
    """
    if windows and (widths or starts):
        raise click.UsageError("give the windows by --layers, or by --widths and --starts")
    refuse_overwriting({"AXIS": axis}, {"the cap": out})

    from rich.console import Console

    from persona_axis.axis import Axis
    from persona_axis.display.calibration import CalibrationDisplay, show_calibration
    from persona_axis.display.tables import Output

    ruler = Axis.load(axis)
    chat = load_for(ruler, model, revision, dtype, device_map, stack)
    path = out or Path(f"{slug(chat.name)}-cap.safetensors")
    refuse_overwriting({"AXIS": axis}, {"the cap": path})

    from persona_axis.calibrate import Effort, windows_of
    from persona_axis.calibrate import calibrate as run_calibration
    from persona_axis.calibration.settings import FLOORS, QUICK_FLOORS, QUICK_WIDTHS
    from persona_axis.errors import CalibrationError

    if quick and widths is None and starts is None:
        widths = QUICK_WIDTHS if len(ruler.layers) <= 8 else None
    test = None
    if tasks:
        from persona_axis.capability.lm_eval import LmEvalTasks

        test = LmEvalTasks(tasks)
    effort: dict[str, Any] = {"effort": Effort.quick() if quick else Effort(), "items": items, "controls": controls}
    with CalibrationDisplay(Console(stderr=True)) as display:
        found = run_calibration(
            chat, ruler, out=path, run_dir=run_dir, bound=bound, sure=sure, layer=layer, seed=seed, test=test,
            windows=windows or windows_of(ruler.layers, widths, starts),
            floors=floors or (QUICK_FLOORS if quick else FLOORS), progress=display, **effort,
        )  # fmt: skip
    show_calibration(Output(), found)
    if found.cap is None:
        left = f"; {path} is from an earlier run and was left as it is" if path.exists() else ""
        raise CalibrationError(found.about["notes"][-1] + left)
