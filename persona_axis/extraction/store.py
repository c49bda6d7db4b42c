"""The run directory: everything an extraction needs to go on after it was killed, on disk in a consistent
state.

    plan.json        settings, batch size found; written once
    rounds.json      how far each role is drawn in each round, recorded before the round is drawn
    splits.json      batches that memory forced into parts, recorded before the parts are drawn
    rollouts.jsonl   one line a rollout: ids, text, score
    blocks/N.safetensors   running sums of block N after its last finished batch, replaced as a whole

A block file also states the round it is in, how many of that round's batches it holds and how long rollouts.jsonl
was then: that is the one commit point. Lines behind it belong to a batch that was not finished, and are cut off on
resume.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from persona_axis.errors import ExtractionError

try:
    import fcntl
except ImportError:  # no such lock on Windows; two runs in one directory are then not told apart
    fcntl = None  # type: ignore[assignment]

TALLIES = (
    "score0",
    "score1",
    "score2",
    "score3",
    "unparsable",
    "empty",
    "thinking",
    "cut",
    "looping",
    "drawn",
    "tokens",
)


@dataclass
class BlockState:
    """Running sums of one block, in the order of its roles.

    `sums` [roles, groups, layers, hidden] float32: sum over accepted rollouts of their mean activations, by question
    group; `counts` [roles, groups] int64 how many; `prompt_sums` [roles, prompts, layers, hidden] and `prompt_counts`
    [roles, prompts] the same by prompt; `squares` [roles, layers] float64: sum over accepted rollouts of the squared
    norms of their mean activations; `tallies` [roles, TALLIES] int64; `norms` [layers] float64: sum over response
    tokens of the activations' norms, kept for the default's block only. `done` of `of` batches of round `round`.
    """

    sums: Tensor
    counts: Tensor
    prompt_sums: Tensor
    prompt_counts: Tensor
    squares: Tensor
    tallies: Tensor
    norms: Tensor
    round: int = 0
    done: int = 0
    of: int = 0

    @classmethod
    def empty(cls, roles: int, groups: int, prompts: int, layers: int, hidden: int) -> BlockState:
        return cls(
            torch.zeros(roles, groups, layers, hidden),
            torch.zeros(roles, groups, dtype=torch.int64),
            torch.zeros(roles, prompts, layers, hidden),
            torch.zeros(roles, prompts, dtype=torch.int64),
            torch.zeros(roles, layers, dtype=torch.float64),
            torch.zeros(roles, len(TALLIES), dtype=torch.int64),
            torch.zeros(layers, dtype=torch.float64),
        )


class Recorded(NamedTuple):
    """A round on record: how far each order is drawn at its end, the default's first, and what it reached; None before
    it is finished."""

    stop: tuple[int, ...]
    expected: float | None = None
    low: float | None = None


class Done(NamedTuple):
    """How far a block is: `done` of `of` batches of round `round`; of 0 if nothing of it was ever drawn."""

    round: int
    done: int
    of: int


class RunStore:
    """One run's directory, opened by `RunStore.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rollouts_path = path / "rollouts.jsonl"
        self._end = 0  # how much of rollouts.jsonl is committed

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

    def read_plan(self) -> dict[str, Any] | None:
        """What `write_plan` wrote, or None in a new directory."""
        path = self.path / "plan.json"
        if not path.exists():
            return None
        plan = self._json(path, path.read_bytes())
        if not isinstance(plan, dict) or not set(plan) >= _PLAN:
            raise self._damaged(path, f"a plan is an object with {', '.join(sorted(_PLAN))}")
        return plan

    def engine(self) -> str:
        """Who draws this run's rollouts, as its plan says. Raises `ExtractionError` where there is none yet."""
        plan = self.read_plan()
        if plan is None:
            raise ExtractionError(f"{self.path} has no plan yet: nothing was drawn in it")
        return str(plan["settings"]["engine"])

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        write_atomically(self.path / "plan.json", json.dumps(plan, indent=1).encode())

    def read_rounds(self, roles: int) -> list[Recorded]:
        """The rounds of a plan with so many roles."""
        path = self.path / "rounds.json"
        rounds = self._json(path, path.read_bytes()) if path.exists() else []
        if not isinstance(rounds, list) or not all(_is_round(part, 1 + roles) for part in rounds):
            raise self._damaged(path, f"expected a list of rounds, each with the places of {roles} roles to stop at")
        found = [Recorded(tuple(part["stop"]), part["expected"], part["low"]) for part in rounds]
        for first, second in zip(found, found[1:], strict=False):
            if any(a > b for a, b in zip(first.stop, second.stop, strict=True)):
                raise self._damaged(path, "a round stops before the one before it")
        return found

    def write_rounds(self, rounds: Iterable[Recorded]) -> None:
        content = json.dumps([part._asdict() for part in rounds]).encode()
        write_atomically(self.path / "rounds.json", content)

    def read_splits(self) -> list[tuple[int, int, int, int]]:
        """(round, block, batch, most rollouts at once) in the order they were recorded; each holds for all that
        follows it."""
        path = self.path / "splits.json"
        splits = self._json(path, path.read_bytes()) if path.exists() else []
        if not isinstance(splits, list) or not all(_is_split(split) for split in splits):
            raise self._damaged(path, "expected a list of [round, block, batch, most rollouts at once]")
        return [(part, block, batch, most) for part, block, batch, most in splits]

    def write_splits(self, splits: Iterable[tuple[int, int, int, int]]) -> None:
        write_atomically(self.path / "splits.json", json.dumps(list(splits)).encode())

    def done(self, index: int) -> Done:
        """How far a block is; reads no tensor."""
        path = self._block_path(index)
        if not path.exists():
            return Done(0, 0, 0)
        with self._reading(path) as file:
            facts = self._json(path, file.metadata()["state"])
            part, done, of, end = (facts[key] for key in ("round", "done", "of", "rollouts_end"))
            if not all(type(number) is int for number in (part, done, of, end)) or not 0 <= done <= of:
                raise ValueError(f"it counts {done} batches of {of}"[:200])
            if part < 0 or end < 0:
                raise ValueError(f"it is in round {part}, up to byte {end}"[:200])
            _require_shapes(file)
            self._end = max(self._end, end)
            return Done(part, done, of)

    def load_block(self, index: int) -> BlockState | None:
        """The block as of its last finished batch, or None if it has none."""
        at = self.done(index)
        if not at.of:
            return None
        with self._reading(self._block_path(index)) as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        return BlockState(**tensors, **at._asdict())

    def tensor(self, index: int, name: str) -> Tensor:
        """One tensor of a block, not its sums: counts, tallies, squares or norms."""
        with self._reading(self._block_path(index)) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def layer_sums(self, index: int, row: int, name: str = "sums") -> Tensor:
        """[roles, groups, hidden], or [roles, prompts, hidden] of `prompt_sums`: the sums of a block at one layer (its
        row), without reading the other layers."""
        with self._reading(self._block_path(index)) as file:
            sums: Tensor = file.get_slice(name)[:, :, row]
        return sums

    @contextmanager
    def _reading(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged(path, error) from error

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
        self._end += len(text)
        tensors = {name: getattr(state, name) for name in _TENSORS}
        facts = {"round": state.round, "done": state.done, "of": state.of, "rollouts_end": self._end}
        write_atomically(self._block_path(index), save(tensors, metadata={"state": json.dumps(facts)}))

    def cut_rollouts(self) -> None:
        """Drop the lines of a batch that was not finished. To be called once every block has been looked
        at."""
        there = self.rollouts_path.stat().st_size if self.rollouts_path.exists() else 0
        if there < self._end:
            raise ExtractionError(f"{self.rollouts_path} has lost lines: delete {self.path} and start again")
        if there > self._end:
            os.truncate(self.rollouts_path, self._end)

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """The lines of rollouts.jsonl, in order."""
        with self.rollouts_path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                rollout = self._json(self.rollouts_path, line, f"line {number}: ")
                if not isinstance(rollout, dict):
                    raise self._damaged(self.rollouts_path, f"line {number}: a rollout is an object")
                yield rollout

    def _json(self, path: Path, content: str | bytes, at: str = "") -> Any:
        try:
            return json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, f"{at}{error}") from error

    def _damaged(self, path: Path, why: object) -> ExtractionError:
        return ExtractionError(f"{path} is damaged ({why}): delete {self.path} and start again")

    def _block_path(self, index: int) -> Path:
        return self.path / "blocks" / f"{index:05d}.safetensors"


