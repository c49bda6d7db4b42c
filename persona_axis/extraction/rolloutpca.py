"""PCA over single rollouts instead of role vectors, while they are drawn: none of them is kept.

Accepted rollouts' means go by 256 at a time into scikit-learn's incremental PCA; its state does not grow with their
number. Twice as many components are followed as are reported, because what an incremental PCA cuts off at each step
is missing from its last components first. The state is saved before each batch is committed, under the number of
rollouts that the batch brings the run to: a run that was killed goes on from the state that belongs to what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from persona_axis.errors import ExtractionError, PersonaAxisError
from persona_axis.extraction.disk import write_atomically
from persona_axis.extraction.plan import Plan
from persona_axis.space import PersonaSpace, as_float64

COMPONENTS = 64
"""How many components are reported, where there are so many."""
_FOLLOWED = 2 * COMPONENTS
_AT_ONCE = 256  # rows; rows are never grouped otherwise, so that it makes no difference how they come
DEFAULT = "default"
_FITTED = ("components_", "singular_values_", "mean_", "var_")


class RolloutPca:
    """Fed with `add`, asked for its `result` at any time. `roles` are the names that will come, beside "default".

    `hidden` is the width of the vectors. Role means are over what was added, each rollout weighing the same.
    """

    def __init__(self, roles: Sequence[str], hidden: int, components: int = COMPONENTS) -> None:
        self._rows = {name: row for row, name in enumerate((*roles, DEFAULT))}
        self._reported = components
        self._sums = np.zeros((len(self._rows), hidden))
        self._counts = np.zeros(len(self._rows), dtype=np.int64)
        self._waiting: list[NDArray[np.float32]] = []
        self._fitted: dict[str, NDArray[Any]] = {}  # what scikit-learn's object needs to go on
        self._seen = 0  # rollouts in it

    @property
    def rollouts(self) -> int:
        """How many went into the PCA; those of the default do not."""
        return self._seen + len(self._waiting)

    def add(self, role: str, means: ArrayLike) -> None:
        """Count accepted rollouts of a role: the mean activations [n, hidden] of their replies, or of one [hidden].

        Those of "default" give the axis and are no part of the PCA. Raises `PersonaAxisError` for a role that was not
        named, another width, or values that are not finite.
        """
        vectors = np.array(means, dtype=np.float32, ndmin=2)
        if role not in self._rows:
            raise PersonaAxisError(f"no role {role!r} was announced to this PCA of rollouts")
        if vectors.ndim != 2 or vectors.shape[1] != self._sums.shape[1]:
            raise PersonaAxisError(f"expected means [n, {self._sums.shape[1]}], got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise PersonaAxisError(f"a mean of role {role!r} holds NaN or infinite values")
        for vector in vectors:  # one after the other: a sum must not depend on how many come at once
            self._sums[self._rows[role]] += vector
        self._counts[self._rows[role]] += len(vectors)
        if role != DEFAULT:
            self._waiting += list(vectors)
        while len(self._waiting) >= _AT_ONCE:
            self._fitted, self._seen = self._after(np.stack(self._waiting[:_AT_ONCE])), self._seen + _AT_ONCE
            del self._waiting[:_AT_ONCE]

    def result(self, least: int = 1) -> PersonaSpace:
        """The space of the rollouts so far: components and mean are of rollouts, each weighing the same.

        `names` are the roles with `least` rollouts and `projections` those of their means; `axis` is unit(default -
        mean of these means), each role weighing the same, as everywhere. Raises `PersonaAxisError`
        where there are no two rollouts, no default, or nothing in which they differ.
        """
        names = [name for name, row in self._rows.items() if name != DEFAULT and self._counts[row] >= max(1, least)]
        if self.rollouts < 2 or not names or not self._counts[-1]:
            raise PersonaAxisError("a PCA of rollouts needs two of roles and one of the default")
        means = self._sums / np.maximum(self._counts, 1)[:, None]
        vectors = means[[self._rows[name] for name in names]]
        difference = means[-1] - vectors.mean(axis=0)
        length = np.linalg.norm(difference)
        if length == 0:
            raise PersonaAxisError("the default vector equals the mean of the roles: there is no axis")
        fitted = self._after(np.stack(self._waiting)) if self._waiting else self._fitted
        total = float(fitted["var_"].sum()) * self.rollouts
        sizes, rows = fitted["singular_values_"], fitted["components_"]
        scale = max(float(np.abs(fitted["mean_"]).max()), float(np.sqrt(total / self.rollouts)), np.finfo(float).tiny)
        kept = sizes > scale * max(self.rollouts, len(fitted["mean_"])) * np.finfo(float).eps
        kept[self._reported :] = False
        if not kept.any():
            raise PersonaAxisError("all rollouts have the same mean: there is no space")
        axis = difference / length
        components = rows[kept] * np.where(rows[kept] @ axis < 0, -1.0, 1.0)[:, None]
        ratio = sizes[kept] ** 2 / total
        return PersonaSpace(tuple(names), fitted["mean_"].copy(), components, ratio, axis, vectors @ axis)

    def _after(self, vectors: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The fitted state once these rows [n, hidden] are in it as well."""
        from sklearn.decomposition import IncrementalPCA

        first = not self._fitted
        limit = min(2 * self._reported, _FOLLOWED, vectors.shape[1], *([len(vectors)] if first else []))
        count = limit if first else len(self._fitted["components_"])
        pca = IncrementalPCA(n_components=count)
        if not first:
            for name, value in self._fitted.items():
                setattr(pca, name, value)
            pca.n_samples_seen_ = np.int64(self._seen)
            pca.n_features_in_ = vectors.shape[1]
        with np.errstate(invalid="ignore"):  # no variance at all: `result` says so
            pca.partial_fit(as_float64(vectors))
        return {name: np.ascontiguousarray(getattr(pca, name)) for name in _FITTED}

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything it holds, as arrays."""
        waiting = np.stack(self._waiting) if self._waiting else np.zeros((0, self._sums.shape[1]), np.float32)
        held: dict[str, NDArray[Any]]
        held = {"sums": self._sums, "counts": self._counts, "waiting": waiting, "seen": np.array([self._seen])}
        return held | self._fitted

    def go_on_from(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over a `state` of another that was made alike. Raises `ValueError` for one that was not."""
        if state["sums"].shape != self._sums.shape or state["waiting"].shape[1:] != self._sums.shape[1:]:
            raise ValueError(f"its sums are {state['sums'].shape}, these {self._sums.shape}")
        self._sums, self._counts = state["sums"].copy(), state["counts"].copy()
        self._waiting, self._seen = [row.copy() for row in state["waiting"]], int(state["seen"][0])
        self._fitted = {name: state[name].copy() for name in _FITTED if name in state}


