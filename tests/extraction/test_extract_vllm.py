"""What reads inside a vLLM worker, on steps packed as vLLM packs them. A real one: real_vllm/test_extraction.py."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from persona_axis.errors import ExtractionError
from persona_axis.extraction import vllm_engine
from persona_axis.extraction.vllm_engine import INSTALL, OnVllm
from persona_axis.extraction.vllm_reader import ROW, Reader, Sums, joined

HIDDEN, LAYERS = 5, (0, 2)


class Layer(nn.Module):
    """A stage of a stream that is the sum of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(hidden + residual), hidden + residual


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden, residual = self.embed(input_ids), positions[:, None].float()
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


class Worker(Reader):
    """As much of a worker as the reader looks at. `step` runs (request, start, tokens) packed in that order."""

    def __init__(self, requests: dict[str, tuple[int | None, list[int], list[int]]], rank: int = 0) -> None:
        torch.manual_seed(0)
        self.model, self.rank = Model(), rank
        self.parallel_config = SimpleNamespace(tensor_parallel_size=2)
        text = SimpleNamespace(num_hidden_layers=3, hidden_size=HIDDEN)
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text))
        self.texts = {name: prompt + reply for name, (_, prompt, reply) in requests.items()}
        states = {
            name: SimpleNamespace(
                num_prompt_tokens=len(prompt),
                sampling_params=SimpleNamespace(extra_args=None if row is None else {ROW: row}),
            )
            for name, (row, prompt, _) in requests.items()
        }
        self.model_runner = SimpleNamespace(requests=states, input_batch=None, execute_model=self._execute)

    def get_model(self) -> nn.Module:
        return self.model

    def step(self, *parts: tuple[str, int, int]) -> None:
        names, starts, counts = zip(*parts, strict=True)
        self.model_runner.input_batch = SimpleNamespace(req_ids=list(names), num_computed_tokens_cpu=list(starts))
        self.model_runner.execute_model(SimpleNamespace(num_scheduled_tokens=dict(zip(names, counts, strict=True))))

    def _execute(self, scheduled: Any) -> None:
        batch, ids, positions = self.model_runner.input_batch, [], []
        for name, start in zip(batch.req_ids, batch.num_computed_tokens_cpu, strict=True):
            at = range(start, start + scheduled.num_scheduled_tokens[name])
            ids += [self.texts[name][i] for i in at]
            positions += at
        padding = [0] * 3  # as graphs and sharded sequences have it
        self.run(ids + padding, positions + padding)

    def run(self, ids: list[int], positions: list[int]) -> None:
        with torch.inference_mode():
            self.model(input_ids=torch.tensor(ids), positions=torch.tensor(positions))

    def exact(self, name: str, prompt: int, reply: int) -> Tensor:
        """Sums [layers, hidden] over a reply's tokens, the request run by itself."""
        ids = torch.tensor(self.texts[name][: prompt + reply])
        hidden, residual, out = self.model.embed(ids), torch.arange(len(ids))[:, None].float(), []
        for layer in self.model.layers:
            hidden, residual = layer(hidden, residual)
            out.append((hidden + residual)[prompt:].double().sum(dim=0))
        return torch.stack([out[layer] for layer in LAYERS])


REQUESTS = {"a": (1, [1, 2, 3], [4, 5, 6]), "b": (0, [7, 8, 9, 10, 11], [12, 13]), "else": (None, [1], [2, 3, 4, 5])}


def reading(rank: int = 0) -> Worker:
    worker = Worker(REQUESTS, rank)
    worker.persona_axis_read(LAYERS, rows=3, tokens=3)
    return worker


def steps(worker: Worker) -> None:
    worker.run([50, 51], [0, 1])  # a dummy batch
    worker.step(("b", 0, 3), ("a", 0, 3), ("else", 0, 1))  # a prompt in parts
    worker.step(("a", 3, 1), ("b", 3, 2))
    worker.step(("else", 1, 1), ("b", 5, 1), ("a", 4, 1))
    worker.step(("b", 0, 4), ("a", 5, 1))  # b was set aside and is computed again
    worker.step(("else", 2, 1), ("b", 4, 3))


def test_sums_are_those_of_the_replies_own_tokens_each_read_once() -> None:
    worker = reading()
    steps(worker)
    held = Sums(*worker.persona_axis_sums([1, 0]))
    replies = joined([held], [[4, 5, 6], [12, 13]], LAYERS, HIDDEN)
    for sums, name in zip(replies.sums, "ab", strict=True):
        prompt, reply = (len(part) for part in REQUESTS[name][1:])
        torch.testing.assert_close(sums.double(), worker.exact(name, prompt, reply).detach(), rtol=1e-6, atol=1e-6)
    assert bool((replies.norms > 0).all())
    again = Sums(*worker.persona_axis_sums([1, 0]))
    assert again.counts == [[0, 0], [0, 0]] and again.ids == [[], []] and not any(again.sums + again.norms)


