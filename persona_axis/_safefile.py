"""One safetensors file: everything checked before use, replaced in one step, never a pickle.

Reading needs no torch, so that a file can be shown at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

from persona_axis._asked import path_of
from persona_axis._plainfile import open_file, read_file
from persona_axis.errors import AxisFileError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 16 * 2**20
"""Far above any real header (300 role names with counts are 20 kB), far below what could hurt."""

_DTYPES: dict[str, np.dtype[Any]] = {
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


def read_safe(path: str | os.PathLike[str], *, half: bool = False) -> SafeFile:
    """Read a safetensors file whole; float16, which no file of ours holds, only with `half`.

    Raises `AxisFileError` for anything that is not exactly one.
    """
    file = path_of("path", path)
    accepted = _DTYPES | _HALF if half else _DTYPES
    try:
        raw = read_file(file)
    except OSError as error:
        raise AxisFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    header = _header(path, raw)
    metadata = _metadata(path, header)
    dtypes = _layout(path, header, len(raw) - 8 - int.from_bytes(raw[:8], "little"), accepted)
    try:
        stored = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise AxisFileError(f"{path}: not a valid safetensors file: {error}") from None
    return SafeFile({name: _array(stored[name]) for name in dtypes}, dtypes, metadata)


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
    from safetensors.torch import save

    target = Path(os.path.realpath(path_of("path", path)))  # a link keeps pointing where it did
    content = _canonical(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata)))
    try:
        replace_file(target, content)
    except OSError as error:
        kept = "; the file that was there is unchanged" if target.exists() else ""
        raise AxisFileError(f"{path}: could not be written: {error.strerror or error}{kept}") from error


def _canonical(content: bytes) -> bytes:
    """The same file with its header in sorted order: safetensors shuffles the metadata, so no two files are alike."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def replace_file(target: Path, content: bytes) -> None:
    """Put `content` where `target` (no link) is or will be, in one step. Raises `OSError`; nothing is left behind."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
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


def _header(path: Any, raw: bytes) -> dict[str, Any]:
    if raw.startswith(_PICKLE_STARTS) and raw[8:9] != b"{":  # a header of 640 bytes begins as a pickle does
        raise AxisFileError(
            f"{path}: is a pickle (as torch.save writes): pickles run code and are never read; published vectors are "
            "taken over by `persona-axis import`, which reads their numbers alone"
        )
    if len(raw) < 8:
        raise AxisFileError(f"{path}: truncated: {len(raw)} bytes are no safetensors file")
    length = int.from_bytes(raw[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise AxisFileError(
            f"{path}: not a safetensors file, or an oversized header: it claims {length} bytes "
            f"(at most {MAX_HEADER_BYTES} are accepted)"
        )
    if length > len(raw) - 8:
        raise AxisFileError(f"{path}: truncated: the header needs {length} bytes, {len(raw) - 8} are there")
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


def _metadata(path: Any, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AxisFileError(f"{path}: metadata must map strings to strings")
    return metadata


def _layout(path: Any, header: dict[str, Any], size: int, accepted: Mapping[str, np.dtype[Any]]) -> dict[str, str]:
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


def _array(entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype = (_DTYPES | _HALF)[entry["dtype"]]
    array: NDArray[Any] = np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        widened = np.left_shift(array.astype(np.uint32), np.uint32(16))
        return widened.view(np.float32)
    return array