def space_path(out: Path) -> Path:
    """Where the space of rollouts goes: beside the axis."""
    return out.with_name(f"{out.stem}-rollouts{out.suffix}")


class KeptPca:
    """A `RolloutPca` of one layer that is kept in a run's directory, in step with what the run has committed."""

    def __init__(self, pca: RolloutPca, layer: int, row: int, directory: Path) -> None:
        self.pca, self.layer, self._row, self._directory = pca, layer, row, directory

    @classmethod
    def of(cls, plan: Plan, hidden: int, directory: Path) -> KeptPca | None:
        """The one that the plan asks for, if it does; raises `ExtractionError` for a layer that is not read."""
        layer = plan.options.rollout_pca
        if layer is None:
            return None
        if layer not in plan.layers:
            raise ExtractionError(f"rollout_pca: layer {layer} is not among those that are read, {list(plan.layers)}")
        names = [plan.role(role).name for role in plan.roles]
        return cls(RolloutPca(names, hidden), layer, plan.layers.index(layer), directory)

    def resume(self, rollouts: int) -> None:
        """Go on from the state of a run that holds so many rollouts; raises `ExtractionError` if there is none."""
        path = self._path(rollouts)
        if rollouts and not path.exists():
            raise ExtractionError(
                f"{self._directory} holds {rollouts} rollouts that were drawn without a PCA at layer {self.layer}, and "
                "rollouts are not kept: name another run directory, or leave the PCA out"
            )
        if rollouts:
            try:
                self.pca.go_on_from(load_file(path))
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise ExtractionError(
                    f"{path} is damaged ({error}): delete {self._directory} and start again"
                ) from error
        self._forget(rollouts)

    def take(self, lines: Sequence[Mapping[str, Any]], sums: Any) -> None:
        """Add the accepted rollouts of a batch: its lines, and the sums over reply tokens [batch, layers, hidden]."""
        for line, summed in zip(lines, sums, strict=True):
            if line["accepted"]:
                self.pca.add(line["role"], summed[self._row].numpy() / len(line["ids"]))

    def commit(self, before: int, rollouts: int) -> None:
        """Save the state under the number of rollouts that the batch brings the run to, before the run commits it.

        The state of `before` stays until the next time: the run may die before it commits.
        """
        write_atomically(self._path(rollouts), save(self.pca.state()))
        self._forget(before, rollouts)

    def _forget(self, *but: int) -> None:
        kept = {self._path(rollouts) for rollouts in but}
        for path in self._directory.glob(f"pca-{self.layer}-*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, rollouts: int) -> Path:
        return self._directory / f"pca-{self.layer}-{rollouts:09d}.safetensors"
