"""Damage to safetensors files: headers rewritten so that only one thing in them is wrong."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Header = dict[str, Any]
Kind = Callable[[bytes, random.Random], bytes]
SIDES = (0, 1, 3, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**40, -1, True, 1.0, None, "4")
DTYPES = ("F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "f32", "", "X" * 5000)
PATHS = (
    "../../x", "/etc/passwd", "C:\\x", "a\0b", "x" * 2_000_000, "\x1b[2J", "direction\n", "__proto__", "\u202edir", "",
)  # fmt: skip
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0)
INTEGERS = (-1, 0, 2**31, 2**62, -(2**62), 2**63 - 1, -(2**63), 10**6)
VALUES = (
    None, True, 0, -1, 1.5, 2**70, float("nan"), "", "x", [], {}, [None], [[1]], {"a": 1}, 10**4299, "\ud800",
    "../../x", "y" * 100_000, ["z"] * 10_000,
)  # fmt: skip


def parts(raw: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def joined(header: Any, data: bytes) -> bytes:
    return framed(json.dumps(header).encode(), data)


def framed(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def edited(edit: Callable[[Header, random.Random], Any]) -> Kind:
    """A kind that changes the header in place, or gives another; the data stay."""

    def kind(raw: bytes, draw: random.Random) -> bytes:
        header, data = parts(raw)
        made = edit(header, draw)
        return joined(header if made is None else made, data)

    return kind


def one(header: Header, draw: random.Random) -> Header:
    """The entry of one tensor."""
    entry: Header = header[draw.choice([name for name in header if name != "__metadata__"])]
    return entry


def length(raw: bytes, draw: random.Random) -> bytes:
    real = int.from_bytes(raw[:8], "little")
    values = (0, 1, 7, real - 1, real + 1, len(raw), len(raw) - 8, 2**24, 2**24 + 1, 2**32, 2**63, 2**64 - 1)
    return draw.choice(values).to_bytes(8, "little") + raw[8:]


def offsets(header: Header, draw: random.Random) -> None:
    span = one(header, draw)["data_offsets"]
    wrong = (span[0] - 1, span[0] + 4, -1, 0, 2**63, 2**64, 10**4299, -(10**4299), 1.5, None, True, "0")
    span[draw.randrange(2)] = draw.choice(wrong)
    if draw.random() < 0.3:
        span[draw.randrange(2)] = draw.choice(wrong)


def overlap(header: Header, draw: random.Random) -> None:
    """Two tensors over the same bytes, or a hole between two."""
    first, second = one(header, draw), one(header, draw)
    second["data_offsets"] = list(first["data_offsets"])
    second["shape"], second["dtype"] = first["shape"], first["dtype"]


def shape(header: Header, draw: random.Random) -> None:
    sides = one(header, draw)["shape"]
    choices: tuple[Any, ...] = (
        [draw.choice(SIDES) for _ in sides], sides[::-1], [*sides, 1], [1] * 70 + sides, [0, draw.choice(SIDES)],
        [10**4000] * 2000, [1] * 200_000, [], draw.choice(SIDES), {"0": 1},
    )  # fmt: skip
    made = draw.choice(choices)
    if isinstance(made, list):
        sides[:] = made
    else:
        one(header, draw)["shape"] = made


def emptied(header: Header, draw: random.Random) -> None:
    """Sides whose product is nothing, whatever the others are."""
    entry = one(header, draw)
    start = entry["data_offsets"][0]
    entry["shape"] = draw.choice(([0, 2**62], [0, 2**63], [0, 10**30], [0] * 65, [0, 2**62, 2**62]))
    entry["data_offsets"] = [start, start]


def dtype(header: Header, draw: random.Random) -> None:
    entry = one(header, draw)
    entry["dtype"] = draw.choice((*DTYPES, None, 4))


def swapped(header: Header, draw: random.Random) -> None:
    """The same bytes as another type of the same size: floats as integers, float32 as twice as many halves."""
    entry = one(header, draw)
    entry["dtype"] = {"F32": "I32", "F64": "I64", "I64": "F64", "BF16": "F16"}.get(entry["dtype"], "F32")
    if draw.random() < 0.5 and entry["shape"]:
        entry["dtype"], entry["shape"][-1] = "BF16", entry["shape"][-1] * 2


def renamed(header: Header, draw: random.Random) -> None:
    name = draw.choice([name for name in header if name != "__metadata__"])
    header[draw.choice(PATHS)] = header.pop(name)


def without(header: Header, draw: random.Random) -> None:
    target = draw.choice((header, one(header, draw), header.get("__metadata__") or header))
    target.pop(draw.choice(sorted(target)))


def malformed(header: Header, draw: random.Random) -> Any:
    name = draw.choice(sorted(header))
    header[name] = draw.choice(VALUES)
    return draw.choice((header, header, list(header), name, 1))


def twice(raw: bytes, draw: random.Random) -> bytes:
    """A key that is given two times, at the top, in an entry, or in the metadata."""
    header, data = parts(raw)
    text = json.dumps(header)
    name = draw.choice(sorted(header))
    entry = json.dumps(header[name])
    own = draw.choice([key for key in header if key != "__metadata__"])
    inner = json.dumps(header[own])
    choices = (
        text[:-1] + f", {json.dumps(name)}: {entry}}}",
        text.replace(inner, inner[:-1] + ', "dtype": "F32"}'),
        text.replace('"__metadata__": {', '"__metadata__": {"format": "pt", "format": "x", ', 1),
    )
    return framed(draw.choice(choices).encode(), data)


def nested(raw: bytes, draw: random.Random) -> bytes:
    """Brackets in brackets, in the header or in a text of the metadata that is read as JSON."""
    header, data = parts(raw)
    depth = draw.choice((100, 990, 1100, 100_000, 1_000_000))
    left, right = draw.choice((("[", "]"), ('{"a":', "}")))
    deep = left * depth + "0" + right * depth * draw.randrange(2)
    if draw.random() < 0.5 or not header.get("__metadata__"):
        return framed(json.dumps(header)[:-1].encode() + b', "x": ' + deep.encode() + b"}", data)
    header["__metadata__"][draw.choice(sorted(header["__metadata__"]))] = deep
    return joined(header, data)


def stated(header: Header, draw: random.Random) -> None:
    """Another value behind a key of the metadata: as JSON, as JSON inside JSON, or as no text at all."""
    held = header.setdefault("__metadata__", {})
    key = draw.choice(sorted(held) or ["format"])
    value = draw.choice(VALUES)
    if draw.random() < 0.5:
        try:
            inside = json.loads(held.get(key, "null"))
        except ValueError:
            inside = None
        if isinstance(inside, dict) and inside:
            inside[draw.choice(sorted(inside))] = value
            value = inside
        elif isinstance(inside, list) and inside:
            inside[draw.randrange(len(inside))] = value
            value = inside
    held[key] = value if draw.random() < 0.1 else value if isinstance(value, str) else json.dumps(value)


def bomb(header: Header, draw: random.Random) -> None:
    """Metadata of many keys, of long texts, or of texts that are long lists."""
    held = header.setdefault("__metadata__", {})
    size = draw.choice((1_000, 30_000))
    if draw.random() < 0.02:
        size = 1_000_000
    match draw.randrange(4):
        case 0:
            held |= {f"k{i}": "" for i in range(size)}
        case 1:
            held[draw.choice(sorted(held) or ["format"])] = "x" * size * 10
        case 2:
            held[draw.choice(("role_names", "notes", "provenance", "facts", "new"))] = "[" + "[]," * size + "[]]"
        case _:
            header |= {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(size)}


def numbers(raw: bytes, draw: random.Random) -> bytes:
    """NaN, infinities and numbers at the ends of a type, somewhere in each tensor or all over one."""
    header, data = parts(raw)
    made = bytearray(data)
    forms = {"F32": ("<f", FLOATS), "F64": ("<d", (*FLOATS, 1e300)), "I64": ("<q", INTEGERS)}
    for name in sorted(set(header) - {"__metadata__"}):
        form, values = forms.get(header[name]["dtype"], ("<H", (0x7FC0, 0x7F80, 0xFF80, 0x7FA0, 0)))
        (start, end), size = header[name]["data_offsets"], struct.calcsize(form)
        spots = draw.choice(((), (start,), range(start, end, size), (start, end - size)))
        for at in spots:
            struct.pack_into(form, made, at, draw.choice(values))
    return joined(header, bytes(made))


def rising(raw: bytes, draw: random.Random) -> bytes:
    """Layer numbers that only seem to rise: their differences do not fit their type."""
    header, data = parts(raw)
    if "layers" not in header:
        return numbers(raw, draw)
    start, end = header["layers"]["data_offsets"]
    room = (end - start) // 8
    ladder = draw.choice((
        (2, 2**62, 1 - 2**63, 0), (0, 2**62, 1 - 2**63, -(2**62), 3), (2**63 - 1, -(2**63)),
        (0, 2**63 - 1, -(2**63), 1),
    ))  # fmt: skip
    values = [*ladder[: room - 1], ladder[-1], *range(4, 4 + room)][:room]
    return joined(header, data[:start] + struct.pack(f"<{room}q", *values) + data[end:])


SAFE: dict[str, Kind] = {
    "header length": length, "offsets": edited(offsets), "overlap or hole": edited(overlap),
    "declared shape": edited(shape), "empty shape": edited(emptied), "dtype": edited(dtype),
    "dtype swapped": edited(swapped), "names": edited(renamed), "something missing": edited(without),
    "malformed entry": edited(malformed), "duplicate keys": twice, "deep nesting": nested,
    "metadata values": edited(stated), "metadata bomb": edited(bomb), "NaN and ends": numbers, "layers wrap": rising,
}  # fmt: skip
