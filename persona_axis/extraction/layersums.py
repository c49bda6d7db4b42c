"""The sums of a run at one layer, by question group and by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from persona_axis.extraction.certainty import Certainty, split_half, split_prompts
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.store import RunStore


class LayerSums(NamedTuple):
    """Sums [roles, parts, hidden] of accepted rollouts' means and their counts [roles, parts]; the default's have no
    roles. The parts are question groups, and prompts."""

    sums: NDArray[Any]
    counts: NDArray[Any]
    prompt_sums: NDArray[Any]
    prompt_counts: NDArray[Any]
    default_sums: NDArray[Any]
    default_counts: NDArray[Any]

    @classmethod
    def read(cls, plan: Plan, store: RunStore, row: int) -> LayerSums:
        """The layer of that row in the plan; nothing else is read."""

        def joined(name: str) -> NDArray[Any]:
            blocks = range(1, plan.n_blocks)
            read = store.blocks.tensor if name.endswith("counts") else lambda b, n: store.blocks.layer_sums(b, row, n)
            return np.concatenate([read(block, name).numpy() for block in blocks])

        def of_default(name: str) -> NDArray[Any]:
            read = store.blocks.tensor(0, name) if name.endswith("counts") else store.blocks.layer_sums(0, row, name)
            first: NDArray[Any] = read.numpy()[0]
            return first

        return cls(
            joined("sums"), joined("counts"), joined("prompt_sums"), joined("prompt_counts"), of_default("sums"),
            of_default("counts"),
        )  # fmt: skip

    def of(self, kept: Sequence[int] | NDArray[Any]) -> LayerSums:
        """Only these roles, by their positions."""
        roles = [values[np.asarray(kept, dtype=int)] for values in self[:4]]
        return self._replace(sums=roles[0], counts=roles[1], prompt_sums=roles[2], prompt_counts=roles[3])

    @property
    def default_mean(self) -> NDArray[np.float64]:
        """[hidden]; nan where nothing was accepted."""
        with np.errstate(divide="ignore", invalid="ignore"):
            mean: NDArray[np.float64] = self.default_sums.sum(axis=0, dtype=np.float64) / self.default_counts.sum()
        return mean

    @property
    def role_means(self) -> NDArray[np.float64]:
        """[roles, hidden]; nan where nothing was accepted."""
        with np.errstate(divide="ignore", invalid="ignore"):
            means: NDArray[np.float64] = self.sums.sum(axis=1, dtype=np.float64) / self.counts.sum(axis=1)[:, None]
        return means

    def certainty(self, seed: int) -> Certainty:
        """How certain the axis of these roles is."""
        by_question = (self.sums, self.counts, self.default_sums, self.default_counts)
        by_prompt = (self.prompt_sums, self.prompt_counts, self.default_sums, self.default_counts)
        return Certainty(split_half(*by_question, seed), split_prompts(*by_prompt, seed))
