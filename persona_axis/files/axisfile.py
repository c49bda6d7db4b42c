"""What an axis file holds and when it can be trusted. Needs no torch: `show` answers at once.

Tensors (n roles, L layers, H hidden): `direction` [L, H] float32 unit rows pointing toward the Assistant;
`layers` [L] int64, the model's layer index of each row; `default` [L, H]; `roles` [n, L, H] float32 or
bfloat16; `mean_norm` [L]; `quantiles_default`, `quantiles_roles` [L, 101] of replies' mean projections and
`quantiles_default_tokens`, `quantiles_roles_tokens` of single reply tokens, at percentiles 0 to 100. Metadata
are strings; every key not in `TEXT_KEYS` is JSON. Keys that are not named here are kept.

Role vectors are nearly all of a large file, so it may hold them at some layers only: then `role_layers` [R] int64
are these, `roles` is [n, R, H], `roles_mean` [L, H] is their mean at every layer, of which the direction was made,
and the metadata's `roles_sha256` is a digest for each of the R layers, so that one can be trusted without the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import AxisFileError
from persona_axis.files.blocks import Block
from persona_axis.files.rolerows import UNIT_TOLERANCE, RoleRows, off_direction
from persona_axis.files.safefile import wrong_format

FORMAT = "persona-axis/1"
PROVENANCES = ("extracted", "imported", "fitted")
CONVENTIONS = {
    "layer": "output of decoder layer l, counted from 0; embeddings are not a layer",
    "sign": "the direction points toward the Assistant: default - mean(roles)",
}
DISTRIBUTIONS = ("default", "roles", "default_tokens", "roles_tokens")
QUANTILES = tuple(f"quantiles_{name}" for name in DISTRIBUTIONS)

TEXT_KEYS = frozenset({
    "format", "provenance", "model", "revision", "architecture", "dtype", "chat_template_sha256",
    "weights_sha256", "probes_sha256", "date",
})  # fmt: skip

_ALWAYS_TENSORS = ("direction", "layers")
_EXTRACTED_TENSORS = ("default", "roles", "mean_norm", *QUANTILES)
_PARTIAL_TENSORS = ("role_layers", "roles_mean")
_ALWAYS_KEYS = ("format", "provenance", "hidden_size", "num_layers", "conventions")
_EXTRACTED_KEYS = (
    "model", "revision", "architecture", "dtype", "chat_template_sha256", "weights_sha256", "probes_sha256",
    "role_names", "accepted", "default_count", "judge", "sampling", "seed", "split_half", "calibration",
    "versions", "date",
)  # fmt: skip
_MAY_BE_EMPTY = frozenset({"revision", "chat_template_sha256"})  # a local model; a model without a template


def encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The strings that go into the file; None is written as an empty text or JSON null."""
    return {
        key: (value or "") if key in TEXT_KEYS else json.dumps(value, sort_keys=True) for key, value in metadata.items()
    }


