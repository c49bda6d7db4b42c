"""`Traits`: per trait and layer, the unit direction toward it, its cosine with the axis, and the file it travels in.

    from persona_axis.traits import Traits
    traits = Traits.load("traits.safetensors")
    traits.cosines(axis)[0]      # the trait that points most toward the Assistant

A trait's vector is the mean activation of replies under instructions that show it minus the mean under instructions
that suppress it (persona vectors, Chen et al. 2025, arXiv 2507.21509). `persona_axis.extract.extract_traits` makes
them. Importing this module and loading a file need no torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_axis._axisparts import as_float32, told_layers
from persona_axis.axis import FACTS, Axis
from persona_axis.errors import AxisFileError, AxisMismatchError
from persona_axis.files.axisfile import decode_metadata, encode_metadata
from persona_axis.files.safefile import read_safe, write_safe, wrong_format
from persona_axis.files.traitsfile import CONVENTIONS, FORMAT, PLACES, check_traits
from persona_axis.fingerprint import require_same, require_same_files
from persona_axis.stats import folding

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["AGREE", "Controls", "TraitCosine", "Traits", "controls"]

AGREE = 0.5
"""Cosine from which two pairs of instructions are said to agree: as much of each one's vector is the trait that they
share as is its own words."""


class TraitCosine(NamedTuple):
    """How one trait lies to the axis at one layer.

    `cosine` is positive where the trait points toward the Assistant; `low` and `high` are its 95% interval over
    questions; `noise` is the |cosine| that the noise in its vector gives it by itself (signs shuffled so that the
    trait cancels; one in twenty); `split_half` how far two halves of the questions agree on the trait, and `wordings`
    how far two pairs of instructions do.
    """

    trait: str
    kind: str
    cosine: float
    low: float
    high: float
    noise: float
    split_half: float
    wordings: float

    @property
    def told_apart(self) -> bool:
        """Whether the cosine is larger than noise, its interval leaves 0 out and the wordings agree (`AGREE`)."""
        return abs(self.cosine) > self.noise and self.low * self.high > 0 and self.wordings >= AGREE


class Controls(NamedTuple):
    """The |cosine| with the axis that one in twenty directions reaches: of all directions of this width, and of random
    mixtures of the axis's role vectors (None where it holds none)."""

    random: float
    mixture: float | None


