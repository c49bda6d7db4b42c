"""The published layouts of .pt files, told apart by what they hold; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from persona_axis.errors import VectorsError
from persona_axis.files.axisfile import CONVENTIONS
from persona_axis.vectors.clamps import clamps_of
from persona_axis.vectors.found import Clamps, Found, Settled, remarks
from persona_axis.vectors.torchfile import tensor_rows

_AXIS_KEYS = ("axis", "metadata", "default_mean", "role_mean", "n_default", "n_roles")
_ROLE_KEYS = ("vector", "type", "role")

KNOWN = (
    "a tensor [layers, hidden]; a dictionary with 'axis'; one with 'vectors' and 'experiments'; a directory of "
    "dictionaries with 'vector', 'type' and 'role'"
)


def found_in_torch(where: str, held: Any, size: int) -> Found | Clamps:
    """Which layout the content of a torch file of `size` bytes has. Raises `VectorsError` for none."""
    if isinstance(held, Tensor):
        rows = tensor_rows(where, "the tensor", held, size)
        return Found(where, "torch tensor", rows, tuple(range(len(rows))) if held.dim() == 2 else None)
    if isinstance(held, dict):
        if "vectors" in held or "experiments" in held:
            return clamps_of(where, held, size)
        if "axis" in held:
            return _axis_dict(where, held, size)
        if "vector" in held:
            raise VectorsError(f"{where}: is the vector of one role; name the directory that holds all of them")
        raise VectorsError(f"{where}: a dictionary with {told_keys(held)} is no layout that is known: {KNOWN}")
    raise VectorsError(f"{where}: holds a {type(held).__name__}; known are {KNOWN}")


def role_of(where: str, held: Any, size: int, stem: str) -> tuple[str, bool, Any]:
    """(name, whether it is the default, rows) of one file of a directory of roles. Raises `VectorsError`."""
    if isinstance(held, Tensor):
        return stem, stem == "default", tensor_rows(where, "the tensor", held, size, ranks=(2,))
    if not isinstance(held, dict) or "vector" not in held:
        what = f"a dictionary with {told_keys(held)}" if isinstance(held, dict) else f"a {type(held).__name__}"
        raise VectorsError(f"{where}: expected a dictionary with 'vector', 'type' and 'role', found {what}")
    require_known(where, held, _ROLE_KEYS)
    name, kind = held.get("role", stem), held.get("type", "")
    if not isinstance(name, str) or not name or not isinstance(kind, str):
        raise VectorsError(f"{where}: role and type must be texts")
    return name, name == "default" or kind == "mean", tensor_rows(where, "vector", held["vector"], size, ranks=(2,))


def require_known(where: str, held: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    """Raise `VectorsError` if the dictionary has a key that the layout does not document."""
    unknown = [key for key in held if key not in known]
    if unknown:
        raise VectorsError(f"{where}: unknown key {str(unknown[0])[:60]!r}; this layout holds {', '.join(known)}")


def told_keys(held: Mapping[Any, Any]) -> str:
    """A dictionary's first keys, as an error tells them."""
    names = [repr(str(key)[:40]) for key in list(held)[:5]]
    return f"the keys {', '.join(names)}{', ...' if len(held) > 5 else ''}" if names else "no keys"


def _axis_dict(where: str, held: Mapping[Any, Any], size: int) -> Found:
    require_known(where, held, _AXIS_KEYS)
    rows = tensor_rows(where, "axis", held["axis"], size, ranks=(2,))
    metadata = held.get("metadata", {})
    if not isinstance(metadata, dict):
        raise VectorsError(f"{where}: metadata is a {type(metadata).__name__}; expected a dictionary")
    sign = None
    if metadata.get("sign") == CONVENTIONS["sign"]:
        sign = Settled("toward", "file", f"the file says that {CONVENTIONS['sign']}")
    reference = None
    if "default_mean" in held and "role_mean" in held:
        means = [tensor_rows(where, name, held[name], size, ranks=(2,)) for name in ("default_mean", "role_mean")]
        if any(mean.shape != rows.shape for mean in means):
            shapes = [list(mean.shape) for mean in means]
            raise VectorsError(f"{where}: default_mean and role_mean {shapes} do not fit axis {list(rows.shape)}")
        reference = means[0] - means[1]
    about = remarks(metadata) | remarks({key: held[key] for key in ("n_default", "n_roles") if key in held})
    index, own = tuple(range(len(rows))), metadata.get("row") == CONVENTIONS["layer"]
    if own:  # our own export, which pads absent layers with zeros
        index = _own_layers(where, metadata, len(rows))
        rows = rows[list(index)]
        reference = None if reference is None else reference[list(index)]
    return Found(where, "axis dictionary", rows, index, own, reference, sign=sign, about=about, states_layers=own)


def _own_layers(where: str, metadata: Mapping[Any, Any], rows: int) -> tuple[int, ...]:
    layers = metadata.get("layers")
    plain = layers if isinstance(layers, list) and all(type(layer) is int for layer in layers) else []
    if not plain or sorted(set(plain)) != plain or plain[0] < 0 or plain[-1] >= rows:
        raise VectorsError(f"{where}: metadata: layers: expected rising row indices below {rows}")
    return tuple(plain)
