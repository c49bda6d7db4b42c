"""An engine that cannot prove its cap does not start, and says why. Each test breaks the cap on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import LAYERS, cap_of

from persona_axis import __version__
from persona_axis.cap import Cap

BREAKS = {"worker_extension_cls": "breaks.Extension"}


@pytest.mark.parametrize(
    ("broken", "eager", "said"),
    [
        ("late", False, "the compiled graph does without"),
        ("half", True, "does not act on the sum of the stream's parts"),
        ("half_written", True, "does not act on the sum of the stream's parts"),
        ("wrong_class", True, "did not run in vLLM's dummy batch"),
        ("unproven", True, "was not proven on this worker"),
    ],
)
def test_a_broken_cap_does_not_serve(
    broken: str, eager: bool, said: str, models: Callable[[str], Path], offline: Callable[..., Any]
) -> None:
    log = offline(models("llama"), cap_of(models("llama")), eager=eager, engine=BREAKS, env={"BREAK": broken})
    assert isinstance(log, str), "it started"
    assert said in log, log[-6000:]


def test_a_graph_compiled_without_the_cap_is_not_served(
    models: Callable[[str], Path], offline: Callable[..., Any], tmp_path: Path
) -> None:
    folder, told = models("qwen3"), {"VLLM_CACHE_ROOT": str(tmp_path), "BREAK": "stale"}
    # What keeps the graphs apart is said by hand, so that this engine's graph is found by the next one.
    mark = {"additional_config": {"persona_axis": {"version": __version__, "layers": list(LAYERS)}}}
    assert not isinstance(offline(folder, None, eager=False, engine=BREAKS | mark, env=told), str)
    log = offline(folder, cap_of(folder), eager=False, engine=BREAKS, env=told)
    assert isinstance(log, str), "it started"
    assert "A graph traced without the cap was reused" in log, log[-6000:]


def test_a_graph_compiled_without_the_cap_is_not_even_found(
    models: Callable[[str], Path], offline: Callable[..., Any], tmp_path: Path
) -> None:
    folder, told = models("qwen3"), {"VLLM_CACHE_ROOT": str(tmp_path), "BREAK": "stale"}
    plain = offline(folder, None, eager=False, engine=BREAKS, env=told)
    capped = offline(folder, cap_of(folder), eager=False, engine=BREAKS, env=told)
    assert not isinstance(capped, str), capped[-4000:]
    assert capped["first"] != plain["first"] and capped["without"] == plain["first"]
    assert len(list((tmp_path / "torch_compile_cache" / "torch_aot_compile").iterdir())) == 2


def test_caps_that_no_server_can_use(
    models: Callable[[str], Path], offline: Callable[..., Any], tmp_path: Path
) -> None:
    folder = models("llama")
    good = Cap.load(cap_of(folder))
    beyond = Cap(good.direction, [1, 9], floor=1.0)
    rows = Cap(good.direction, LAYERS, floor=torch.ones(2, 3))
    for name, cap in (("beyond", beyond), ("rows", rows), ("narrow", Cap(torch.eye(2, 32), LAYERS, floor=1.0))):
        cap.save(tmp_path / f"{name}.safetensors")
    for path, said in (
        (tmp_path / "nothing.safetensors", "cannot be read"),
        (tmp_path / "beyond.safetensors", "layers [9] do not exist"),
        (tmp_path / "rows.safetensors", "holds all requests to one bound"),
        (tmp_path / "narrow.safetensors", "has width 32"),
        (cap_of(models("qwen3")), "made for another model"),
        ("", "names no cap file"),
    ):
        log = offline(folder, path)
        assert isinstance(log, str), f"it started with {path}"
        assert said in log, log[-4000:]
