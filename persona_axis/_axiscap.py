"""From an axis to a cap: which layers, and where a bound lies that is named by a percentile."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from persona_axis._asked import layers_of
from persona_axis._axisparts import told_layers
from persona_axis.cap import Cap
from persona_axis.errors import CapError

if TYPE_CHECKING:
    from persona_axis.axis import Axis

_PERCENTILE = re.compile(r"([a-z_]+):p([-+]?[0-9]+(?:\.[0-9]+)?)")


def cap_of(
    axis: Axis,
    layers: Iterable[int] | int | None,
    floor: str | ArrayLike | Tensor | None,
    ceiling: str | ArrayLike | Tensor | None,
) -> Cap:
    """What `Axis.cap` promises. Raises `CapError` for layers or bounds that cannot be."""
    if layers is None:
        layers = axis.recommended_layer
    wanted = layers_of(layers, CapError)
    missing = [layer for layer in wanted if layer not in axis.layers]
    if missing:
        raise CapError(f"layers {missing}: the axis has {told_layers(axis.layers)}")
    rows = [axis.row(layer) for layer in wanted]
    origin = {key: axis.metadata.get(key) for key in ("provenance", "date", "probes_sha256")}
    return Cap(
        direction=torch.from_numpy(axis.arrays["direction"][rows]),
        layers=wanted,
        floor=_bound(axis, floor, rows),
        ceiling=_bound(axis, ceiling, rows),
        facts=axis.facts,
        provenance={"axis": origin, "floor": _told(floor), "ceiling": _told(ceiling)},
    )


def percentile_of(bound: str) -> tuple[str, float]:
    """("default_tokens", 25.0) of "default_tokens:p25". Raises `CapError` for text of another form."""
    match = _PERCENTILE.fullmatch(bound)
    if match is None:
        raise CapError(f"bound {bound!r}: expected a number or distribution:percentile, e.g. default_tokens:p25")
    return match[1], float(match[2])


def _bound(axis: Axis, bound: str | ArrayLike | Tensor | None, rows: list[int]) -> Any:
    if not isinstance(bound, str):
        return bound
    name, percentile = percentile_of(bound)
    return axis.quantile(name, percentile)[rows]


def _told(bound: Any) -> Any:
    """A bound as provenance tells it: the name of a percentile, or just that numbers were given."""
    return bound if bound is None or isinstance(bound, str) else "numbers"
