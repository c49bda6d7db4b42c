"""Damage to files: every kind has a name, takes a valid file and a seeded generator, and gives bytes.

`KINDS[family]` are the kinds that know a family of forms; `BYTES` know nothing and go with all of them. A mutant is a
pure function of (seed, form, number), so that any of them can be made again from its line in a report.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from _mutants_headers import GGUF, NPY
from _mutants_json import LINES, WHOLE
from _mutants_safe import SAFE, Kind
from _mutants_torch import TORCH
from _mutants_traits import TRAITS

COUNTS = (0, 1, 2, 127, 2**16, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)


class Mutant(NamedTuple):
    """One damaged file."""

    number: int
    kind: str
    content: bytes


def place(raw: bytes, draw: random.Random) -> int:
    """Somewhere in the bytes, in the first or last few hundred more often than not: headers and directories."""
    ends = (draw.randrange(200), draw.randrange(-1500, 0), draw.randrange(1 << 30))
    return draw.choice(ends) % max(1, len(raw))


def flip(raw: bytes, draw: random.Random) -> bytes:
    made = bytearray(raw or b"\0")
    for _ in range(draw.choice((1, 1, 2, 8))):
        made[place(made, draw)] ^= 1 << draw.randrange(8)
    return bytes(made)


def number(raw: bytes, draw: random.Random) -> bytes:
    at, size = place(raw, draw), draw.choice((1, 2, 4, 8))
    value = draw.choice((*COUNTS, draw.randrange(1 << 64)))
    return raw[:at] + (value % (1 << 8 * size)).to_bytes(size, draw.choice(("little", "big"))) + raw[at + size :]


def truncated(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.choice((place(raw, draw), draw.randrange(16), max(0, len(raw) - draw.randrange(1, 9))))]


def inserted(raw: bytes, draw: random.Random) -> bytes:
    at = place(raw, draw)
    return raw[:at] + draw.randbytes(draw.choice((1, 8, 64))) + raw[at:]


def repeated(raw: bytes, draw: random.Random) -> bytes:
    at, size = place(raw, draw), draw.choice((1, 16, 64, 512))
    return raw[:at] + raw[at : at + size] * draw.choice((1, 2, 50)) + raw[at:]


def removed(raw: bytes, draw: random.Random) -> bytes:
    at = place(raw, draw)
    return raw[:at] + raw[at + draw.choice((1, 8, 64)) :]


def doubled(raw: bytes, draw: random.Random) -> bytes:
    """The file twice, or with something behind it."""
    return raw + draw.choice((raw, b"\0" * draw.randrange(1, 64), raw[: draw.randrange(1, 64)]))


def noise(raw: bytes, draw: random.Random) -> bytes:
    """Nothing of the file but its first bytes."""
    return raw[: draw.choice((0, 2, 4, 8, 10))] + draw.randbytes(draw.randrange(300))


BYTES: dict[str, Kind] = {
    "bits flipped": flip, "number overwritten": number, "truncated": truncated, "bytes inserted": inserted,
    "bytes repeated": repeated, "bytes removed": removed, "something behind": doubled, "noise": noise,
}  # fmt: skip
KINDS: dict[str, dict[str, Kind]] = {
    "safetensors": SAFE, "torch": TORCH, "npy": NPY, "gguf": GGUF, "lines": LINES, "json": WHOLE,
    "traits": TRAITS,
}  # fmt: skip


def mutants(raw: bytes, form: str, family: str, seed: int, numbers: range) -> Iterator[Mutant]:
    """The mutants of those numbers. Half are damage that knows the form, half is damage to bytes."""
    own = KINDS[family]
    for at in numbers:
        draw = random.Random(f"{seed}:{form}:{at}")
        kinds = own if own and at % 2 else BYTES
        kind = draw.choice(sorted(kinds))
        made = kinds[kind](raw, draw)
        if draw.random() < 0.15:
            made = BYTES[draw.choice(sorted(BYTES))](made, draw)
        yield Mutant(at, kind, made)
