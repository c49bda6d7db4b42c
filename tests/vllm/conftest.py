"""What the tests with a real vLLM share. They run in an environment of their own: `make test-vllm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_axis.cap import Cap
from persona_axis.organism import troupe_path

HERE = Path(__file__).parent
LAYERS = (1, 2)
PROMPTS = [[5, 6, 7, 8], [9] * 70 + [11, 12], [20, 21], [5, 6, 7, 8, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43]]
FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt_neox", "olmo2")
_SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 32,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


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
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_SHAPE)).float()
            model.save_pretrained(path)
            AutoTokenizer.from_pretrained(troupe_path()).save_pretrained(path)
            from persona_axis.fingerprint import model_facts

            rows = torch.nn.functional.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(1)), dim=1)
            # A floor of the second percentile that matters: half of the tokens lie below it.
            cap = Cap(rows, LAYERS, floor=4.0, facts={**model_facts(model), "model": family})
            cap.save(cap_of(path))
        return path

    return folder


def cap_of(folder: Path) -> Path:
    """Not inside the folder: vLLM reads every safetensors file there as weights."""
    return folder.with_suffix(".cap.safetensors")


def reference(folder: Path, cap: Cap | None, prompts: list[list[int]], tokens: int = 16) -> list[list[int]]:
    """Greedy tokens of transformers, under our own hooks."""
    from contextlib import nullcontext

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = []
    for ids in prompts:
        with torch.inference_mode(), nullcontext() if cap is None else cap.on(model):
            whole = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=tokens,
                min_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        out.append(whole[0, len(ids) :].tolist())
    return out


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


def environ(cap: Path | str | None, cache: Path, **more: str) -> dict[str, str]:
    """The environment of an engine on this machine's CPUs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA_AXIS")}
    kept |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": str(cache), "HF_HUB_OFFLINE": "1"}
    kept["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    if cap is not None:
        kept["PERSONA_AXIS_CAP"] = str(cap)
    return kept | more
