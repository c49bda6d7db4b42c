"""Damage to JSON, one object a line or one a file: values, keys, depth, encodings."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from _mutants_safe import PATHS, VALUES


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(value, key) for key, _ in inside]
    for _, child in list(value.items() if isinstance(value, dict) else enumerate(value) if found else ()):
        found += spots(child)
    return found


def changed(value: Any, draw: random.Random) -> Any:
    """One value inside is another."""
    found = spots(value)
    if not found:
        return draw.choice(VALUES)
    box, key = draw.choice(found)
    box[key] = draw.choice(VALUES)
    return value


def pruned(value: Any, draw: random.Random) -> Any:
    """One value inside is gone."""
    found = spots(value)
    if found:
        box, key = draw.choice(found)
        del box[key]
    return value


def grown(value: Any, draw: random.Random) -> Any:
    """A key more, or one that is named otherwise."""
    boxes = [value] if isinstance(value, dict) else [box for box, _ in spots(value) if isinstance(box, dict)]
    if boxes:
        box = draw.choice(boxes)
        box[draw.choice(PATHS)] = box.pop(draw.choice(sorted(box))) if box and draw.random() < 0.7 else 1
    return value


def twice(text: str, draw: random.Random) -> str:
    at = text.rfind("}")
    return text[:at] + ', "id": 1, "id": 2' + text[at:] if at >= 0 else text * 2


def nested(text: str, draw: random.Random) -> str:
    depth = draw.choice((100, 1_100, 100_000))
    deep = "[" * depth + "]" * depth * draw.randrange(2)
    return draw.choice((deep, '{"messages": ' + deep + "}", text.replace("[", deep + ",[", 1)))


def spelled(text: str, draw: random.Random) -> str:
    """Numbers and texts that JSON can spell and nothing else can hold."""
    return draw.choice((
        "NaN", "Infinity", "-0", "1e999", "9" * 5_000, '"\\ud800"', '"\\u0000"', "null", "true", "[]", "{}", '""', " ",
        text.replace('"', '"\\ud83d', 3), text.replace(": ", ": NaN, ", 1), text.replace('"', "'"), text + ",",
    ))  # fmt: skip


def whole(edit: Callable[[Any, random.Random], Any]) -> Callable[[str, random.Random], str]:
    """A kind for the text of one JSON value."""
    return lambda text, draw: json.dumps(edit(json.loads(text), draw))


TEXTS: dict[str, Callable[[str, random.Random], str]] = {
    "another value": whole(changed), "something missing": whole(pruned), "another key": whole(grown),
    "duplicate keys": twice, "deep nesting": nested, "spelled oddly": spelled,
}  # fmt: skip
ENCODINGS = ("utf-16", "utf-8-sig", "latin1", "utf-32")


def in_line(kind: Callable[[str, random.Random], str]) -> Callable[[bytes, random.Random], bytes]:
    def made(raw: bytes, draw: random.Random) -> bytes:
        lines = raw.decode().splitlines()
        at = draw.randrange(len(lines))
        lines[at] = kind(lines[at], draw)
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    return made


def in_file(kind: Callable[[str, random.Random], str]) -> Callable[[bytes, random.Random], bytes]:
    return lambda raw, draw: kind(raw.decode(), draw).encode("utf-8", "surrogatepass")


def encoded(raw: bytes, draw: random.Random) -> bytes:
    return raw.decode().encode(draw.choice(ENCODINGS), "replace")


def shuffled(raw: bytes, draw: random.Random) -> bytes:
    """Lines in another order, or some of them twice, or none."""
    lines = raw.splitlines(keepends=True)
    return b"".join(draw.choices(lines, k=draw.randrange(2 * len(lines))))


Kinds = dict[str, Callable[[bytes, random.Random], bytes]]
LINES: Kinds = {name: in_line(kind) for name, kind in TEXTS.items()} | {"encoding": encoded, "lines": shuffled}
WHOLE: Kinds = {name: in_file(kind) for name, kind in TEXTS.items()} | {"encoding": encoded}
