"""What the tests with a real vLLM share. They run in an environment of their own: `make test-vllm`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import HERE, LAYERS, PROMPTS, SHAPE, cap_of, environ

from persona_axis.cap import Cap
from persona_axis.fingerprint import model_facts
from persona_axis.organism import troupe_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session", autouse=True)
def _needs_vllm() -> None:
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM in an environment of its own: make test-vllm")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model, made once, with a cap beside it: `<folder>.cap.safetensors`."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        path = root / family
        if not path.is_dir():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE)).float()
            model.save_pretrained(path)
            AutoTokenizer.from_pretrained(troupe_path()).save_pretrained(path)
            rows = torch.nn.functional.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(1)), dim=1)
            # A floor of the second percentile that matters: half of the tokens lie below it.
            cap = Cap(rows, LAYERS, floor=4.0, facts={**model_facts(model), "model": family})
            cap.save(cap_of(path))
        return path

    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where vLLM keeps compiled graphs during this session."""
    return tmp_path_factory.mktemp("vllm-cache")


@pytest.fixture
def offline(cache: Path) -> Callable[..., Any]:
    """Run the offline engine in a process of its own: `offline(model, cap, prompts, **told)`.

    Returns what it printed as JSON, or, when it did not start, its log as text.
    """

    def run(model: Path, cap: Path | str | None, prompts: list[list[int]] = PROMPTS, **told: Any) -> Any:
        environment = environ(cap, cache, **told.pop("env", {}))
        told |= {"model": str(model), "prompts": prompts, "capped": cap is not None}
        command = [sys.executable, str(HERE / "offline.py"), json.dumps(told)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        log = done.stdout + done.stderr
        if done.returncode != 0:
            return log
        return json.loads(next(line for line in log.splitlines() if line.startswith("RESULT "))[7:])

    return run
