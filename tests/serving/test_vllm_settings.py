from __future__ import annotations

import subprocess
import sys

import pytest

from persona_axis.errors import CapError
from persona_axis.serving import vllm


def test_the_cap_is_named_by_the_environment_or_by_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.CAP, raising=False)
    assert vllm.asked({}) is None and vllm.asked(None) is None
    assert vllm.asked({vllm.CAP_IN_CONFIG: "a.safetensors"}) == "a.safetensors"
    monkeypatch.setenv(vllm.CAP, "b.safetensors")
    assert vllm.asked({}) == "b.safetensors"
    assert vllm.asked({vllm.CAP_IN_CONFIG: "b.safetensors"}) == "b.safetensors"
    with pytest.raises(CapError, match="two caps for one server"):
        vllm.asked({vllm.CAP_IN_CONFIG: "a.safetensors"})


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


def test_the_package_names_its_entry_points() -> None:
    from importlib.metadata import entry_points

    for group, wanted in (("vllm.general_plugins", vllm.register), ("vllm.endpoint_plugins", vllm.endpoint)):
        (found,) = entry_points(group=group, name="persona_axis")
        assert found.load() is wanted
