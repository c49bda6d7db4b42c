"""Traits in words that the tiny tokenizer of `chat_factory` knows, and traits files without a model behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
from numpy.typing import NDArray

from persona_axis.extract import Options, extract_traits
from persona_axis.extraction import events
from persona_axis.sampling import Sampling
from persona_axis.trait_probes import Trait
from persona_axis.traits import Traits

TRAITS = (
    Trait("bright", "mood", "talks like bread", "talks like rain", ("be bright .", "speak like a bright b !"),
          ("be dark .", "speak like a dark b !")),
    Trait("new", "mood", "talks like money", "talks like sleep", ("be new .", "you are a new word ."),
          ("be old .", "you are an old word .")),
    Trait("friendly", "manner", "talks like a helper", "talks like nobody",
          ("be friendly !", "you are friendly today ."), ("be made by nobody !", "you are nobody today .")),
)  # fmt: skip
RECORDS = [
    {"name": t.name, "kind": t.kind, "description": t.description, "opposite": t.opposite, "positive": t.positive,
     "negative": t.negative} for t in TRAITS
]  # fmt: skip

SMALL = Options(prompts=2, questions=8, sampling=Sampling(max_new_tokens=10), batch_size=16, min_accepted=3)


def extracted(out: Path | str, listener: Callable[[events.Event], None] = events.silent) -> Traits:
    return extract_traits(tiny.chat(), tiny.probes(), TRAITS, SMALL, out=out, progress=listener)


FACTS: dict[str, Any] = {
    "model": "tiny", "revision": None, "architecture": "llama", "dtype": "float32", "num_layers": 4,
    "chat_template_sha256": "c" * 64, "weights_sha256": "a" * 64,
}  # fmt: skip


def folds_of(seed: int = 0, traits: int = 3, folds: int = 8, layers: int = 2, hidden: int = 16) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(traits, 1, layers, hidden)) * 3
    made: NDArray[np.float32] = (vectors + rng.normal(size=(traits, folds, layers, hidden))).astype(np.float32)
    return made


def traits_of(folds: NDArray[np.float32], layers: tuple[int, ...] = (1, 2), **changes: Any) -> Traits:
    """A traits file around given differences [n, K, L, H]."""
    length = np.linalg.norm(folds.mean(axis=1, dtype=np.float64), axis=-1)
    places = np.stack([length + 1, np.ones_like(length), np.full_like(length, 1.5)], axis=1)
    names = [f"trait {i}" for i in range(len(folds))]
    metadata = {
        **FACTS, "probes_sha256": "b" * 64, "trait_names": names, "kinds": ["mood"] * len(names),
        "accepted": {name: [16, 15] for name in names}, "default_count": 40, "judge": "all", "accept": [3],
        "min_accepted": 10, "sampling": {"temperature": 0.7}, "seed": 0, "plan": {"traits": len(names)},
        "versions": {"torch": "2"}, "date": "2026-11-26T00:00:00+00:00", **changes,
    }  # fmt: skip
    return Traits.from_folds(folds, places, np.full(length.shape, 0.75), layers=layers, metadata=metadata)
