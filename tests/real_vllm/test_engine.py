"""The cap inside vLLM's engine: greedy tokens equal those of transformers under our own hooks, however it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import FAMILIES, PROMPTS, cap_of, projections, reference

from persona_axis.cap import Cap


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers_under_the_cap(
    family: str, eager: bool, models: Callable[[str], Path], offline: Callable[..., Any]
) -> None:
    folder = models(family)
    cap = Cap.load(cap_of(folder))
    with_cap, without = reference(folder, cap, PROMPTS), reference(folder, None, PROMPTS)
    assert with_cap != without, "the cap must matter for this test to mean anything"
    done = offline(folder, cap_of(folder), eager=eager)
    assert not isinstance(done, str), done[-4000:]
    assert done["first"] == with_cap
    assert done["again"] == with_cap
    assert done["without"] == without
    (figures,) = done["figures"]
    seen = projections(folder, cap, PROMPTS, with_cap)
    assert {(row["layer"], row["kind"]) for row in figures["layers"]} == set(seen)
    for row in figures["layers"]:
        values = seen[row["layer"], row["kind"]]
        outside = values < 4.0
        assert (row["tokens"], row["capped"]) == (len(values), int(outside.sum())), row
        assert row["mean_correction"] == pytest.approx((4.0 - values[outside]).mean().item(), rel=1e-3)
    assert "No such file" in done["refused"][0]
    assert "PERSONA_AXIS_ADMIN_KEY" in done["no key"] and "restart instead" in done["other weights"]
    assert done["reloaded"] == with_cap  # the same checkpoint again


@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_workers_hold_the_same_cap(split: str, models: Callable[[str], Path], offline: Callable[..., Any]) -> None:
    folder = models("llama")
    # One core each: vLLM otherwise asks for more cores than a small machine has.
    done = offline(folder, cap_of(folder), engine={split: 2}, env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"})
    assert not isinstance(done, str), done[-4000:]
    cap = Cap.load(cap_of(folder))
    assert done["first"] == reference(folder, cap, PROMPTS)
    assert done["without"] == reference(folder, None, PROMPTS)
    held = [sorted({row["layer"] for row in worker["layers"]}) for worker in done["figures"]]
    assert held == ([[1, 2], [1, 2]] if split.startswith("tensor") else [[1], [2]])


def test_bfloat16_as_published_models_are_served(
    models: Callable[[str], Path], offline: Callable[..., Any]
) -> None:
    folder = models("llama")
    plain, capped = (offline(folder, cap, dtype="bfloat16") for cap in (None, cap_of(folder)))
    assert not isinstance(capped, str), capped[-4000:]
    assert capped["first"] != plain["first"]
    assert capped["without"] == plain["first"]


def test_a_server_of_which_no_cap_is_asked_is_left_alone(
    models: Callable[[str], Path], offline: Callable[..., Any]
) -> None:
    done = offline(models("llama"), None)
    assert done["first"] == reference(models("llama"), None, PROMPTS)


def test_the_cap_may_be_named_in_the_engines_own_configuration(
    models: Callable[[str], Path], offline: Callable[..., Any]
) -> None:
    folder = models("llama")
    told = {"additional_config": {"persona_axis_cap": str(cap_of(folder))}}
    assert offline(folder, None, engine=told)["first"] == reference(folder, Cap.load(cap_of(folder)), PROMPTS)


def test_the_worker_extension_holds_where_plugins_are_left_out(
    models: Callable[[str], Path], offline: Callable[..., Any]
) -> None:
    folder = models("llama")
    told = {"worker_extension_cls": "persona_axis.serving.vllm_worker.WorkerExtension"}
    done = offline(folder, cap_of(folder), engine=told, env={"VLLM_PLUGINS": ""})
    assert done["first"] == reference(folder, Cap.load(cap_of(folder)), PROMPTS)
