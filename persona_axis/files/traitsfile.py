"""What a traits file holds and when it can be trusted. Needs no torch.

Tensors (n traits, K folds of the questions, L layers, H hidden): `folds` [n, K, L, H] float32, each fold's difference
positive - negative; `direction` [n, L, H] float32, the unit of their mean; `split_half` [n, L] float32, the cosine
between halves of the folds; `places` [n, 3, L] float32, the mean projections on the direction of the replies that show
the trait, of those that suppress it and of the default's; `wordings` [n, L] float32, the mean cosine between the
differences of two pairs of instructions; `layers` [L] int64. Metadata as in an axis file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import AxisFileError
from persona_axis.files.axisfile import CONVENTIONS as AXIS_CONVENTIONS
from persona_axis.files.safefile import wrong_format
from persona_axis.stats import folding

FORMAT = "persona-traits/1"
CONVENTIONS = {
    "layer": AXIS_CONVENTIONS["layer"],
    "sign": "a direction points toward its trait: mean(positive) - mean(negative)",
}
PLACES = ("positive", "negative", "default")
_KEYS = (
    "format", "conventions", "model", "revision", "architecture", "dtype", "hidden_size", "num_layers",
    "chat_template_sha256", "weights_sha256", "probes_sha256", "trait_names", "kinds", "accepted", "default_count",
    "judge", "accept", "min_accepted", "sampling", "seed", "plan", "versions", "date",
)  # fmt: skip
_MAY_BE_EMPTY = ("revision", "chat_template_sha256")
_TOLERANCE = 1e-4


def check_traits(where: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> None:
    """Raise `AxisFileError` naming the file and the field unless everything is there and agrees."""
    problem = _metadata_problem(metadata) or _shape_problem(arrays, metadata) or _value_problem(arrays, metadata)
    if problem:
        raise AxisFileError(f"{where}: {problem}")


def _metadata_problem(metadata: Mapping[str, Any]) -> str | None:
    if metadata.get("format") != FORMAT:
        return wrong_format(FORMAT, metadata.get("format"))
    for key in _KEYS:
        if key not in metadata:
            return f"{key}: missing from the metadata"
        if metadata[key] in (None, "", [], {}) and key not in _MAY_BE_EMPTY:
            return f"{key}: is empty"
    if metadata["conventions"] != CONVENTIONS:
        return f"conventions: expected {CONVENTIONS}, found {metadata['conventions']!r}"
    for key in ("hidden_size", "num_layers", "default_count"):
        if not _is_count(metadata[key]):
            return f"{key}: expected a positive integer, found {metadata[key]!r}"
    names, kinds, accepted = (metadata[key] for key in ("trait_names", "kinds", "accepted"))
    for key, values in (("trait_names", names), ("kinds", kinds)):
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            return f"{key}: expected a list of texts"
    if len(set(names)) != len(names):
        return "trait_names: a name occurs twice"
    if len(kinds) != len(names):
        return f"kinds: {len(kinds)} for {len(names)} traits"
    if not isinstance(accepted, dict) or set(accepted) != set(names):
        return "accepted: its traits are not those of trait_names"
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in accepted.values()):
        return "accepted: expected two positive counts for each trait, of positive and of negative replies"
    return None


def _shape_problem(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> str | None:
    names = ("layers", "folds", "direction", "split_half", "wordings", "places")
    for name in names:
        if name not in arrays:
            return f"{name}: this tensor is missing"
    if extra := sorted(set(arrays) - set(names)):
        return f"{extra[0]}: a traits file holds no such tensor"
    layers, folds = arrays["layers"], arrays["folds"]
    if layers.dtype != np.int64 or layers.ndim != 1 or not layers.size or np.any(layers[1:] <= layers[:-1]):
        return f"layers: expected rising indices [layers] int64, found {list(layers.shape)} {layers.dtype}"
    if layers[0] < 0 or layers[-1] >= metadata["num_layers"]:
        return f"layers: {layers[0]} to {layers[-1]} are not all among the model's {metadata['num_layers']}"
    traits, rows, hidden = len(metadata["trait_names"]), len(layers), metadata["hidden_size"]
    parts = folds.shape[1] if folds.ndim == 4 else 0
    if not 2 <= parts <= folding.MOST_FOLDS:  # beyond it there are too many halves to take all
        most = folding.MOST_FOLDS
        return f"folds: expected [traits, folds, layers, hidden] of 2 to {most} folds, found {list(folds.shape)}"
    shapes = {
        "folds": (traits, parts, rows, hidden),
        "direction": (traits, rows, hidden),
        "split_half": (traits, rows),
        "wordings": (traits, rows),
        "places": (traits, len(PLACES), rows),
    }
    for name, shape in shapes.items():
        if arrays[name].dtype != np.float32 or arrays[name].shape != shape:
            found = f"{list(arrays[name].shape)} {arrays[name].dtype}"
            return f"{name}: expected {list(shape)} float32, found {found}"
        if not np.isfinite(arrays[name]).all():
            return f"{name}: holds NaN or infinite values"
    if np.abs(arrays["wordings"]).max() > 1 + _TOLERANCE:
        return "wordings: cosines lie from -1 to 1"
    return None


def _value_problem(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> str | None:
    """One trait at a time: the folds of a large model are the whole file, and need no second copy in float64."""
    for i, name in enumerate(metadata["trait_names"]):
        folds = arrays["folds"][i].swapaxes(0, 1)  # [layers, folds, hidden]
        difference = folds.mean(axis=1, dtype=np.float64)
        length = np.linalg.norm(difference, axis=-1)
        if not length.all():
            return f"folds: trait {name!r} has no difference at layer {arrays['layers'][int(np.argmin(length))]}"
        wrong = {
            "direction": np.abs(arrays["direction"][i] - folding.unit(difference)).max(axis=-1),
            "split_half": np.abs(arrays["split_half"][i] - folding.split_half(folds)),
            # Projections may be large and their difference small: what float32 keeps of it is relative to them.
            "places": np.abs(arrays["places"][i][0].astype(np.float64) - arrays["places"][i][1] - length)
            / np.maximum(np.abs(arrays["places"][i]).max(axis=0), length),
        }
        if not (arrays["places"][i][0] > arrays["places"][i][1]).all():
            return f"places: trait {name!r}: its positive pole must lie above its negative one at every layer"
        for field, off in wrong.items():
            if off.max() > _TOLERANCE:
                layer = arrays["layers"][int(np.argmax(off))]
                return f"{field}: trait {name!r} at layer {layer} does not agree with its folds"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
