from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from persona_axis.errors import CapError
from persona_axis.serving import vllm

ROOT = Path(__file__).resolve().parents[2]


def test_the_cap_is_named_by_the_environment_or_by_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.CAP, raising=False)
    assert vllm.asked({}) is None and vllm.asked(None) is None
    assert vllm.asked({vllm.CAP_IN_CONFIG: "a.safetensors"}) == "a.safetensors"
    monkeypatch.setenv(vllm.CAP, "b.safetensors")
    assert vllm.asked({}) == "b.safetensors"
    assert vllm.asked({vllm.CAP_IN_CONFIG: "b.safetensors"}) == "b.safetensors"
    with pytest.raises(CapError, match="two caps for one server"):
        vllm.asked({vllm.CAP_IN_CONFIG: "a.safetensors"})


def test_of_two_ways_in_the_configuration_either_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.CAP, raising=False)
    one, other = {vllm.CAP_IN_CONFIG: "a.safetensors"}, {vllm.CAP_IN_CONFIG: "b.safetensors", "rope_theta": 1.0}
    assert vllm.asked({}, one) == vllm.asked(one, {}) == vllm.asked(one, one) == "a.safetensors"
    with pytest.raises(CapError, match=r"in --additional-config=a.*in --hf-overrides=b"):
        vllm.asked(one, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"persona-axis-cap": "a"}, {"persona_axis": "a"}, {"persona_axis": {"cap": "a"}}, {"personaAxisCap": "a"},
        {"PERSONA_AXIS_CAP": "a"}, {"text_config": {"persona_axis_cap": "a"}}, {"persona_axis_caps": "a"},
    ],
)  # fmt: skip
def test_a_cap_named_where_nobody_looks_is_no_server_without_one(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(vllm.CAP, raising=False)
    with pytest.raises(CapError, match=r"--additional-config has no setting '.*': the cap's is 'persona_axis_cap'"):
        vllm.asked(wrong)
    with pytest.raises(CapError, match="--hf-overrides has no setting"):
        vllm.asked({vllm.CAP_IN_CONFIG: "a"}, wrong)


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_name_is_no_way_to_serve_without_a_cap(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.CAP, value)
    with pytest.raises(CapError, match=f"unset {vllm.CAP}"):
        vllm.asked({})


def test_a_name_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.CAP, raising=False)
    with pytest.raises(CapError, match="names no cap file"):
        vllm.asked({vllm.CAP_IN_CONFIG: 3})


def test_the_entry_point_imports_nothing_that_could_be_missing() -> None:
    """vLLM logs a plugin that cannot be imported and serves on without it."""
    heavy = {"torch", "vllm", "transformers"}
    code = f"import sys, persona_axis.serving.vllm; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("needed", ["register()", "endpoint()", "import"])
def test_without_vllm_it_says_what_to_install(needed: str) -> None:
    call = "import persona_axis.serving.vllm_worker" if needed == "import" else f"persona_axis.serving.vllm.{needed}"
    code = f"import sys; sys.modules['vllm'] = sys.modules['fastapi'] = None; import persona_axis.serving.vllm; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("persona_axis.errors.ServeError: a cap in vLLM takes vLLM 0.32 or later")
    assert 'pip install "persona-axis[vllm]"' in last


def test_the_extra_is_not_pulled_in_by_development() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(named.startswith("vllm>=") for named in extras["vllm"])
    others = [named for extra, listed in extras.items() if extra != "vllm" for named in listed]
    assert not any("vllm" in named for named in others)


def test_the_package_names_its_entry_points() -> None:
    from importlib.metadata import entry_points

    for group, wanted in (("vllm.general_plugins", vllm.register), ("vllm.endpoint_plugins", vllm.endpoint)):
        (found,) = entry_points(group=group, name="persona_axis")
        assert found.load() is wanted
