"""Quantised models on the CPU: found, proven, held by an exact cap, and told apart from what they are copies of.

torch's own dynamic quantisation needs nothing more; the others run where their package is installed.
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import chat_factory as tiny
import pytest
import torch
import transformers
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from persona_axis import AxisMismatchError, Cap, ChatModel
from persona_axis.fingerprint import model_facts, weights_fingerprint
from persona_axis.residual import reading

HIDDEN, LAYER = 128, 1
PACKAGES = {
    "dynamic int8": "torch", "bitsandbytes int8": "bitsandbytes", "bitsandbytes nf4": "bitsandbytes",
    "torchao int8": "torchao", "torchao int8 activations": "torchao", "quanto int8": "optimum.quanto",
}  # fmt: skip
# Their steps of rounding hang on what else is in the batch, so that a token alone is another one than among others.
TOGETHER_ONLY = ("dynamic int8",)


def plain(seed: int = 0) -> PreTrainedModel:
    return tiny.llama(hidden=HIDDEN, seed=seed)


def quantised(kind: str, model: PreTrainedModel, folder: Path) -> Any:
    """A copy of the model with its linear layers quantised, made by way of `folder`."""
    model.save_pretrained(folder)
    if kind == "dynamic int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to move it elsewhere
            return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    config: Any
    if kind.startswith("torchao"):
        quantization = importlib.import_module("torchao.quantization")
        dynamic = kind == "torchao int8 activations"
        name = "Int8DynamicActivationInt8WeightConfig" if dynamic else "Int8WeightOnlyConfig"
        config = transformers.TorchAoConfig(getattr(quantization, name)())
    elif kind == "quanto int8":
        config = transformers.QuantoConfig(weights="int8")
    elif kind == "bitsandbytes int8":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    loader = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder, quantization_config=config, device_map="cpu", dtype=torch.float32).eval()


def loaded(kind: str, model: PreTrainedModel, folder: Path) -> ChatModel:
    return ChatModel.load(quantised(kind, model, folder), tokenizer=tiny.tokenizer())  # which proves its layers


@pytest.fixture(params=PACKAGES)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param], reason=f"{request.param} needs its package")
    return str(request.param)


def test_a_cap_on_a_quantised_model_is_exact(kind: str, tmp_path: Path) -> None:
    chat = loaded(kind, plain(), tmp_path)
    assert not chat.notes
    direction = normalize(torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = torch.tensor([[1, 10, 11, 12, 13, 14], [1, 20, 21, 22, 23, 24]])

    def read(cap: Cap | None) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        with (
            torch.no_grad(),
            cap.on(chat.model) if cap else nullcontext(),
            reading(chat.model, [LAYER], lambda layer, hidden: seen.append(hidden.clone())),
        ):
            logits = chat.model(ids).logits
        return logits, seen[0]

    logits, before = read(None)
    projections = before.double() @ direction[0].double()
    floor = float(projections.median()) + 0.01
    low = projections < floor
    moved, after = read(Cap(direction, [LAYER], floor))
    assert low.any() and not low.all() and torch.equal(after[~low], before[~low])
    torch.testing.assert_close((after.double() @ direction[0].double())[low], torch.full_like(projections[low], floor),
                               atol=2e-5, rtol=0)  # fmt: skip
    assert not torch.equal(moved, logits) and torch.equal(read(Cap(direction, [LAYER], -1e6))[0], logits)
    with Cap(direction, [LAYER], floor).on(chat.model):
        drawn = [chat.model.generate(ids[:1], max_new_tokens=8, do_sample=False, use_cache=cached, eos_token_id=None)
                 for cached in (True, False)]  # fmt: skip
    assert drawn[0].shape == (1, 14) and (kind in TOGETHER_ONLY or torch.equal(*drawn))


def test_a_quantised_copy_is_another_model_and_itself_again(kind: str, tmp_path: Path) -> None:
    """Compared as `ChatModel` loads them, that is after a first pass, in which bitsandbytes may repack its weights."""
    first, again = (loaded(kind, plain(), tmp_path / str(i)).model for i in range(2))
    tuned = plain()
    for layer in tuned.model.layers:  # embeddings and norms stay
        layer.mlp.up_proj.weight.data *= -1
    own = weights_fingerprint(first)
    assert own == weights_fingerprint(again)
    assert own not in (weights_fingerprint(plain()), weights_fingerprint(loaded(kind, tuned, tmp_path / "2").model))
    cap = Cap(normalize(torch.ones(1, HIDDEN), dim=1), [LAYER], -1e6, facts=model_facts(plain()))
    with pytest.raises(AxisMismatchError, match="weights fingerprint"):
        cap.require(first)
    cap.require(first, allow=["weights"])
