"""The pictures of an axis file, from its figures to PNGs on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persona_axis import plots
from persona_axis.display.tables import default_projection
from persona_axis.errors import AxisFileError
from persona_axis.talks.ruler import layer_to_show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from persona_axis.axis import Axis
    from persona_axis.traits import Controls, TraitCosine


def save_pictures(axis: Axis, directory: Path, layer: int | None = None) -> list[Path]:
    """Draw what the axis holds the figures for, at `layer`, and save it as PNGs in `directory`, made if need be."""
    saved = _save(_pictures(axis, layer_to_show(axis, layer)), directory)
    if not saved:
        raise AxisFileError(f"{axis.source}: this {axis.metadata['provenance']} axis holds no figures to draw")
    return saved


def save_trait_picture(cosines: Sequence[TraitCosine], controls: Controls, layer: int, directory: Path) -> list[Path]:
    """Draw how traits lie to an axis at `layer`, and save it as traits.png in `directory`, made if need be."""
    figure = plots.trait_cosines(
        [one.trait for one in cosines],
        [one.cosine for one in cosines],
        [(one.low, one.high) for one in cosines],
        [one.noise for one in cosines],
        apart=[one.told_apart for one in cosines],
        random=controls.random,
        mixture=controls.mixture,
        layer=layer,
    )
    return _save([("traits", figure)], directory)


def _save(figures: Iterable[tuple[str, Figure]], directory: Path) -> list[Path]:
    saved = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in figures:
            path = directory / f"{name}.png"
            figure.savefig(path)
            saved.append(path)
    except OSError as error:
        raise AxisFileError(f"{directory}: pictures could not be saved: {error.strerror or error}") from error
    return saved


def _pictures(axis: Axis, layer: int) -> Iterator[tuple[str, Figure]]:
    if layer in axis.role_layers and "default" in axis.arrays:
        space, home = axis.space(layer), default_projection(axis, layer)
        row = axis.row(layer)
        # A space of two roles has one component; the second coordinate is then 0 for all.
        points = _two_columns(space.project(axis.roles_at(layer)))
        place = _two_columns(space.project(axis.array("default")[row])[None])[0]
        shares = np.append(space.explained_variance_ratio, 0.0)
        yield "roles", plots.role_map(
            points, space.projections, space.names, place, default_projection=home, layer=layer,
            shares=(float(shares[0]), float(shares[1])),
        )  # fmt: skip
        yield "variance", plots.variance_curve(space.explained_variance_ratio, layer=layer)
        yield "ranking", plots.ranking(space.names, space.projections, default_projection=home, layer=layer)
        yield "layers", _profile(axis)
    named = {"mean of a reply": ("default", "roles"), "single tokens": ("default_tokens", "roles_tokens")}
    held = {
        what: (axis.array(f"quantiles_{one}")[axis.row(layer)], axis.array(f"quantiles_{other}")[axis.row(layer)])
        for what, (one, other) in named.items()
        if f"quantiles_{one}" in axis.arrays and f"quantiles_{other}" in axis.arrays
    }
    if held:
        yield "distributions", plots.distributions(held, layer=layer)


def _profile(axis: Axis) -> Figure:
    """Over the layers whose role vectors the file holds."""
    rows = [axis.row(layer) for layer in axis.role_layers]
    curves = {"|cos(axis, PC1)|": [abs(axis.space(layer).cosine_axis_pc1) for layer in axis.role_layers]}
    bands = {}
    if axis.metadata.get("split_half"):
        cosine, low, high = ([values[row] for row in rows] for values in axis.split_half)
        curves["split-half cosine"] = cosine
        bands["split-half cosine"] = (low, high)
    chosen = axis.metadata.get("recommended_layer")
    return plots.layer_profile(
        axis.role_layers, curves, bands=bands, chosen=chosen if chosen in axis.role_layers else None
    )


def _two_columns(points: np.ndarray) -> np.ndarray:
    return np.pad(points[:, :2], ((0, 0), (0, max(0, 2 - points.shape[1]))))
