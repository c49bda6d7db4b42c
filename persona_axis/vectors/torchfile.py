"""Files that torch.save wrote, read without running anything: tensors, numbers and texts, never an object.

The one place of the package that opens a pickle, and it runs none: `torchpickle` walks through it. What needs more is
refused by the name of what it wanted.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import warnings
import zipfile
from typing import Any

import torch
from torch import Tensor

from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Rows, checked_rows
from persona_axis.vectors.torchpickle import PLAIN, Walk

_PROGRAM = "/data.pkl"


def read_torch(where: str, raw: bytes) -> Any:
    """What the bytes of a torch.save file hold. Raises `VectorsError` naming what is wrong or was wanted."""
    if not raw.startswith(b"PK\x03\x04"):
        wanted = _globals_of(raw)
        names = f" that wants {', '.join(wanted[:3])}" if wanted else ""
        raise VectorsError(
            f"{where}: is a bare pickle{names}, or was saved by torch before 1.6: it is not read, since a pickle can "
            f"run anything; {PLAIN}"
        )
    archive = _stored(where, raw)
    try:
        (program,) = (name for name in archive.namelist() if name.endswith(_PROGRAM))
        root = program.removesuffix(_PROGRAM)
        order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in archive.namelist() else b"little"
        if order != b"little":
            raise ValueError("its numbers are not in little-endian order")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a damaged program, and of memory that is read-only
            return Walk(where, lambda key: archive.read(f"{root}/data/{key}"), len(raw)).value(archive.read(program))
    except VectorsError:
        raise
    # Damaged bytes leave the readers by any kind of exception; all of them mean the same here.
    except Exception as error:
        raise VectorsError(f"{where}: damaged, or not written by torch.save: {_first_line(error)}") from None


def tensor_rows(where: str, name: str, value: Any, size: int, *, ranks: tuple[int, ...] = (1, 2)) -> Rows:
    """A tensor of a file of `size` bytes as finite rows [n, hidden], float64. Raises `VectorsError`."""
    if not isinstance(value, Tensor):
        raise VectorsError(f"{where}: {name} is a {type(value).__name__}; expected a tensor")
    plain = value.layout == torch.strided and not value.is_meta and not value.is_nested and not value.is_quantized
    if not plain or not value.is_floating_point():
        raise VectorsError(f"{where}: {name} is a {value.dtype} {value.layout} tensor; expected plain floating point")
    if value.numel() * value.element_size() > size:  # strides of 0 make a few bytes look like gigabytes
        raise VectorsError(f"{where}: {name} {list(value.shape)} claims more numbers than the file holds")
    return checked_rows(where, name, value.detach().to(torch.float64).numpy(), ranks=ranks)


def _stored(where: str, raw: bytes) -> zipfile.ZipFile:
    """The archive. torch.save stores without compression; a compressed entry could unpack to any size."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
    # zipfile, too, meets damage with whatever exception its parsing runs into.
    except Exception as error:
        raise VectorsError(f"{where}: truncated or damaged: {_first_line(error)}") from None
    entries = archive.infolist()
    if arrays := [entry.filename for entry in entries if entry.filename.endswith(".npy")]:
        raise VectorsError(
            f"{where}: is an .npz archive of {len(arrays)} arrays, {', '.join(name[:40] for name in arrays[:5])}: "
            "save the one that holds the vectors by itself, numpy.save('vectors.npy', held['NAME'])"
        )
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > len(raw):
        raise VectorsError(f"{where}: holds compressed or overlapping entries, which torch.save does not write")
    if len(archive.NameToInfo) != len(entries):
        raise VectorsError(f"{where}: holds an entry twice, which torch.save does not write")
    return archive


def _globals_of(raw: bytes) -> list[str]:
    """What a pickle would import, read off its opcodes without executing any."""
    found: list[str] = []
    texts: list[str] = []
    # What is no pickle to its end raises anything; what was seen so far is told.
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        for operation, argument, _ in pickletools.genops(raw):
            if operation.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL" and len(texts) >= 2:
                found.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    return [name for name in found if name.isprintable() and len(name) <= 200]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
