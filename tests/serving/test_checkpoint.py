from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_factory import tokenizer
from safetensors.torch import load_file, save_file

from persona_axis.cap import Cap
from persona_axis.errors import AxisMismatchError, ModelError
from persona_axis.fingerprint import model_facts, template_sha256
from persona_axis.serving._checkpoint import Checkpoint

Made = tuple[Path, Cap]


@pytest.fixture
def saved(tmp_path: Path, new_model: Callable[..., Any]) -> Callable[..., Made]:
    """A tiny model on disk and a cap that states its facts."""

    def make(family: str = "llama", **facts: Any) -> Made:
        model = new_model(family)
        folder = tmp_path / family
        model.save_pretrained(folder)
        tokens = tokenizer()
        tokens.save_pretrained(folder)
        stated = {**model_facts(model), "chat_template_sha256": template_sha256(tokens), **facts}
        return folder, Cap(torch.eye(1, model.config.hidden_size), [1], floor=1.0, facts=stated)

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_the_checkpoint_of_the_cap_passes(family: str, saved: Callable[..., Made]) -> None:
    folder, cap = saved(family)
    Checkpoint.read(str(folder)).require(cap)


def test_a_sharded_checkpoint_and_one_without_its_prefix(saved: Callable[..., Made]) -> None:
    folder, cap = saved()
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(held)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name.removeprefix("model."): held[name] for name in part}, folder / file)
    index = {name.removeprefix("model."): file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    Checkpoint.read(str(folder)).require(cap)


def test_other_weights_are_another_model_unless_they_are_allowed(saved: Callable[..., Made]) -> None:
    folder, cap = saved()
    held = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in held.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AxisMismatchError, match="weights fingerprint"):
        Checkpoint.read(str(folder)).require(cap)
    Checkpoint.read(str(folder)).require(cap, ("weights",))


def test_files_are_looked_at_again_where_another_model_cannot_be_made(
    saved: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cap = saved("gpt_neox")
    checkpoint = Checkpoint.read(str(folder))
    # As vLLM does to a class of transformers that it runs itself.
    monkeypatch.setattr("transformers.GPTNeoXModel.__init__", lambda *_: pytest.fail("made anew"))
    checkpoint.again().require(cap)
    held = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in held.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AxisMismatchError, match="weights fingerprint"):
        checkpoint.again().require(cap)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors"):
        checkpoint.again().require(cap)


def test_another_chat_template_is_told(saved: Callable[..., Made]) -> None:
    folder, cap = saved(chat_template_sha256="0" * 64)
    with pytest.raises(AxisMismatchError, match="chat template"):
        Checkpoint.read(str(folder)).require(cap)


def test_a_hand_made_cap_has_only_its_width_to_compare(saved: Callable[..., Made]) -> None:
    folder, cap = saved()
    Checkpoint.read(str(folder)).require(Cap(cap.direction, [1], floor=0.0))
    with pytest.raises(AxisMismatchError, match="width 7"):
        Checkpoint.read(str(folder)).require(Cap(torch.eye(1, 7), [1], floor=0.0))


def test_weights_that_cannot_be_compared_are_not_taken_for_the_same(saved: Callable[..., Made]) -> None:
    folder, cap = saved()
    held = load_file(folder / "model.safetensors")
    save_file({f"renamed.{name}": value for name, value in held.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be compared"):
        Checkpoint.read(str(folder)).require(cap)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors"):
        Checkpoint.read(str(folder)).require(cap)


def test_a_name_that_is_nowhere() -> None:
    with pytest.raises(ModelError, match="neither a folder nor in the hub's local cache"):
        Checkpoint.read("nobody/nothing")
