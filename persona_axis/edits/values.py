"""What may be a cap's layers, directions and bounds: every input checked and brought to one form."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from persona_axis._asked import layers_of
from persona_axis.errors import CapError

_KEPT = 1e-6  # a float32 unit vector is one to this; such a row is used as it is
_TOLERATED = 1e-2  # a unit vector stored in bfloat16 or float16 is one to this; such a row is normalised


def layer_indices(layers: Iterable[int]) -> tuple[int, ...]:
    """Layer indices as a tuple. Raises `CapError` unless they are different integers from 0."""
    at = layers_of(layers, CapError)
    if len(set(at)) != len(at) or min(at) < 0:
        raise CapError(f"layers {list(at)}: expected one or more different indices, counted from 0")
    return at


def unit_rows(direction: ArrayLike | Tensor, count: int) -> Tensor:
    """`count` unit rows, float32. Raises `CapError` for other shapes and rows that are not near unit length."""
    rows = as_float64_tensor("direction", direction).float()
    if rows.dim() == 1 and count == 1:
        rows = rows[None]
    if rows.dim() != 2 or rows.shape[0] != count:
        raise CapError(f"direction {list(rows.shape)}: expected [{count}, hidden], a row for each layer")
    norms = rows.double().norm(dim=1)
    off = (norms - 1).abs()
    if not bool((off <= _TOLERATED).all()):
        worst = int(off.nan_to_num(torch.inf).argmax())
        raise CapError(f"direction: row {worst} has norm {norms[worst]:.6g}; rows must be unit vectors")
    normalised = (rows.double() / norms[:, None]).float()
    return torch.where((off <= _KEPT)[:, None], rows, normalised)


def bounds_of(name: str, bound: ArrayLike | Tensor | None, count: int) -> Tensor | None:
    """Bounds [count] or [count, batch], float64. Raises `CapError`, naming the argument, for other shapes."""
    if bound is None:
        return None
    if isinstance(bound, bool):
        raise CapError(f"{name}: expected numbers, got {bound}")
    values = as_float64_tensor(name, bound)
    if values.dim() == 0:
        values = values.repeat(count)
    if values.dim() > 2 or values.shape[0] != count or 0 in values.shape:
        raise CapError(f"{name} {list(values.shape)}: expected a number, [{count}] or [{count}, batch]")
    return values


def check_bounds(floor: Tensor | None, ceiling: Tensor | None) -> None:
    """Raise `CapError` unless there is a bound, each can be met, and no floor lies above its ceiling."""
    bounds = {name: bound for name, bound in (("floor", floor), ("ceiling", ceiling)) if bound is not None}
    for name, bound in bounds.items():
        if bool(bound.isnan().any()) or bool((bound == (torch.inf if name == "floor" else -torch.inf)).any()):
            raise CapError(f"{name} {bound.tolist()}: holds a value that nothing can meet")
    if not any(bool(bound.isfinite().any()) for bound in bounds.values()):
        raise CapError("a cap needs a floor or a ceiling")
    if floor is None or ceiling is None:
        return
    if floor.dim() == ceiling.dim() == 2 and floor.shape[1] != ceiling.shape[1]:
        raise CapError(f"floor is for {floor.shape[1]} rows, ceiling for {ceiling.shape[1]}")
    low, high = (bound if bound.dim() == 2 else bound[:, None] for bound in (floor, ceiling))
    if bool((low > high).any()):
        raise CapError(f"floor {floor.tolist()} lies above ceiling {ceiling.tolist()}")


def as_float64_tensor(name: str, values: ArrayLike | Tensor) -> Tensor:
    """An own float64 copy on the CPU. Raises `CapError`, naming the argument, for anything but numbers."""
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CapError(f"{name}: expected numbers, got {type(values).__name__}: {error}") from None
