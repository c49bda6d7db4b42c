"""What is put on a vLLM worker, on a worker that does as it is told. The real one is in `tests/real_vllm`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from persona_axis.cap import Cap
from persona_axis.serving import vllm
from persona_axis.serving._stream_edit import StreamEdit
from persona_axis.serving.figures import Figures, prometheus

NAME = "persona_axis.serving.vllm_worker"


class WorkerBase:
    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config, self.rank = vllm_config, 0

    def nothing(self, *_: Any) -> None:
        """Stands for the methods whose place a guard takes."""

    load_model = compile_or_warm_up_model = execute_model = nothing


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`vllm_worker`, imported beside a vLLM that has a worker and nothing else."""
    monkeypatch.delenv(vllm.CAP, raising=False)
    base: Any = ModuleType("vllm.v1.worker.worker_base")
    base.WorkerBase = type("WorkerBase", (WorkerBase,), {"__init__": WorkerBase.__init__})
    for name in ("vllm", "vllm.v1", "vllm.v1.worker"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    before = sys.modules.pop(NAME, None)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)
    if before is not None:
        sys.modules[NAME] = before


def configured(additional: Any = None, overrides: Any = None, **hf: Any) -> Any:
    model = SimpleNamespace(hf_overrides=overrides or {}, hf_config=SimpleNamespace(**hf), model="m", revision=None)
    return SimpleNamespace(additional_config=additional or {}, model_config=model)


def test_without_a_cap_it_is_said_and_the_worker_is_left_as_it_is(module: Any, caplog: Any) -> None:
    worker = module.WorkerBase(configured())
    assert caplog.text.count(vllm.NO_CAP) == 1
    assert not hasattr(worker, "persona_axis") and worker.execute_model.__func__ is WorkerBase.nothing
    assert worker.persona_axis_figures() is None and worker.persona_axis_check("a") == vllm.NO_CAP


def by_function(config: Any) -> Any:
    return config


@pytest.mark.parametrize(
    "config",
    [
        configured({"persona_axis_cap": "it"}), configured({}, {"persona_axis_cap": "it"}),
        configured({}, by_function, persona_axis_cap="it"),
    ],
)  # fmt: skip
def test_however_the_configuration_names_a_cap_there_is_one(
    module: Any, config: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(module, "Guard", lambda _worker, path: path)
    assert module.WorkerBase(config).persona_axis == "it" and not caplog.text


def test_two_workers_of_one_configuration(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one leaves a mark in it."""
    path = tmp_path / "cap.safetensors"
    Cap(torch.eye(4)[:2], [1, 3], floor=1.0).save(path)
    monkeypatch.setattr(module.Checkpoint, "read", lambda *_: None)
    config = configured({"persona_axis_cap": str(path)})
    assert module.WorkerBase(config).persona_axis.cap.layers == (1, 3)
    assert config.additional_config["persona_axis"]["layers"] == [1, 3]
    assert module.WorkerBase(config).persona_axis.path == str(path)


def test_a_layer_that_the_new_cap_leaves_free_has_no_projections(module: Any, tmp_path: Path) -> None:
    wide, narrow = Cap(torch.eye(4)[:2], [1, 3], floor=1.0), Cap(torch.eye(4)[:1], [1], floor=1.0)
    guard = module.Guard.__new__(module.Guard)
    guard.worker, guard.path, guard.cap = SimpleNamespace(rank=0), "a", wide
    guard.edits = {layer: StreamEdit(4, 8, torch.device("cpu"), torch.float32) for layer in wide.layers}
    guard.figures = {"reply": Figures([1, 3], *guard._bounds())}

    def rows(cap: Cap | None) -> list[dict[str, Any]]:
        guard.cap = cap
        guard._hold(cap)
        with torch.no_grad():
            for edit in guard.edits.values():
                edit(torch.full((3, 4), 0.5), None)
        guard.figures["reply"].add(torch.stack([edit.seen[:3] for edit in guard.edits.values()]))
        found: list[dict[str, Any]] = guard.read_figures()["layers"]
        return found

    for cap, told in ((wide, [True, True]), (narrow, [True, False]), (None, [False, False])):
        found = rows(cap)
        assert [(row["layer"], row["tokens"]) for row in found] == [(1, 3), (3, 3)]
        assert [bool(row["percentiles"]) for row in found] == told
        text = prometheus([{**row, "worker": 0} for row in found])
        assert [f'projections_count{{layer="{layer}"' in text for layer in (1, 3)] == told
