"""Arrays that stay in their file: read a layer at a time, and checked each time they are read.

The file is read, not mapped: a map of a file that somebody cuts short ends the process, where a read ends in an
error; and what is read is seen to be the file that was loaded, not one that was put in its place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import AxisFileError

if TYPE_CHECKING:
    from persona_axis.files.rolerows import RoleRows


class Identity(NamedTuple):
    """What tells a file from one that was put in its place, or changed."""

    device: int
    number: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> Identity:
        """The identity of an open file."""
        found = os.fstat(file.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Block:
    """Where an array [n, rows, width] of a file lies; bfloat16 is widened to float32 when it is read."""

    path: str
    identity: Identity
    offset: int
    shape: tuple[int, ...]
    bfloat16: bool = False

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """As what its numbers are given."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def at(self, row: int) -> NDArray[np.float32]:
        """[n, width]: what the file holds at one row, and nothing else of it is read.

        Raises `AxisFileError` where the file is gone, cut short or no longer the one that was loaded.
        """
        count, rows, width = self.shape
        stored = np.empty((count, width), np.dtype("<u2") if self.bfloat16 else np.dtype("<f4"))
        stride = rows * width * stored.itemsize
        try:
            with open(self.path, "rb", buffering=0) as file:
                if Identity.of(file) != self.identity:
                    raise AxisFileError(f"{self.path}: changed since it was loaded: load it again")
                for i in range(count):
                    file.seek(self.offset + i * stride + row * width * stored.itemsize)
                    _fill(file, memoryview(stored[i]).cast("B"), self.path)
        except OSError as error:
            raise AxisFileError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        return widened(stored) if self.bfloat16 else stored.astype(np.float32, copy=False)


class Held(Mapping[str, Any]):
    """Arrays by name, of which `roles` is left in its file. Asked for by name it is read whole, layer after layer."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], roles: Block) -> None:
        self.arrays, self.roles = dict(arrays), roles
        self.rows: RoleRows | None = None
        """What is asked of each layer that is read, once the rest of the file is known to be sound."""

    def __getitem__(self, name: str) -> Any:
        if name != "roles":
            return self.arrays[name]
        whole = np.empty(self.roles.shape, np.float32)
        for row in range(whole.shape[1]):
            whole[:, row] = self.layer(row)
        return whole

    def layer(self, row: int) -> NDArray[np.float32]:
        """The role vectors [n, hidden] of one row, read and checked."""
        vectors = self.roles.at(row)
        if self.rows is not None:
            self.rows.check(row, vectors)
        return vectors

    def __contains__(self, name: object) -> bool:  # a mapping's own would read what it looks for
        return name == "roles" or name in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter((*self.arrays, "roles"))

    def __len__(self) -> int:
        return len(self.arrays) + 1


def unread(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same arrays with a `Block` in the place of what was left in the file; reads nothing."""
    return {**arrays.arrays, "roles": arrays.roles} if isinstance(arrays, Held) else arrays


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of a float32."""
    return np.left_shift(bits.astype(np.uint32), np.uint32(16)).view(np.float32)


def size_of(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of an array."""
    return math.prod(shape) * itemsize


def _fill(file: Any, into: memoryview, path: str) -> None:
    while len(into):
        if not (got := file.readinto(into)):
            raise AxisFileError(f"{path}: truncated since it was loaded")
        into = into[got:]
