"""What an axis is made from and asked with: the direction of two means, projections. Loading it needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_axis.errors import AxisFileError, AxisMismatchError
from persona_axis.space import as_float64

if TYPE_CHECKING:
    from torch import Tensor


class SplitHalf(NamedTuple):
    """How certain the direction is: the cosine of two half-axes, one number per row of the file."""

    cosine: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def directions(default: ArrayLike | Tensor, roles: ArrayLike | Tensor) -> NDArray[np.float32]:
    """Per layer unit(default - mean over roles), [L, H] float32 from [L, H] and [n, L, H]; float64 inside.

    Each role weighs the same. Raises `AxisFileError` where the two coincide, so that there is no direction.
    """
    means, vectors = as_float64(default), as_float64(roles)
    if means.ndim != 2 or vectors.ndim != 3 or vectors.shape[1:] != means.shape or not len(vectors):
        raise AxisFileError(f"roles: expected [n, layers, hidden] over default's {means.shape}, found {vectors.shape}")
    for name, values in (("default", means), ("roles", vectors)):
        if not np.isfinite(values).all():
            raise AxisFileError(f"{name}: holds NaN or infinite values")
    difference = means - vectors.mean(axis=0)
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    if not length.all():
        raise AxisFileError(f"direction: default equals the mean of the roles in row {int(np.argmin(length))}")
    unit: NDArray[np.float32] = (difference / length).astype(np.float32)
    return unit


def means_arrays(
    default: ArrayLike | Tensor,
    roles: ArrayLike | Tensor,
    bfloat16: bool,
    roles_mean: ArrayLike | Tensor | None,
    role_layers: Iterable[int] | None,
) -> dict[str, NDArray[Any]]:
    """The tensors that `Axis.from_means` makes of these, which it explains."""
    held = as_float32(roles)
    if bfloat16:
        held = rounded_to_bfloat16(held)
    arrays: dict[str, NDArray[Any]] = {"default": as_float32(default), "roles": held}
    if roles_mean is None and role_layers is None:
        return {**arrays, "direction": directions(default, held)}
    if roles_mean is None or role_layers is None:
        raise AxisFileError("role_layers and roles_mean go together: name the layers, and give the mean at every layer")
    mean = as_float64(roles_mean)
    arrays |= {"direction": directions(default, mean[None]), "roles_mean": as_float32(mean)}
    return {**arrays, "role_layers": np.array(list(role_layers), dtype=np.int64)}


def as_float32(values: ArrayLike | Tensor) -> NDArray[np.float32]:
    """An own copy, so that nobody else's later change reaches the axis."""
    plain = values if isinstance(values, np.ndarray) else as_float64(values)
    return np.array(plain, dtype=np.float32, order="C")


def rounded_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the nearest bfloat16, ties to even, held in float32."""
    bits: NDArray[np.uint32] = values.view(np.uint32)
    rounded: NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def projected_on(row: NDArray[Any], hidden: Any) -> Any:
    """<hidden, row> over the last dimension, [..., H] to [...]; what `Axis.project` promises."""
    width = np.shape(hidden)[-1] if np.ndim(hidden) else 0
    if width != len(row):
        raise AxisMismatchError(f"hidden states of width {width}; the axis has {len(row)}")
    if not hasattr(hidden, "detach"):
        wide = np.asarray(hidden)
        return wide.astype(np.result_type(wide.dtype, np.float32), copy=False) @ row
    import torch

    from persona_axis.edits.arithmetic import projected

    return projected(hidden, torch.from_numpy(row).to(hidden.device))


def told_layers(layers: tuple[int, ...]) -> str:
    """Layer indices as an error tells them."""
    whole = layers == tuple(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if whole else f"layers {', '.join(map(str, layers))}"
