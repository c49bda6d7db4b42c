"""A run's files: written as a whole or not at all, and what is said of one that is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from persona_axis.errors import ExtractionError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: whoever looks sees the old content or the new, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExtractionError(f"cannot write {path}: {error.strerror}; nothing finished is lost") from error


def damaged(path: Path, why: object, run: Path) -> ExtractionError:
    """The error of a file that this program did not write as it is."""
    return ExtractionError(f"{path} is damaged ({why}): delete {run} and start again")


def read_json(path: Path, content: str | bytes, run: Path, at: str = "") -> Any:
    """JSON of a file in the directory `run`. Raises `ExtractionError` where it is none."""
    try:
        return json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{at}{error}", run) from error
