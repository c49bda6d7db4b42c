"""Where a reply lies on an axis: which layer is read under caps, and among whose replies."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from persona_axis.errors import CapError

if TYPE_CHECKING:
    from torch import Tensor

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap

@dataclass(frozen=True, eq=False)
class Ruler:
    """One layer's direction [hidden], and the axis it is of, which may know where replies lie."""

    layer: int
    direction: Tensor
    axis: Axis | None = None
    capped: bool = False
    """Whether a cap edits this layer: then the projection lies inside its bounds whatever the model does."""

    @classmethod
    def of(cls, axis: Axis | None, caps: Sequence[Cap], layer: int | None = None) -> Self | None:
        """The axis at `layer`, or where it recommends, or nearest to that where no cap edits.

        Without an axis the last cap's own; None without either.
        """
        capped = {at for cap in caps for at in cap.layers}
        if axis is not None:
            at = _uncapped(axis, capped) if layer is None else layer_to_show(axis, layer)
            return cls(at, axis.direction[axis.row(at)], axis, at in capped)
        if not caps:
            return None
        at = caps[-1].layers[-1] if layer is None else layer
        if at not in caps[-1].layers:
            raise CapError(f"layer {at} is not in the cap, which has {', '.join(map(str, caps[-1].layers))}")
        return cls(at, caps[-1].direction[caps[-1].layers.index(at)], capped=True)

    def knows(self, distribution: str) -> bool:
        """Whether the axis file has this distribution."""
        return self.axis is not None and f"quantiles_{distribution}" in self.axis.arrays

    def quantile(self, distribution: str, percentile: float) -> float:
        """The projection below which `percentile` percent of a distribution's replies lie."""
        assert self.axis is not None
        return float(self.axis.quantile(distribution, percentile)[self.axis.row(self.layer)])

    def percentile(self, value: float) -> float:
        """How many percent of the default's replies lie below `value`."""
        from persona_axis.drift import percentiles

        assert self.axis is not None
        return float(percentiles(self.axis, self.layer, value))


def layer_to_show(axis: Axis, layer: int | None = None) -> int:
    """The layer asked for, else the recommended one, else the middle one of those in the file."""
    if layer is not None:
        return axis.layers[axis.row(layer)]
    stated = axis.metadata.get("recommended_layer")
    return int(stated) if stated is not None else axis.layers[len(axis.layers) // 2]


def _uncapped(axis: Axis, capped: Collection[int]) -> int:
    """The layer that the axis recommends if no cap edits it, else the nearest above that none does, else below."""
    recommended = layer_to_show(axis)
    free = sorted(set(axis.layers) - set(capped))
    at_or_above = [layer for layer in free if layer >= recommended]
    return next(iter([*at_or_above, *reversed(free)]), recommended)
