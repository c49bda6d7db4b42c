"""The edit of one layer as a module whose bounds are buffers, so that compiled and captured graphs follow a change."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.edits.arithmetic import correction, pushing, working_dtype
from persona_axis.errors import CapError


def read_cap(path: str | os.PathLike[str]) -> Cap:
    """The cap in a file, if a server can hold it. Raises `AxisFileError`, and `CapError` as `require_one_bound`."""
    cap = Cap.load(path)
    require_one_bound(cap, f"{path}: ")
    return cap


def require_one_bound(cap: Cap, where: str = "") -> None:
    """Raise `CapError` for bounds that differ from row to row; `where` stands before its text."""
    for name, bound in (("floor", cap.floor), ("ceiling", cap.ceiling)):
        if bound is not None and bound.dim() > 1:
            raise CapError(
                f"{where}{name} {list(bound.shape)} differs from row to row: a server holds all requests to one bound"
            )


class Bounds(NamedTuple):
    """What a layer is held to: a unit direction [hidden] and two numbers, -inf and inf where nothing is bounded."""

    direction: Tensor
    floor: float
    ceiling: float


def bounds_at(cap: Cap | None, layer: int, width: int) -> Bounds:
    """What a cap with one number a bound says of a layer; without one, or at a layer it does not have, nothing."""
    if cap is None or layer not in cap.layers:
        return Bounds(torch.zeros(width), -torch.inf, torch.inf)
    at = cap.layers.index(layer)
    floor = -torch.inf if cap.floor is None else cap.floor[at].item()
    ceiling = torch.inf if cap.ceiling is None else cap.ceiling[at].item()
    return Bounds(cap.direction[at], floor, ceiling)


class StreamEdit(nn.Module):
    """Holds the projection of a residual stream inside bounds, and keeps the projections it saw.

    Some engines keep the stream as a pair (hidden, residual) whose sum it is: the projection is that of the sum, and
    the change is written to the first part. Hidden states are [tokens, hidden], or [1, tokens, hidden].
    """

    direction: Tensor
    push: Tensor
    floor: Tensor
    ceiling: Tensor
    seen: Tensor
    """Projections of the last run's tokens before they were moved, [room]; what lies beyond them is older."""

    def __init__(self, width: int, room: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        work = working_dtype(dtype)
        for name, value in (
            ("direction", torch.zeros(width)), ("push", torch.zeros(width)), ("seen", torch.zeros(room)),
            ("floor", torch.tensor(-torch.inf)), ("ceiling", torch.tensor(torch.inf)),
        ):  # fmt: skip
            self.register_buffer(name, value.to(device, work), persistent=False)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """The first part of the pair, moved."""
        part = hidden.to(self.direction.dtype)
        stream = part if residual is None else part + residual.to(self.direction.dtype)
        projection = (stream * self.direction).sum(-1)
        # Longer than any batch: a slice as long as the buffer would be traced as the buffer, whatever the batch.
        self.seen[: projection.shape[-1]].copy_(projection.view(-1))
        way = correction(projection, self.floor, self.ceiling)
        return torch.addcmul(part, way.unsqueeze(-1), self.push).to(hidden.dtype)

    def hold(self, bounds: Bounds) -> None:
        """Take bounds, in place."""
        push = pushing(bounds.direction) if bounds.direction.any() else bounds.direction
        with torch.inference_mode():
            self.direction.copy_(bounds.direction)
            self.push.copy_(push)
            self.floor.fill_(bounds.floor)
            self.ceiling.fill_(bounds.ceiling)

    def holds(self, bounds: Bounds) -> bool:
        """Whether the buffers hold exactly these bounds."""
        wanted = (bounds.direction, torch.tensor(bounds.floor), torch.tensor(bounds.ceiling))
        return all(
            torch.equal(held.cpu(), value.to("cpu", held.dtype))
            for held, value in zip((self.direction, self.floor, self.ceiling), wanted, strict=True)
        )