def test_tokens_past_the_longest_reply_are_not_read() -> None:
    worker = Worker({"a": (0, [1], [2, 3, 4, 5])})
    worker.persona_axis_read(LAYERS, rows=1, tokens=3)
    worker.step(("a", 0, 5))
    assert Sums(*worker.persona_axis_sums([0])).ids == [[2, 3, 4]]


def test_shards_of_a_stage_must_agree() -> None:
    workers = [reading(rank) for rank in (0, 1)]
    for worker in workers:
        steps(worker)
    held = [Sums(*worker.persona_axis_sums([1])) for worker in workers]
    assert held[1].shard == 1 and held[1].sums == b"" and held[1].norms == held[0].norms
    joined(held, [[4, 5, 6]], LAYERS, HIDDEN)
    odd = held[1]._replace(norms=torch.ones(1, 2).numpy().tobytes())
    with pytest.raises(ExtractionError, match="not the same streams"):
        joined([held[0], odd], [[4, 5, 6]], LAYERS, HIDDEN)


def test_stages_are_joined_and_none_may_be_missing() -> None:
    worker = reading()
    steps(worker)
    whole = Sums(*worker.persona_axis_sums([1]))
    table = torch.frombuffer(bytearray(whole.sums), dtype=torch.float32).reshape(1, 2, HIDDEN)
    norms = torch.frombuffer(bytearray(whole.norms), dtype=torch.float32).reshape(1, 2)
    stages = [
        Sums([layer], 0, [[3]], whole.ids, norms[:, i].numpy().tobytes(), table[:, i].contiguous().numpy().tobytes())
        for i, layer in enumerate(LAYERS)
    ]
    torch.testing.assert_close(joined(stages[::-1], [[4, 5, 6]], LAYERS, HIDDEN).sums, table, rtol=0, atol=0)
    with pytest.raises(ExtractionError, match=r"none of vLLM's workers holds layers \[2\]"):
        joined(stages[:1], [[4, 5, 6]], LAYERS, HIDDEN)


@pytest.mark.parametrize("missed", ["a step", "a layer", "other tokens", "a layer twice"])
def test_a_token_that_was_not_read_once_is_an_error(missed: str) -> None:
    worker, ids = reading(), [4, 5, 6]
    worker.step(("a", 0, 3))
    if missed == "a layer":
        worker.model.layers[2]._forward_hooks.clear()
    if missed == "a layer twice":
        kept = worker.persona_axis_reading
        assert kept is not None
        worker.model.layers[2].register_forward_hook(lambda _module, _args, out: kept.keep(2, out))
    for at in (3, 4, 5):
        if missed != "a step" or at != 4:
            worker.step(("a", at, 1))
    if missed == "other tokens":
        ids = [4, 5, 7]
    with pytest.raises(ExtractionError, match="a reply has 3 tokens, and at layers"):
        joined([Sums(*worker.persona_axis_sums([1]))], [ids], LAYERS, HIDDEN)


def test_a_runner_of_another_kind_and_a_second_reading_are_refused() -> None:
    worker = Worker(REQUESTS)
    with pytest.raises(ExtractionError, match="was not told to read"):
        worker.persona_axis_sums([0])
    del worker.model_runner.requests
    with pytest.raises(ExtractionError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        worker.persona_axis_read(LAYERS, 1, 3)
    with pytest.raises(ExtractionError, match="reads already"):
        reading().persona_axis_read(LAYERS, 1, 3)


def test_what_cannot_be_asked_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExtractionError, match="enforce_eager is set by the engine itself"):
        OnVllm({"enforce_eager": False})
    monkeypatch.setattr(vllm_engine, "find_spec", lambda _: None)
    with pytest.raises(ExtractionError) as error:
        OnVllm({})
    assert str(error.value) == INSTALL and "pip install" in INSTALL


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    before = dict(os.environ)
    with pytest.raises(OSError, match="no start"), vllm_engine._environment():
        assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG" and os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
        raise OSError("no start")
    assert dict(os.environ) == before


@pytest.mark.parametrize("setting", ["additional_config", "hf_overrides"])
def test_no_axis_is_found_under_a_cap(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_engine.CAP, raising=False)
    with pytest.raises(ExtractionError, match="vLLM would hold a cap while the axis is found"):
        vllm_engine._started(None, None, {setting: {vllm_engine.CAP_IN_CONFIG: "a"}})  # type: ignore[arg-type]
