"""`Axis`: per layer, the unit direction from the roles to the Assistant, and the file it travels in.

The file is the contract between who extracts and who serves (`files.axisfile` says what it holds). Importing this
module and loading a file need no torch; the calls that give tensors import it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_axis._asked import layers_of, require, whole
from persona_axis._axisparts import (
    SplitHalf,
    as_float32,
    directions,
    means_arrays,
    projected_on,
    told_layers,
)
from persona_axis.errors import AxisFileError, AxisMismatchError, CapError
from persona_axis.files.axisfile import (
    CONVENTIONS,
    DISTRIBUTIONS,
    FORMAT,
    check_axis,
    decode_metadata,
    encode_metadata,
)
from persona_axis.files.blocks import Held, unread
from persona_axis.files.leaving import read_leaving
from persona_axis.files.rolerows import row_digests
from persona_axis.files.safefile import write_safe
from persona_axis.space import PersonaSpace

__all__ = ["Axis", "SplitHalf", "directions"]

if TYPE_CHECKING:
    from torch import Tensor, nn

    from persona_axis.cap import Cap

READ_AT_ONCE = 64 * 2**20
"""Role vectors of more bytes than this stay in the file when it is loaded, and are read a layer at a time."""

FACTS = (
    "model", "revision", "dtype", "architecture", "hidden_size", "num_layers", "weights_sha256",
    "chat_template_sha256",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Axis:
    """A model's Assistant axis. `layers` are the model's own layer indices, and so is every `layer` argument.

    Made by `Axis.load`, `Axis.from_means` or `Axis.from_direction`; each accepts only a complete, finite and
    consistent axis and raises `AxisFileError` naming the field otherwise. Tensors share memory with the axis:
    treat them as read-only. Role vectors of a large file (`READ_AT_ONCE`) are read when they are asked for, a layer at
    a time by `roles_at` and `space`, and checked then.
    """

    arrays: Mapping[str, NDArray[Any]]
    """The file's tensors as numpy arrays."""
    metadata: Mapping[str, Any]
    """The file's metadata, decoded."""
    bfloat16_roles: bool = False
    """Whether `roles` is stored in bfloat16."""
    source: str = "axis"
    """The path it was loaded from; error messages start with it."""

    def __post_init__(self) -> None:
        rows = check_axis(self.source, unread(self.arrays), self.metadata, self.bfloat16_roles)
        if isinstance(self.arrays, Held):
            self.arrays.rows = rows

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Axis:
        """Read and check an axis file. Raises `AxisFileError` naming the field that is wrong.

        The role vectors of a large file are not read here; `verify` reads and checks them all.
        """
        file = read_leaving(path, "roles", READ_AT_ONCE)
        for name, dtype in file.dtypes.items():
            if dtype == "BF16" and name != "roles":
                raise AxisFileError(f"{path}: {name}: is bfloat16; only roles may be")
        metadata = decode_metadata(str(path), file.metadata)
        arrays = Held(file.arrays, file.blocks["roles"]) if file.blocks else file.arrays
        return cls(arrays, metadata, file.dtypes.get("roles") == "BF16", str(path))

    def verify(self) -> int:
        """Read and check every role vector, a layer at a time; gives how many layers have any.

        Loading a small file has done so already. Raises `AxisFileError` that names the damaged layer.
        """
        for layer in self.role_layers:
            self.roles_at(layer)
        return len(self.role_layers)

    @classmethod
    def from_means(
        cls,
        default: ArrayLike | Tensor,
        roles: ArrayLike | Tensor,
        *,
        layers: Iterable[int],
        metadata: Mapping[str, Any],
        mean_norm: ArrayLike | Tensor | None = None,
        quantiles: Mapping[str, ArrayLike | Tensor] | None = None,
        bfloat16_roles: bool = False,
        roles_mean: ArrayLike | Tensor | None = None,
        role_layers: Iterable[int] | None = None,
    ) -> Axis:
        """The axis of a default vector [L, H] and role vectors [n, L, H]: `directions(default, roles)`.

        `metadata` are the keys of the file beside `format`, `conventions`, `hidden_size` and (unless given)
        `provenance` = "extracted"; `quantiles` maps `default`, `roles`, `default_tokens`, `roles_tokens` to
        [L, 101]. With `bfloat16_roles` the role vectors are rounded before the direction is taken.

        Role vectors may be given at some layers only: `roles` [n, R, H] at `role_layers`, and `roles_mean` [L, H] at
        every layer. The direction is then made of that mean, which rounding does not touch, and the file holds a
        digest of the role vectors of each layer.
        """
        arrays = means_arrays(default, roles, bfloat16_roles, roles_mean, role_layers)
        if roles_mean is not None:
            metadata = {**metadata, "roles_sha256": row_digests(arrays["roles"], bfloat16_roles)}
        if mean_norm is not None:
            arrays["mean_norm"] = as_float32(mean_norm)
        arrays |= {f"quantiles_{name}": as_float32(table) for name, table in (quantiles or {}).items()}
        return cls._made(arrays, layers, metadata, bfloat16_roles, "extracted")

    @classmethod
    def from_direction(
        cls, direction: ArrayLike | Tensor, *, layers: Iterable[int], metadata: Mapping[str, Any]
    ) -> Axis:
        """An axis that only has directions [L, H] (unit rows toward the Assistant), made elsewhere.

        `metadata` needs `num_layers`; `provenance` is "imported" unless given.
        """
        arrays = {"direction": as_float32(direction)}
        return cls._made(arrays, layers, metadata, False, "imported")

    @classmethod
    def _made(
        cls,
        arrays: dict[str, NDArray[Any]],
        layers: Iterable[int],
        given: Mapping[str, Any],
        bf16: bool,
        provenance: str,
    ) -> Axis:
        require("metadata", given, Mapping)
        metadata = {
            "hidden_size": int((arrays["direction"].shape or (0,))[-1]),
            "provenance": provenance,
            **given,
            "format": FORMAT,
            "conventions": dict(CONVENTIONS),
        }
        return cls({**arrays, "layers": np.array(layers_of(layers, AxisFileError), dtype=np.int64)}, metadata, bf16)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in one step. Raises `AxisFileError`; an old file stays whole whatever goes wrong."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        if self.bfloat16_roles and "roles" in tensors:
            tensors["roles"] = tensors["roles"].to(torch.bfloat16)
        write_safe(path, tensors, encode_metadata(self.metadata))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The model's layer index of each row, rising."""
        return tuple(int(layer) for layer in self.arrays["layers"])

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.metadata["hidden_size"])

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model, of which `layers` may be a part."""
        return int(self.metadata["num_layers"])

    @property
    def role_names(self) -> tuple[str, ...]:
        """Name of each role vector."""
        return tuple(self._stated("role_names"))

    @property
    def split_half(self) -> SplitHalf:
        """Cosine between two half-axes with its interval, per row."""
        stated = self._stated("split_half")
        return SplitHalf(*(tuple(stated[key]) for key in SplitHalf._fields))

    @property
    def recommended_layer(self) -> int:
        """The one layer to read where one is wanted."""
        return int(self._stated("recommended_layer"))

    @property
    def direction(self) -> Tensor:
        """Unit rows [L, H] toward the Assistant, float32."""
        return self._tensor("direction")

    @property
    def default(self) -> Tensor:
        """Mean activation of the default's replies [L, H]."""
        return self._tensor("default")

    @property
    def roles(self) -> Tensor:
        """Mean activation of each role's accepted replies [n, R, H], float32, at the R `role_layers`; of a large file
        all of it is read at each call."""
        return self._tensor("roles")

    @property
    def role_layers(self) -> tuple[int, ...]:
        """The model's layers at which role vectors are stored, rising: all of `layers` unless the file says else."""
        if "roles" not in self.arrays:
            return ()
        return tuple(self.arrays["role_layers"].tolist()) if "role_layers" in self.arrays else self.layers

    def roles_at(self, layer: int) -> NDArray[np.float32]:
        """The role vectors [n, H] of one layer, float32; of a large file only these are read.

        Raises `AxisFileError` where the file has none of this layer, or they are damaged.
        """
        self.row(layer)
        roles = unread(self.arrays).get("roles")
        if roles is None:
            self.array("roles")
        if layer not in self.role_layers:
            raise AxisFileError(
                f"{self.source}: holds role vectors of {told_layers(self.role_layers)}, none of layer {layer}: choose "
                "among these, or extract with --role-layers all"
            )
        row = self.role_layers.index(layer)
        return self.arrays.layer(row) if isinstance(self.arrays, Held) else self.arrays["roles"][:, row]

    @property
    def roles_mean(self) -> NDArray[np.float64]:
        """The mean of the role vectors at every layer [L, H]."""
        if "roles_mean" in self.arrays:
            return self.arrays["roles_mean"].astype(np.float64)
        self.array("default")
        return np.stack([self.roles_at(layer).mean(axis=0, dtype=np.float64) for layer in self.layers])

    @property
    def mean_norm(self) -> Tensor:
        """Mean ||h|| over the default's reply tokens [L]."""
        return self._tensor("mean_norm")

    def row(self, layer: int) -> int:
        """The row that holds the model's layer `layer`."""
        if whole("layer", layer, AxisMismatchError) not in self.layers:
            raise AxisMismatchError(f"layer {layer} is not in this axis, which has {told_layers(self.layers)}")
        return self.layers.index(layer)

    def array(self, name: str) -> NDArray[Any]:
        """One of the file's tensors as a numpy array; an `AxisFileError` says when the file has none."""
        if name not in self.arrays:
            raise AxisFileError(
                f"{self.source}: this {self.metadata['provenance']} axis holds no {name!r}; this call needs it"
            )
        return self.arrays[name]

    def quantile(self, distribution: str, percentile: float) -> NDArray[np.float64]:
        """Where `percentile` (0 to 100, interpolated) of a named distribution lies, per row [L].

        Distributions are `default`, `roles` (mean projections of replies), `default_tokens`, `roles_tokens`
        (single reply tokens). Raises `CapError` for another name or percentile, `AxisFileError` if absent.
        """
        if distribution not in DISTRIBUTIONS:
            raise CapError(f"no distribution {distribution!r}: choose among {', '.join(DISTRIBUTIONS)}")
        if not isinstance(percentile, Real):
            raise CapError(f"percentile {percentile!r} is no number")
        if not 0 <= percentile <= 100:
            raise CapError(f"percentile {percentile:g} lies outside 0-100")
        table = self.array(f"quantiles_{distribution}").astype(np.float64)
        return np.array([np.interp(percentile, np.arange(101), row) for row in table])

    def project(self, hidden: Any, layer: int) -> Any:
        """<hidden, direction of `layer`> over the last dimension, in units of the residual stream.

        A torch tensor [..., H] gives a tensor [...] on its device, anything else a numpy array; in float32 at
        least. Larger means more Assistant.
        """
        return projected_on(self.arrays["direction"][self.row(layer)], hidden)

    def space(self, layer: int) -> PersonaSpace:
        """PCA of the role vectors at one of `role_layers`."""
        roles, default = self.roles_at(layer), self.array("default")[self.row(layer)]
        return PersonaSpace.fit(roles, default, self.role_names)

    def cap(
        self,
        layers: Iterable[int] | int | None = None,
        floor: str | ArrayLike | Tensor | None = None,
        ceiling: str | ArrayLike | Tensor | None = None,
    ) -> Cap:
        """A cap at `layers` (the recommended layer unless given) that carries this axis' model facts.

        A bound is a percentile of a named distribution, `"default_tokens:p25"`, looked up per layer, or
        numbers as `Cap` takes them. Raises `CapError` for layers or bounds that cannot be.
        """
        from persona_axis._axiscap import cap_of

        return cap_of(self, layers, floor, ceiling)

    @property
    def facts(self) -> dict[str, Any]:
        """What the file states about its model, for comparison with another."""
        return {key: self.metadata[key] for key in FACTS if self.metadata.get(key) is not None}

    def require(
        self, model: nn.Module, template: Any = None, allow: Collection[str] = (), stack: str | None = None
    ) -> None:
        """Raise `AxisMismatchError` unless this axis was made for `model`; the text lists what differs.

        Compared are architecture, hidden size, layer count, weights fingerprint and, when `template` (a
        tokenizer or the template's text) is given, the chat template, each where the file states it. Names,
        paths and revisions are told, never decisive. `allow` names deliberate differences: "weights" (a
        fine-tune, a quantised copy), "chat_template", "architecture", "num_layers".
        """
        from persona_axis.fingerprint import require_same

        require_same(self.facts, model, template, allow, stack)

    def _stated(self, key: str) -> Any:
        if self.metadata.get(key) is None:
            raise AxisFileError(
                f"{self.source}: this {self.metadata['provenance']} axis states no {key!r}; this call needs it"
            )
        return self.metadata[key]

    def _tensor(self, name: str) -> Tensor:
        import torch

        return torch.from_numpy(self.array(name))
