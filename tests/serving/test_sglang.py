"""The hook for SGLang, on modules that behave as its decoder layers are described."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from persona_axis import Cap
from persona_axis.cli import app
from persona_axis.commands.terminal import run
from persona_axis.edits.arithmetic import clamped
from persona_axis.errors import AxisFileError, CapError
from persona_axis.serving.sglang import hook, specification

WIDTH = 16
DIRECTION = nn.functional.normalize(torch.arange(1.0, 1 + 2 * WIDTH).view(2, WIDTH).cos(), dim=1)


class Layer(nn.Module):
    """Adds what came so far to the residual, and hands on its own part beside it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)) / WIDTH**0.5
        self.weight = nn.Parameter(weight)

    def forward(self, _positions: Any, hidden: Tensor, _batch: Any, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return residual @ self.weight, residual


class Decoder(nn.Module):
    """Its layers at `model.layers`; the last norm takes the pair's sum."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Layer(seed) for seed in range(layers))

    def forward(self, hidden: Tensor) -> Tensor:
        residual: Tensor | None = None
        for layer in self.model.layers:
            hidden, residual = layer(None, hidden, None, residual)
        return hidden + residual


def put_on(model: nn.Module, entries: list[dict[str, Any]]) -> None:
    """What a server does with the JSON."""
    for entry in entries:
        module, _, function = entry["hook_factory"].partition(":")
        made = getattr(import_module(module), function)(entry["config"])
        for target in entry["target_modules"]:
            model.get_submodule(target).register_forward_hook(made)


def by_hand(model: Decoder, hidden: Tensor, cap: Cap) -> Tensor:
    """The same decoder with one stream, in float64."""
    stream = hidden.double()
    for i, layer in enumerate(model.model.layers):
        stream = stream + stream @ layer.weight.double() if i else stream @ layer.weight.double() + stream
        if i in cap.layers:
            at = cap.layers.index(i)
            stream = clamped(stream, cap.direction[at].double(), cap.floor[at].item(), cap.ceiling[at].item())
    return stream


@pytest.fixture
def cap(tmp_path: Path) -> tuple[Cap, Path]:
    made = Cap(DIRECTION, [1, 2], [0.3, -0.2], [0.9, 0.4])
    made.save(tmp_path / "cap.safetensors")
    return made, tmp_path / "cap.safetensors"


@torch.no_grad()
def test_the_sum_of_the_pair_is_held(cap: tuple[Cap, Path]) -> None:
    made, path = cap
    hidden = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(9))
    model = Decoder()
    plain = model(hidden)
    put_on(model, json.loads(specification(path)))
    torch.testing.assert_close(model(hidden).double(), by_hand(model, hidden, made), rtol=1e-5, atol=1e-5)
    assert (model(hidden) - plain).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["tensor", "pair", "list", "first layer"])
def test_each_form_of_output(cap: tuple[Cap, Path], form: str, dtype: torch.dtype) -> None:
    made, path = cap
    held = hook({"cap": str(path), "layer": 1})
    hidden, residual = torch.randn(2, 3, 5, WIDTH, generator=torch.Generator().manual_seed(4)).to(dtype)
    if form == "tensor":
        assert torch.equal(held(None, None, hidden), clamped(hidden, made.direction[0], 0.3, 0.9))
        return
    given = [hidden, residual] if form == "list" else (hidden, None if form == "first layer" else residual)
    out = held(None, None, given)
    assert type(out) is type(given) and out[0].dtype == dtype and out[1] is given[1]
    before = hidden.float() + (0 if given[1] is None else residual.float())
    projection = (out[0].float() + (0 if given[1] is None else residual.float())) @ made.direction[0]
    wanted = (before @ made.direction[0]).clamp(0.3, 0.9)
    assert (wanted != before @ made.direction[0]).any()
    torch.testing.assert_close(projection, wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_what_closes(cap: tuple[Cap, Path], tmp_path: Path) -> None:
    path = str(cap[1])
    with pytest.raises(AxisFileError, match="nowhere"):
        hook({"cap": str(tmp_path / "nowhere"), "layer": 1})
    with pytest.raises(CapError, match="layer 3 is not in the cap, which has 1, 2"):
        hook({"cap": path, "layer": 3})
    for config in ({}, {"cap": path}, {"cap": path, "layer": "1"}, {"cap": path, "layer": 1, "strength": 0}):
        with pytest.raises(CapError, match="expected the path of a cap file"):
            hook(config)
    rows = tmp_path / "rows.safetensors"
    Cap(DIRECTION[:1], [1], [[0.1, 0.2]]).save(rows)
    with pytest.raises(CapError, match="row to row"):
        specification(rows)
    held = hook({"cap": path, "layer": 1})
    with pytest.raises(CapError, match="width 16, layer 1's output 8"):
        held(None, None, torch.zeros(3, 8))
    stream = torch.zeros(3, WIDTH)
    for output in (None, {"hidden": stream}, (stream,), (stream, stream, stream), (stream, stream[:2]), (None, stream)):
        with pytest.raises(CapError, match="layer 1 returned a"):
            held(None, None, output)


def test_the_command_prints_what_a_server_takes(
    cap: tuple[Cap, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cap[1].parent)
    assert run(app, ["sglang", "cap.safetensors", "--stack", "decoder.blocks"], name="persona-axis") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["target_modules"] for entry in entries] == [["decoder.blocks.1"], ["decoder.blocks.2"]]
    assert entries[0]["config"] == {"cap": str(cap[1]), "layer": 1}
    assert len({entry["name"] for entry in entries}) == 2
    assert run(app, ["sglang", "nowhere.safetensors"], name="persona-axis") == 1
    assert "nowhere.safetensors" in capsys.readouterr().err
