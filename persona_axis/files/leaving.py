"""A safetensors file of which one large tensor is left where it is."""

from __future__ import annotations

import os

from persona_axis._asked import path_of
from persona_axis.errors import AxisFileError
from persona_axis.files.blocks import Block, Identity, size_of
from persona_axis.files.plainfile import open_file
from persona_axis.files.safefile import (
    DTYPES,
    MAX_HEADER_BYTES,
    SafeFile,
    array_of,
    layout,
    metadata_of,
    read_header,
    whole,
)

_FLOATS = ("F32", "BF16")


def read_leaving(path: str | os.PathLike[str], name: str, above: int) -> SafeFile:
    """`read_safe`, but a tensor `name` [n, rows, width] of more than so many bytes stays in the file, as a `Block`."""
    named = path_of("path", path)
    try:
        with open_file(named) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= above:
                return whole(path, file.read())
            start = file.read(8)
            header = read_header(path, start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES)), size)
            metadata = metadata_of(path, header)
            first = 8 + int.from_bytes(start, "little")
            dtypes = layout(path, header, size - first, DTYPES)
            entry = header.get(name, {"shape": [], "dtype": ""})
            shape, dtype = tuple(entry["shape"]), entry["dtype"]
            small = len(shape) != 3 or size_of(shape, DTYPES[dtype].itemsize) <= above
            if small or dtype not in _FLOATS:
                file.seek(0)
                return whole(path, file.read())
            arrays = {}
            for other in [other for other in dtypes if other != name]:
                begin, end = header[other]["data_offsets"]
                file.seek(first + begin)
                data = file.read(end - begin)
                if len(data) != end - begin:
                    raise AxisFileError(f"{path}: truncated while it was read")
                arrays[other] = array_of({**header[other], "data": data})
            place = first + entry["data_offsets"][0]
            block = Block(os.path.abspath(path), Identity.of(file), place, shape, dtype == "BF16")
            return SafeFile(arrays, dtypes, metadata, {name: block})
    except OSError as error:
        raise AxisFileError(f"{path}: cannot be read: {error.strerror or error}") from None
