"""How far a cap pushes on average: the size of the constant addition that stands nearest to it.

A cap moves a token with projection p to its bound, by max(floor - p, 0) upward and max(p - ceiling, 0) downward, and
most tokens not at all. An addition moves every token by the same amount. What they can share is the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Rows

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap

DISTRIBUTION = "roles_tokens"
"""Tokens of replies in a role: what a floor is there to hold."""


def mean_pushes(cap: Cap, axis: Axis, distribution: str = DISTRIBUTION) -> Rows:
    """The mean change [k] of the projection that each layer of `cap` would make alone, in residual-stream units.

    From the axis' percentiles, which are of the uncapped stream. Raises `VectorsError` for an axis of other
    directions or layers, `AxisFileError` for one without percentiles.
    """
    tables = axis.array(f"quantiles_{distribution}").astype(np.float64)
    pushes = []
    for i, layer in enumerate(cap.layers):
        if layer not in axis.layers or cap.direction.shape[1] != axis.hidden_size:
            raise VectorsError(f"{axis.source}: has no layer {layer} of this cap's width: it is not the cap's axis")
        row = axis.row(layer)
        cosine = float(axis.arrays["direction"][row].astype(np.float64) @ cap.direction[i].double().numpy())
        if cosine < 1 - 1e-4:
            raise VectorsError(f"{axis.source}: cosine {cosine:.3f} with the cap at layer {layer}: not the cap's axis")
        bounds = [-np.inf if cap.floor is None else cap.floor[i], np.inf if cap.ceiling is None else cap.ceiling[i]]
        moved = np.clip(tables[row], float(bounds[0]), float(bounds[1])) - tables[row]
        pushes.append(float((moved[1:] + moved[:-1]).mean() / 2))  # percentiles are equally spaced
    return np.array(pushes)
