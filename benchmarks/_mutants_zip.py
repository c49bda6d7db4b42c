"""Damage to the zip around a file of torch.save: sizes, directories, entries, and the tensors' own bytes."""

from __future__ import annotations

import random
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from _pickles import PROGRAM, entries, plain, program, zipped

PATHS = ("../../x", "/x", "archive/../data.pkl", "x", "a" * 60_000, "archive/code/x.py")
RECORDS = (
    "archive/constants.pkl", "archive/byteorder", "archive/.format_version", "archive/version", "b/data.pkl",
    "archive/.data/serialization_id",
)  # fmt: skip
FIELDS = ((20, 4), (24, 4), (42, 4), (10, 2), (8, 2), (28, 2), (30, 2), (32, 2), (16, 4), (36, 2))
"""(offset, size) of the numbers in a directory's entry."""
ODD = (0x7FC00000, 0x7FA00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1, 0)
"""float32: NaN, a signalling one, infinities, the largest, the smallest, zero."""
BOMB = 64 * 2**20


@lru_cache
def bombed(method: int) -> bytes:
    made = {PROGRAM: program(plain(BOMB // 4)), "archive/version": b"3\n", "archive/data/0": bytes(BOMB)}
    return zipped(made, method)


def compressed(raw: bytes, draw: random.Random) -> bytes:
    """Entries that unpack to more than the file; at times with a directory that calls them stored."""
    if draw.random() < 0.3:
        return zipped(entries(raw), draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    made = bytearray(bombed(zipfile.ZIP_DEFLATED))
    if draw.random() < 0.5:
        at = -1
        while (at := made.find(b"PK\1\2", at + 1)) >= 0:
            made[at + 10 : at + 12] = b"\0\0"
    return bytes(made)


def two_directories(raw: bytes, draw: random.Random) -> bytes:
    """One directory where the end record says, another right before that record: readers differ in which they take."""
    bomb, held = bombed(zipfile.ZIP_DEFLATED), entries(raw)
    good = zipped({name: held[name] for name in (PROGRAM, "archive/version", "archive/data/0")})  # as many bytes of it
    start, size = (int.from_bytes(good[at:end], "little") for at, end in ((-6, -2), (-10, -6)))
    elsewhere = int.from_bytes(bomb[-6:-2], "little")
    directory, spot = bytearray(good[start:-22]), 0
    before = len(bomb) - 22 + start - elsewhere  # what zipfile takes for bytes in front of the archive
    while spot < size:
        (offset,) = struct.unpack_from("<I", directory, spot + 42)
        struct.pack_into("<I", directory, spot + 42, (offset + len(bomb) - 22 - before) % 2**32)
        spot += 46 + sum(struct.unpack_from("<HHH", directory, spot + 28))
    return bomb[:-22] + good[:start] + bytes(directory) + bomb[-22:]


def directory(raw: bytes, draw: random.Random) -> bytes:
    """Sizes, offsets, flags and names in the zip's directory that lie, or no directory at all."""
    made = bytearray(zipped(entries(raw)))
    at, starts = -1, []
    while (at := made.find(b"PK\1\2", at + 1)) >= 0:
        starts.append(at)
    if draw.random() < 0.3:
        return bytes(made[: draw.choice((*starts, len(made) - 22, len(made) - 1))])
    spot = draw.choice(starts)
    offset, size = draw.choice(FIELDS)
    lie = draw.choice((0, 1, 8, 0xFFFF, 2**31, 2**32 - 1, 1000)).to_bytes(4, "little")
    made[spot + offset : spot + offset + size] = lie[:size]
    if draw.random() < 0.3:
        end = len(made) - 22
        field = draw.choice((8, 10, 12, 16))
        made[end + field : end + field + 2] = draw.choice((0, 1, 0xFFFF)).to_bytes(2, "little")
    return bytes(made)


def members(raw: bytes, draw: random.Random) -> bytes:
    """Entries renamed, missing, more, or with another content."""
    held: dict[str, Any] = dict(entries(raw))
    name = draw.choice(sorted(held))
    match draw.randrange(6):
        case 0:
            held.pop(name)
        case 1:
            held[draw.choice(PATHS)] = held.pop(name)
        case 2:
            held |= {f"archive/x{i}": b"" for i in range(draw.choice((10, 5_000)))}
        case 3:
            held |= {draw.choice(RECORDS): draw.choice((b"big", b"", b"x" * 99))}
        case 4:
            held = {"../" * 5 + key: value for key, value in held.items()}
        case _:
            held[name] = held[name][: draw.randrange(len(held[name]) + 1)]
    return zipped(held)


def numbers(raw: bytes, draw: random.Random) -> bytes:
    """NaN, infinities and huge numbers in the tensors' own bytes."""
    held = entries(raw)
    name = draw.choice([name for name in held if name.startswith("archive/data/")])
    made = bytearray(held[name])
    for _ in range(draw.choice((1, 4))):
        at = draw.randrange(len(made) // 4) * 4
        struct.pack_into("<I", made, at, draw.choice(ODD))
    return zipped(held | {name: bytes(made)})


ZIP: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "compressed": compressed, "two directories": two_directories, "directory lies": directory, "entries": members,
    "NaN and ends": numbers,
}  # fmt: skip
