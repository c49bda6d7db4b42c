"""Plain arrays: .npy files, and safetensors files with one tensor or one a layer."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import VectorsError
from persona_axis.files.safefile import SafeFile, plain_shape
from persona_axis.vectors.found import Found, checked_rows

NPY_MAGIC = b"\x93NUMPY"
_NUMBERED = re.compile(r"(.*?)(\d{1,6})")
_LAYER = re.compile(r"(?:.*[._/-])?layers?[._/-]?\d{1,6}", re.IGNORECASE)
"""A name whose number is a layer's even where no other name shows what it counts: `evil_v2` or `bf16` is not one."""


def found_in_npy(where: str, raw: bytes) -> Found:
    """One array [layers, hidden] or [hidden]. Raises `VectorsError`; objects, which are pickles, are refused."""
    values = _array(where, raw)
    rows = checked_rows(where, "the array", values)
    return Found(where, "npy array", rows, tuple(range(len(rows))) if values.ndim == 2 else None)


def found_in_safe(where: str, file: SafeFile) -> Found:
    """One tensor [layers, hidden] or [hidden], or vectors named by a number each. Raises `VectorsError`."""
    stated = file.metadata.get("format", "")
    if stated.startswith(("persona-axis/", "persona-cap/", "persona-traits/")):
        raise VectorsError(f"{where}: is a {stated.partition('/')[0]} file already; there is nothing to import")
    if not file.arrays:
        raise VectorsError(f"{where}: holds no tensors")
    if len(file.arrays) == 1:
        ((name, values),) = file.arrays.items()
        rows = checked_rows(where, f"tensor {name[:60]!r}", values)
        if values.ndim == 2 or _LAYER.fullmatch(name) is None:
            return Found(where, "safetensors", rows, tuple(range(len(rows))) if values.ndim == 2 else None)
    return _numbered(where, file)


def _numbered(where: str, file: SafeFile) -> Found:
    matches = {name: _NUMBERED.fullmatch(name) for name in file.arrays}
    if None in matches.values() or len({match[1] for match in matches.values() if match}) != 1:
        names = ", ".join(repr(name[:40]) for name in list(file.arrays)[:5])
        raise VectorsError(
            f"{where}: holds {names}; expected one tensor, or vectors whose names differ by a layer number"
        )
    by_number = {int(match[2]): name for name, match in matches.items() if match}
    if len(by_number) != len(matches):
        raise VectorsError(f"{where}: two tensors have the same number")
    index = tuple(sorted(by_number))
    parts = [checked_rows(where, repr(by_number[i][:60]), file.arrays[by_number[i]], ranks=(1,)) for i in index]
    if len({part.shape for part in parts}) != 1:
        raise VectorsError(f"{where}: its vectors differ in width")
    return Found(where, "safetensors by number", np.concatenate(parts), index, named=True)


def _array(where: str, raw: bytes) -> NDArray[Any]:
    """The header is checked against the file's size before a byte is allocated for the data."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python 2's literals, and of escapes in a damaged one
            shape, fortran, dtype = reader(stream)
    # Damaged headers go through numpy's parser of Python literals, which raises many things.
    except Exception as error:
        raise VectorsError(f"{where}: not a valid npy file: {str(error)[:120] or type(error).__name__}") from None
    if dtype.hasobject:
        raise VectorsError(f"{where}: holds Python objects, which are pickles and are never read; save plain numbers")
    if not plain_shape(shape) or not 0 < dtype.itemsize <= 16:
        raise VectorsError(f"{where}: not a valid npy file: shape {str(shape)[:60]}, dtype {str(dtype)[:60]}")
    count = 1
    for side in shape:
        count *= side
    data = raw[stream.tell() :]
    if len(data) != count * dtype.itemsize:
        raise VectorsError(
            f"{where}: truncated or damaged: {list(shape)} {dtype} needs {count * dtype.itemsize} bytes, "
            f"{len(data)} are there"
        )
    if dtype.kind != "f":
        raise VectorsError(f"{where}: is {dtype}; vectors must be floating-point numbers")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
