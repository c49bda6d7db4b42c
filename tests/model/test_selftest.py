"""The proof at load: what it finds, that it finds it in one pass, and that it leaves nothing behind."""

from __future__ import annotations

import chat_factory as tiny
import pytest
import torch
from conftest import LAYERS
from test_residual import hooks

from persona_axis.chat import ChatModel
from persona_axis.errors import ModelError, ResidualError
from persona_axis.model.selftest import self_test

TOKENS = torch.tensor([5, 9, 17])


def test_every_family_in_one_pass_that_leaves_nothing_behind(any_model):
    passes = []
    handle = any_model.register_forward_pre_hook(lambda *_: passes.append(1))
    before = torch.random.get_rng_state()
    assert self_test(any_model, TOKENS) == ""
    handle.remove()
    assert passes == [1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not hooks(any_model)


def test_a_model_in_training_with_dropout_stays_in_training(new_model):
    model = new_model("gpt2").train()
    model.transformer.h[1].eval()
    before = torch.random.get_rng_state()
    assert self_test(model, TOKENS) == ""
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training and not model.transformer.h[1].training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(new_model, dtype):
    assert self_test(new_model("llama").to(dtype), TOKENS) == ""


def runs_layers(model, order):
    """Make `model` run its layers in another order than the list's."""
    inner = model.model
    layers = torch.nn.ModuleList(inner.layers[at] for at in order)

    def forward(*args, **kwargs):
        inner.layers, listed = layers, inner.layers
        try:
            return type(inner).forward(inner, *args, **{**kwargs, "use_cache": False})
        finally:
            inner.layers = listed

    inner.forward = forward


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ([0, 1, 3], r"layers \[2\] of model.layers of LlamaForCausalLM did not run"),
        ([0, 1, 1, 2, 3], r"layers \[1\] of .* run several times in one pass"),
        ([0, 2, 1, 3], r"run in the order \[0, 2, 1, 3\]"),
    ],
)
def test_layers_that_run_otherwise_than_they_are_listed(new_model, order, told):
    model = new_model("llama")
    runs_layers(model, order)
    model.config.num_hidden_layers = len(order)  # how many of them transformers runs
    with pytest.raises(ResidualError, match=told):
        self_test(model, TOKENS, "model.layers")
    assert not hooks(model)


def test_layers_that_do_not_reach_the_logits(new_model):
    model = new_model("llama")
    layer = model.model.layers[2]
    plain = layer.forward
    layer.forward = lambda hidden, **k: plain(torch.ones_like(hidden), **k)
    with pytest.raises(ResidualError, match=r"edit at layers \[0, 1\] of model.layers .* does not change the logits"):
        self_test(model, TOKENS)


@pytest.mark.parametrize("tokens", [[5, 9, 17], [5, 9, 9], [9, 9, 9], [0, 0, 0]])
def test_a_model_that_looks_ahead(new_model, tokens):
    """Also where the template ends in equal tokens."""
    model = new_model("llama")
    layer = model.model.layers[1]
    plain = layer.forward
    layer.forward = lambda hidden, **k: plain(hidden + hidden.flip(1), **k)
    with pytest.raises(ResidualError, match=r"layers \[1, 2, 3\] of .* look ahead"):
        self_test(model, torch.tensor(tokens))


def test_logits_that_are_not_finite(new_model):
    model = new_model("llama")
    model.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(ResidualError, match="not finite, with no edit at all"):
        self_test(model, TOKENS)


def test_a_model_that_cannot_run(new_model):
    model = new_model("llama")
    model.model.norm.weight.data = torch.ones(3)
    with pytest.raises(ResidualError, match=r"a batch of \[7, 2\] tokens ended in RuntimeError"):
        self_test(model, TOKENS)
    assert not hooks(model)


class TestLoading:
    def test_is_on_by_default_and_can_be_left_out(self):
        model = tiny.llama()
        model.model.layers[1].forward = lambda hidden, **_: torch.zeros_like(hidden)
        told = r"edit at layers \[0\] of model.layers.*--stack NAME.*check=False, in Python only"
        with pytest.raises(ModelError, match=told):
            ChatModel.load(model, tokenizer=tiny.tokenizer())
        chat = ChatModel.load(model, tokenizer=tiny.tokenizer(), check=False)
        assert chat.n_layers == 3
        with pytest.raises(ModelError, match=r"edit at layers \[0\]"):
            chat.check()

    def test_from_a_directory(self, tmp_path):
        tiny.llama().save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        passes = []
        chat = ChatModel.load(tmp_path)
        chat.model.register_forward_pre_hook(lambda *_: passes.append(1))
        assert chat.check() is chat and passes == [1] and chat.notes == []

    def test_what_could_not_be_proven_is_a_note(self, monkeypatch):
        from persona_axis import chat as module

        monkeypatch.setattr(module, "self_test", lambda *_: "not tested: why")
        assert tiny.chat().notes == ["not tested: why"]

    def test_a_wrapper_that_cannot_generate(self):
        with pytest.raises(ModelError, match="a Sequential cannot be asked: pass the transformers model that it wraps"):
            ChatModel.load(torch.nn.Sequential(tiny.llama()), tokenizer=tiny.tokenizer())


def test_the_number_of_rows_is_that_of_the_layers(llama):
    rows = []
    handle = llama.model.layers[0].register_forward_hook(lambda _m, _a, out: rows.append(out.shape))
    self_test(llama, TOKENS)
    handle.remove()
    assert rows == [(LAYERS + 3, 2, 32)]
