"""What a calibration leaves behind: tables, pictures, a report, and how the cap was chosen inside the cap's file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_axis.errors import CalibrationError
from persona_axis.extraction.disk import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

    from persona_axis.cap import Cap


@dataclass(frozen=True, eq=False)
class Calibration:
    """The result of `calibrate`.

    `table` has a row for each setting (and "no cap", first) on the train half, with the figures of the furthest `stage`
    it got to: harm (share of persona-jailbreaks that succeed), capability (points, negative = loss), drift, how much is
    touched. `held_out` has the same for "no cap", the chosen setting and every control on the held-out half, with
    `reduction` and `drift_reduction` against no cap. Both name the chosen one in `chosen`.
    """

    table: DataFrame
    held_out: DataFrame
    cap: Cap | None
    """The chosen cap, or None when no setting kept the bound: then nothing was held out and no cap file written."""
    chosen: str | None
    about: Mapping[str, Any]
    """How it was done: the rule, bound, items, judge, test, sampling, seed, notes."""
    files: tuple[Path, ...] = ()


def write(result: Calibration, out: Path) -> tuple[Path, ...]:
    """The tables as CSV, the pictures as PNG and the report as JSON beside `out`, and the cap itself at `out`.

    Without a chosen cap, no cap: one that an earlier run left at `out` stays as it is, but its figures on the held-out
    half are deleted, which would otherwise read as this run's.
    """
    stem = out.with_suffix("")
    written = [_csv(result.table, _beside(stem, ".settings.csv"))]
    written.append(_picture(result.table, result.about["bound"], "train half", _beside(stem, ".pareto.png")))
    held_out, controls = _beside(stem, ".held_out.csv"), _beside(stem, ".controls.png")
    if len(result.held_out):
        written.append(_csv(result.held_out, held_out))
        written.append(_picture(result.held_out, result.about["bound"], "held-out half", controls))
    else:
        held_out.unlink(missing_ok=True)
        controls.unlink(missing_ok=True)
    report = {
        **result.about, "chosen": result.chosen, "settings": records(result.table),
        "held_out": records(result.held_out),
    }  # fmt: skip
    path = _beside(stem, ".report.json")
    write_atomically(path, (json.dumps(_plain(report), indent=1) + "\n").encode())
    written.append(path)
    if result.cap is not None:
        result.cap.save(out)
        written.append(out)
    return tuple(written)


def provenance(about: Mapping[str, Any], table: DataFrame, held_out: DataFrame, chosen: str) -> dict[str, Any]:
    """What the cap's file says about how it was chosen: the rule, its row, and its figures on the held-out half."""
    named = {"without": "no cap", "chosen": chosen}
    halves = {"train": table, "held_out": held_out}
    figures = {
        half: {role: _row(frame, name) for role, name in named.items()} for half, frame in halves.items() if len(frame)
    }
    return {"calibration": _plain({**about, **figures, "controls": controls_summary(held_out)})}


def controls_summary(held_out: DataFrame) -> dict[str, Any]:
    """Per kind of control: how many draws, and the mean and the largest reduction of harm among them."""
    summary: dict[str, Any] = {}
    if not len(held_out) or "control" not in held_out:
        return summary
    for kind, rows in held_out.groupby("control", sort=False):
        fall = rows["reduction"].dropna()
        summary[str(kind)] = {
            "draws": len(rows),
            "reduction_mean": float(fall.mean()) if len(fall) else math.nan,
            "reduction_largest": float(fall.max()) if len(fall) else math.nan,
        }
    return summary


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON can hold them; cells without a value are left out."""
    return [
        {str(k): v for k, v in row.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
        for row in frame.to_dict("records")
    ]


def _row(frame: DataFrame, name: str) -> dict[str, Any]:
    return next((row for row in records(frame) if row["setting"] == name), {})


def _plain(value: Any) -> Any:
    """For JSON: no nan, no numpy, no tuples."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _beside(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _csv(frame: DataFrame, path: Path) -> Path:
    write_atomically(path, frame.to_csv(index=False).encode())
    return path


def _picture(frame: DataFrame, bound: float, half: str, path: Path) -> Path:
    from persona_axis.plots import calibration_pareto

    shown = frame[frame["harm"].notna() & frame["capability"].notna()]
    if not len(shown):
        raise CalibrationError(f"cannot draw {path}: no setting has a harm and a capability to show")
    figure = calibration_pareto(shown, bound, title=f"What a cap gains and what it costs, {half}")
    temporary = path.with_name(path.name + ".tmp.png")
    try:
        figure.savefig(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CalibrationError(f"cannot write {path}: {error.strerror}") from error
    return path
