"""Rows of any length as unit rows, with the lengths they had."""

from __future__ import annotations

import numpy as np

from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Rows

KEPT = 1e-6
"""A float32 unit vector is one to this; such a row is kept bit for bit, so that round trips are exact."""


def unit(rows: Rows, told: str) -> tuple[Rows, tuple[float, ...]]:
    """Unit rows [n, hidden] and the norms [n]. Raises `VectorsError`, which starts with `told`, for one without."""
    norms = lengths(rows)
    for row, norm in enumerate(norms):
        if not 0 < norm < np.inf:
            raise VectorsError(f"{told}: row {row} has norm {norm:g}: it gives no direction")
    kept = np.abs(norms - 1) <= KEPT
    scale = np.abs(rows).max(axis=1, keepdims=True)  # squares of tiny or huge values leave float64's range
    small = rows / scale
    made = small / np.linalg.norm(small, axis=1, keepdims=True)
    return np.where(kept[:, None], rows, made), tuple(float(norm) for norm in norms)


def lengths(rows: Rows) -> Rows:
    """Norms [n]; 0 for a row of zeros, infinite where no float64 holds it."""
    scale = np.abs(rows).max(axis=1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norms: Rows = np.where(scale > 0, scale * np.linalg.norm(rows / scale[:, None], axis=1), 0.0)
    return norms


def cosines(rows: Rows, others: Rows) -> Rows:
    """Cosine of each pair of rows [n]; 0 where one has no length."""
    parts = []
    for side in (rows, others):
        scale = np.abs(side).max(axis=1, keepdims=True)
        small = side / np.where(scale > 0, scale, 1.0)
        norm = np.linalg.norm(small, axis=1, keepdims=True)
        parts.append(small / np.where(norm > 0, norm, 1.0))
    found: Rows = np.einsum("nh,nh->n", *parts)
    return found
