"""One safetensors file: everything checked before use, replaced in one step, never a pickle.

Reading needs no torch, so that a file can be shown at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

from persona_axis._asked import path_of
from persona_axis.errors import AxisFileError
from persona_axis.files.blocks import Block, widened
from persona_axis.files.plainfile import open_file, read_file

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 16 * 2**20
"""Far above any real header (300 role names with counts are 20 kB), far below what could hurt."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "BF16": np.dtype("<u2"),
}
_HALF = {"F16": np.dtype("<f2")}  # in other people's files only
_MOST_SIDES, _MOST_NUMBERS = 8, 2**60  # more is no array of any kind; a product of thousands of sides takes hours
_OURS = {
    "persona-axis": "an axis file: AXIS of `persona-axis show`, `cap` and `drift`",
    "persona-cap": "a cap file: `persona-axis generate --cap FILE`",
    "persona-space": "a space of rollouts: `persona-axis show FILE`",
    "persona-traits": "a traits file: `persona-axis show FILE`, or beside an axis `show AXIS --traits FILE`",
}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save, pickle


class SafeFile(NamedTuple):
    """The content of one file."""

    arrays: dict[str, NDArray[Any]]
    """By name; bfloat16 is widened to float32, which is exact."""
    dtypes: dict[str, str]
    """By name, as stored: F32, F64, I64 or BF16."""
    metadata: dict[str, str]
    blocks: dict[str, Block] = {}
    """By name; what was left in the file."""


def read_safe(path: str | os.PathLike[str], *, half: bool = False) -> SafeFile:
    """Read a safetensors file whole; float16, which no file of ours holds, only with `half`.

    Raises `AxisFileError` for anything that is not exactly one.
    """
    file = path_of("path", path)
    try:
        raw = read_file(file)
    except OSError as error:
        raise AxisFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    return whole(path, raw, DTYPES | _HALF if half else DTYPES)


def whole(path: str | os.PathLike[str], raw: bytes, accepted: Mapping[str, np.dtype[Any]] = DTYPES) -> SafeFile:
    """The content of a file that was read, checked."""
    header = read_header(path, raw, len(raw))
    metadata = metadata_of(path, header)
    dtypes = layout(path, header, len(raw) - 8 - int.from_bytes(raw[:8], "little"), accepted)
    try:
        stored = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise AxisFileError(f"{path}: not a valid safetensors file: {error}") from None
    return SafeFile({name: array_of(stored[name]) for name in dtypes}, dtypes, metadata)


def stated_format(path: str | os.PathLike[str]) -> str:
    """The `format` in a file's header, which alone is read; "" where none can be: whoever loads the file says why."""
    try:
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else None
    except (OSError, ValueError, RecursionError):
        return ""
    match header:
        case {"__metadata__": {"format": str(found)}}:
            return found
    return ""


def wrong_format(expected: str, stated: object) -> str:
    """What is wrong with a file of another format than `expected`; one of ours is named with what reads it."""
    kind = str(stated).partition("/")[0]
    ours = f"; this is {_OURS[kind]}" if kind in _OURS and not expected.startswith(f"{kind}/") else ""
    return f"format: expected {expected!r}, found {stated!r}{ours}"


def refuse_replacing(path: str | os.PathLike[str], kind: str) -> None:
    """Raise `AxisFileError` where a file is in the way that is none of `kind`, such as "persona-traits"."""
    found = stated_format(path).partition("/")[0]
    if found != kind and os.path.exists(path) and not os.path.isdir(path):
        what = _OURS[found].partition(":")[0] if found in _OURS else "there already"
        made = _OURS[kind].partition(":")[0]
        raise AxisFileError(f"{path}: is {what}, and {made} would replace it: name another file, or move this one away")


