"""A traits file and an axis file put to use as `show` does: what loads and breaks only afterwards is a failure, too."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from persona_axis import Axis
from persona_axis.display.tables import Output, show_axis
from persona_axis.display.traits import show_trait_cosines, show_traits
from persona_axis.stats import folding
from persona_axis.talks.ruler import layer_to_show
from persona_axis.traits import TraitCosine, Traits, controls

AXIS, TRAITS = "axis.safetensors", "traits.safetensors"


def traits_for(axis: Axis, count: int = 3, folds: int = 4) -> Traits:
    """Traits of the model of `axis`, drawn at random."""
    draw = np.random.default_rng(1)
    shape = (count, 1, len(axis.layers), axis.hidden_size)
    found = (draw.normal(size=shape) + draw.normal(size=(count, folds, *shape[2:])) / 4).astype(np.float32)
    length = np.linalg.norm(found.mean(axis=1, dtype=np.float64), axis=-1)  # [n, L]
    places = np.stack([length + 1, np.ones_like(length), np.full_like(length, 1.5)], axis=1)
    names = [f"trait {i}" for i in range(count)]
    metadata = {key: axis.metadata[key] for key in (
        "model", "revision", "architecture", "dtype", "num_layers", "chat_template_sha256", "weights_sha256",
        "probes_sha256", "default_count", "judge", "sampling", "seed", "versions", "date",
    )} | {
        "trait_names": names, "kinds": ["mood"] * count, "accepted": {name: [16, 15] for name in names},
        "accept": [3], "min_accepted": 10, "plan": {"traits": count}, "traits_below": {"odd": [1, 2]}, "notes": ["one"],
    }  # fmt: skip
    return Traits.from_folds(found, places, np.full_like(length, 0.75), layers=axis.layers, metadata=metadata)


def good_traits(value: Traits) -> None:
    """What `Traits` promises of itself, looked at from outside."""
    count, width, rows = len(value.names), value.metadata["hidden_size"], len(value.layers)
    direction = value.arrays["direction"].astype(np.float64)
    assert direction.shape == (count, rows, width) and count > 0 and rows > 0
    assert np.allclose(np.linalg.norm(direction, axis=-1), 1, atol=1e-3)
    assert list(value.layers) == sorted(set(value.layers)) and value.layers[0] >= 0
    assert value.layers[-1] < value.metadata["num_layers"]
    assert all(np.isfinite(array).all() for array in value.arrays.values())
    for name in value.names:
        name.encode()


def good_cosine(one: TraitCosine) -> None:
    assert all(map(math.isfinite, one[2:])), one
    assert -1 - 1e-4 <= one.low <= one.cosine <= one.high <= 1 + 1e-4 and 0 <= one.noise <= 1, one
    assert min(one.split_half, one.wordings) >= -1 - 1e-4 and max(one.split_half, one.wordings) <= 1 + 1e-4, one


def shown(path: Path) -> None:
    """`show TRAITS`, `show AXIS` and `show AXIS --traits TRAITS`; the figures of the last at every layer of both."""
    output = Output(file=io.StringIO(), force_terminal=False, width=120)
    traits = Traits.load(path.parent / TRAITS)
    good_traits(traits)
    show_traits(output, traits)
    axis = Axis.load(path.parent / AXIS)
    show_axis(output, axis)
    for layer in set(traits.layers) & set(axis.layers):
        cosines, compared = traits.cosines(axis, layer), controls(axis, layer)
        assert {one.trait for one in cosines} == set(traits.names)
        for one in cosines:
            good_cosine(one)
        assert all(0 <= found <= 1 + 1e-6 for found in compared if found is not None), compared
        if layer == layer_to_show(axis):
            show_trait_cosines(output, traits, cosines, compared, layer)
    assert output.file.getvalue().replace("\n", "").isprintable()


def agreeing(folds: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that go with `folds` [n, K, L, H], without the package's own checks; `places` [n, 3, L] is moved."""
    difference = folds.mean(axis=1, dtype=np.float64)
    moved = places.astype(np.float64)
    moved[:, 0] = moved[:, 1] + np.linalg.norm(difference, axis=-1)
    made = {
        "folds": folds, "direction": folding.unit(difference), "places": moved,
        "split_half": folding.split_half(folds.swapaxes(1, 2)),
    }  # fmt: skip
    return {name: array.astype(np.float32) for name, array in made.items()}
