"""What a calibration tries: windows of layers times floors, and how much of it is measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from persona_axis.cap import Cap
from persona_axis.errors import CalibrationError, CapError

if TYPE_CHECKING:
    from persona_axis.axis import Axis

FLOORS = tuple(f"default_tokens:p{p}" for p in (1, 2, 5, 10, 25, 50))
QUICK_FLOORS = tuple(f"default_tokens:p{p}" for p in (2, 10, 25))
QUICK_WIDTHS = (2, 3)
CONVERSATIONS = "conversations:"
_OF_FILE = re.compile(r"conversations:(.+):p([0-9]+(?:\.[0-9]+)?)", re.DOTALL)


@dataclass(frozen=True)
class Effort:
    """How much is measured; counts are replies or items unless said otherwise.

    Three stages on the train half: every setting on `screen_items` and one draw of each jailbreak; the best
    `candidates` on `more_items` and `draws` draws; of these the best `finalists` on `items`, with drift. Then the
    chosen one on the held-out half, and `controls` controls of every kind there on `control_items`, `control_draws`
    and `control_scripts`, or on as many as the chosen one where that is less.
    """

    screen_items: int = 128
    more_items: int = 512
    items: int = 2000
    draws: int = 4
    candidates: int = 16
    finalists: int = 5
    controls: int = 10
    control_items: int = 500
    control_draws: int = 2
    scripts: int = 12
    """Of each drifting domain, at most."""
    control_scripts: int = 6
    texts: int = 128
    """Texts that touches are counted on, half of them persona-jailbreaks."""
    batch: int = 128

    def __post_init__(self) -> None:
        for at in fields(self):
            least = 0 if at.name in ("controls", "scripts", "control_scripts") else 1
            if getattr(self, at.name) < least:
                raise CalibrationError(f"{at.name} must be at least {least}, got {getattr(self, at.name)}")
        if not self.screen_items <= self.more_items <= self.items:
            raise CalibrationError(
                f"the stages need rising counts of items, got {self.screen_items}, {self.more_items}, {self.items}"
            )

    @classmethod
    def quick(cls) -> Self:
        """A look in about two minutes on Troupe: too few items to hold anybody to a bound of a point."""
        return cls(screen_items=64, more_items=128, items=500, draws=2, candidates=4, finalists=2, controls=3,
                   control_items=128, control_draws=1, scripts=6, control_scripts=3, texts=64)  # fmt: skip

    def with_items(self, items: int) -> Self:
        """As many items in the last stage, and no more than that in the others."""
        more = min(self.more_items, items)
        return replace(self, items=items, more_items=more, screen_items=min(self.screen_items, more),
                       control_items=min(self.control_items, items))  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One cap to try: the same percentile at each layer of a window."""

    layers: tuple[int, ...]
    floor: str
    values: tuple[float, ...]
    """Where that percentile lies at each layer, in units of the residual stream."""

    @property
    def name(self) -> str:
        """Such as "3-5 default_tokens:p2"."""
        return f"{told(self.layers)} {self.floor}"

    def cap(self, axis: Axis, provenance: Mapping[str, Any] | None = None) -> Cap:
        """The cap, with more provenance if there is any."""
        made = axis.cap(layers=self.layers, floor=list(self.values))
        return Cap(
            made.direction, made.layers, made.floor, facts=made.facts,
            provenance={**made.provenance, "floor": self.floor, **(provenance or {})},
        )  # fmt: skip


def told(layers: Sequence[int]) -> str:
    """Layers as the command line takes them: 3, 3-5 or 1,4."""
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def windows_of(
    layers: Sequence[int], widths: Iterable[int] | None = None, starts: Iterable[int] | None = None
) -> tuple[tuple[int, ...], ...]:
    """Every window of neighbouring `layers` (an axis', rising) with one of the widths and one of the starts.

    Up to 8 layers: widths 1 to 3, every start but the first layer. Above: a sixteenth, an eighth and a quarter of the
    layers wide, side by side from a quarter of the depth on. Raises `CalibrationError` where no window fits.
    """
    count, rows = len(layers), {layer: row for row, layer in enumerate(layers)}
    few = count <= 8
    chosen = list(widths) if widths is not None else [1, 2, 3] if few else [max(1, count // n) for n in (16, 8, 4)]
    if starts is not None and (missing := sorted(set(starts) - set(layers))):
        raise CalibrationError(f"starts {missing}: the axis has layers {told(layers)}")
    found = []
    for width in dict.fromkeys(chosen):
        if starts is not None:
            at = [rows[start] for start in dict.fromkeys(starts)]
        else:
            at = list(range(min(1, count - 1), count) if few else range(count // 4, count, max(1, width)))
        for row in at:
            window = tuple(layers[row : row + width])
            if len(window) == width and window[-1] - window[0] == width - 1:
                found.append(window)
    if not found:
        raise CalibrationError(f"no window of widths {chosen} fits into layers {told(layers)} from the starts given")
    return tuple(dict.fromkeys(found))


def settings(
    axis: Axis,
    at: Iterable[Sequence[int]],
    floors: Iterable[str],
    measured: Callable[[Path], NDArray[np.float64]],
) -> list[Setting]:
    """Every window with every floor. `measured` gives percentiles [layers of the axis, 101] of a file's conversations.

    Raises `CalibrationError` for nothing to try, `CapError` for layers, distributions or percentiles that cannot be.
    """
    made: dict[str, Setting] = {}
    chosen = list(dict.fromkeys(floors))
    for window in at:
        for floor in chosen:
            setting = Setting(tuple(window), floor, floor_values(axis, tuple(window), floor, measured))
            made[setting.name] = setting
    if not made:
        raise CalibrationError("nothing to try: name at least one window of layers and one floor")
    return list(made.values())


def floor_values(
    axis: Axis, layers: tuple[int, ...], floor: str, measured: Callable[[Path], NDArray[np.float64]]
) -> tuple[float, ...]:
    """Where a floor lies at each layer: a percentile of a distribution of the axis, or of a file's conversations."""
    if not floor.startswith(CONVERSATIONS):
        bounds = axis.cap(layers=layers, floor=floor).floor
        assert bounds is not None
        return tuple(bounds.tolist())
    path, percentile = conversations_of(floor)
    rows = [axis.row(layer) for layer in layers]
    return tuple(float(np.interp(percentile, np.arange(101), row)) for row in measured(path)[rows])


def conversations_of(floor: str) -> tuple[Path, float]:
    """(logs.jsonl, 5.0) of "conversations:logs.jsonl:p5". Raises `CapError` for text of another form."""
    match = _OF_FILE.fullmatch(floor)
    if match is None or not 0 <= float(match[2]) <= 100:
        raise CapError(f"floor {floor!r}: expected conversations:FILE:pN with N from 0 to 100")
    return Path(match[1]), float(match[2])


def axis_sha256(axis: Axis) -> str:
    """A digest of everything the axis holds."""
    digest = hashlib.sha256(json.dumps(axis.metadata, sort_keys=True).encode())
    # Role vectors with a digest of their own in the metadata are in the account already, and may be gigabytes.
    for name in sorted(axis.arrays.keys() - ({"roles"} if axis.metadata.get("roles_sha256") else set())):
        array = axis.arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