def write_safe(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step: after any failure the file that was there is untouched.

    Raises `AxisFileError` when it cannot be written (no such directory, disk full, no permission).
    """
    import torch

    codes = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16"}
    # Widest first, so that all are aligned, and by name: the order in which safetensors itself writes them.
    named = sorted(tensors.items(), key=lambda item: (list(codes).index(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in named:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}

    def content() -> Iterator[bytes | memoryview]:
        # Sorted, because no two files of the same content would be alike otherwise.
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors stay aligned
        yield len(text).to_bytes(8, "little") + text
        for _, tensor in named:
            if tensor.numel():
                yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data

    target = Path(os.path.realpath(path_of("path", path)))  # a link keeps pointing where it did
    try:
        replace_file(target, content())
    except OSError as error:
        kept = "; the file that was there is unchanged" if target.exists() else ""
        raise AxisFileError(f"{path}: could not be written: {error.strerror or error}{kept}") from error


def replace_file(target: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Put `content`, whole or in pieces, where `target` (no link) is or will be, in one step. Raises `OSError`; nothing
    is left behind."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, else those a new file would get."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def read_header(path: Any, raw: bytes, size: int) -> dict[str, Any]:
    """The header at the start of a file of `size` bytes."""
    if raw.startswith(_PICKLE_STARTS) and raw[8:9] != b"{":  # a header of 640 bytes begins as a pickle does
        raise AxisFileError(
            f"{path}: is a pickle (as torch.save writes): pickles run code and are never read; published vectors are "
            "taken over by `persona-axis import`, which reads their numbers alone"
        )
    if size < 8:
        raise AxisFileError(f"{path}: truncated: {size} bytes are no safetensors file")
    length = int.from_bytes(raw[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise AxisFileError(
            f"{path}: not a safetensors file, or an oversized header: it claims {length} bytes "
            f"(at most {MAX_HEADER_BYTES} are accepted)"
        )
    if length > size - 8:
        raise AxisFileError(f"{path}: truncated: the header needs {length} bytes, {size - 8} are there")
    try:
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AxisFileError(f"{path}: not a safetensors file: its header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise AxisFileError(f"{path}: not a safetensors file: its header is no JSON object")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def metadata_of(path: Any, header: dict[str, Any]) -> dict[str, str]:
    """The metadata, which are taken out of the header."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AxisFileError(f"{path}: metadata must map strings to strings")
    return metadata


def layout(path: Any, header: dict[str, Any], size: int, accepted: Mapping[str, np.dtype[Any]]) -> dict[str, str]:
    """The dtype of each tensor, once the offsets of all of them are known to fill the file exactly."""
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
                pass
            case _:
                raise AxisFileError(f"{path}: {name}: malformed header entry")
        if dtype not in accepted:
            raise AxisFileError(f"{path}: {name}: dtype {dtype} is not among {', '.join(accepted)}")
        if not plain_shape(shape):
            raise AxisFileError(f"{path}: {name}: malformed shape {shape[:_MOST_SIDES]}")
        if not 0 <= start <= end < 2**63:
            raise AxisFileError(f"{path}: {name}: malformed header entry: its data can't lie at {start} to {end}")
        if end - start != math.prod(shape) * accepted[dtype].itemsize:
            raise AxisFileError(f"{path}: {name}: {end - start} bytes do not hold {dtype} {shape}")
        spans.append((start, end, name))
    expected = 0
    for start, end, name in sorted(spans):
        if start != expected:
            raise AxisFileError(f"{path}: {name}: its data do not follow the tensor before it")
        expected = end
    if expected > size:
        raise AxisFileError(f"{path}: truncated: the tensors need {expected} bytes, {size} are there")
    if expected < size:
        raise AxisFileError(f"{path}: {size - expected} bytes follow the last tensor")
    return {name: entry["dtype"] for name, entry in header.items()}


def plain_shape(shape: Sequence[Any]) -> bool:
    """Whether numbers that a file states can be the sides of an array, empty ones included."""
    if len(shape) > _MOST_SIDES or not all(type(side) is int and 0 <= side < _MOST_NUMBERS for side in shape):
        return False
    numbers: int = math.prod(side or 1 for side in shape)
    return numbers < _MOST_NUMBERS


def array_of(entry: Mapping[str, Any]) -> NDArray[Any]:
    """The numbers of a header entry with its `data`."""
    dtype = (DTYPES | _HALF)[entry["dtype"]]
    array: NDArray[Any] = np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        return widened(array)
    return array
