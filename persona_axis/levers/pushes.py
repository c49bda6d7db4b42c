"""Pushes: floors that need not land on their bound. The floors of a cap are pushes, and so are its controls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.edits.acting import Edit, Place, acting
from persona_axis.edits.arithmetic import projected, pushing, working_dtype
from persona_axis.errors import CapError, CapMismatchError
from persona_axis.residual import hidden_size


@dataclass(frozen=True, eq=False)
class Push:
    """At one layer: a projection on `direction` [hidden] below `trigger` moves `gain` of the way to `target`.

    With gain 1 and the target at the trigger it is a floor.
    """

    layer: int
    direction: Tensor
    """A unit row, float32."""
    trigger: float
    target: float
    gain: float = 1.0


@dataclass(frozen=True, eq=False)
class Pushes:
    """One push a layer, in rising order: a lever like a cap. Made by `controls.matched` or by `pushes_of`."""

    pushes: tuple[Push, ...]

    def __post_init__(self) -> None:
        layers = [p.layer for p in self.pushes]
        if not layers or layers != sorted(set(layers)):
            raise CapError(f"pushes at layers {layers}: expected one or more, rising, each once")

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's layer index of each push."""
        return tuple(p.layer for p in self.pushes)

    def on(self, model: nn.Module, stack: str | None = None) -> AbstractContextManager[None]:
        """Apply to every run of `model` until the block is left; fails closed exactly as `Cap.on` does."""
        width, own = hidden_size(model), self.pushes[0].direction.shape[-1]
        if width != own:
            raise CapMismatchError(f"pushes of width {own} on a residual stream of {width}")
        return acting(self, model, self.edits, self.layers, f"the control at layers {list(self.layers)}", stack)

    def edits(self, places: Mapping[int, Place]) -> dict[int, Edit]:
        """The edit of each layer, with its tensors where the layer's are."""
        return {p.layer: _HeldPush(p, places[p.layer]) for p in self.pushes}


def pushed(
    hidden: Tensor,
    direction: Tensor,
    trigger: Tensor | float,
    target: float,
    gain: float = 1.0,
    push: Tensor | None = None,
) -> Tensor:
    """Hidden states [..., hidden]; rows whose projection lies below `trigger` move `gain` of the way to `target`.

    In float32 at least, rounded once. Other rows keep every element. `push` is `pushing(direction)`, if at hand.
    """
    work = working_dtype(hidden.dtype)
    push = (pushing(direction) if push is None else push).to(work)
    projection = projected(hidden, direction)
    way = torch.where(projection < trigger, gain * (target - projection), 0.0)
    return torch.addcmul(hidden.to(work), way[..., None], push).to(hidden.dtype)


def pushes_of(cap: Cap) -> Pushes:
    """A cap with floors only, written as pushes. Raises `CapError` for a ceiling and for floors that differ by row."""
    if cap.floor is None or cap.ceiling is not None or cap.floor.dim() != 1:
        raise CapError("a control is matched to a cap with one floor a layer and no ceiling")
    floors = [float(f) for f in cap.floor]
    rows = sorted(zip(cap.layers, cap.direction, floors, strict=True), key=lambda row: row[0])
    return Pushes(tuple(Push(layer, direction, floor, floor) for layer, direction, floor in rows))


class _HeldPush:
    """A push at one layer of one model; its trigger is a tensor, -inf when not entered."""

    def __init__(self, push: Push, place: Place) -> None:
        work = working_dtype(place.dtype)
        self._to = push
        self._direction = push.direction.to(place.device, work)
        self._push = pushing(push.direction).to(place.device, work)
        self._trigger = torch.full((), -torch.inf, device=place.device, dtype=work)

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.device != self._direction.device:
            with torch.inference_mode(False):
                self._direction, self._push = self._direction.to(hidden.device), self._push.to(hidden.device)
                self._trigger = self._trigger.to(hidden.device)
        return pushed(hidden, self._direction, self._trigger, self._to.target, self._to.gain, self._push)

    def arm(self) -> None:
        """Take the trigger."""
        self._trigger.fill_(self._to.trigger)

    def disarm(self) -> None:
        """Touch nothing."""
        self._trigger.fill_(-torch.inf)
