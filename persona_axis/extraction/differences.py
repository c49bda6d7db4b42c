"""Whether a run that is gone on with was begun with the settings that are asked for now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from persona_axis.errors import ExtractionError


def refuse_difference(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `ExtractionError` naming each setting in which the run in this directory differs from the one
    asked for."""
    differences = list(_differences(stored, wanted, ""))
    if differences:
        raise ExtractionError(
            f"{path} holds a run with other settings: {'; '.join(differences)}. "
            "Use the same settings, another run directory, or delete this one"
        )


def _differences(stored: Any, wanted: Any, name: str) -> Iterator[str]:
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*stored, *wanted}):
            yield from _differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif stored != wanted:
        was, now = (json.dumps(value, ensure_ascii=False) for value in (stored, wanted))
        alike = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
        yield f"{name} was {_short(was, alike)}, is now {_short(now, alike)}"


def _short(text: str, at: int) -> str:
    """A text, or of a long one what is around the place `at`."""
    start = max(0, at - 20) if len(text) > 60 else 0
    end = start + 54 if len(text) > start + 60 else len(text)
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
