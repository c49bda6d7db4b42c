"""GGUF control vectors, as repeng writes them, read with every length checked first.

Tensors are `direction.N`, one vector each; llama.cpp adds `direction.N` to the output of layer N, counted from 0. Its
own generator counts further by one: what it measured on layer N is called `direction.N+1`. Nothing in a file tells the
two apart, so whose it is has to be said, unless an export of ours says it.
Reading needs no package: the public reader walks counts that a damaged file may set to any number.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from persona_axis.errors import VectorsError
from persona_axis.files.axisfile import CONVENTIONS
from persona_axis.vectors.found import Found, Settled, checked_rows, quoted, remarks

GGUF_MAGIC = b"GGUF"
OWN_KEY = "persona_axis.conventions"
"""Where an export of ours states its conventions: of layers always, of the sign where it is known."""

_UNCLEAR = (
    "does not say how its vectors are numbered: in files of repeng direction.N was measured on the output of layer N "
    "(say --rows layers), in files of llama.cpp's own generator direction.N+1 was (say --rows embeddings-first)"
)

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOATS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8")}
_NAME = re.compile(r"direction\.(\d{1,6})")
_MAX_TEXT = 2**16


class _Entry(NamedTuple):
    name: str
    width: int
    dtype: np.dtype[Any]
    offset: int


def found_in_gguf(where: str, raw: bytes) -> Found:
    """The directions of a control vector, numbered as the file numbers them. Raises `VectorsError`."""
    walk = _Walk(where, raw)
    version, tensors, keys = walk.unpack("IQQ")
    if version not in (2, 3):
        raise VectorsError(f"{where}: GGUF version {version} is not read; 2 and 3 are, in little-endian order")
    stated = {}
    for _ in range(walk.count(keys, 13)):
        name = walk.text()
        stated[name] = walk.value(walk.unpack("I")[0])
    if stated.get("general.architecture") != "controlvector":
        kind = str(stated.get("general.architecture"))[:60]
        raise VectorsError(f"{where}: is a GGUF file of {kind!r}; expected 'controlvector'")
    entries = [_entry(walk) for _ in range(walk.count(tensors, 32))]
    alignment = stated.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**16:
        raise VectorsError(f"{where}: general.alignment: {quoted(alignment)} cannot be")
    start = -(-walk.at // alignment) * alignment
    if sum(entry.width * entry.dtype.itemsize for entry in entries) > len(raw):
        raise VectorsError(f"{where}: its {len(entries)} tensors claim more numbers than the file holds")
    rows = {}
    for entry in entries:
        number = _number(where, entry.name)
        end = start + entry.offset + entry.width * entry.dtype.itemsize
        if number in rows or end > len(raw):
            problem = "occurs twice" if number in rows else f"truncated: needs {end} bytes, {len(raw)} are there"
            raise VectorsError(f"{where}: {entry.name}: {problem}")
        rows[number] = np.frombuffer(raw, entry.dtype, entry.width, start + entry.offset)
    if not rows:
        raise VectorsError(f"{where}: holds no direction")
    index = tuple(sorted(rows))
    parts = [checked_rows(where, f"direction.{number}", rows[number], ranks=(1,)) for number in index]
    if len({part.shape for part in parts}) != 1:
        raise VectorsError(f"{where}: its directions differ in width")
    own = _own(stated)
    states_layers, sign = own.get("layer") == CONVENTIONS["layer"], None
    if states_layers and own.get("sign") == CONVENTIONS["sign"]:
        sign = Settled("toward", "file", f"the file says that {CONVENTIONS['sign']}")
    return Found(
        where, "gguf control vector", np.concatenate(parts), index, named=True, sign=sign, about=remarks(stated),
        states_layers=states_layers, unclear="" if states_layers else _UNCLEAR,
    )  # fmt: skip


def _entry(walk: _Walk) -> _Entry:
    name = walk.text()
    (rank,) = walk.unpack("I")
    sides = walk.unpack(f"{rank}Q") if rank <= 4 else (0, 0)
    kind, offset = walk.unpack("IQ")
    if rank != 1:
        raise VectorsError(f"{walk.where}: {name[:60]!r}: has {rank} dimensions; a direction has one")
    if kind not in _FLOATS:
        raise VectorsError(f"{walk.where}: {name[:60]!r}: is quantised or no float (type {kind}); expected float32")
    return _Entry(name, sides[0], _FLOATS[kind], offset)


def _number(where: str, name: str) -> int:
    match = _NAME.fullmatch(name)
    if match is None:
        raise VectorsError(f"{where}: unknown tensor {name[:60]!r}; a control vector holds direction.N")
    return int(match[1])


def _own(stated: dict[str, Any]) -> dict[str, Any]:
    try:
        own = json.loads(stated.get(OWN_KEY) or "null")
    except (ValueError, TypeError, RecursionError):
        return {}
    return own if isinstance(own, dict) else {}


class _Walk:
    """Forward through the bytes; every step fails by name instead of running over the end."""

    def __init__(self, where: str, raw: bytes) -> None:
        self.where, self.raw, self.at = where, raw, len(GGUF_MAGIC)

    def unpack(self, form: str) -> tuple[Any, ...]:
        """Little-endian numbers of a struct form."""
        size = struct.calcsize(f"<{form}")
        found = struct.unpack(f"<{form}", self.take(size))
        return found

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self.raw) - self.at:
            raise VectorsError(f"{self.where}: truncated: {size} bytes expected at {self.at} of {len(self.raw)}")
        self.at += size
        return self.raw[self.at - size : self.at]

    def count(self, claimed: int, least: int) -> int:
        """A number of items that need at least `least` bytes each."""
        if claimed * least > len(self.raw) - self.at:
            raise VectorsError(f"{self.where}: truncated or damaged: it claims {claimed} entries at {self.at}")
        return int(claimed)

    def text(self) -> str:
        """A string with its length before it."""
        (size,) = self.unpack("Q")
        return self.take(size).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A metadata value; arrays are stepped over, since no control vector needs one."""
        if kind == _STRING:
            text = self.text()
            return text if len(text) <= _MAX_TEXT else None
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise VectorsError(f"{self.where}: metadata of the unknown type {kind} at {self.at}")
        inner, length = self.unpack("IQ")
        if inner in _SCALARS:
            self.take(length * struct.calcsize(f"<{_SCALARS[inner]}"))
        elif inner == _STRING:
            for _ in range(self.count(length, 8)):
                self.text()
        else:
            raise VectorsError(f"{self.where}: an array of type {inner} at {self.at} is not read")
        return None
