"""The proof on a small engine that keeps its stream as vLLM's models do. The real ones are in `tests/real_vllm`."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.errors import CapError
from persona_axis.serving._stream_edit import StreamEdit
from persona_axis.serving._vllm_layers import decoder_layers, put_on
from persona_axis.serving._vllm_proof import prove

WIDTH, LAYERS = 16, 4
CAP = Cap(torch.eye(2, WIDTH), [1, 2], floor=1.0)


class Layer(nn.Module):
    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair, self.mix = pair, nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> Any:
        if not self.pair:
            return hidden + torch.tanh(self.mix(hidden))
        stream = hidden if residual is None else hidden + residual
        return torch.tanh(self.mix(stream)), stream


class Body(nn.Module):
    """Its graph is what was traced first, as long as `do_not_compile` does not say otherwise."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(pair) for _ in range(LAYERS))
        self.do_not_compile = False
        self.graph: Any = None

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.forward(hidden) if self.do_not_compile or self.graph is None else self.graph(hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            out = layer(hidden, residual)
            hidden, residual = out if isinstance(out, tuple) else (out, None)
        return hidden if residual is None else hidden + residual


class Engine(nn.Module):
    def __init__(self, pair: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = Body(pair), nn.Linear(WIDTH, 32)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.body(hidden)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


class Runner:
    def __init__(self, model: Engine) -> None:
        self.model = model

    def _dummy_run(self, tokens: int) -> tuple[Tensor, Tensor]:
        out = self.model(torch.linspace(-1, 1, tokens * WIDTH).view(tokens, WIDTH))
        return out, out


def worker_of(model: Engine) -> Any:
    runner = Runner(model)
    # By the instance, as vLLM's worker does.
    return SimpleNamespace(model_runner=runner, execute_dummy_batch=lambda: runner._dummy_run(2))


def capped(model: Engine) -> dict[int, StreamEdit]:
    return put_on(list(model.body.layers), CAP, 64)


@pytest.mark.parametrize("pair", [True, False])
def test_a_cap_that_acts_is_proven_and_left_open(pair: bool) -> None:
    model = Engine(pair)
    edits = capped(model)
    model.body.graph = model.body.forward
    assert "plainly and as compiled" in prove(worker_of(model), model, edits, CAP)
    assert all(edit.floor == -math.inf and edit.ceiling == math.inf for edit in edits.values())
    assert all(len(layer._forward_hooks) == (i in edits) for i, layer in enumerate(model.body.layers))
    assert not model.body.do_not_compile
    assert "_dummy_run" not in vars(worker_of(model).model_runner)


def test_a_stage_without_capped_layers_has_nothing_to_prove() -> None:
    assert "none of the capped layers" in prove(worker_of(Engine()), Engine(), {}, CAP)


def test_a_graph_made_before_the_cap_is_refused() -> None:
    model, plain = Engine(), Engine()
    edits = capped(model)
    model.body.graph = plain.body.forward  # the same weights, without the hooks
    with pytest.raises(CapError, match="does without 100% of it. A graph traced without the cap was reused"):
        prove(worker_of(model), model, edits, CAP)


def test_a_graph_with_one_of_two_layers_is_refused() -> None:
    model, half = Engine(), Engine()
    edits = capped(model)
    setattr(half.body.layers[1], "persona_axis_edit", edits[1])  # noqa: B010
    half.body.layers[1].register_forward_hook(next(iter(model.body.layers[1]._forward_hooks.values())))
    model.body.graph = half.body.forward
    with pytest.raises(CapError, match="layer 2: .* compiled graph does without"):
        prove(worker_of(model), model, edits, CAP)


def test_half_of_the_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward = Engine(), StreamEdit.forward
    edits = capped(model)
    monkeypatch.setattr(StreamEdit, "forward", lambda self, hidden, residual=None: forward(self, hidden))
    with pytest.raises(CapError, match="does not act on the sum"):
        prove(worker_of(model), model, edits, CAP)


def test_two_tensors_that_are_no_pair_are_refused() -> None:
    class Other(Layer):
        def forward(self, hidden: Tensor, residual: Tensor | None) -> Any:
            return super().forward(hidden, None)[0] + hidden, hidden * 0.5

    model = Engine()
    model.body.layers = nn.ModuleList(Other(True) for _ in range(LAYERS))
    with pytest.raises(CapError, match="do not add up to its residual stream"):
        prove(worker_of(model), model, capped(model), CAP)


def test_layers_that_the_engine_does_not_run_are_refused() -> None:
    model, other = Engine(), Engine()
    model.unused = other
    edits = capped(other)
    with pytest.raises(CapError, match="did not run in vLLM's dummy batch"):
        prove(worker_of(model), model, edits, CAP)


def test_an_output_that_does_not_depend_on_the_layer_is_refused() -> None:
    model = Engine()
    edits = capped(model)
    model.body.forward = lambda hidden: (Body.forward(model.body, hidden), hidden)[1]  # type: ignore[method-assign]
    with pytest.raises(CapError, match="does not change the model's output"):
        prove(worker_of(model), model, edits, CAP)


def test_where_layers_are_found() -> None:
    model = Engine()
    told = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=LAYERS)))
    assert decoder_layers(model, told) == list(model.body.layers)
    model.tower = nn.ModuleList(nn.Linear(1, 1) for _ in range(LAYERS))
    with pytest.raises(CapError, match=r"saw body.layers, tower"):
        decoder_layers(model, told)
    told.model_config.hf_text_config.num_hidden_layers = 9
    with pytest.raises(CapError, match="no list of that length"):
        decoder_layers(model, told)


def test_layers_of_another_stage_are_left_out_and_missing_ones_refused() -> None:
    layers: list[nn.Module] = [nn.Identity(), nn.Identity(), Layer(True), Layer(True)]
    assert list(put_on(layers, CAP, 64)) == [2]
    with pytest.raises(CapError, match=r"layers \[2\] do not exist"):
        put_on(layers[:2], CAP, 64)
    with pytest.raises(CapError, match="has a cap already"):
        put_on(layers, CAP, 64)
