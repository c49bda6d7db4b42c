"""`Cap`: hold the projection of hidden states inside bounds, at chosen layers, while a model runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from persona_axis._asked import require
from persona_axis.edits.acting import Edit, Place, acting
from persona_axis.edits.arithmetic import clamped, pushing, working_dtype
from persona_axis.edits.values import bounds_of, check_bounds, layer_indices, unit_rows
from persona_axis.errors import AxisFileError, CapError, CapMismatchError
from persona_axis.files.axisfile import CONVENTIONS, json_of
from persona_axis.files.safefile import read_safe, write_safe, wrong_format
from persona_axis.residual import hidden_size

__all__ = ["Cap", "clamped"]

FORMAT = "persona-cap/1"
if TYPE_CHECKING:
    Bound = ArrayLike | Tensor | None


@dataclass(frozen=True, eq=False, init=False)
class Cap:
    """A floor and/or a ceiling on <h, direction> at each of some layers; a frozen value.

    `with cap.on(model): model.generate(...)` applies it. A hand-made cap has only shapes to check; one from
    `Axis.cap` carries the model facts of its axis, and `on` then checks them.
    """

    direction: Tensor
    """Unit rows [k, hidden], float32."""
    layers: tuple[int, ...]
    """The model's layer index of each row."""
    floor: Tensor | None
    """Lower bounds [k] or [k, batch], float64; -inf bounds nothing."""
    ceiling: Tensor | None
    """Upper bounds [k] or [k, batch], float64; inf bounds nothing."""
    facts: Mapping[str, Any]
    """What is stated about the model it was made for; empty when hand-made."""
    provenance: Mapping[str, Any]
    """Where it comes from: anything JSON can hold."""

    def __init__(
        self,
        direction: ArrayLike | Tensor,
        layers: Iterable[int],
        floor: Bound = None,
        ceiling: Bound = None,
        *,
        facts: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Bounds are a number, one for each layer [k], or one for each layer and row of the batch [k, batch].

        A direction's rows are unit vectors (a row within 1% of one is taken as rounded and normalised).
        Raises `CapError` for rows that are not, shapes that do not agree, a floor above its ceiling, no bound
        at all, NaN, and layers that repeat or are negative.
        """
        require("facts", facts or {}, Mapping)
        require("provenance", provenance or {}, Mapping)
        at = layer_indices(layers)
        rows = unit_rows(direction, len(at))
        low, high = bounds_of("floor", floor, len(at)), bounds_of("ceiling", ceiling, len(at))
        check_bounds(low, high)
        for name, value in (
            ("direction", rows), ("layers", at), ("floor", low), ("ceiling", high),
            ("facts", dict(facts or {})), ("provenance", dict(provenance or {})),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def on(
        self, model: nn.Module, template: Any = None, allow: Collection[str] = (), stack: str | None = None
    ) -> AbstractContextManager[None]:
        """Hold every run of `model` inside the bounds until the `with` block is left.

        A cap that states model facts compares them as `Axis.require` does (`template`: the tokenizer or
        template in use; `allow`: deliberate differences). `stack` names the list of layers where structure is
        not enough. Several caps nest, the inner one acting last. On leaving, a cap that cannot be shown to
        have acted at all its layers is a `CapError`, one under which nothing ran included; an exception of
        the block goes first. With torch.compile, enter before the first call: a graph made while the cap was
        off goes on running without it, and that is such an error too. Raises `AxisMismatchError` for another
        model, `CapMismatchError` for a width that does not fit, `CapError` when already entered or a layer is
        missing; a batch that per-row bounds do not divide is a `CapError` of the model's call.
        """
        self.require(model, template, allow, stack)
        return acting(self, model, self.edits, self.layers, f"the cap on layers {list(self.layers)}", stack)

    def require(
        self, model: nn.Module, template: Any = None, allow: Collection[str] = (), stack: str | None = None
    ) -> None:
        """Raise `AxisMismatchError` or `CapMismatchError` unless it was made for `model`, as `on` does."""
        if self.facts:
            from persona_axis.fingerprint import require_same

            require_same(self.facts, model, template, allow, stack)
        width = hidden_size(model)
        if width != self.direction.shape[1]:
            raise CapMismatchError(
                f"the cap's direction has width {self.direction.shape[1]}, the residual stream {width}"
            )

    def edits(self, places: Mapping[int, Place]) -> dict[int, Edit]:
        """The edit of each layer, with its tensors where the layer's are."""
        return {
            layer: HeldCap(
                self.direction[i],
                None if self.floor is None else self.floor[i],
                None if self.ceiling is None else self.ceiling[i],
                places[layer],
            )
            for i, layer in enumerate(self.layers)
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, in one step. Raises `AxisFileError`; an old file stays whole."""
        tensors = {"direction": self.direction, "layers": torch.tensor(self.layers, dtype=torch.int64)}
        tensors |= {k: v for k, v in (("floor", self.floor), ("ceiling", self.ceiling)) if v is not None}
        stated = {"conventions": CONVENTIONS, "facts": self.facts, "provenance": self.provenance}
        try:
            metadata = {key: json.dumps(value, sort_keys=True) for key, value in stated.items()}
        except TypeError as error:
            raise AxisFileError(f"{path}: facts and provenance must be JSON: {error}") from None
        write_safe(path, tensors, {"format": FORMAT, **metadata})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cap:
        """Read a cap file. Raises `AxisFileError`, naming the field, unless it is whole and consistent."""
        file = read_safe(path)
        if file.metadata.get("format") != FORMAT:
            raise AxisFileError(f"{path}: {wrong_format(FORMAT, file.metadata.get('format'))}")
        needed, possible = {"direction": "F32", "layers": "I64"}, {"floor": "F64", "ceiling": "F64"}
        for name in sorted({*needed, *file.dtypes}):
            expected = (needed | possible).get(name)
            if expected is None or file.dtypes.get(name) != expected:
                problem = "a cap file holds no such tensor" if expected is None else f"expected {expected}"
                raise AxisFileError(f"{path}: {name}: {problem}, found {file.dtypes.get(name, 'nothing')}")
        stated = {key: _json_object(path, file.metadata, key) for key in ("conventions", "facts", "provenance")}
        if stated["conventions"] != CONVENTIONS:
            raise AxisFileError(f"{path}: conventions: expected {CONVENTIONS}, found {stated['conventions']}")
        tensors = {name: torch.from_numpy(array) for name, array in file.arrays.items()}
        if tensors["layers"].dim() != 1:
            raise AxisFileError(f"{path}: layers: expected one dimension, found {list(tensors['layers'].shape)}")
        try:
            at, floor, ceiling = tensors["layers"].tolist(), tensors.get("floor"), tensors.get("ceiling")
            told = {key: stated[key] for key in ("facts", "provenance")}
            return cls(tensors["direction"], at, floor, ceiling, **told)
        except CapError as error:
            raise AxisFileError(f"{path}: {error}") from None


class HeldCap:
    """A cap at one layer of one model. Its bounds are changed in place: -inf and inf when not entered."""

    def __init__(self, direction: Tensor, floor: Tensor | None, ceiling: Tensor | None, place: Place) -> None:
        work = working_dtype(place.dtype)
        self._direction = direction.to(place.device, work)
        self._push = pushing(direction).to(place.device, work)
        self._bounds = (floor, ceiling)
        self._floor = None if floor is None else floor.to(place.device, work, copy=True)
        self._ceiling = None if ceiling is None else ceiling.to(place.device, work, copy=True)
        self.disarm()

    def __call__(self, hidden: Tensor, seen: Callable[[Tensor], None] | None = None) -> Tensor:
        """`hidden` inside the bounds; `seen` is that of `clamped`."""
        if hidden.device != self._direction.device:
            self._follow(hidden.device)
        floor, ceiling = _for_batch(self._floor, hidden), _for_batch(self._ceiling, hidden)
        return clamped(hidden, self._direction, floor, ceiling, self._push, seen)

    def arm(self) -> None:
        """Take the bounds."""
        for held, bound in zip((self._floor, self._ceiling), self._bounds, strict=True):
            if held is not None and bound is not None:
                held.copy_(bound)

    def disarm(self) -> None:
        """Bound nothing."""
        if self._floor is not None:
            self._floor.fill_(-torch.inf)
        if self._ceiling is not None:
            self._ceiling.fill_(torch.inf)

    def _follow(self, device: torch.device) -> None:
        """Move to where the layer runs, should that not be where its parameters lay."""
        with torch.inference_mode(False):
            self._direction, self._push = self._direction.to(device), self._push.to(device)
            self._floor = None if self._floor is None else self._floor.to(device)
            self._ceiling = None if self._ceiling is None else self._ceiling.to(device)


def _for_batch(bound: Tensor | None, hidden: Tensor) -> Tensor | None:
    """One bound for each row of the batch, repeated per beam, as [batch, 1, 1]; a single bound as it is."""
    if bound is None or bound.dim() == 0:
        return bound
    rows, batch = bound.shape[0], hidden.shape[0]
    if hidden.dim() != 3 or batch % rows:
        packed = " (a packed batch holds several requests in one row)" if batch == 1 or hidden.dim() != 3 else ""
        raise CapError(f"bounds for {rows} rows do not fit hidden states {list(hidden.shape)}{packed}")
    return bound.repeat_interleave(batch // rows).view(-1, 1, 1)


def _json_object(path: Any, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json_of(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AxisFileError(f"{path}: {key}: expected a JSON object, found {metadata.get(key)!r}")
    return value
