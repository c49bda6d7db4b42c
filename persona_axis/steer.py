"""Plain steering, for comparison with a cap: add a vector everywhere, or take a direction out altogether."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.edits.acting import Edit, Place, acting
from persona_axis.edits.arithmetic import moved, working_dtype
from persona_axis.edits.values import as_float64_tensor, layer_indices
from persona_axis.errors import CapError, CapMismatchError
from persona_axis.residual import hidden_size

if TYPE_CHECKING:
    from typing import TypeAlias

    Numbers: TypeAlias = ArrayLike | Tensor


@dataclass(frozen=True, eq=False)
class Addition:
    """h + alpha * direction for every token at some layers; made by `add`."""

    direction: Tensor
    """Vectors [k, hidden], float64, used as they are: with unit rows alpha is a length in the stream."""
    layers: tuple[int, ...]
    """The model's layer index of each row."""
    alpha: Tensor
    """How much of each row is added [k], float64."""

    def on(self, model: nn.Module, stack: str | None = None) -> AbstractContextManager[None]:
        """Add to every run of `model` until the block is left; fails closed exactly as `Cap.on` does."""
        width = hidden_size(model)
        if width != self.direction.shape[1]:
            raise CapMismatchError(f"vectors of width {self.direction.shape[1]} on a residual stream of {width}")
        return acting(self, model, self.edits, self.layers, f"the addition at layers {list(self.layers)}", stack)

    def edits(self, places: Mapping[int, Place]) -> dict[int, Edit]:
        """The edit of each layer, with its tensors where the layer's are."""
        rows = zip(self.layers, self.direction, self.alpha, strict=True)
        return {layer: _HeldAddition(vector, alpha, places[layer]) for layer, vector, alpha in rows}


def add(direction: Numbers, layers: Iterable[int], alpha: Numbers = 1.0) -> Addition:
    """Steering: h + alpha * direction at each of `layers`. `direction` [k, hidden]; `alpha` a number or [k].

    METHODS 1 steers by alpha times the mean norm of the stream: pass that product as `alpha` with a unit
    direction. Raises `CapError` for shapes that do not agree and for values that are not finite.
    """
    at = layer_indices(layers)
    rows, amount = as_float64_tensor("direction", direction), as_float64_tensor("alpha", alpha)
    if rows.dim() == 1 and len(at) == 1:
        rows = rows[None]
    if amount.dim() == 0:
        amount = amount.repeat(len(at))
    if rows.dim() != 2 or len(rows) != len(at) or amount.shape != (len(at),):
        raise CapError(
            f"direction {list(rows.shape)} and alpha {list(amount.shape)}: expected [{len(at)}, hidden] and "
            f"a number or [{len(at)}]"
        )
    if not bool(rows.isfinite().all() and amount.isfinite().all()):
        raise CapError("direction and alpha must be finite")
    return Addition(rows, at, amount)


def ablate(direction: Numbers, layers: Iterable[int]) -> Cap:
    """Take a direction out: h - <h, v> v at each of `layers`, which is a cap with floor = ceiling = 0.

    `direction` [k, hidden] must be unit rows. Raises `CapError` as `Cap` does.
    """
    return Cap(direction, layers, floor=0.0, ceiling=0.0, provenance={"made_by": "ablate"})


class _HeldAddition:
    """An addition at one layer of one model; its strength is a tensor, 0 when not entered."""

    def __init__(self, vector: Tensor, alpha: Tensor, place: Place) -> None:
        work = working_dtype(place.dtype)
        self._vector = vector.to(place.device, work)
        self._alpha = alpha
        self._held = torch.zeros((), device=place.device, dtype=work)

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.device != self._vector.device:
            with torch.inference_mode(False):
                self._vector, self._held = self._vector.to(hidden.device), self._held.to(hidden.device)
        return moved(hidden, self._vector, self._held)

    def arm(self) -> None:
        """Take the strength."""
        self._held.copy_(self._alpha)

    def disarm(self) -> None:
        """Add nothing."""
        self._held.zero_()
