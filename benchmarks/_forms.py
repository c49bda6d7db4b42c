"""The files that are attacked: a small valid one of every form, its reader, and what must hold of what it gives.

A reader gets a folder of its own with the mutant in it. It returns when a valid value came out, raises the family's
error when the file was refused, and `AssertionError` when a value came out that nobody should have been given.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _mutants_headers import KIND, gguf, tensor
from _probes_used import PROBES, probe_files
from _traits_used import AXIS, TRAITS, shown, traits_for
from safetensors.torch import save

from persona_axis import Axis, Cap
from persona_axis.calibration.units import Units
from persona_axis.conversations import ROLES, read_conversations
from persona_axis.extraction.blocks import TALLIES, BlockState
from persona_axis.extraction.records import Recorded
from persona_axis.extraction.store import RunStore
from persona_axis.files.axisfile import QUANTILES
from persona_axis.traits import Traits
from persona_axis.vectors.found import Clamps, Settled
from persona_axis.vectors.making import Origin, made_axis, made_cap
from persona_axis.vectors.reading import read, read_check
from persona_axis.vectors.telling import Said

LAYERS, HIDDEN, FAR = 4, 32, 5
FACTS = {"model": "tiny", "revision": None, "architecture": "llama", "hidden_size": HIDDEN, "num_layers": LAYERS}
ORIGIN = Origin("file", "0" * 64, FACTS, Settled("loaded", "said", "said"))


class Form(NamedTuple):
    """One kind of file."""

    family: str
    """Which mutations know it."""
    content: bytes
    """A valid file."""
    read: Callable[[Path], Any]
    """Read it and check the value."""
    name: str = "mutant"
    """What the file is called, where its reader minds."""
    others: dict[str, bytes] = {}
    """Files that lie beside it, valid ones."""


def means(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    roles = draw.normal(size=(FAR, LAYERS, HIDDEN)).astype(np.float32)
    return draw.normal(size=(LAYERS, HIDDEN)).astype(np.float32) + 1, roles


def rows() -> np.ndarray:
    default, roles = means()
    made: np.ndarray = default - roles.mean(axis=0)
    return made


def torch_bytes(held: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(held, stream)
    return stream.getvalue()


def capping() -> dict[str, Any]:
    vectors = {f"layer_{i}/contrast": {"layer": i, "vector": torch.from_numpy(-3 * rows()[i])} for i in (1, 2)}
    interventions = [{"vector": name, "cap": 0.5 - 0.25 * i} for i, name in enumerate(vectors)]
    return {"vectors": vectors, "experiments": [{"id": "layers_1:3-p0.25", "interventions": interventions}]}


def axis(bfloat16: bool) -> Axis:
    default, roles = means()
    names = ["ghost", "librarian", "tutor", "void", "analyst"]
    halves = {"cosine": [0.9] * LAYERS, "low": [0.8] * LAYERS, "high": [0.95] * LAYERS}
    facts = {
        **FACTS, "dtype": "float32", "weights_sha256": "a" * 64, "chat_template_sha256": "b" * 64,
        "probes_sha256": "c" * 64, "role_names": names, "accepted": dict.fromkeys(names, 12), "default_count": 40,
        "judge": "parser", "sampling": {"temperature": 0.7}, "seed": 0, "split_half": halves,
        "calibration": {"default": 9}, "versions": {"torch": "2"}, "date": "2026-11-23", "recommended_layer": 2,
    }  # fmt: skip
    tables = {name.removeprefix("quantiles_"): np.tile(np.linspace(-9, 9, 101), (LAYERS, 1)) for name in QUANTILES}
    return Axis.from_means(
        default, roles, layers=range(LAYERS), metadata=facts, mean_norm=np.full(LAYERS, 4.0), quantiles=tables,
        bfloat16_roles=bfloat16,
    )  # fmt: skip


def saved(value: Axis | Cap | Traits, folder: Path) -> bytes:
    path = folder / "saved.safetensors"
    value.save(path)
    content = path.read_bytes()
    path.unlink()
    return content


def good_axis(value: Axis) -> None:
    """What `Axis` promises of itself, looked at from outside."""
    count, width = len(value.layers), value.hidden_size
    assert value.direction.shape == (count, width) and count > 0
    assert np.allclose(np.linalg.norm(value.direction.double().numpy(), axis=1), 1, atol=1e-3)
    assert list(value.layers) == sorted(set(value.layers)) and value.layers[0] >= 0
    assert value.layers[-1] < value.num_layers
    for name, array in value.arrays.items():
        assert np.isfinite(array).all() and (name == "layers" or array.dtype == np.float32)
    if "roles" in value.arrays and value.metadata.get("role_names"):
        assert len(value.role_names) == len(value.arrays["roles"])
    for name in value.metadata.get("role_names") or ():
        name.encode()


def good_cap(value: Cap) -> None:
    assert len(set(value.layers)) == len(value.layers) == len(value.direction) and min(value.layers) >= 0
    assert torch.isfinite(value.direction).all()
    assert ((value.direction.double().norm(dim=1) - 1).abs() < 1e-3).all()
    bounds = [bound for bound in (value.floor, value.ceiling) if bound is not None]
    assert bounds and all(len(bound) == len(value.layers) and not bound.isnan().any() for bound in bounds)


def axis_file(path: Path) -> None:
    good_axis(Axis.load(path))


def cap_file(path: Path) -> None:
    good_cap(Cap.load(path))


def imported(path: Path) -> None:
    found = read(path)
    if isinstance(found, Clamps):
        good_cap(made_cap(found, None, Said(), ORIGIN))
    else:
        good_axis(made_axis(found, Said("toward", "layers" if found.unclear else None), ORIGIN))


def checking(path: Path) -> None:
    """What `--check` reads: an axis of ours or vectors of others."""
    found = read_check(path)
    if isinstance(found, Axis):
        good_axis(found)


def roles(path: Path) -> None:
    good_axis(made_axis(read(path.parent), Said(), ORIGIN))


def logs(path: Path) -> None:
    for one in read_conversations(path):
        assert one.id and all(message["role"] in ROLES for message in one.messages)
        assert any(message["role"] == "assistant" for message in one.messages)
        json.dumps(one.messages, ensure_ascii=False).encode()


def run(path: Path) -> None:
    """A run directory as a resumed extraction meets it."""
    folder = path.parent.parent if path.parent.name == "blocks" else path.parent
    with RunStore.open(folder) as store:
        plan = store.records.read_plan()
        assert plan is None or {"settings", "batch_size", "trial", "surroundings"} <= set(plan)
        for part, block, batch, size in store.records.read_splits():
            assert min(part, block, batch) >= 0 and size > 0
        for recorded in store.records.read_rounds(2):
            assert len(recorded.stop) == 3 and min(recorded.stop) >= 0
        at = store.blocks.done(0)
        assert 0 <= at.done <= at.of and at.round >= 0
        state = store.blocks.load(0)
        if state is not None:
            roles, groups, layers, hidden = state.sums.shape
            assert state.counts.shape == (roles, groups) and state.tallies.shape == (roles, len(TALLIES))
            assert state.prompt_sums.shape == (roles, state.prompt_counts.shape[1], layers, hidden)
            assert state.norms.shape == (layers,) and state.norms.dtype == torch.float64
            assert not layers or store.blocks.layer_sums(0, layers - 1).shape == (roles, groups, hidden)
        store.cut_rollouts()
        for line in store.rollouts():
            assert isinstance(line, dict)


def unit(path: Path) -> None:
    """A measured unit of a calibration: taken as it is or measured again, never an error."""
    with Units.open(path.parent.parent) as units:
        value = units.get("floor", {"layer": 1}, lambda: {"mean": 0.5, "list": [1, 2]})
        json.dumps(value)


def run_files() -> dict[str, bytes]:
    state = BlockState(
        torch.ones(2, 2, 3, 8), torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 1, 3, 8),
        torch.ones(2, 1, dtype=torch.int64), torch.ones(2, 3, dtype=torch.float64),
        torch.ones(2, len(TALLIES), dtype=torch.int64), torch.ones(3, dtype=torch.float64), 0, 1, 4,
    )  # fmt: skip
    rounds = [([4, 2, 2], 0.9, 0.8), ([8, 2, 4], None, None)]
    lines = b"".join(json.dumps({"role": i, "ids": [1, 2], "text": "x", "score": 3}).encode() + b"\n" for i in range(3))
    facts = {"round": 0, "done": 1, "of": 4, "rollouts_end": len(lines)}
    tensors = {name: value for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
    plan = {"settings": {"seed": 0}, "batch_size": 4, "surroundings": {"torch": "2"},
            "trial": {"batch_size": 4, "batch_seconds": 0.5, "calibration_seconds": 1.0}}  # fmt: skip
    return {
        "plan.json": json.dumps(plan).encode(), "splits.json": b"[[0, 0, 1, 2], [0, 0, 3, 1]]",
        "rounds.json": json.dumps([Recorded(*part)._asdict() for part in rounds]).encode(),
        "rollouts.jsonl": lines,
        "blocks/00000.safetensors": save(tensors, {"state": json.dumps(facts)}),
    }  # fmt: skip


def unit_file(folder: Path) -> tuple[str, bytes]:
    with Units.open(folder) as units:
        units.get("floor", {"layer": 1}, lambda: {"mean": 0.5, "list": [1, 2]})
    (path,) = (folder / "units").iterdir()
    content = path.read_bytes()
    shutil.rmtree(folder / "units")
    (folder / "lock").unlink()
    return f"units/{path.name}", content


def forms(folder: Path) -> dict[str, Form]:
    """Every form by name; `folder` is used while they are made."""
    default, others = means()
    value = rows()
    plain, fortran = io.BytesIO(), io.BytesIO()
    np.save(plain, value)
    np.save(fortran, np.asfortranarray(value))
    table = torch.from_numpy(value)
    unit_rows = value / np.linalg.norm(value, axis=1, keepdims=True)
    direction = Axis.from_direction(unit_rows, layers=range(LAYERS), metadata=FACTS)
    cap = axis(False).cap([1, 2], floor="default_tokens:p25")
    batch = Cap(cap.direction, cap.layers, floor=[[0.0, 1.0]] * 2, ceiling=[[5.0, 6.0]] * 2, facts=FACTS)
    talk = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "hi"), ("assistant", "yo"))]
    log = b"".join(json.dumps({"id": f"c{i}", "messages": talk, "kinds": ["x"]}).encode() + b"\n" for i in range(3))
    kept = run_files()
    name, measured = unit_file(folder)
    pieces = {f"role{i}.pt": torch_bytes({"vector": torch.from_numpy(one), "type": "pos_3", "role": f"role{i}"})
              for i, one in enumerate(others)}  # fmt: skip
    pieces["default.pt"] = torch_bytes({"vector": torch.from_numpy(default), "type": "mean", "role": "default"})
    both = {AXIS: saved(axis(False), folder), TRAITS: saved(traits_for(axis(False)), folder)}
    found = {
        "axis": Form("safetensors", saved(axis(False), folder), axis_file),
        "axis-bf16": Form("safetensors", saved(axis(True), folder), axis_file),
        "axis-direction": Form("safetensors", saved(direction, folder), axis_file),
        "cap": Form("safetensors", saved(cap, folder), cap_file),
        "cap-batch": Form("safetensors", saved(batch, folder), cap_file),
        "check": Form("safetensors", saved(axis(False), folder), checking),
        "traits": Form("traits", both[TRAITS], shown, TRAITS, both),
        "traits-axis": Form("safetensors", both[AXIS], shown, AXIS, both),
        "pt-tensor": Form("torch", torch_bytes(table), imported),
        "pt-axis": Form("torch", torch_bytes({"axis": table, "metadata": {"model": "x", "n": [1, 2]}}), imported),
        "pt-capping": Form("torch", torch_bytes(capping()), imported),
        "pt-roles": Form("torch", pieces["role1.pt"], roles, "role1.pt", pieces),
        "npy": Form("npy", plain.getvalue(), imported),
        "npy-fortran": Form("npy", fortran.getvalue(), imported),
        "safetensors": Form("safetensors", save({"v": table}), imported),
        "safetensors-numbered": Form("safetensors", save({f"layer.{i}": table[i].clone() for i in (1, 2)}), imported),
        "gguf": Form("gguf", gguf([KIND], [tensor(b"direction.%d" % i, HIDDEN, 128 * (i - 1)) for i in (1, 2)],
                                  value[1:3].tobytes()), imported),
        "conversations": Form("lines", log, logs),
        "unit": Form("json", measured, unit, name),
    }  # fmt: skip
    asked = probe_files()
    for key, use in PROBES.items():
        found[f"probes-{Path(key).stem}"] = Form("lines", asked[key], use, key, asked)
    family = {"plan.json": "json", "splits.json": "json", "rounds.json": "json", "rollouts.jsonl": "lines"}
    for key in kept:
        found[f"run-{Path(key).stem}"] = Form(family.get(key, "safetensors"), kept[key], run, key, kept)
    return found
