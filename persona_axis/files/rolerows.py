"""What is asked of the role vectors of one layer, whenever they are read: all of them at once, or one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import AxisFileError

UNIT_TOLERANCE = 1e-4
_FLOAT32_ROUNDING = 2.0**-24
_BFLOAT16_ROUNDING = 2.0**-9


@dataclass(frozen=True, eq=False)
class RoleRows:
    """What a file says elsewhere of its role vectors, row by row of them."""

    where: str
    layers: tuple[int, ...]
    """The model's layer of each row."""
    default: NDArray[np.float32]
    direction: NDArray[np.float32]
    mean: NDArray[np.float32] | None
    """The mean of the roles [rows, hidden], where the file states it."""
    bfloat16: bool
    sha256: Sequence[str] | None
    """`row_sha256` of each row, where the file states it."""

    def check(self, row: int, vectors: NDArray[np.float32]) -> None:
        """Raise `AxisFileError` unless these vectors [n, hidden] are whole and what the file says they are."""
        if not np.isfinite(vectors).all():
            raise AxisFileError(f"{self.where}: roles: holds NaN or infinite values")
        layer = self.layers[row]
        if self.sha256 is not None and row_sha256(vectors, self.bfloat16) != self.sha256[row]:
            raise AxisFileError(f"{self.where}: roles: those of layer {layer} are damaged: not those of roles_sha256")
        mean = vectors.mean(axis=0, dtype=np.float64)
        lengths = np.sqrt(np.einsum("nh,nh->n", vectors, vectors, dtype=np.float64))
        rounding = _BFLOAT16_ROUNDING if self.bfloat16 else _FLOAT32_ROUNDING
        if self.mean is None:
            away = off_direction(self.default[row], mean, self.direction[row], float(lengths.mean()), rounding)
            if away:
                raise AxisFileError(f"{self.where}: direction: the row of layer {layer} is not default - mean(roles)")
        elif np.linalg.norm(mean - self.mean[row]) > (UNIT_TOLERANCE / 10 + 4 * rounding) * lengths.mean():
            raise AxisFileError(f"{self.where}: roles: the mean of those of layer {layer} is not that of roles_mean")


def off_direction(
    default: NDArray[np.float32],
    mean: NDArray[np.floating],
    direction: NDArray[np.float32],
    length_of_roles: float,
    rounding: float = _FLOAT32_ROUNDING,
) -> bool:
    """Whether `direction` is not unit(default - mean), as far as the stored precision can tell; each is [hidden]."""
    origin = default.astype(np.float64)
    difference = origin - mean
    length = np.linalg.norm(difference)
    size = np.linalg.norm(origin) + length_of_roles
    tiny = np.finfo(float).tiny
    allowed = UNIT_TOLERANCE + 4 * rounding * size / max(length, tiny)
    off = np.linalg.norm(direction - difference / max(length, tiny))
    return bool(off > allowed or length == 0)


def row_sha256(vectors: NDArray[np.float32], bfloat16: bool) -> str:
    """sha256 of the role vectors [n, hidden] of one layer, as a file stores them, role after role."""
    little = np.ascontiguousarray(vectors, dtype="<f4")
    stored = (little.view("<u4") >> np.uint32(16)).astype("<u2") if bfloat16 else little
    return hashlib.sha256(stored.data).hexdigest()


def row_digests(roles: NDArray[np.float32], bfloat16: bool) -> list[str]:
    """`row_sha256` of each layer of role vectors [n, rows, hidden]."""
    return [row_sha256(roles[:, row], bfloat16) for row in range(roles.shape[1])]
