"""One call for every form: told apart by the first bytes, never by the name."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from persona_axis.axis import Axis
from persona_axis.errors import AxisFileError, VectorsError
from persona_axis.files.plainfile import read_file
from persona_axis.files.safefile import read_safe
from persona_axis.vectors.arrays import NPY_MAGIC, found_in_npy, found_in_safe
from persona_axis.vectors.found import Clamps, Found
from persona_axis.vectors.gguffile import GGUF_MAGIC, found_in_gguf

FORMS = "a torch .pt file, a directory of them, npy, safetensors, or a GGUF control vector"


def read(path: str | os.PathLike[str], default: str | os.PathLike[str] | None = None) -> Found | Clamps:
    """What a file, or a directory of role vectors, holds; `default` is a default vector that lies elsewhere.

    Raises `VectorsError` for whatever is damaged, of an unknown form, or would need more than numbers to be read.
    """
    if Path(path).is_dir():
        from persona_axis.vectors.roles import found_in_directory

        return found_in_directory(Path(path), None if default is None else _one(default))
    if default is not None:
        raise VectorsError(f"{path}: a default vector goes with a directory of role vectors; this is a file")
    return _read_file(str(path), read_bytes(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file's content. Raises `VectorsError`."""
    try:
        return read_file(path)
    except OSError as error:
        raise VectorsError(f"{path}: cannot be read: {error.strerror or error}") from None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, or of the names and contents of a directory's .pt files."""
    if not Path(path).is_dir():
        return hashlib.sha256(read_bytes(path)).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.pt")):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(read_bytes(file)).digest())
    return digest.hexdigest()


def read_check(path: str | os.PathLike[str]) -> Axis | Found | Clamps:
    """What proves a sign: an axis file of ours, or anything that `read` takes. Raises `VectorsError`."""
    with contextlib.suppress(AxisFileError):
        if read_safe(path).metadata.get("format", "").startswith("persona-axis/"):
            return Axis.load(path)
    return read(path)


def _one(path: str | os.PathLike[str]) -> Found:
    """A default vector from any form that holds one row a layer."""
    from persona_axis.vectors.torchfile import read_torch
    from persona_axis.vectors.torchlayouts import role_of

    raw = read_bytes(path)
    if raw.startswith(b"PK\x03\x04"):
        rows = role_of(str(path), read_torch(str(path), raw), len(raw), "default")[2]
        return Found(str(path), "default vector", rows, tuple(range(len(rows))))
    found = _read_file(str(path), raw)
    if isinstance(found, Clamps):
        raise VectorsError(f"{path}: is a capping configuration; expected a default vector")
    return found


def _read_file(where: str, raw: bytes) -> Found | Clamps:
    if raw.startswith(NPY_MAGIC):
        return found_in_npy(where, raw)
    if raw.startswith(GGUF_MAGIC):
        return found_in_gguf(where, raw)
    if raw.startswith((b"PK", b"\x80")) and raw[8:9] != b"{":  # a safetensors header's length may begin so, too
        from persona_axis.vectors.torchfile import read_torch
        from persona_axis.vectors.torchlayouts import found_in_torch

        return found_in_torch(where, read_torch(where, raw), len(raw))
    try:
        return found_in_safe(where, read_safe(where, half=True))
    except AxisFileError as error:
        raise VectorsError(f"{error}; known forms are {FORMS}") from None
