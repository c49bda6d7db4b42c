"""The arithmetic of edits: moving hidden states along one direction, exactly and without large temporaries.

Everything is computed in float32 (float64 for float64 input) and rounded once, to the input's dtype. The
projection is an elementwise product and a sum over the last dimension: a matrix product would be faster, but
its kernels add in another order for another number of rows, and a row's result must not depend on its
neighbours. Large inputs are worked on in blocks of rows that stay in the cache; compiled code fuses instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK = {"cpu": 2**18, "cuda": 2**24}  # elements of a block: the second-level cache; enough to fill a device
_ELSEWHERE = 2**22
_LOOKING_IS_FREE = frozenset({"cpu"})  # elsewhere, to ask whether any row moves is to wait for the device

Bound = Tensor | float | None


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def projected(hidden: Tensor, direction: Tensor) -> Tensor:
    """<hidden, direction> over the last dimension: [..., hidden] gives [...], float32 at least."""
    work = working_dtype(hidden.dtype)
    direction = direction.to(work)
    if not _worth_blocks(hidden):
        return (hidden.to(work) * direction).sum(-1)
    rows = hidden.reshape(-1, hidden.shape[-1])
    return torch.cat([(rows[at].to(work) * direction).sum(-1) for at in _blocks(rows)]).view(hidden.shape[:-1])


def moved(hidden: Tensor, along: Tensor, by: Tensor) -> Tensor:
    """hidden + by * along, `by` being one number []; elementwise equal when it is 0. `hidden` is never written to."""
    along = _as(along, working_dtype(hidden.dtype))
    if not _worth_blocks(hidden):
        return _as(torch.addcmul(_as(hidden, along.dtype), by, along), hidden.dtype)
    return _in_blocks(hidden, along, lambda *_: by)


def clamped(
    hidden: Tensor,
    direction: Tensor,
    floor: Bound = None,
    ceiling: Bound = None,
    push: Tensor | None = None,
    seen: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Hidden states [..., hidden], their projection on `direction` [hidden] brought into [floor, ceiling].

    Bounds are numbers, or tensors that broadcast to [..., 1]; the floor must not lie above the ceiling. A row inside
    keeps every element; one outside lands on the bound and keeps its part orthogonal to `direction`, both to one
    rounding of the dtype. A second application moves a row by no more than the first one's rounding left: in norm at
    most u * sum_i |direction_i * result_i|, u being half the dtype's eps, beside float32's own rounding of the sums.
    A projection that is not a number stays one.
    On a CPU, large `hidden` of which no row is outside is returned itself. `push` is `pushing(direction)`, if the
    caller has it at hand. `seen` is handed the projections before the edit: [..., 1], or [rows, 1] of each block.
    """
    work = working_dtype(hidden.dtype)
    push = _as(pushing(direction) if push is None else push, work)
    direction = _as(direction, work)
    low, high = _as_bound(floor, work), _as_bound(ceiling, work)
    if not _worth_blocks(hidden):
        wide = _as(hidden, work)
        return _as(torch.addcmul(wide, _way(wide, direction, low, high, seen), push), hidden.dtype)
    low, high = _by_row(low, hidden), _by_row(high, hidden)
    return _in_blocks(hidden, push, lambda wide, at: _way(wide, direction, _rows(low, at), _rows(high, at), seen))


def pushing(direction: Tensor) -> Tensor:
    """direction / <direction, direction>, float64 [..., hidden]: adding it moves the projection by exactly 1.

    A float32 row is a unit vector only to about 1e-7; this takes the rest out.
    """
    wide = direction.double()
    return wide / (wide * wide).sum(-1, keepdim=True)


def correction(projection: Tensor, floor: Bound, ceiling: Bound) -> Tensor:
    """How far each projection has to move to get inside the bounds: 0 inside, of `projection`'s shape."""
    up = None if floor is None else (floor - projection).clamp_min(0.0)
    down = None if ceiling is None else (ceiling - projection).clamp_max(0.0)
    if up is not None and down is not None:
        return up + down  # at most one of them is not 0
    return up if up is not None else down if down is not None else torch.zeros_like(projection)


def _way(
    wide: Tensor, direction: Tensor, low: Bound, high: Bound, seen: Callable[[Tensor], None] | None
) -> Tensor:
    """How far the projection of each row [..., hidden] has to move, [..., 1]."""
    projection = (wide * direction).sum(-1, keepdim=True)
    if seen is not None:
        seen(projection)
    return correction(projection, low, high)


def _in_blocks(hidden: Tensor, along: Tensor, way: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """hidden + way * along, block by block: beyond the result, memory for one block is used.

    `way` is told a block [rows, hidden] in `along`'s dtype and which rows it holds, and gives [] or [rows, 1].
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    out: Tensor | None = None
    may_look = hidden.device.type in _LOOKING_IS_FREE
    for at in _blocks(rows):
        wide = rows[at].to(along.dtype)
        by = way(wide, at)
        if may_look and not by.any():
            if out is not None:
                out[at] = rows[at]
            continue
        if out is None:
            out = torch.empty_like(rows)
            out[: at.start] = rows[: at.start]
        if wide.dtype == hidden.dtype:
            torch.addcmul(wide, by, along, out=out[at])
        else:
            out[at] = wide.addcmul_(by, along)
    return hidden if out is None else out.view(hidden.shape)


def _worth_blocks(hidden: Tensor) -> bool:
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and hidden.requires_grad):
        return False
    return hidden.numel() > _BLOCK.get(hidden.device.type, _ELSEWHERE)


def _blocks(rows: Tensor) -> list[slice]:
    count, hidden = rows.shape
    step = max(1, _BLOCK.get(rows.device.type, _ELSEWHERE) // hidden)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)` without its cost where nothing is to do: an edit of one token takes microseconds."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _as_bound(bound: Bound, work: torch.dtype) -> Bound:
    return _as(bound, work) if isinstance(bound, Tensor) else bound


def _by_row(bound: Bound, hidden: Tensor) -> Bound:
    """A bound that differs between rows, spread over all of them, as they are flattened into blocks."""
    if not isinstance(bound, Tensor) or bound.dim() == 0:
        return bound
    return bound.expand(*hidden.shape[:-1], 1).reshape(-1, 1)


def _rows(bound: Bound, at: slice) -> Bound:
    return bound[at] if isinstance(bound, Tensor) and bound.dim() else bound
