"""The file of a `PersonaSpace`: safetensors, checked when it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from persona_axis.errors import AxisFileError
from persona_axis.files.axisfile import decode_metadata, encode_metadata
from persona_axis.files.safefile import read_safe, write_safe, wrong_format
from persona_axis.space import PersonaSpace

FORMAT = "persona-space/1"
_TENSORS = ("mean", "components", "explained_variance_ratio", "axis", "projections")


class SpaceFile(NamedTuple):
    """A space, and what its file states about it."""

    space: PersonaSpace
    metadata: Mapping[str, Any]


def save_space(space: PersonaSpace, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write a space in one step, with facts about the model and the layer. Raises `AxisFileError`."""
    import torch

    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(space, name))) for name in _TENSORS}
    stated = {**metadata, "role_names": list(space.names), "format": FORMAT}
    write_safe(path, tensors, encode_metadata(stated))


def load_space(path: str | os.PathLike[str]) -> SpaceFile:
    """Read a space and check that it is one. Raises `AxisFileError` naming what is wrong."""
    file = read_safe(path)
    about = decode_metadata(str(path), file.metadata)
    if about.get("format") != FORMAT:
        raise AxisFileError(f"{path}: {wrong_format(FORMAT, about.get('format'))}")
    names = about.get("role_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise AxisFileError(f"{path}: role_names: expected a list of names")
    if missing := [name for name in _TENSORS if name not in file.arrays]:
        raise AxisFileError(f"{path}: {missing[0]}: this tensor is missing")
    arrays = {name: file.arrays[name] for name in _TENSORS}
    count, hidden = len(arrays["explained_variance_ratio"]), len(arrays["mean"])
    shapes = {"mean": (hidden,), "components": (count, hidden), "explained_variance_ratio": (count,), "axis": (hidden,)}
    shapes["projections"] = (len(names),)
    for name, array in arrays.items():
        if array.shape != shapes[name] or array.dtype != np.float64:
            raise AxisFileError(
                f"{path}: {name}: expected {list(shapes[name])} float64, found {list(array.shape)} {array.dtype}"
            )
        if not array.size or not np.isfinite(array).all():
            raise AxisFileError(f"{path}: {name}: is empty or holds NaN or infinite values")
    if abs(np.linalg.norm(arrays["axis"]) - 1) > 1e-6:
        raise AxisFileError(f"{path}: axis: is not a unit vector")
    if np.abs(arrays["components"] @ arrays["components"].T - np.eye(count)).max() > 1e-6:
        raise AxisFileError(f"{path}: components: are not orthonormal")
    ratio = arrays["explained_variance_ratio"]
    if (ratio < 0).any() or (ratio[1:] > ratio[:-1] + 1e-9).any() or ratio.sum() > 1 + 1e-6:
        raise AxisFileError(f"{path}: explained_variance_ratio: must fall, from 1 at most in all")
    return SpaceFile(PersonaSpace(tuple(names), **arrays), about)
