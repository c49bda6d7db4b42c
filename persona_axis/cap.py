"""`Cap`: hold the projection of hidden states inside bounds, at chosen layers, while a model runs."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from persona_axis._acting import Edit, Place, acting
from persona_axis._arithmetic import clamped, pushing, working_dtype
from persona_axis._axisfile import CONVENTIONS
from persona_axis._safefile import read_safe, write_safe
from persona_axis.errors import AxisFileError, CapError, CapMismatchError
from persona_axis.residual import hidden_size

__all__ = ["Cap", "clamped"]

FORMAT = "persona-cap/1"
_KEPT = 1e-6  # a float32 unit vector is one to this; such a row is used as it is
_TOLERATED = 1e-2  # a unit vector stored in bfloat16 or float16 is one to this; such a row is normalised

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
        at = layer_indices(layers)
        rows = _unit_rows(direction, len(at))
        low, high = _bound("floor", floor, len(at)), _bound("ceiling", ceiling, len(at))
        _check_bounds(low, high)
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
        if self.facts:
            from persona_axis.fingerprint import require_same

            require_same(self.facts, model, template, allow, stack)
        width = hidden_size(model)
        if width != self.direction.shape[1]:
            raise CapMismatchError(
                f"the cap's direction has width {self.direction.shape[1]}, the residual stream {width}"
            )
        return acting(self, model, self.edits, self.layers, f"the cap on layers {list(self.layers)}", stack)

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
            raise AxisFileError(f"{path}: format: expected {FORMAT!r}, found {file.metadata.get('format')!r}")
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

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.device != self._direction.device:
            self._follow(hidden.device)
        floor, ceiling = _for_batch(self._floor, hidden), _for_batch(self._ceiling, hidden)
        return clamped(hidden, self._direction, floor, ceiling, self._push)

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


def layer_indices(layers: Iterable[int]) -> tuple[int, ...]:
    """Layer indices as a tuple. Raises `CapError` unless they are different integers from 0."""
    try:
        at = tuple(operator.index(layer) for layer in layers)
    except TypeError:
        raise CapError(f"layers {layers!r}: expected a list of integers") from None
    if not at or len(set(at)) != len(at) or min(at) < 0:
        raise CapError(f"layers {list(at)}: expected one or more different indices, counted from 0")
    return at


def _unit_rows(direction: ArrayLike | Tensor, count: int) -> Tensor:
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


def _bound(name: str, bound: Bound, count: int) -> Tensor | None:
    if bound is None:
        return None
    values = as_float64_tensor(name, bound)
    if values.dim() == 0:
        values = values.repeat(count)
    if values.dim() > 2 or values.shape[0] != count or 0 in values.shape:
        raise CapError(f"{name} {list(values.shape)}: expected a number, [{count}] or [{count}, batch]")
    return values


def _check_bounds(floor: Tensor | None, ceiling: Tensor | None) -> None:
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


def _json_object(path: Any, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AxisFileError(f"{path}: {key}: expected a JSON object, found {metadata.get(key)!r}")
    return value
