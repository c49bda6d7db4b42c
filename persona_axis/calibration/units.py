"""What has been measured, kept: one small JSON file a unit, named by a hash of everything that the unit depends on.

A sweep that is started again finds what it has measured, whatever else about it was changed; a changed setting has
another name, so nothing is ever refused or mixed up. Files are replaced as a whole: a kill loses one unit at most.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persona_axis.errors import CalibrationError
from persona_axis.extraction.disk import write_atomically

try:
    import fcntl
except ImportError:  # no such lock on Windows; two runs in one directory then measure some things twice
    fcntl = None  # type: ignore[assignment]

FORMAT = "persona-calibration-unit/2"
"""Part of every key: to be raised when what is measured changes its meaning."""


class Units:
    """The measured units of one directory, opened by `Units.open`. `made` and `reused` count what was asked for."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self.path = path
        self.made = 0
        self.reused = 0
        self.note = note

    @classmethod
    @contextmanager
    def open(cls, path: Path, note: Callable[[str], None] = lambda _text: None) -> Iterator[Units]:
        """Make or enter the directory, for one process at a time. Raises `CalibrationError` where that cannot be."""
        try:
            (path / "units").mkdir(parents=True, exist_ok=True)
            lock = (path / "lock").open("w")
        except OSError as error:
            raise CalibrationError(f"cannot use {path} as the run's directory: {error.strerror}") from error
        with lock:
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise CalibrationError(f"another process is calibrating in {path}") from error
            yield cls(path, note)

    def get(self, kind: str, facts: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """The unit of that kind and those facts, from its file or else from `measure()`, which must give JSON."""
        key = {"format": FORMAT, "kind": kind, **facts}
        path = self.path / "units" / f"{kind}-{hashlib.sha256(_canonical(key)).hexdigest()[:24]}.json"
        kept = self._kept(path, key)
        if kept is not None:
            self.reused += 1
            return kept
        value = json.loads(json.dumps(measure()))  # what is used now is what a resumed run will read
        write_atomically(path, json.dumps({"key": key, "value": value}).encode())
        self.made += 1
        return value

    def _kept(self, path: Path, key: Mapping[str, Any]) -> Any:
        if not path.exists():
            return None
        try:
            unit = json.loads(path.read_bytes())
            whole = isinstance(unit, dict) and "value" in unit and _canonical(unit["key"]) == _canonical(key)
        except (OSError, ValueError, KeyError, RecursionError):
            whole = False
        if whole:
            return unit["value"]
        self.note(f"{path} is damaged: it is measured again")
        return None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