def decode_metadata(where: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Back from strings. A key this package does not know may hold plain text; a known one may not."""
    known = {*_ALWAYS_KEYS, *_EXTRACTED_KEYS, "recommended_layer"}
    decoded: dict[str, Any] = {}
    for key, text in metadata.items():
        if key in TEXT_KEYS:
            decoded[key] = text or None
            continue
        try:
            decoded[key] = json_of(text)
        except (ValueError, RecursionError):
            if key in known:
                raise AxisFileError(f"{where}: {key}: not valid JSON: {text[:40]!r}") from None
            decoded[key] = text
    return decoded


def json_of(text: str) -> Any:
    """The value of a JSON text. Raises `RecursionError`, and `ValueError` also for half a character (a lone surrogate),
    which no terminal and no file takes.
    """
    value = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def check_axis(
    where: str, arrays: Mapping[str, NDArray[Any] | Block], metadata: Mapping[str, Any], bf16_roles: bool
) -> RoleRows | None:
    """Raise `AxisFileError`, naming the field, unless all is complete, finite and consistent.

    Role vectors that are a `Block` are not read: what is given back says what to ask of them when they are. None
    where there are none, or they have nothing to be compared with.
    """
    try:
        _check_keys(metadata)
        extracted = metadata["provenance"] == "extracted"
        _check_names(arrays, extracted)
        _check_layers(arrays["layers"], metadata)
        _check_role_layers(arrays, metadata)
        _check_tensors(arrays, metadata)
        _check_counts(arrays.get("roles"), metadata)
        _check_split_half(metadata, len(arrays["layers"]))
    except _Bad as bad:
        raise AxisFileError(f"{where}: {bad}") from None
    rows = _role_rows(where, arrays, metadata, bf16_roles)
    roles = arrays.get("roles")
    if rows is not None and isinstance(roles, np.ndarray):
        for row in range(roles.shape[1]):
            rows.check(row, roles[:, row])
    return rows


def _role_rows(where: str, arrays: Mapping[str, Any], metadata: Mapping[str, Any], bf16_roles: bool) -> RoleRows | None:
    if "roles" not in arrays or "default" not in arrays:
        return None
    layers: list[int] = arrays["layers"].tolist()
    told: list[int] = arrays["role_layers"].tolist() if "role_layers" in arrays else layers
    at = [layers.index(layer) for layer in told]
    mean = arrays["roles_mean"][at] if "roles_mean" in arrays else None
    stated = metadata.get("roles_sha256")
    return RoleRows(where, tuple(told), arrays["default"][at], arrays["direction"][at], mean, bf16_roles, stated)


class _Bad(Exception):
    """One field's complaint; `check_axis` adds where."""


def _check_keys(metadata: Mapping[str, Any]) -> None:
    stated = metadata.get("format")
    if stated != FORMAT:
        raise _Bad(wrong_format(FORMAT, stated))
    provenance = metadata.get("provenance")
    if provenance not in PROVENANCES:
        raise _Bad(f"provenance: expected one of {', '.join(PROVENANCES)}, found {provenance!r}")
    for key in _ALWAYS_KEYS + (_EXTRACTED_KEYS if provenance == "extracted" else ()):
        if key not in metadata:
            raise _Bad(f"{key}: missing from the metadata of an {provenance} axis")
        if metadata[key] in (None, "", [], {}) and key not in _MAY_BE_EMPTY:
            raise _Bad(f"{key}: is empty")
    for key in ("hidden_size", "num_layers"):
        if not _is_count(metadata[key]):
            raise _Bad(f"{key}: expected a positive integer, found {metadata[key]!r}")
    for key, meaning in CONVENTIONS.items():
        found = metadata["conventions"].get(key) if isinstance(metadata["conventions"], dict) else None
        if found != meaning:
            raise _Bad(f"conventions: {key}: expected {meaning!r}, found {found!r}")


def _check_names(arrays: Mapping[str, Any], extracted: bool) -> None:
    for name in _ALWAYS_TENSORS + (_EXTRACTED_TENSORS if extracted else ()):
        if name not in arrays:
            raise _Bad(f"{name}: this tensor is missing")
    extra = sorted(set(arrays) - {*_ALWAYS_TENSORS, *_EXTRACTED_TENSORS, *_PARTIAL_TENSORS})
    if extra:
        raise _Bad(f"{extra[0]}: an axis file holds no such tensor")
    if partial := [name for name in _PARTIAL_TENSORS if name in arrays]:
        for name in (*_PARTIAL_TENSORS, "roles", "default"):
            if name not in arrays:
                raise _Bad(f"{name}: this tensor is missing beside {partial[0]}")


def _check_role_layers(arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    told = arrays.get("role_layers")
    if told is not None:
        if told.dtype != np.int64 or told.ndim != 1 or told.size == 0:
            raise _Bad(f"role_layers: expected [layers] int64, found {list(told.shape)} {told.dtype}")
        if np.any(told[1:] <= told[:-1]) or not np.isin(told, arrays["layers"]).all():
            raise _Bad("role_layers: must be rising layers of the file, each once")
    digests = metadata.get("roles_sha256")
    if digests is None:
        return
    rows = len(arrays["layers"] if told is None else told)
    if not isinstance(digests, list) or len(digests) != rows or not all(isinstance(one, str) for one in digests):
        raise _Bad(f"roles_sha256: expected a digest for each of the {rows} layers of roles")


def _check_layers(layers: Any, metadata: Mapping[str, Any]) -> None:
    if layers.dtype != np.int64 or layers.ndim != 1 or layers.size == 0:
        raise _Bad(f"layers: expected [layers] int64, found {list(layers.shape)} {layers.dtype}")
    if np.any(layers[1:] <= layers[:-1]):
        raise _Bad("layers: indices must rise and not repeat")
    if layers[0] < 0 or layers[-1] >= metadata["num_layers"]:
        raise _Bad(f"layers: {layers[0]} to {layers[-1]} are not all among the model's {metadata['num_layers']}")
    recommended = metadata.get("recommended_layer")
    if recommended is not None and (type(recommended) is not int or recommended not in layers):
        raise _Bad(f"recommended_layer: {recommended!r} is not one of the file's layers")


def _check_tensors(arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    rows, hidden = len(arrays["layers"]), metadata["hidden_size"]
    roles = arrays["roles"].shape[0] if "roles" in arrays and arrays["roles"].ndim else 0
    shapes = {"direction": (rows, hidden), "default": (rows, hidden), "mean_norm": (rows,)}
    shapes |= {"roles": (max(roles, 1), len(arrays.get("role_layers", arrays["layers"])), hidden)}
    shapes |= {"roles_mean": (rows, hidden)}
    shapes |= dict.fromkeys(QUANTILES, (rows, 101))
    for name, array in arrays.items():
        if name in ("layers", "role_layers"):
            continue
        if array.dtype != np.float32 or array.shape != shapes[name]:
            raise _Bad(f"{name}: expected {list(shapes[name])} float32, found {list(array.shape)} {array.dtype}")
        if name == "roles":
            continue  # a layer at a time, by `RoleRows`
        if not np.isfinite(array).all():
            raise _Bad(f"{name}: holds NaN or infinite values")
        if name in QUANTILES and np.any(array[:, 1:] < array[:, :-1]):
            raise _Bad(f"{name}: quantiles must not fall")
    if "mean_norm" in arrays and np.any(arrays["mean_norm"] <= 0):
        raise _Bad("mean_norm: norms must be positive")
    norms = np.linalg.norm(arrays["direction"].astype(np.float64), axis=1)
    worst = int(np.argmax(np.abs(norms - 1)))
    if abs(norms[worst] - 1) > UNIT_TOLERANCE:
        raise _Bad(f"direction: row of layer {arrays['layers'][worst]} has norm {norms[worst]:.6g}, not 1")
    if "roles_mean" in arrays:
        for row, mean in enumerate(arrays["roles_mean"]):
            if off_direction(arrays["default"][row], mean, arrays["direction"][row], float(np.linalg.norm(mean))):
                raise _Bad(f"direction: the row of layer {arrays['layers'][row]} is not default - roles_mean")


def _check_counts(roles: NDArray[Any] | Block | None, metadata: Mapping[str, Any]) -> None:
    names, accepted, default = (metadata.get(key) for key in ("role_names", "accepted", "default_count"))
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise _Bad("role_names: expected a list of names")
        if len(set(names)) != len(names):
            raise _Bad("role_names: a name occurs twice")
        if roles is not None and len(names) != len(roles):
            raise _Bad(f"role_names: {len(names)} names for {len(roles)} role vectors")
    if accepted is not None:
        if not isinstance(accepted, dict) or not all(_is_count(count) for count in accepted.values()):
            raise _Bad("accepted: expected a positive count for each role name")
        if names is None or set(accepted) != set(names):
            raise _Bad("accepted: its roles are not those of role_names")
    if default is not None and not _is_count(default):
        raise _Bad(f"default_count: expected a positive integer, found {default!r}")


def _check_split_half(metadata: Mapping[str, Any], rows: int) -> None:
    for name in ("split_half", "split_half_prompts"):
        halves = metadata.get(name)
        if halves is None:
            continue
        keys = ("cosine", "low", "high")
        if not isinstance(halves, dict) or not all(_cosines(halves.get(key), rows) for key in keys):
            raise _Bad(f"{name}: expected cosine, low and high, each {rows} numbers from -1 to 1")
        if any(low > high for low, high in zip(halves["low"], halves["high"], strict=True)):
            raise _Bad(f"{name}: an interval's low end lies above its high end")


def _cosines(values: Any, rows: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == rows
        and all(type(value) in (int, float) and -1.0 - 1e-6 <= value <= 1.0 + 1e-6 for value in values)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
