"""What an operator wants to know of a cap at work: how many tokens, how many moved, by how much, and where they lay.

A step's projections are put aside, which is one small copy. They are counted in blocks, when enough of them wait or
somebody asks: sums and a histogram are all that stays. All of it counts from the start (or the last `clear`). What
lay where in the last minutes is the difference of two scrapes, which Prometheus takes of counters and histograms.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from persona_axis.edits.arithmetic import correction

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BINS = 2048
_REACH = 16.0  # the scale ends at _FINE * sinh(16), about 220,000
_FINE = 0.05  # bins are evenly wide below this projection, and 1.6% of it above
_ROOM = 2**12  # tokens that wait at most
# Where Prometheus' buckets end: the same for all models, caps and layers, so that series can be added up and stay what
# they are when a cap is changed. Models differ in the size of their residual stream by more than a thousand times:
# hence 0, and on either side 0.23 to 5,900, each 1.75 times the one before. All are edges of bins, so counts are exact.
_STEP, _FIRST, _LAST = 36, 4, 22
_EDGES = [_BINS // 2 + _STEP * i for i in (*range(-_LAST, 1 - _FIRST), 0, *range(_FIRST, _LAST + 1))]


@dataclass(frozen=True)
class LayerFigures:
    """What one capped layer saw since the figures were last cleared."""

    layer: int
    tokens: int
    """Tokens that ran through the layer; padding is not counted."""
    capped: int
    """Of these, how many lay outside the bounds."""
    mean_correction: float
    """Mean absolute distance that the capped ones were moved, in units of the residual stream; 0 when none was."""
    percentiles: dict[int, float]
    """Percentiles of the projections as they reached the cap, to 2% of their size; empty before the first token."""
    not_finite: int = 0
    """Tokens whose projection was NaN or infinite; they are in none of the other figures but `tokens`."""
    correction: float = 0.0
    """Sum of the distances that the capped ones were moved."""
    total: float = 0.0
    """Sum of the projections."""
    buckets: dict[float, int] = field(default_factory=dict)
    """How many projections were at most so large, at bounds that are always the same; the last one is infinity."""


class Figures:
    """Running sums over the projections at some layers, under one pair of bounds. Any number of threads may add."""

    def __init__(self, layers: Sequence[int], floor: Tensor, ceiling: Tensor) -> None:
        """Bounds [layers], on the device that the projections are on."""
        self.layers = tuple(layers)
        self._lock = threading.Lock()
        self._waiting = 0
        self.clear(floor, ceiling)

    def add(self, projections: Tensor) -> None:
        """Count tokens. `projections` [layers, tokens], or [tokens...] of one layer, as they reach the cap."""
        seen = projections.detach() if projections.requires_grad else projections
        seen = seen.reshape(len(self.layers), -1)
        tokens = seen.shape[1]
        with self._lock:
            if self._waiting + tokens > _ROOM:
                self._count(self._room[:, : self._waiting])
                self._waiting = 0
            if tokens > _ROOM:
                self._count(seen)
            else:
                # Copied, though the tensor could be kept: many small ones that stay between large ones that go make
                # the C library give memory back and fetch it again in every step.
                self._room[:, self._waiting : self._waiting + tokens].copy_(seen)
                self._waiting += tokens

    def clear(self, floor: Tensor | None = None, ceiling: Tensor | None = None) -> None:
        """Start again from nothing; with bounds [layers], under these."""
        # Tensors born in inference mode could never be changed outside of it.
        with self._lock, torch.inference_mode(False):
            if floor is not None:
                self._floor = floor.detach().clone().unsqueeze(1)
            if ceiling is not None:
                self._ceiling = ceiling.detach().clone().unsqueeze(1)
            layers, device = len(self.layers), self._floor.device
            self._room = torch.zeros(layers, _ROOM, dtype=self._floor.dtype, device=device)
            self._waiting, self._tokens = 0, 0
            # Sums over months of blocks: float32 would stop growing.
            exact = torch.float32 if device.type == "mps" else torch.float64
            self._capped = torch.zeros(layers, dtype=torch.int64, device=device)
            self._lost = torch.zeros(layers, dtype=torch.int64, device=device)
            self._moved = torch.zeros(layers, dtype=exact, device=device)
            self._total = torch.zeros(layers, dtype=exact, device=device)
            self._bins = torch.zeros(layers * _BINS, dtype=torch.int64, device=device)
            self._row = torch.arange(layers, device=device).unsqueeze(1) * _BINS

    def read(self) -> list[LayerFigures]:
        """The figures of each layer; waits for the device."""
        with self._lock:
            self._count(self._room[:, : self._waiting])
            self._waiting = 0
            tokens, capped, moved = self._tokens, self._capped.tolist(), self._moved.tolist()
            lost, total = self._lost.tolist(), self._total.tolist()
            bins = self._bins.view(len(self.layers), _BINS).cpu()
        return [
            LayerFigures(layer, tokens, capped[i], moved[i] / max(capped[i], 1), _percentiles(bins[i]), lost[i],
                         moved[i], total[i], _buckets(bins[i]))
            for i, layer in enumerate(self.layers)
        ]  # fmt: skip

    def _count(self, seen: Tensor) -> None:
        """Projections [layers, tokens], by who holds the lock."""
        with torch.no_grad():
            finite = seen.isfinite()
            way = torch.where(finite, correction(seen, self._floor, self._ceiling), 0)
            self._tokens += seen.shape[1]
            self._lost += (~finite).sum(1)
            self._capped += (way != 0).sum(1)
            self._moved += way.abs().sum(1)
            self._total += torch.where(finite, seen, 0).to(self._total.dtype).sum(1)
            place = torch.asinh(seen / _FINE).nan_to_num().add(_REACH).mul(_BINS / (2 * _REACH))
            # A bin holds its upper edge, as Prometheus' buckets do.
            index = (place.ceil().long().sub(1).clamp(0, _BINS - 1) + self._row)[finite]
            self._bins += torch.bincount(index, minlength=len(self._bins))


def _edge(at: float) -> float:
    """The projection at which bin `at` begins."""
    return _FINE * math.sinh(at * (2 * _REACH / _BINS) - _REACH)


def _buckets(bins: Tensor) -> dict[float, int]:
    reached = bins.cumsum(0).tolist()
    return {_edge(at): reached[at - 1] for at in _EDGES} | {math.inf: reached[-1]}


def _percentiles(bins: Tensor) -> dict[int, float]:
    reached = bins.cumsum(0).double()
    if not reached[-1]:
        return {}
    wanted = torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64) * reached[-1]
    at = torch.searchsorted(reached, wanted)
    return {percentile: _edge(i + 0.5) for percentile, i in zip(PERCENTILES, at.tolist(), strict=True)}


def as_json(figures: Sequence[LayerFigures]) -> list[dict[str, Any]]:
    """The figures as JSON can hold them."""
    return [
        {**vars(f), "percentiles": {str(p): v for p, v in f.percentiles.items()},
         "buckets": {_bound(edge): n for edge, n in f.buckets.items()}}
        for f in figures
    ]  # fmt: skip


def prometheus(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `as_json`, with a `worker` or a `kind` where one is told, in Prometheus' text format."""
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    kinds = (
        ("tokens_total", "tokens", "counter", "Tokens that ran through a capped layer."),
        ("capped_tokens_total", "capped", "counter", "Tokens whose projection lay outside the bounds."),
        ("not_finite_tokens_total", "not_finite", "counter", "Tokens whose projection was NaN or infinite."),
        ("correction_total", "correction", "counter", "Sum of the distances that capped tokens were moved."),
        ("mean_correction", "mean_correction", "gauge", "Mean distance that capped tokens were moved since the start."),
    )
    for name, key, kind, text in kinds:
        yield from _head(name, kind, text)
        digits = 15 if kind == "counter" else 9  # the difference of two counts after months has to have some left
        for row in rows:
            yield f"persona_axis_{name}{_labels(row)} {row[key]:.{digits}g}"
    yield from _head("projection", "gauge", "Percentiles of all projections since the start, as they reach the cap.")
    for row in rows:
        for percentile, value in row["percentiles"].items():
            yield f"persona_axis_projection{_labels(row, percentile=percentile)} {value:.9g}"
    yield from _head("projections", "histogram", "Projections as they reach the cap.")
    for row in (row for row in rows if row["buckets"]):
        for edge, count in row["buckets"].items():
            yield f"persona_axis_projections_bucket{_labels(row, le=edge)} {count}"
        yield f"persona_axis_projections_sum{_labels(row)} {row['total']:.15g}"
        yield f"persona_axis_projections_count{_labels(row)} {row['tokens'] - row['not_finite']}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP persona_axis_{name} {text}"
    yield f"# TYPE persona_axis_{name} {kind}"


def _bound(edge: float) -> str:
    return "+Inf" if edge == math.inf else f"{edge:.4g}"


def _labels(row: dict[str, Any], **more: str) -> str:
    pairs: dict[str, Any] = {key: row[key] for key in ("layer", "worker", "kind") if key in row} | more
    return "{" + ",".join(f'{key}="{value}"' for key, value in pairs.items()) + "}"
