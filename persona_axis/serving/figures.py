"""What an operator wants to know of a cap at work: how many tokens, how many moved, by how much, and where they lay.

Only sums and a histogram are kept, on the device that the projections are on; nothing is waited for until somebody
asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona_axis._arithmetic import correction

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BINS = 2048
_REACH = 16.0  # the scale ends at _FINE * sinh(16), about 220,000
_FINE = 0.05  # bins are evenly wide below this projection, and 1.6% of it above


@dataclass(frozen=True)
class LayerFigures:
    """What one capped layer saw since the figures were last cleared."""

    layer: int
    tokens: int
    """Tokens that ran through the layer, prompts and replies alike; padding is not counted."""
    capped: int
    """Of these, how many lay outside the bounds."""
    mean_correction: float
    """Mean absolute distance that the capped ones were moved, in units of the residual stream; 0 when none was."""
    percentiles: dict[int, float]
    """Percentiles of the projections as they reached the cap, to 2% of their size; empty before the first token."""


class Figures:
    """Running sums over the projections at some layers."""

    def __init__(self, layers: Sequence[int], device: torch.device) -> None:
        self.layers = tuple(layers)
        self._tokens = 0
        self._capped = torch.zeros(len(layers), dtype=torch.int64, device=device)
        self._moved = torch.zeros(len(layers), dtype=torch.float32, device=device)
        self._bins = torch.zeros(len(layers) * _BINS, dtype=torch.int64, device=device)
        self._row = torch.arange(len(layers), device=device).unsqueeze(1) * _BINS

    def add(self, projections: Tensor, floor: Tensor, ceiling: Tensor) -> None:
        """Count tokens. `projections` [layers, tokens] as they reach the cap; bounds [layers]."""
        way = correction(projections, floor.unsqueeze(1), ceiling.unsqueeze(1))
        self._tokens += projections.shape[1]
        self._capped += (way != 0).sum(1)
        self._moved += way.abs().sum(1)
        place = torch.asinh(projections / _FINE).nan_to_num(nan=_REACH).add(_REACH).mul(_BINS / (2 * _REACH))
        index = place.long().clamp(0, _BINS - 1) + self._row
        self._bins.index_add_(0, index.flatten(), torch.ones_like(index.flatten()))

    def clear(self) -> None:
        """Start again from nothing."""
        self._tokens = 0
        for held in (self._capped, self._moved, self._bins):
            held.zero_()

    def read(self) -> list[LayerFigures]:
        """The figures of each layer; waits for the device."""
        capped, moved = self._capped.tolist(), self._moved.tolist()
        bins = self._bins.view(len(self.layers), _BINS).cpu()
        return [
            LayerFigures(layer, self._tokens, capped[i], moved[i] / max(capped[i], 1), _percentiles(bins[i]))
            for i, layer in enumerate(self.layers)
        ]


def _percentiles(bins: Tensor) -> dict[int, float]:
    reached = bins.cumsum(0).double()
    if not reached[-1]:
        return {}
    wanted = torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64) * reached[-1]
    at = torch.searchsorted(reached, wanted)
    middles = _FINE * torch.sinh((at.double() + 0.5) * (2 * _REACH / _BINS) - _REACH)
    return dict(zip(PERCENTILES, middles.tolist(), strict=True))


def as_json(figures: Sequence[LayerFigures]) -> list[dict[str, Any]]:
    """The figures as JSON can hold them."""
    return [{**vars(f), "percentiles": {str(p): v for p, v in f.percentiles.items()}} for f in figures]


def prometheus(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `as_json`, each with a `worker` of its own if there are several, in Prometheus' text format."""
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    kinds = (
        ("tokens", "tokens", "counter", "Tokens that ran through a capped layer."),
        ("capped_tokens", "capped", "counter", "Tokens whose projection lay outside the bounds."),
        ("mean_correction", "mean_correction", "gauge", "Mean distance that capped tokens were moved."),
    )
    for name, key, kind, text in kinds:
        total = "_total" if kind == "counter" else ""
        yield f"# HELP persona_axis_{name}{total} {text}"
        yield f"# TYPE persona_axis_{name}{total} {kind}"
        for row in rows:
            yield f"persona_axis_{name}{total}{_labels(row)} {row[key]:.9g}"
    yield "# HELP persona_axis_projection Percentiles of the projections as they reach the cap."
    yield "# TYPE persona_axis_projection gauge"
    for row in rows:
        for percentile, value in row["percentiles"].items():
            yield f"persona_axis_projection{_labels(row, percentile=percentile)} {value:.9g}"


def _labels(row: dict[str, Any], **more: str) -> str:
    pairs = {"layer": row["layer"], **({"worker": row["worker"]} if "worker" in row else {}), **more}
    return "{" + ",".join(f'{key}="{value}"' for key, value in pairs.items()) + "}"
