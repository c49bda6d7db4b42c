"""Finding, reading and editing the residual stream."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import HIDDEN, LAYERS, VOCAB
from torch import nn

from persona_axis.edits.watch import watching
from persona_axis.errors import ExtractionError, ResidualError
from persona_axis.residual import Fires, decoder_layers, editing, hidden_size, reading

IDS = torch.arange(3, 3 + 2 * 7).view(2, 7)
PATHS = {
    "llama": "model.layers", "qwen3": "model.layers", "gemma2": "model.layers", "gpt_neox": "gpt_neox.layers",
    "gpt2": "transformer.h", "gemma3": "model.language_model.layers",
}  # fmt: skip


def run(model):
    with torch.no_grad():
        return model(input_ids=IDS, output_hidden_states=True)


def hooks(model):
    """Every hook left on a model, but for the recording hooks that transformers never takes away."""
    kinds = [kind for m in model.modules() for kind in (m._forward_hooks, m._forward_pre_hooks)]
    found = [hook for kind in kinds for hook in kind.values()]
    return [hook for hook in found if not hook.__module__.startswith("transformers.")]


class TestFinding:
    @pytest.mark.parametrize("family", PATHS)
    def test_every_family(self, shared_models, family):
        model = shared_models[family]
        assert decoder_layers(model) == list(model.get_submodule(PATHS[family]))
        assert hidden_size(model) == HIDDEN

    def test_the_bare_model_and_wrappers(self, llama):
        layers = decoder_layers(llama)
        assert decoder_layers(llama.model) == layers
        assert decoder_layers(torch.compile(llama, backend="eager")) == layers
        assert hidden_size(torch.compile(llama, backend="eager")) == HIDDEN

    def test_named(self, llama):
        assert decoder_layers(llama, "model.layers") == decoder_layers(llama)

    @pytest.mark.parametrize("path", ["model.nowhere", "model.norm", "lm_head"])
    def test_named_wrongly(self, llama, path):
        with pytest.raises(ResidualError, match=path):
            decoder_layers(llama, path)

    def test_encoder_only(self):
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=VOCAB
        )
        with pytest.raises(ResidualError, match="looks ahead: .*encoder.layer.*not causal.*--stack"):
            decoder_layers(transformers.BertModel(config))
        decoder = transformers.BertLMHeadModel(transformers.BertConfig(**{**config.to_dict(), "is_decoder": True}))
        assert len(decoder_layers(decoder)) == 2

    def test_encoder_decoder(self):
        config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=VOCAB)
        with pytest.raises(ResidualError, match="encoder-decoder"):
            decoder_layers(transformers.T5ForConditionalGeneration(config))

    def test_encoder_decoder_inside_a_larger_model(self):
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        text = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        config = transformers.InstructBlipConfig(
            vision_config={**small, "image_size": 28, "patch_size": 14},
            qformer_config={**small, "encoder_hidden_size": 32}, text_config={**text, "vocab_size": VOCAB},
        )  # fmt: skip
        with pytest.raises(ResidualError, match="encoder-decoder"):
            decoder_layers(transformers.InstructBlipForConditionalGeneration(config))

    def test_nothing_that_looks_like_layers(self):
        told = "Linear.*no list of layers.*--stack model.layers, in Python layers='model.layers'"
        with pytest.raises(ResidualError, match=told):
            decoder_layers(nn.Linear(2, 2))

    def test_several_lists_are_told_and_can_be_named(self):
        both = nn.Module()
        both.a = nn.ModuleList([nn.Linear(2, 2)] * 3)
        both.b = nn.ModuleList([nn.Linear(2, 2)] * 2)
        with pytest.raises(ResidualError, match=r"a \(3 x Linear\), b \(2 x Linear\)"):
            decoder_layers(both)
        assert len(decoder_layers(both, "b")) == 2

    def test_a_config_tells_how_many_layers_there_are(self):
        both = nn.Module()
        both.heads = nn.ModuleList([nn.Linear(2, 2)] * 3)
        both.blocks = nn.ModuleList([nn.Linear(2, 2)] * 2)
        both.config = transformers.LlamaConfig(num_hidden_layers=2)
        assert decoder_layers(both) == list(both.blocks)
        both.config.num_hidden_layers = 5
        with pytest.raises(ResidualError, match="looked for one list of 5 decoder layers, saw heads .*, blocks"):
            decoder_layers(both)

    def test_lists_inside_layers_do_not_count(self):
        layer = nn.Module()
        layer.experts = nn.ModuleList([nn.Linear(2, 2)])
        model = nn.Module()
        model.blocks = nn.ModuleList([layer, layer])
        assert decoder_layers(model) == [layer, layer]

    def test_not_a_module(self):
        with pytest.raises(ResidualError, match="expected a torch module, got 'llama'"):
            decoder_layers("llama")

    def test_no_hidden_size(self):
        with pytest.raises(ResidualError, match="hidden size of Linear"):
            hidden_size(nn.Linear(2, 2))


class TestReading:
    def test_reads_what_the_next_layer_gets(self, any_model):
        seen = {}
        with reading(any_model, range(LAYERS), lambda layer, hidden: seen.update({layer: hidden.clone()})) as fires:
            states = run(any_model).hidden_states
        assert fires.counts == dict.fromkeys(range(LAYERS), 1)
        for layer in range(LAYERS - 1):  # the last entry of hidden_states is after the final norm
            assert torch.equal(seen[layer], states[layer + 1])
        assert seen[LAYERS - 1].shape == (2, 7, HIDDEN)
        assert not hooks(any_model)

    def test_sees_edits_entered_before_and_none_entered_after(self, llama):
        seen = []
        with (
            editing(llama, {1: lambda h: h + 1}),
            reading(llama, [1], lambda _, h: seen.append(h.clone())),
            editing(llama, {1: lambda h: h + 10}),
            reading(llama, [1], lambda _, h: seen.append(h.clone())),
        ):
            run(llama)
        plain = run(llama).hidden_states[2]
        assert torch.equal(seen[0], plain + 1)
        assert torch.equal(seen[1], plain + 1 + 10)

    @pytest.mark.parametrize("layer", [-1, LAYERS])
    def test_a_layer_that_does_not_exist(self, llama, layer):
        with (
            pytest.raises(ResidualError, match=f"layer {layer} does not exist.*0 to 3"),
            reading(llama, [layer], print),
        ):
            pass
        assert not hooks(llama)

    def test_counts(self, llama):
        with reading(llama, [0, 3], lambda *_: None) as fires:
            assert fires.silent() == [0, 3]
            run(llama)
            run(llama)
        assert fires.counts == {0: 2, 3: 2}
        assert fires.silent() == []

    def test_runs_inside_compiled_graphs_leave_only_that_they_were(self):
        fires = Fires([0, 3])
        fires.mark(3).fresh = True  # what a graph stores
        assert fires.missed() == [0] and fires.counts == {0: 0, 3: 1}
        fires.begin_run()
        assert fires.missed() == [0, 3] and fires.silent() == [0] and fires.layers == [0, 3]
        fires.clear()
        assert fires.silent() == [0, 3]


class TestEditing:
    def test_changes_what_follows_and_nothing_before(self, any_model):
        plain = run(any_model)
        with editing(any_model, {1: lambda h: h * 2}) as fires:
            edited = run(any_model)
        assert torch.equal(edited.hidden_states[1], plain.hidden_states[1])
        assert torch.equal(edited.hidden_states[2], plain.hidden_states[2] * 2)
        assert not torch.equal(edited.logits, plain.logits)
        assert fires.counts == {1: 1}
        assert not hooks(any_model)
        assert torch.equal(run(any_model).logits, plain.logits)

    def test_the_same_tensor_means_no_change(self, llama):
        with editing(llama, {2: lambda h: h}):
            assert torch.equal(run(llama).logits, run(llama).logits)

    def test_tuple_outputs_keep_their_other_items(self):
        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(2, 2)

            def forward(self, x):
                return x, "cache", 3

        model = nn.Module()
        model.layers = nn.ModuleList([Layer()])
        x = torch.ones(1, 1, 2)
        seen = []
        with editing(model, {0: lambda h: h + 1}), reading(model, [0], lambda _, h: seen.append(h)):
            out = model.layers[0](x)
        assert torch.equal(out[0], x + 1) and out[1:] == ("cache", 3)
        assert torch.equal(seen[0], x + 1)

    @pytest.mark.parametrize("output", [{"hidden": 1}, (), None, ("text",)])
    def test_an_output_without_hidden_states(self, output):
        class Layer(nn.Linear):
            def forward(self, x):
                return output

        model = nn.Module()
        model.layers = nn.ModuleList([Layer(2, 2)])
        with editing(model, {0: lambda h: h}), pytest.raises(ResidualError, match="layer 0 returned a"):
            model.layers[0](torch.ones(1))

    @pytest.mark.parametrize(
        "change", [lambda h: h[:, :-1], lambda h: h.double(), lambda h: torch.empty_like(h, device="meta")]
    )
    def test_an_edit_that_changes_the_kind_of_tensor(self, llama, change):
        with editing(llama, {0: change}), pytest.raises(ResidualError, match="edit at layer 0 turned"):
            run(llama)
        assert not hooks(llama)

    def test_hooks_go_whatever_is_raised(self, llama):
        def broken(hidden):
            raise KeyboardInterrupt

        plain = run(llama)
        with pytest.raises(KeyboardInterrupt), editing(llama, {0: lambda h: h * 2, 1: broken}):
            run(llama)
        assert not hooks(llama)
        assert torch.equal(run(llama).logits, plain.logits)

    def test_a_named_list(self, llama):
        with editing(llama, {0: lambda h: h * 2}, stack="model.layers") as fires:
            run(llama)
        assert fires.counts == {0: 1}


class TestWatching:
    """Fail closed. `test_cap_models` shows the compiled cases on real caps."""

    def test_a_run_that_misses_a_layer_is_an_error_at_once(self, new_model):
        model = new_model("llama")
        model.model.layers[2].forward = lambda h, **_: h
        skipped = model.model.layers[2]
        with (
            pytest.raises(ExtractionError, match=r"the reader did not act at layers \[2\]"),
            reading(model, [1, 2], lambda *_: None) as fires,
            watching(model, fires, ExtractionError, "the reader"),
        ):
            run(model)
            skipped._forward_hooks.clear()  # what a graph that ignores late hooks amounts to
            run(model)
        assert not hooks(model)

    def test_nothing_ran(self, llama):
        with (
            pytest.raises(ExtractionError, match=r"did not act at layers \[0\]: nothing ran"),
            reading(llama, [0], lambda *_: None) as fires,
            watching(llama, fires, ExtractionError, "the reader"),
        ):
            pass

    def test_the_body_s_exception_goes_first(self, llama):
        with (
            pytest.raises(ZeroDivisionError),
            reading(llama, [0], lambda *_: None) as fires,
            watching(llama, fires, ExtractionError, "the reader"),
        ):
            raise ZeroDivisionError
        assert not hooks(llama)
        assert "get_compiled_call" not in vars(llama)
