"""Which role vectors go into the file: nearly all of its bytes are theirs, and few of them are ever looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persona_axis.axis import READ_AT_ONCE
from persona_axis.errors import ExtractionError
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.store import RunStore

MOST_BYTES = 512 * 2**20
"""Role vectors of more bytes than this are stored only at the layers around the recommended one, unless told which."""


def stored_layers(plan: Plan, roles: int, hidden: int, recommended: int) -> tuple[int, ...]:
    """The layers whose role vectors are stored: those asked for, or all, or as many as `MOST_BYTES` hold.

    These are the ones nearest to the recommended layer, later ones first: caps lie a little past the middle.
    """
    wanted = plan.options.role_layers
    if isinstance(wanted, tuple):
        return wanted
    fit = MOST_BYTES // (roles * hidden * (2 if plan.options.bfloat16_roles else 4))
    if wanted == "all" or fit >= len(plan.layers):
        return plan.layers
    near = sorted(plan.layers, key=lambda layer: (abs(layer - recommended), -layer))
    return tuple(sorted(near[: max(1, fit)]))


def require_layers(plan: Plan) -> None:
    """Raise `ExtractionError` where role vectors are to be stored of layers that are not read; before a run."""
    wanted = plan.options.role_layers
    if isinstance(wanted, tuple) and (bad := [layer for layer in wanted if layer not in plan.layers]):
        raise ExtractionError(f"role_layers: layer {bad[0]} is not among the layers that are read, {list(plan.layers)}")


def is_whole(plan: Plan, layers: Sequence[int], roles: int, hidden: int) -> bool:
    """Whether the file is of the plain form: every layer, in full, and small enough to be read at once."""
    small = roles * len(layers) * hidden * 4 <= READ_AT_ONCE
    return small and tuple(layers) == plan.layers and not plan.options.bfloat16_roles


def role_vectors(
    plan: Plan, store: RunStore, kept: Sequence[int], counts: NDArray[Any], layers: Sequence[int]
) -> NDArray[np.float32]:
    """[n, layers, hidden] of a finished run; one layer's sums are in memory at a time. `counts` [roles, groups]."""
    accepted = counts[list(kept)].sum(axis=1)[:, None]
    found: NDArray[np.float32] | None = None
    for at, layer in enumerate(layers):
        row = plan.layers.index(layer)
        sums = torch.cat([store.blocks.layer_sums(b, row) for b in range(1, plan.n_blocks)]).numpy()[list(kept)]
        vectors = sums.sum(axis=1, dtype=np.float64) / accepted
        if found is None:
            found = np.empty((len(vectors), len(layers), vectors.shape[1]), np.float32)
        found[:, at] = vectors
    assert found is not None
    return found
