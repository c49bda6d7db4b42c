"""What an extraction found, in figures: for the final table, and for whoever wants to judge the axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from persona_axis.axis import Axis
from persona_axis.extraction.certainty import SplitHalf

_SHARES = (0.7, 0.8, 0.9)


class LayerFigures(NamedTuple):
    """One layer. `components` are how many hold 70, 80 and 90% of the variance between roles; `default_z` is
    how many standard deviations of the roles' projections the default lies above their mean."""

    layer: int
    pc1_share: float
    components: tuple[int, int, int]
    cosine_axis_pc1: float
    split_half: SplitHalf
    mean_norm: float
    default_z: float


@dataclass(frozen=True)
class Counts:
    """Rollouts of a run: all of them, their response tokens, and what was odd about them. `scores` are the
    judge's."""

    rollouts: int
    tokens: int
    empty: int
    thinking: int
    cut: int
    unparsable: int
    scores: Mapping[int, int]


@dataclass(frozen=True)
class Extraction:
    """The result of `extract`: the axis, where it was saved, and the figures of the report.

    `kept` and `below` give accepted rollouts by role, the latter for roles that had too few for a vector.
    `layers` are those whose role vectors are stored. `ranking` is (role, <role, axis>) at the recommended layer (if
    its role vectors are not stored, at the middle one of those that are), most Assistant first; `default_projection`
    the default's place on that scale, and `default_above` the share of roles that lie below it.
    """

    axis: Axis
    path: Path
    layers: tuple[LayerFigures, ...]
    kept: Mapping[str, int]
    below: Mapping[str, int]
    counts: Counts
    ranking: Sequence[tuple[str, float]]
    default_projection: float
    default_above: float
    calibration: Mapping[str, int]
    seconds: float
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def recommended_layer(self) -> int:
        return self.axis.recommended_layer

    def nearest(self, count: int = 10) -> list[tuple[str, float]]:
        """The roles most like the Assistant, most first."""
        return list(self.ranking[:count])

    def farthest(self, count: int = 10) -> list[tuple[str, float]]:
        """The roles least like the Assistant, least first."""
        return list(self.ranking[::-1][:count])


def layer_figures(axis: Axis) -> tuple[LayerFigures, ...]:
    """Figures of every layer whose role vectors the axis holds."""
    figures = []
    halves = axis.split_half
    for layer in axis.role_layers:
        row = axis.row(layer)
        space = axis.space(layer)
        first, second, third = (space.n_components_for(share) for share in _SHARES)
        spread = float(space.projections.std()) or float("nan")
        figures.append(
            LayerFigures(
                layer,
                float(space.explained_variance_ratio[0]),
                (first, second, third),
                abs(space.cosine_axis_pc1),
                SplitHalf(halves.cosine[row], halves.low[row], halves.high[row]),
                float(axis.arrays["mean_norm"][row]),
                float((axis.arrays["default"][row] @ space.axis - space.projections.mean()) / spread),
            )
        )
    return tuple(figures)


def recommend(
    layers: Sequence[int], num_layers: int, default: NDArray[np.float64], roles: NDArray[np.float64]
) -> int:
    """The layer of the middle half of the model where default and role rollouts lie farthest apart along the
    axis.

    Apart means the difference of the means over the mean standard deviation, from the rollouts' quantile
    tables [layers, 101]. Where none of the extracted layers is in the middle half, all of them are looked at.
    """
    middle = [row for row, layer in enumerate(layers) if num_layers / 4 <= layer < 3 * num_layers / 4]
    rows = middle or list(range(len(layers)))
    apart = (default.mean(axis=1) - roles.mean(axis=1)) / (default.std(axis=1) + roles.std(axis=1) + 1e-12)
    return layers[max(rows, key=lambda row: apart[row])]