@dataclass(frozen=True, eq=False)
class Traits:
    """Trait vectors of one model. `layers` are the model's own layer indices, and so is every `layer` argument.

    Made by `Traits.load` and `Traits.from_folds`; each accepts only what is complete, finite and consistent and raises
    `AxisFileError` naming the field otherwise. `files.traitsfile` says what `arrays` holds.
    """

    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, Any]
    source: str = "traits"
    """The path it was loaded from; error messages start with it."""

    def __post_init__(self) -> None:
        check_traits(self.source, self.arrays, self.metadata)

    @classmethod
    def from_folds(
        cls,
        folds: ArrayLike,
        places: ArrayLike,
        wordings: ArrayLike,
        *,
        layers: Sequence[int],
        metadata: Mapping[str, Any],
    ) -> Traits:
        """From differences [n, K, L, H] by fold of the questions, mean projections [n, 3, L] (positive, negative,
        default) on the unit of their mean, and how far the pairs of instructions agree [n, L].

        `metadata` are the file's keys beside format, conventions and hidden_size.
        """
        kept = as_float32(folds)
        arrays: dict[str, NDArray[Any]] = {
            "folds": kept,
            "places": as_float32(places),
            "wordings": as_float32(wordings),
            "direction": as_float32(np.stack([folding.unit(trait.mean(axis=0, dtype=np.float64)) for trait in kept])),
            "split_half": as_float32(np.stack([folding.split_half(trait.swapaxes(0, 1)) for trait in kept])),
            "layers": np.array(layers, dtype=np.int64),
        }
        own = {"format": FORMAT, "conventions": dict(CONVENTIONS), "hidden_size": int(kept.shape[-1])}
        return cls(arrays, {**metadata, **own})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Traits:
        """Read and check a traits file. Raises `AxisFileError` naming the field that is wrong."""
        file = read_safe(path)
        if (stated := file.metadata.get("format")) != FORMAT:  # before anything else that an axis file would lack
            raise AxisFileError(f"{path}: {wrong_format(FORMAT, stated)}; `extract --traits` makes a traits file")
        if half := [name for name, dtype in file.dtypes.items() if dtype == "BF16"]:
            raise AxisFileError(f"{path}: {half[0]}: is bfloat16; a traits file holds float32")
        return cls(file.arrays, decode_metadata(str(path), file.metadata), str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in one step. Raises `AxisFileError`; an old file stays whole whatever goes wrong."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        write_safe(path, tensors, encode_metadata(self.metadata))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The model's layer index of each row, rising."""
        return tuple(int(layer) for layer in self.arrays["layers"])

    @property
    def names(self) -> tuple[str, ...]:
        """The traits, in the order of the file."""
        return tuple(self.metadata["trait_names"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the file states about its model, for comparison with another."""
        return {key: self.metadata[key] for key in FACTS if self.metadata.get(key) is not None}

    def index(self, trait: str) -> int:
        """The place of a trait in the file; an `AxisFileError` names those there are."""
        if trait not in self.names:
            raise AxisFileError(f"{self.source}: holds no trait {trait!r}: there are {', '.join(self.names)}")
        return self.names.index(trait)

    def row(self, layer: int) -> int:
        """The row that holds the model's layer `layer`."""
        if layer not in self.layers:
            raise AxisMismatchError(f"layer {layer} is not in {self.source}, which has {told_layers(self.layers)}")
        return self.layers.index(layer)

    def direction(self, trait: str) -> Tensor:
        """Unit rows [L, H] toward the trait, float32: `Cap(traits.direction("evil")[[2]], [2], ceiling=1.5)`."""
        import torch

        return torch.from_numpy(self.arrays["direction"][self.index(trait)])

    def places(self, trait: str, layer: int) -> dict[str, float]:
        """Mean projection on the trait's direction of the replies that show it ("positive"), that suppress it
        ("negative") and of the default's, in residual-stream units: where a bound of a cap may lie."""
        held = self.arrays["places"][self.index(trait), :, self.row(layer)]
        return dict(zip(PLACES, map(float, held), strict=True))

    def certainty(self, layer: int) -> dict[str, tuple[float, float]]:
        """How far two halves of the questions, and two pairs of instructions, agree on each trait at a layer: cosines.

        Where the questions agree and the instructions do not, the vector tells words apart and not a trait.
        """
        row = self.row(layer)
        halves, wordings = (self.arrays[name][:, row].tolist() for name in ("split_half", "wordings"))
        return {name: (half, wording) for name, half, wording in zip(self.names, halves, wordings, strict=True)}

    def cosines(self, axis: Axis, layer: int | None = None, allow: Collection[str] = ()) -> tuple[TraitCosine, ...]:
        """How each trait lies to the axis at `layer` (the axis's recommended one), most toward the Assistant first.

        Raises `AxisMismatchError` for an axis of another model (`allow` as in `Axis.require`) or a layer that either
        file lacks.
        """
        self.require_axis(axis, allow)
        layer = axis.recommended_layer if layer is None else layer
        row, toward = self.row(layer), axis.arrays["direction"][axis.row(layer)]
        found = []
        for i, (name, certainty) in enumerate(self.certainty(layer).items()):
            folds = self.arrays["folds"][i, :, row]
            measured, noise = folding.cosine_with(folds, toward), folding.noise_floor(folds, toward)
            found.append(TraitCosine(name, self.metadata["kinds"][i], *measured, noise, *certainty))
        return tuple(sorted(found, key=lambda one: -one.cosine))

    def require(
        self, model: nn.Module, template: Any = None, allow: Collection[str] = (), stack: str | None = None
    ) -> None:
        """Raise `AxisMismatchError` unless these traits are of `model`, as `Axis.require` does."""
        require_same(self.facts, model, template, allow, stack)

    def require_axis(self, axis: Axis, allow: Collection[str] = ()) -> None:
        """Raise `AxisMismatchError` unless `axis` states the same model; the text lists what differs."""
        require_same_files(self.source, self.facts, axis.source, axis.facts, allow)


def controls(axis: Axis, layer: int) -> Controls:
    """What directions without any trait in them reach at a layer."""
    toward = axis.arrays["direction"][axis.row(layer)]
    mixture = folding.random_mixture(axis.roles_at(layer), toward) if layer in axis.role_layers else None
    return Controls(folding.random_direction(axis.hidden_size), mixture)
