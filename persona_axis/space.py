"""`PersonaSpace`: principal components of role vectors at one layer, from arrays anybody extracted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_axis._asked import require, shown
from persona_axis.errors import ArgumentError, PersonaAxisError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PersonaSpace:
    """PCA of the mean-centred role vectors, and the axis from the roles to the default; all float64.

    `extract --rollout-pca` makes one of single rollouts: `mean` and `components` are then theirs, `names` and
    `projections` still those of the roles, and the components are the first ones only (`_spacefile.load_space`).
    """

    names: tuple[str, ...]
    """Name of each role."""
    mean: NDArray[np.float64]
    """Mean over roles [hidden]; the origin of the coordinates."""
    components: NDArray[np.float64]
    """Orthonormal rows [components, hidden], most variance first; signed so that <row, axis> >= 0."""
    explained_variance_ratio: NDArray[np.float64]
    """Share of the variance of each component, falling [components]."""
    axis: NDArray[np.float64]
    """unit(default - mean) [hidden]; it points toward the Assistant."""
    projections: NDArray[np.float64]
    """<role, axis> of each role [n], not centred."""

    @classmethod
    def fit(
        cls, roles: ArrayLike | Tensor, default: ArrayLike | Tensor, names: Sequence[str] | None = None
    ) -> PersonaSpace:
        """Fit to role vectors [n, hidden] and a default vector [hidden], numpy or torch, any float dtype.

        Components are min(n - 1, hidden) at most; those without variance are left out. `names` default to
        "role 0", "role 1", ... Raises `PersonaAxisError` for fewer than two roles, shapes or names that do
        not agree, values that are not finite, roles that are all alike, or a default that equals their mean.
        """
        vectors, origin = as_float64(roles), as_float64(default)
        if vectors.ndim != 2 or origin.shape != vectors.shape[1:] or len(vectors) < 2:
            raise PersonaAxisError(
                f"expected roles [n >= 2, hidden] and default [hidden], got {vectors.shape} and {origin.shape}"
            )
        if not (np.isfinite(vectors).all() and np.isfinite(origin).all()):
            raise PersonaAxisError("roles or default hold NaN or infinite values")
        if names is not None:
            require("names", names, Iterable)
        told = tuple(f"role {i}" for i in range(len(vectors))) if names is None else tuple(names)
        if len(told) != len(vectors):
            raise PersonaAxisError(f"{len(told)} names for {len(vectors)} roles")
        mean = vectors.mean(axis=0)
        difference = origin - mean
        length = np.linalg.norm(difference)
        if length == 0:
            raise PersonaAxisError("the default vector equals the mean of the roles: there is no axis")
        _, singular, rows = np.linalg.svd(vectors - mean, full_matrices=False)
        scale = max(float(np.abs(vectors).max()), np.finfo(float).tiny)
        kept = singular > scale * max(vectors.shape) * np.finfo(float).eps
        if not kept.any():
            raise PersonaAxisError("all roles have the same vector: there is no space")
        axis = difference / length
        components = rows[kept] * np.where(rows[kept] @ axis < 0, -1.0, 1.0)[:, None]
        variance = singular[kept] ** 2
        return cls(told, mean, components, variance / variance.sum(), axis, vectors @ axis)

    @property
    def cosine_axis_pc1(self) -> float:
        """Cosine of the axis and the first component, never negative."""
        return float(self.components[0] @ self.axis)

    def n_components_for(self, share: float) -> int:
        """How few components hold at least `share` (above 0, at most 1) of the variance."""
        if not isinstance(share, Real) or not 0 < share <= 1:
            raise PersonaAxisError(f"share {share!r} lies outside 0-1")
        reached = np.cumsum(self.explained_variance_ratio)
        if reached[-1] < min(share, 1 - 1e-6):
            raise PersonaAxisError(f"the {len(reached)} components there are hold {reached[-1]:.1%} of the variance")
        # The last sum is 1 but for rounding, and share=1 must be reachable.
        return min(int(np.searchsorted(reached, share - 1e-12)) + 1, len(reached))

    def project(self, x: ArrayLike | Tensor) -> NDArray[np.float64]:
        """PCA coordinates of vectors: [n, hidden] gives [n, components], one [hidden] gives [components]."""
        vectors = as_float64(x)
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != len(self.mean):
            raise PersonaAxisError(f"expected [n, {len(self.mean)}] or [{len(self.mean)}], got {vectors.shape}")
        return (vectors - self.mean) @ self.components.T

    def ranking(self) -> list[tuple[str, float]]:
        """(name, <role, axis>) of every role, most Assistant first; equals keep their order."""
        order = np.argsort(-self.projections, kind="stable")
        return [(self.names[i], float(self.projections[i])) for i in order]


def as_float64(values: Any) -> NDArray[np.float64]:
    """Anything array-like, a torch tensor of any float dtype on any device included, as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"expected an array of numbers, got {shown(values)}: {error}") from None
