"""Files in every published layout, built here: no download, no network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persona_axis.vectors.found import Settled
from persona_axis.vectors.making import Origin

LAYERS, HIDDEN = 4, 32


def means(seed: int = 0, layers: int = LAYERS, roles: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A default vector [layers, hidden] and role vectors [roles, layers, hidden]."""
    random = np.random.default_rng(seed)
    default = torch.tensor(random.normal(size=(layers, HIDDEN)) + 1, dtype=torch.float32)
    return default, torch.tensor(random.normal(size=(roles, layers, HIDDEN)), dtype=torch.float32)


def axis_rows(seed: int = 0, layers: int = LAYERS) -> torch.Tensor:
    """default - mean(roles) [layers, hidden], not unit, as published."""
    default, roles = means(seed, layers)
    return default - roles.mean(dim=0)


def smooth_rows(layers: int, seed: int = 0) -> torch.Tensor:
    """Rows [layers, hidden] that turn from layer to layer as a stream does: neighbours resemble each other."""
    random = np.random.default_rng(seed)
    return torch.tensor(np.cumsum(random.normal(size=(layers, HIDDEN)) + 0.3, axis=0), dtype=torch.float32)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return (rows.double() / rows.double().norm(dim=-1, keepdim=True)).float()


def saved(path: Path, held: Any, **options: Any) -> Path:
    torch.save(held, path, **options)
    return path


def torch_bytes(held: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(held, stream)
    return stream.getvalue()


def roles_directory(path: Path, seed: int = 0, default: bool = True, bare: bool = False) -> Path:
    """One dictionary a role with `vector`, `type`, `role`, and the default's of type "mean"."""
    path.mkdir()
    middle, roles = means(seed)
    for i, vector in enumerate(roles):
        saved(path / f"role{i}.pt", vector if bare else {"vector": vector, "type": "pos_3", "role": f"role{i}"})
    if default:
        saved(path / "default.pt", middle if bare else {"vector": middle, "type": "mean", "role": "default"})
    return path


def capping(layers: range | list[int] = range(1, 3), quantile: float = 0.25) -> dict[str, Any]:
    """A capping configuration: vectors are the negated axis, of any length, clamped from above."""
    rows = axis_rows()
    vectors = {f"layer_{layer}/contrast": {"layer": layer, "vector": -3 * rows[layer]} for layer in layers}
    interventions = [{"vector": name, "cap": 0.5 - 0.25 * i} for i, name in enumerate(vectors)]
    name = f"layers_{min(layers)}:{max(layers) + 1}-p{quantile}"
    return {"vectors": vectors, "experiments": [{"id": name, "interventions": interventions}]}


def published_clamp(hidden: torch.Tensor, vector: torch.Tensor, cap: float) -> torch.Tensor:
    """The published formula: what of <h, unit(v)> lies above the threshold is taken off along v."""
    v = vector / vector.norm()
    return hidden - (hidden @ v - cap).clamp(min=0)[..., None] * v


def gguf_file(
    path: Path, rows: dict[int, np.ndarray], architecture: str = "controlvector", name: str = "direction.{}"
) -> Path:
    """A control vector as repeng writes one."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    writer.add_array("some.names", ["a", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    for layer, row in rows.items():
        writer.add_tensor(name.format(layer), row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def origin(layers: int = LAYERS, hidden: int = HIDDEN) -> Origin:
    facts = {"model": "tiny", "revision": None, "architecture": "llama", "hidden_size": hidden, "num_layers": layers}
    return Origin("file", "0" * 64, facts, Settled("loaded", "said", "said"))