_PLAN = {"settings", "batch_size", "trial", "surroundings"}
_TENSORS = {
    "sums": "F32", "counts": "I64", "prompt_sums": "F32", "prompt_counts": "I64", "squares": "F64", "tallies": "I64",
    "norms": "F64",
}  # fmt: skip


def _require_shapes(file: Any) -> None:
    """Raise `ValueError` unless the tensors of a block file are those of one block; reads none of them."""
    held = {name: file.get_slice(name) for name in _TENSORS}
    shapes = {name: part.get_shape() for name, part in held.items()}
    sums, asked = shapes["sums"], shapes["prompt_counts"]
    right = len(sums) == 4 and len(asked) == 2 and shapes == {
        "sums": sums, "counts": sums[:2], "prompt_sums": [sums[0], asked[1], *sums[2:]], "prompt_counts": asked,
        "squares": [sums[0], sums[2]], "tallies": [sums[0], len(TALLIES)], "norms": [sums[2]],
    }  # fmt: skip
    if not right or {name: part.get_dtype() for name, part in held.items()} != _TENSORS:
        raise ValueError(f"its tensors {shapes} are of no block")


def _is_round(part: Any, orders: int) -> bool:
    if not isinstance(part, dict) or part.keys() != set(Recorded._fields):
        return False
    stop, reached = part["stop"], (part["expected"], part["low"])
    plain = isinstance(stop, list) and all(type(n) is int and 0 <= n < 2**40 for n in stop)
    return plain and len(stop) == orders and all(n is None or (type(n) is float and 0 <= n <= 1) for n in reached)


def _is_split(split: Any) -> bool:
    return (
        isinstance(split, list)
        and len(split) == 4
        and all(type(number) is int for number in split)
        and min(split) >= 0
        and split[3] > 0
    )


_OWN = {"plan.json", "rounds.json", "splits.json", "rollouts.jsonl", "blocks", "lock"}


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
