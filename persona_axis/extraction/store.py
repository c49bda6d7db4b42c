"""The run directory: everything an extraction needs to go on after it was killed, on disk in a consistent
state.

    plan.json, rounds.json, splits.json   what was decided (`Records`)
    rollouts.jsonl                        one line a rollout: ids, text, score
    blocks/N.safetensors                  running sums of block N after its last finished batch (`Blocks`)

Lines of rollouts.jsonl behind what the blocks hold belong to a batch that was not finished, and are cut off on resume.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persona_axis.errors import ExtractionError
from persona_axis.extraction.blocks import Blocks, BlockState
from persona_axis.extraction.disk import damaged, read_json
from persona_axis.extraction.records import Records

try:
    import fcntl
except ImportError:  # no such lock on Windows; two runs in one directory are then not told apart
    fcntl = None  # type: ignore[assignment]

_OWN = {"plan.json", "rounds.json", "splits.json", "rollouts.jsonl", "blocks", "lock"}


class RunStore:
    """One run's directory, opened by `RunStore.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records, self.blocks = Records(path), Blocks(path)
        self.rollouts_path = path / "rollouts.jsonl"

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[RunStore]:
        """Make or enter the directory, for one process at a time. Raises `ExtractionError` if it is somebody
        else's."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            strange = sorted(
                p.name for p in path.iterdir() if p.name not in _OWN and not p.name.endswith(".tmp")
            )
            if strange and not (path / "plan.json").exists():
                raise ExtractionError(
                    f"{path} is not empty and not a run's directory (holds {strange[0]!r}): name another"
                )
            (path / "blocks").mkdir(exist_ok=True)
            lock = (path / "lock").open("w")
        except OSError as error:
            raise ExtractionError(f"cannot use {path} as the run's directory: {error.strerror}") from error
        with lock:
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ExtractionError(f"another process is extracting in {path}") from error
            yield cls(path)

    def save_batch(self, index: int, state: BlockState, lines: Iterable[Mapping[str, Any]]) -> None:
        """Commit one finished batch: first its rollouts, then the block that counts them. `state.done` is
        already up."""
        text = "".join(
            json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines
        ).encode()
        try:
            with self.rollouts_path.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ExtractionError(
                f"cannot write {self.rollouts_path}: {error.strerror}; nothing finished is lost"
            ) from error
        self.blocks.write(index, state, self.blocks.end + len(text))

    def cut_rollouts(self) -> None:
        """Drop the lines of a batch that was not finished. To be called once every block has been looked
        at."""
        there = self.rollouts_path.stat().st_size if self.rollouts_path.exists() else 0
        if there < self.blocks.end:
            raise ExtractionError(f"{self.rollouts_path} has lost lines: delete {self.path} and start again")
        if there > self.blocks.end:
            os.truncate(self.rollouts_path, self.blocks.end)

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """The lines of rollouts.jsonl, in order."""
        with self.rollouts_path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                rollout = read_json(self.rollouts_path, line, self.path, f"line {number}: ")
                if not isinstance(rollout, dict):
                    raise damaged(self.rollouts_path, f"line {number}: a rollout is an object", self.path)
                yield rollout
