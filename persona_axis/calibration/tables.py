"""Where the replies of somebody's own conversations lie: percentiles of single tokens, for floors made on the spot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import CalibrationError

if TYPE_CHECKING:
    from pandas import DataFrame

    from persona_axis.calibration.measure import Bench

KEPT = 1 << 18
"""Tokens held in memory; of longer logs every second one is dropped, evenly, as often as it takes."""


def conversation_table(
    bench: Bench, path: Path, note: Callable[[str], None]
) -> NDArray[np.float64]:
    """Percentiles 0 to 100 of the projections of single assistant tokens, [layers of the axis, 101], without a lever.

    Tokens and not means of turns, because a cap acts on tokens. Bad lines of the file are passed over, counted and
    told. Raises `ConversationError` and `DriftError` for conversations that cannot be read.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}") from error

    def measure() -> Any:
        from persona_axis.conversations import read_conversations
        from persona_axis.drift import trajectories

        bad: list[str] = []
        frames = trajectories(
            bench.chat, bench.axis, read_conversations(path, skip_bad=True, on_bad=bad.append), tokens=True,
            overflow="window",
        )  # fmt: skip
        table = token_percentiles(frames, bench.axis.layers)
        return {"table": table.tolist(), "bad": len(bad), "first": bad[0] if bad else ""}

    found = bench.units.get("conversations", {**bench.facts, "file_sha256": digest}, measure)
    if found["bad"]:
        note(f"{path}: {found['bad']} lines were passed over, the first because {found['first']}")
    return np.array(found["table"], dtype=np.float64)


def token_percentiles(frames: Iterable[DataFrame], layers: Iterable[int], kept: int = KEPT) -> NDArray[np.float64]:
    """Percentiles [layers, 101] of `projection` in tables of tokens, with memory for `kept` tokens a layer.

    Raises `CalibrationError` where there is not a single token.
    """
    at = list(layers)
    samples = {layer: _Thinned(kept) for layer in at}
    for frame in frames:
        for layer, rows in frame.groupby("layer"):
            samples[int(layer)].add(rows["projection"].to_numpy(np.float64))
    if not all(sample.seen for sample in samples.values()):
        raise CalibrationError("the conversations hold no token of an assistant: there is nothing to take a floor from")
    return np.stack([np.percentile(samples[layer].values(), np.arange(101)) for layer in at])


class _Thinned:
    """Every 2^k-th of the numbers it was given, k as small as the room allows."""

    def __init__(self, room: int) -> None:
        self.seen = 0
        self._room = max(2, room)
        self._step = 1
        self._parts: list[NDArray[np.float64]] = []
        self._held = 0

    def add(self, values: NDArray[np.float64]) -> None:
        taken = values[(-self.seen) % self._step :: self._step]
        self.seen += len(values)
        self._parts.append(taken)
        self._held += len(taken)
        while self._held > self._room:
            whole = np.concatenate(self._parts)[::2]
            self._parts, self._held, self._step = [whole], len(whole), 2 * self._step

    def values(self) -> NDArray[np.float64]:
        return np.concatenate(self._parts)
