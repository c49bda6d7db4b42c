"""Finding the layers through wrappers, beside towers, and in stacks that are not plain."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import transformers
from conftest import HIDDEN, LAYERS, VOCAB
from test_cap import units
from test_residual import IDS, hooks
from torch import nn

from persona_axis import Cap
from persona_axis.errors import ResidualError
from persona_axis.model.layout import find_stack, unwrapped
from persona_axis.model.selftest import self_test
from persona_axis.residual import decoder_layers, editing, hidden_size, reading

TOKENS = torch.tensor([5, 9, 17])


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def holds(model: nn.Module, called: nn.Module | None = None) -> None:
    """Found, proven, read, and capped, whatever the model is wrapped in."""
    called = called or model
    assert len(decoder_layers(model)) == LAYERS and hidden_size(model) == HIDDEN
    assert self_test(model, TOKENS) == ""
    cap, seen = Cap(units(2, HIDDEN), [1, 2], floor=2.0), {}
    with torch.no_grad():
        plain = called(input_ids=IDS).logits
        with cap.on(model), reading(model, [1, 2], lambda at, hidden: seen.update({at: hidden})):
            capped = called(input_ids=IDS).logits
        assert torch.equal(called(input_ids=IDS).logits, plain)
    assert not torch.allclose(plain, capped)
    assert all((seen[layer] @ cap.direction[row]).min() >= 2 - 1e-4 for row, layer in enumerate(cap.layers))


class TestWrappers:
    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_a_wrapper_that_hides_the_config(self, shared_models, family):
        class Wrapper(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, **inputs):
                return self.inner(**inputs)

        model = shared_models[family]
        wrapped = Wrapper(Wrapper(model))
        assert unwrapped(wrapped) is model
        assert find_stack(wrapped).path == f"inner.inner.{find_stack(model).path}"
        holds(wrapped)

    def test_distributed_data_parallel(self, new_model, process_group):
        holds(nn.parallel.DistributedDataParallel(new_model("gemma3")))

    def test_fully_sharded(self, new_model, process_group):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model, mesh = new_model("llama"), init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        holds(model)

    @pytest.mark.filterwarnings("ignore")
    def test_fully_sharded_the_old_way(self, new_model, process_group):
        from torch.distributed.fsdp import FullyShardedDataParallel as Sharded
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        model = new_model("llama")
        policy = ModuleWrapPolicy({type(model.model.layers[0])})
        holds(Sharded(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True))

    @pytest.mark.parametrize("whole", [True, False])
    def test_compiled(self, new_model, whole):
        torch.compiler.reset()
        model = new_model("llama")
        if whole:
            called = torch.compile(model, backend="eager")
        else:
            called = model
            for at, layer in enumerate(model.model.layers):
                model.model.layers[at] = torch.compile(layer, backend="eager")
        assert self_test(called, TOKENS) == ""
        with Cap(units(1, HIDDEN), [1], floor=2.0).on(called), torch.no_grad():  # no graph was made by the test
            called(input_ids=IDS)
        torch.compiler.reset()

    def test_offloaded(self, new_model):
        from accelerate import cpu_offload

        model = new_model("llama")
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert next(model.parameters()).is_meta
        holds(model)

    def test_a_device_map(self, new_model, tmp_path):
        from accelerate import disk_offload

        model = new_model("llama")
        disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
        holds(model)

    def test_weights_that_are_nowhere(self):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=VOCAB
            ))  # fmt: skip
        assert "meta device" in self_test(model, TOKENS)

    def test_quantised(self, new_model):
        """int8 weights packed out of sight, as quantisers do: norms are the only parameters left."""

        class Int8(nn.Module):
            def __init__(self, linear: nn.Linear) -> None:
                super().__init__()
                scale = linear.weight.abs().amax(1, keepdim=True) / 127
                self.register_buffer("scale", scale.detach())
                self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8).detach())

            def forward(self, x):
                return x @ (self.weight * self.scale).T

        model = new_model("llama")
        for layer in model.model.layers:
            for module in list(layer.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(module, name, Int8(child))
        holds(model)

    def test_adapters(self, new_model):
        peft = pytest.importorskip("peft")
        for family, targets in (("llama", ["q_proj"]), ("gpt2", ["c_attn"]), ("gemma3", ["q_proj"])):
            model = peft.get_peft_model(new_model(family), peft.LoraConfig(target_modules=targets, r=2))
            assert find_stack(model).path.startswith("base_model.model.")
            holds(model.eval())

    def test_adapters_made_by_hand(self, new_model):
        """What adapters do to a structure: lists inside the layers, and a wrapper with children of its own."""

        class Adapted(nn.Module):
            def __init__(self, base: nn.Linear) -> None:
                super().__init__()
                self.base, self.down = base, nn.ModuleList([nn.Linear(base.in_features, 2)] * LAYERS)
                self.up = nn.ModuleList([nn.Linear(2, base.out_features)] * LAYERS)

            def forward(self, x):
                return self.base(x) + self.up[0](self.down[0](x))

        model = new_model("llama")
        for layer in model.model.layers:
            layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
        assert find_stack(model).path == "model.layers"
        holds(model)


class TestTelling:
    def test_of_several_lists_the_one_by_the_embeddings(self, new_model):
        model = new_model("llama")
        model.drafts = copy.deepcopy(model.model.layers)
        assert find_stack(model).path == "model.layers"
        model.model.other = copy.deepcopy(model.model.layers)
        with pytest.raises(ResidualError, match=r"saw model.layers \(4 x .*\), model.other \(4 x .*name the list"):
            find_stack(model)
        assert find_stack(model, "model.layers").path == "model.layers"

    def test_a_config_that_counts_otherwise(self, new_model):
        model = new_model("llama")
        model.config.num_hidden_layers = 2 * LAYERS
        assert find_stack(model).path == "model.layers"

    def test_a_wrong_name_shows_the_right_one(self, llama):
        with pytest.raises(ResidualError, match=r"no list of layers at 'model.blocks'.*it has model.layers \(4 x Ll"):
            find_stack(llama, "model.blocks")
        with pytest.raises(ResidualError, match=r"\[2, 3\] does not name the list of decoder layers: expected a text"):
            find_stack(llama, [2, 3])

    def test_tied_weights_are_two_layers_and_a_shared_module_is_one(self, new_model):
        model = new_model("llama")
        layers = model.model.layers
        layers[2].load_state_dict(layers[1].state_dict())
        layers[2].mlp = layers[1].mlp
        holds(model)
        layers[2] = layers[1]
        with pytest.raises(ResidualError, match=r"layers \[1, 2\] are one and the same module"):
            self_test(model, TOKENS)
        with reading(model, [0, 3], lambda *_: None), torch.no_grad():  # the others are as good as ever
            model(input_ids=IDS, use_cache=False)
        assert not hooks(model)

    def test_lists_and_tuples_keep_their_kind_and_named_tuples_are_refused(self):
        class Layer(nn.Linear):
            kind: type = list

            def forward(self, x):
                return self.kind((x, "cache"))

        model = nn.Module()
        model.layers = nn.ModuleList([Layer(2, 2)])
        with editing(model, {0: lambda h: h + 1}):
            out = model.layers[0](torch.ones(1, 1, 2))
            assert type(out) is list and torch.equal(out[0], torch.full((1, 1, 2), 2.0)) and out[1] == "cache"
            Layer.kind = lambda _, items: torch.return_types.max((items[0], items[0]))
            with pytest.raises(ResidualError, match="layer 0 returned a max, not hidden states"):
                model.layers[0](torch.ones(1, 1, 2))

    def test_streams_side_by_side(self):
        model = nn.Module()
        model.layers = nn.ModuleList([nn.Linear(2, 2)])
        with reading(model, [0], lambda *_: None), pytest.raises(ResidualError, match="several streams side by side"):
            model.layers[0](torch.ones(4, 1, 3, 2))
