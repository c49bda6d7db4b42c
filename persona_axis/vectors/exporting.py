"""An axis or a cap in the forms that other tools load: GGUF for llama.cpp, npy, and the published dictionaries.

Each call writes one file in one step and returns what its reader has to know, one sentence a string.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_axis._axisparts import told_layers
from persona_axis.errors import VectorsError
from persona_axis.files.axisfile import CONVENTIONS
from persona_axis.files.blocks import unread
from persona_axis.files.safefile import replace_file
from persona_axis.vectors.found import Rows
from persona_axis.vectors.gguffile import OWN_KEY
from persona_axis.vectors.pushes import DISTRIBUTION, mean_pushes

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap

INSTALL = "GGUF files are written by the gguf package: pip install 'persona-axis[gguf]'"
_LLAMA = (
    "llama.cpp adds direction.N to the output of layer N, counted from 0, and has no direction.0: layer 0 cannot be "
    "steered"
)


def axis_to_npy(axis: Axis, path: str | os.PathLike[str]) -> list[str]:
    """float32 [num_layers, hidden], row = layer, zeros where the axis has no layer."""
    rows, notes = _padded(axis)
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    _write(path, stream.getvalue())
    return [*notes, f"an npy file says nothing about itself; here {CONVENTIONS['sign']}, and a row is a layer's output"]


def axis_to_dict(axis: Axis, path: str | os.PathLike[str]) -> list[str]:
    """A torch file of tensors: `axis` [num_layers, hidden] and `metadata`, and the means where the axis has them.

    The published dictionary: row = layer, zeros where the axis has none (`metadata["layers"]` lists those it has).
    """
    import torch

    rows, notes = _padded(axis)
    held: dict[str, Any] = {"axis": torch.from_numpy(rows)}
    if "default" in axis.arrays and "roles" in axis.arrays:
        means = axis.arrays["default"], axis.roles_mean
        for name, values in zip(("default_mean", "role_mean"), means, strict=True):
            whole = np.zeros_like(rows)
            whole[list(axis.layers)] = values
            held[name] = torch.from_numpy(whole)
        held["n_roles"] = len(unread(axis.arrays)["roles"])
    held["metadata"] = {
        "layers": list(axis.layers),
        "row": CONVENTIONS["layer"],
        "sign": CONVENTIONS["sign"],
        "model": str(axis.metadata.get("model") or ""),
        "provenance": str(axis.metadata["provenance"]),
    }
    _save_torch(path, held)
    return notes


def axis_to_gguf(axis: Axis, path: str | os.PathLike[str], layers: Iterable[int] | None = None) -> list[str]:
    """A control vector of the axis' unit directions at `layers` (all unless given), to be added by llama.cpp.

    Raises `VectorsError` without the gguf package and where only layer 0 is left, `AxisMismatchError` for a layer
    that the axis does not have.
    """
    wanted = axis.layers if layers is None else tuple(layers)
    rows = np.stack([axis.arrays["direction"][axis.row(layer)] for layer in wanted]).astype(np.float64)
    notes = _write_gguf(path, wanted, rows, axis.metadata, CONVENTIONS)
    notes.append("rows are unit vectors: a strength is a length in the residual stream, positive toward the Assistant")
    if "mean_norm" in axis.arrays:
        norms = [float(axis.arrays["mean_norm"][axis.row(layer)]) for layer in wanted if layer]
        notes.append(f"mean norm of the stream there: {min(norms):.3g} to {max(norms):.3g}")
    if len(wanted) > 1:
        notes.append("additions at several layers add up: narrow them with --layers or --control-vector-layer-range")
    return notes


def cap_to_dict(cap: Cap, path: str | os.PathLike[str]) -> list[str]:
    """The published capping configuration: `vectors` and one experiment that does exactly what the cap does.

    A floor becomes a clamp from above along the negated direction; the names of the vectors tell `import` which were
    floors, so that it gives the same directions and bounds. Raises `VectorsError` for bounds that differ from
    row to row of a batch, which that form does not know.
    """
    vectors: dict[str, Any] = {}
    interventions: list[dict[str, Any]] = []
    _require_one_bound(cap)
    for i, layer in enumerate(cap.layers):
        for name, bound, turn in (("floor", cap.floor, -1.0), ("ceiling", cap.ceiling, 1.0)):
            if bound is None or not bool(bound[i].isfinite()):
                continue
            key = f"layer_{layer}/{name}"
            vectors[key] = {"layer": layer, "vector": turn * cap.direction[i]}
            interventions.append({"vector": key, "cap": turn * float(bound[i])})
    at = sorted({vector["layer"] for vector in vectors.values()})
    window = at == list(range(at[0], at[-1] + 1))
    name = f"layers_{at[0]}:{at[-1] + 1}" if window else "layers-" + "-".join(map(str, at))
    _save_torch(path, {"vectors": vectors, "experiments": [{"id": name, "interventions": interventions}]})
    idle = [str(layer) for layer in cap.layers if layer not in at]
    notes = [f"nothing is bounded at layers {', '.join(idle)}, which are left out"] if idle else []
    return [*notes, f"experiment {name!r}; a floor is written as a clamp from above along the negated direction"]


def cap_to_gguf(cap: Cap, path: str | os.PathLike[str], axis: Axis | None = None) -> list[str]:
    """A control vector that stands nearest to the cap. It is no cap: llama.cpp can only add.

    With the cap's `axis` each row is as long as the cap's mean push at that layer on tokens of replies in role, so
    that strength 1 / (number of rows) moves them as far on average; without, rows are unit. The file says that its
    rows point toward the Assistant only where the axis shows it: a cap's direction may be a trait's, and a ceiling
    pushes away. Raises `VectorsError` as `axis_to_gguf` and `mean_pushes` do.
    """
    _require_one_bound(cap)
    rows = cap.direction.double().numpy()
    kept, toward = [0.0], False
    notes = ["a cap cannot be expressed: llama.cpp adds the same to every token, inside the bounds or not"]
    if axis is None:
        notes.append("which strength stands nearest to the cap is told with --axis, the axis file it was made from")
    else:
        pushes = mean_pushes(cap, axis)
        kept = [push for layer, push in zip(cap.layers, pushes, strict=True) if layer and push]
        if not kept:
            raise VectorsError(f"the cap moves no token of {DISTRIBUTION} in {axis.source}: there is nothing to add")
        rows, toward = rows * pushes[:, None], min(kept) > 0
        told = ", ".join(f"{layer}: {push:.3g}" for layer, push in zip(cap.layers, pushes, strict=True))
        notes.append(f"rows are as long as the cap's mean push on {DISTRIBUTION} (layer {told})")
        notes.append(
            f"strength {1 / len(kept):.3g} stands nearest to the cap: what is added at one layer is carried on "
            "to the next, so the layers share one push; try it against the cap before relying on it"
        )
    used = np.flatnonzero(np.linalg.norm(rows, axis=1))
    stated = CONVENTIONS if toward else {"layer": CONVENTIONS["layer"]}
    if not toward:
        notes.append(
            "the file does not say where its rows point, seen from the Assistant"
            + ("; some point toward it and some away" if min(kept) < 0 < max(kept) else "")
        )
    return _write_gguf(path, tuple(cap.layers[i] for i in used), rows[used], cap.facts, stated) + notes


def _padded(axis: Axis) -> tuple[np.ndarray[Any, np.dtype[np.float32]], list[str]]:
    rows = np.zeros((axis.num_layers, axis.hidden_size), np.float32)
    rows[list(axis.layers)] = axis.arrays["direction"]
    if len(axis.layers) == axis.num_layers:
        return rows, []
    return rows, [f"the axis has {told_layers(axis.layers)} of {axis.num_layers}; the other rows are zeros"]


def _write_gguf(
    path: str | os.PathLike[str], layers: tuple[int, ...], rows: Rows, about: Any, stated: Mapping[str, str]
) -> list[str]:
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise VectorsError(INSTALL) from None
    kept = [(layer, row) for layer, row in zip(layers, rows, strict=True) if layer]
    if not kept:
        raise VectorsError(f"{path}: {_LLAMA}, and no other layer is there to be exported")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "vector.gguf")
        writer = GGUFWriter(made, "controlvector")
        writer.add_string("controlvector.model_hint", str(about.get("architecture") or "unknown"))
        writer.add_int32("controlvector.layer_count", len(kept))
        writer.add_string(OWN_KEY, json.dumps(stated, sort_keys=True))
        for layer, row in kept:
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(row, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _write(path, made.read_bytes())
    return [_LLAMA + (", and is left out" if len(kept) < len(layers) else "")]


def _require_one_bound(cap: Cap) -> None:
    for name, bound in (("floor", cap.floor), ("ceiling", cap.ceiling)):
        if bound is not None and bound.dim() != 1:
            raise VectorsError(f"the cap's {name} differs from row to row of a batch, which no other form expresses")


def _save_torch(path: str | os.PathLike[str], held: dict[str, Any]) -> None:
    import torch

    stream = io.BytesIO()
    torch.save(held, stream)
    _write(path, stream.getvalue())


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    try:
        replace_file(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise VectorsError(f"{path}: could not be written: {error.strerror or error}") from error
