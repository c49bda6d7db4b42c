"""The sums of a run, a file for each block of roles, replaced as a whole after each finished batch.

A block file also states the round it is in, how many of that round's batches it holds and how long rollouts.jsonl
was then: that is the one commit point of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from persona_axis.extraction.disk import damaged, read_json, write_atomically

TALLIES = (
    "score0", "score1", "score2", "score3", "unparsable", "empty", "thinking", "cut", "looping", "drawn", "tokens",
)  # fmt: skip
_TENSORS = {
    "sums": "F32", "counts": "I64", "prompt_sums": "F32", "prompt_counts": "I64", "squares": "F64", "tallies": "I64",
    "norms": "F64",
}  # fmt: skip


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


class Done(NamedTuple):
    """How far a block is: `done` of `of` batches of round `round`; of 0 if nothing of it was ever drawn."""

    round: int
    done: int
    of: int


class Blocks:
    """Those of the run in a directory. `end` is how much of rollouts.jsonl the blocks looked at so far hold."""

    def __init__(self, path: Path) -> None:
        self.path, self.end = path, 0

    def done(self, index: int) -> Done:
        """How far a block is; reads no tensor."""
        path = self._file(index)
        if not path.exists():
            return Done(0, 0, 0)
        with self._reading(path) as file:
            facts = read_json(path, file.metadata()["state"], self.path)
            part, done, of, end = (facts[key] for key in ("round", "done", "of", "rollouts_end"))
            if not all(type(number) is int for number in (part, done, of, end)) or not 0 <= done <= of:
                raise ValueError(f"it counts {done} batches of {of}"[:200])
            if part < 0 or end < 0:
                raise ValueError(f"it is in round {part}, up to byte {end}"[:200])
            _require_shapes(file)
            self.end = max(self.end, end)
            return Done(part, done, of)

    def load(self, index: int) -> BlockState | None:
        """The block as of its last finished batch, or None if it has none."""
        at = self.done(index)
        if not at.of:
            return None
        with self._reading(self._file(index)) as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        return BlockState(**tensors, **at._asdict())

    def tensor(self, index: int, name: str) -> Tensor:
        """One tensor of a block, not its sums: counts, tallies, squares or norms."""
        with self._reading(self._file(index)) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def layer_sums(self, index: int, row: int, name: str = "sums") -> Tensor:
        """[roles, groups, hidden], or [roles, prompts, hidden] of `prompt_sums`: the sums of a block at one layer (its
        row), without reading the other layers."""
        with self._reading(self._file(index)) as file:
            sums: Tensor = file.get_slice(name)[:, :, row]
        return sums

    def write(self, index: int, state: BlockState, end: int) -> None:
        """Replace a block by `state`, which holds what the first `end` bytes of rollouts.jsonl tell of it."""
        self.end = end
        tensors = {name: getattr(state, name) for name in _TENSORS}
        facts = {"round": state.round, "done": state.done, "of": state.of, "rollouts_end": end}
        write_atomically(self._file(index), save(tensors, metadata={"state": json.dumps(facts)}))

    @contextmanager
    def _reading(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise damaged(path, error, self.path) from error

    def _file(self, index: int) -> Path:
        return self.path / "blocks" / f"{index:05d}.safetensors"


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
