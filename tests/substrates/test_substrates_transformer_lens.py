"""A TransformerLens bridge: the numbers of the plain hooks, a cap among the user's hooks, what is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest
import torch
from torch import Tensor

from persona_axis import Axis, Cap, ChatModel
from persona_axis.drift import trajectory
from persona_axis.edits.arithmetic import clamped, projected
from persona_axis.errors import AxisMismatchError, CapError, CapMismatchError, DriftError, ModelError
from persona_axis.extract import Options, extract
from persona_axis.fingerprint import model_facts
from persona_axis.organism import troupe_path
from persona_axis.residual import decoder_layers, reading
from persona_axis.sampling import Sampling
from persona_axis.substrates import transformer_lens as lens

pytest.importorskip("transformer_lens", reason='needs TransformerLens: pip install "persona-axis[lens]"')

from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _family import built

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "mistral", "olmo2", "phi3", "troupe")
MESSAGES = [
    {"role": "system", "content": "you are pirate ."},
    {"role": "user", "content": "how should i sleep ?"},
    {"role": "assistant", "content": "like rain ."},
    {"role": "user", "content": "why ?"},
    {"role": "assistant", "content": "dark work and old bread ."},
]
PROMPTS = torch.tensor([[1, 9, 17, 23, 41, 8], [1, 60, 31, 22, 33, 14]])
NEAR = 1e-5
"""Of the largest value beside it. A bridge computes attention by its own code."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    """`pair(family)`: a plain chat model, and a bridge on another copy of it; made once, not to be changed."""
    words = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(words)  # bridges want a tokenizer that comes from a path
    made: dict[str, SimpleNamespace] = {}

    def make(family: str) -> SimpleNamespace:
        if family not in made:
            path = troupe_path() if family == "troupe" else words
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype="float32") if family == "troupe" else built(family)
            model.set_attn_implementation("eager")
            model.config.architectures = [type(model).__name__]
            bridge = TransformerBridge.boot_transformers(
                str(path), hf_model=copy.deepcopy(model), tokenizer=tokenizer, device="cpu"
            )
            made[family] = SimpleNamespace(plain=ChatModel.load(model, tokenizer=tokenizer), bridge=bridge)
        return made[family]

    return make


@pytest.fixture(params=FAMILIES)
def each(request: pytest.FixtureRequest, pair: Callable[[str], SimpleNamespace]) -> SimpleNamespace:
    return pair(request.param)


@pytest.fixture
def both(pair: Callable[[str], SimpleNamespace]) -> SimpleNamespace:
    return pair("llama")


def axis_for(chat: ChatModel) -> Axis:
    rows = torch.nn.functional.normalize(torch.randn(chat.n_layers, chat.hidden_size, generator=seeded(7)), dim=-1)
    return Axis.from_direction(rows, layers=range(chat.n_layers), metadata={**chat.facts, "provenance": "imported"})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(model: Any, ids: Tensor = PROMPTS) -> dict[int, Tensor]:
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), reading(model, range(len(decoder_layers(model))), lambda at, h: seen.update({at: h.clone()})):
        model(input_ids=ids)
    return seen


def cap_for(chat: ChatModel, layers: Sequence[int] = (1, 2), lift: float = 0.0) -> Cap:
    """One that moves about half of the tokens of `PROMPTS` up, or more of them, by `lift` lengths of a hidden state."""
    axis, seen = axis_for(chat), states(chat.model)
    floor = [float(axis.project(seen[at], at).median() + lift * seen[at].norm(dim=-1).mean()) for at in layers]
    return axis.cap(layers, floor=floor)


def logits(run: Callable[..., Any], *args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        out = run(*args, **options)
    return out if isinstance(out, Tensor) else out.logits


def close(left: Any, right: Any) -> None:
    left, right = np.asarray(left), np.asarray(right)
    np.testing.assert_allclose(left, right, rtol=NEAR, atol=NEAR * float(np.nanmax(np.abs(right))))


def hooks_of(bridge: Any) -> int:
    return sum(len(module._forward_hooks) for module in bridge.original_model.modules())


class TestTheSameNumbers:
    def test_facts_are_those_of_the_model(self, each: SimpleNamespace) -> None:
        plain, chat = each.plain.facts, lens.chat_model(each.bridge).facts
        assert {**chat, "model": ""} == {**plain, "model": ""}
        assert model_facts(each.bridge)["weights_sha256"] == plain["weights_sha256"]

    def test_trajectories(self, each: SimpleNamespace) -> None:
        axis = axis_for(each.plain)
        plain = trajectory(each.plain, axis, MESSAGES, speakers=("user", "assistant"))
        found = trajectory(lens.chat_model(each.bridge), axis, MESSAGES, speakers=("user", "assistant"))
        assert found.drop(columns="projection").equals(plain.drop(columns="projection"))
        assert len(found) == 4 * len(axis.layers)
        close(found["projection"], plain["projection"])

    def test_projections_of_a_cache(self, each: SimpleNamespace) -> None:
        axis, plain = axis_for(each.plain), states(each.plain.model)
        _, cache = each.bridge.run_with_cache(PROMPTS)
        found = lens.projections(cache, axis)
        assert list(found) == list(axis.layers)
        for layer, values in found.items():
            close(values, axis.project(plain[layer], layer))

    def test_capped_logits(self, each: SimpleNamespace) -> None:
        cap, free = cap_for(each.plain, lift=0.5), logits(each.plain.model, input_ids=PROMPTS)
        with cap.on(each.plain.model):
            plain = logits(each.plain.model, input_ids=PROMPTS)
        assert (plain - free).abs().max() > 100 * NEAR * free.abs().max()
        with lens.capping(each.bridge, cap):
            close(logits(each.bridge, PROMPTS), plain)
        hooks = lens.cap_hooks(cap, each.bridge)
        assert [name for name, _ in hooks] == ["blocks.1.hook_out", "blocks.2.hook_out"]
        close(logits(each.bridge.run_with_hooks, PROMPTS, fwd_hooks=hooks), plain)
        close(logits(each.bridge, PROMPTS), free)

    def test_capped_generation_with_a_cache_and_without(self, each: SimpleNamespace) -> None:
        cap, most = cap_for(each.plain, lift=0.5), {"max_new_tokens": 10, "do_sample": False}
        with cap.on(each.plain.model):
            plain = each.plain.model.generate(PROMPTS, eos_token_id=None, **most)
        most |= {"stop_at_eos": False, "verbose": False}
        free = each.bridge.generate(PROMPTS, **most)
        with lens.capping(each.bridge, cap):
            held = each.bridge.generate(PROMPTS, **most)
        with each.bridge.hooks(fwd_hooks=lens.cap_hooks(cap, each.bridge)):
            hooked = each.bridge.generate(PROMPTS, **most, use_past_kv_cache=False)
        assert held.tolist() == hooked.tolist() == plain.tolist() != free.tolist()

    def test_replies_of_uneven_prompts(self, each: SimpleNamespace) -> None:
        cap, chat = cap_for(each.plain, lift=0.5), lens.chat_model(each.bridge, check=False)
        asked = [MESSAGES[:2], MESSAGES[1:2], MESSAGES[:4]]
        replies = []
        for model in (each.plain, chat):
            with model.under(cap):
                replies.append(model.generate(asked, Sampling(temperature=0, max_new_tokens=8)).ids)
        assert replies[0] == replies[1]


def test_an_axis_found_on_a_bridge_is_the_one_found_plainly(both: SimpleNamespace, tmp_path: Path) -> None:
    options = Options(prompts=1, questions=4, sampling=Sampling(0, 1.0, 6), batch_size=16, min_accepted=1)
    chats = {"plain": both.plain, "bridge": lens.chat_model(both.bridge)}
    axes = [
        extract(chat, tiny.probes(roles=4, questions=4), options, out=tmp_path / f"{name}.safetensors").axis
        for name, chat in chats.items()
    ]
    for name in ("direction", "default", "roles", "quantiles_default_tokens"):
        close(axes[1].array(name), axes[0].array(name))
    Axis.load(tmp_path / "plain.safetensors").require(both.bridge.original_model, both.bridge.tokenizer)
    Axis.load(tmp_path / "bridge.safetensors").require(both.plain.model, both.plain.tokenizer)


class TestAmongTheUsersHooks:
    """`before -> cap` and `cap -> after` are other numbers than `after -> cap`; each is exact."""

    @staticmethod
    def seen(bridge: Any, hooks: Sequence[tuple[str, Any]]) -> Tensor:
        """What comes out of layer 1."""
        kept: list[Tensor] = []
        keep = ("blocks.2.hook_in", lambda hidden, hook: kept.append(hidden.clone()))
        logits(bridge.run_with_hooks, PROMPTS, fwd_hooks=[*hooks, keep])
        return kept[0]

    def test_in_the_order_of_the_list(self, both: SimpleNamespace) -> None:
        bridge, cap = both.bridge, cap_for(both.plain, [1])
        raw, push = self.seen(bridge, []), torch.randn(both.plain.hidden_size, generator=seeded(3))
        direction, floor = cap.direction[0], cap.floor[0]
        mine, held = [("blocks.1.hook_out", lambda hidden, hook: hidden + push)], lens.cap_hooks(cap, bridge)
        assert torch.equal(self.seen(bridge, held), clamped(raw, direction, floor))
        assert torch.equal(self.seen(bridge, [*mine, *held]), clamped(raw + push, direction, floor))
        assert torch.equal(self.seen(bridge, [*held, *mine]), clamped(raw, direction, floor) + push)
        with lens.capping(bridge, cap):
            assert torch.equal(self.seen(bridge, mine), clamped(raw, direction, floor) + push)
        with bridge.hooks(fwd_hooks=mine), lens.capping(bridge, cap):
            assert torch.equal(self.seen(bridge, []), clamped(raw + push, direction, floor))
        assert torch.equal(self.seen(bridge, []), raw)

    def test_a_trajectory_is_read_under_them(self, both: SimpleNamespace) -> None:
        axis, chat = axis_for(both.plain), lens.chat_model(both.bridge)
        along = torch.as_tensor(axis.array("direction")[-1])
        last = axis.layers[-1]
        free = trajectory(chat, axis, MESSAGES, layers=last)["projection"]
        with both.bridge.hooks(fwd_hooks=[(f"blocks.{last}.hook_out", lambda hidden, hook: hidden + 3 * along)]):
            moved = trajectory(chat, axis, MESSAGES, layers=last)["projection"]
        close(moved, free + 3)

    def test_caches_show_what_the_cap_leaves(self, both: SimpleNamespace) -> None:
        cap = cap_for(both.plain)
        axis = axis_for(both.plain)
        for entered in (lens.capping(both.bridge, cap), both.bridge.hooks(fwd_hooks=lens.cap_hooks(cap, both.bridge))):
            with entered:
                _, cache = both.bridge.run_with_cache(PROMPTS)
            for layer, floor in zip(cap.layers, cap.floor, strict=True):
                values = lens.projections(cache, axis)[layer]
                assert (values >= floor - 1e-4).all() and (values - floor).abs().min() < 1e-4

    def test_rows_have_their_own_bounds(self, both: SimpleNamespace) -> None:
        one = cap_for(both.plain, [1])
        free = torch.tensor([[-torch.inf, float(one.floor[0])]])
        cap, raw = Cap(one.direction, [1], free), self.seen(both.bridge, [])
        found = self.seen(both.bridge, lens.cap_hooks(cap, both.bridge))
        assert torch.equal(found[0], raw[0])
        assert torch.equal(found[1:], clamped(raw[1:], one.direction[0], one.floor[0]))


class TestFailsClosed:
    @pytest.fixture(autouse=True)
    def nothing_stays(self, both: SimpleNamespace) -> Any:
        before, free = hooks_of(both.bridge), logits(both.bridge, PROMPTS)
        yield
        assert hooks_of(both.bridge) == before and torch.equal(logits(both.bridge, PROMPTS), free)

    def test_nothing_ran(self, both: SimpleNamespace) -> None:
        cap = cap_for(both.plain)
        with pytest.raises(CapError, match=r"did not act at layers \[1, 2\]"), lens.capping(both.bridge, cap):
            pass

    def test_every_run_stopped_below_the_cap(self, both: SimpleNamespace) -> None:
        cap = cap_for(both.plain)
        with pytest.raises(CapError, match=r"did not act at layers \[2\]"), lens.capping(both.bridge, cap):
            logits(both.bridge, PROMPTS, stop_at_layer=2)

    def test_an_error_of_the_block_goes_first(self, both: SimpleNamespace) -> None:
        with pytest.raises(ZeroDivisionError), lens.capping(both.bridge, cap_for(both.plain)):
            _ = 1 / 0

    def test_an_error_of_a_users_hook_goes_first(self, both: SimpleNamespace) -> None:
        def fails(hidden: Tensor, hook: Any) -> Tensor:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), lens.capping(both.bridge, cap_for(both.plain)):
            both.bridge.run_with_hooks(PROMPTS, fwd_hooks=[("blocks.0.hook_out", fails)])

    @pytest.mark.parametrize("permanent", [False, True])
    def test_resetting_hooks_does_not_take_the_cap_away(self, both: SimpleNamespace, permanent: bool) -> None:
        cap = cap_for(both.plain)
        with lens.capping(both.bridge, cap):
            held = logits(both.bridge, PROMPTS)
            both.bridge.reset_hooks(including_permanent=permanent)
            assert torch.equal(logits(both.bridge, PROMPTS), held)

    def test_a_cap_that_was_torn_out_is_told_at_the_next_run(self, both: SimpleNamespace) -> None:
        cap, point = cap_for(both.plain), both.bridge.blocks[2].hook_out
        with pytest.raises(CapError, match=r"did not act at layers \[2\]"), lens.capping(both.bridge, cap):
            logits(both.bridge, PROMPTS)
            point._forward_hooks.clear()
            logits(both.bridge, PROMPTS)

    def test_entered_twice(self, both: SimpleNamespace) -> None:
        cap = cap_for(both.plain)
        with lens.capping(both.bridge, cap):
            with pytest.raises(CapError, match="already entered"), lens.capping(both.bridge, cap):
                pass
            logits(both.bridge, PROMPTS)

    @pytest.mark.parametrize(
        "use",
        [lambda bridge, cap: lens.capping(bridge, cap).__enter__(), lambda bridge, cap: lens.cap_hooks(cap, bridge)],
    )
    def test_made_for_another_model(self, both: SimpleNamespace, pair: Any, use: Any) -> None:
        other = cap_for(pair("mistral").plain)
        with pytest.raises(AxisMismatchError, match="architecture is mistral"):
            use(both.bridge, other)
        with pytest.raises(CapMismatchError, match="width 5"):
            use(both.bridge, Cap([[1.0, 0, 0, 0, 0]], [0], 0.0))
        with pytest.raises(CapError, match=r"layers \[9\] do not exist"):
            use(both.bridge, Cap(torch.eye(both.plain.hidden_size)[:1], [9], 0.0))

    def test_another_chat_template(self, both: SimpleNamespace) -> None:
        cap = cap_for(both.plain)
        other = Cap(cap.direction, cap.layers, cap.floor, facts={**cap.facts, "chat_template_sha256": "0" * 64})
        with pytest.raises(AxisMismatchError, match="chat template"):
            lens.cap_hooks(other, both.bridge)
        assert lens.cap_hooks(other, both.bridge, allow=("chat_template",))


class TestRefused:
    def test_what_is_no_bridge(self, both: SimpleNamespace) -> None:
        with pytest.raises(ModelError, match="expected a TransformerBridge, got a LlamaForCausalLM"):
            lens.chat_model(both.plain.model)

    def test_without_the_extra(self, both: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
        with pytest.raises(ModelError, match=r'pip install "persona-axis\[lens\]"'):
            lens.chat_model(both.bridge)

    def test_layers_that_a_cache_does_not_hold(self, both: SimpleNamespace) -> None:
        axis = axis_for(both.plain)
        _, cache = both.bridge.run_with_cache(PROMPTS, names_filter="blocks.1.hook_out")
        assert list(lens.projections(cache, axis)) == [1]
        with pytest.raises(DriftError, match=r"layers \[0, 1\].* holds \[1\]"):
            lens.projections(cache, axis, [0, 1])
        with pytest.raises(DriftError, match=r"holds \[\]"):
            lens.projections({}, axis)

    def test_a_cache_of_another_model(self, both: SimpleNamespace, pair: Any) -> None:
        _, cache = both.bridge.run_with_cache(PROMPTS)
        with pytest.raises(AxisMismatchError, match="architecture"):
            lens.projections(cache, axis_for(pair("mistral").plain))

    def test_processed_weights(self, pair: Any) -> None:
        """The old hook names alone change nothing; centring moves the stream of GPT-2."""
        plain = pair("gpt2").plain
        cap, axis, free = cap_for(plain), axis_for(plain), states(plain.model)
        bridge = TransformerBridge.boot_transformers(
            plain.tokenizer.name_or_path, hf_model=copy.deepcopy(plain.model), tokenizer=plain.tokenizer, device="cpu"
        )
        bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
        _, cache = bridge.run_with_cache(PROMPTS)
        close(lens.projections(cache, axis)[2], axis.project(free[2], 2))
        with cap.on(plain.model):
            expected = logits(plain.model, input_ids=PROMPTS)
        with lens.capping(bridge, cap):
            close(logits(bridge, PROMPTS), expected)
        bridge.process_weights()
        _, moved = bridge.run_with_cache(PROMPTS)
        assert (moved["blocks.2.hook_out"] - free[2]).abs().max() > 0.01
        for use in (
            lambda: lens.chat_model(bridge),
            lambda: lens.capping(bridge, cap),
            lambda: lens.cap_hooks(cap, bridge),
            lambda: lens.projections(moved, axis),
        ):
            with pytest.raises(ModelError, match="weights of this bridge were processed"):
                use()
        with pytest.raises(AxisMismatchError, match="weights fingerprint"):
            cap.on(bridge)


def test_batch_dimension_or_none(both: SimpleNamespace) -> None:
    axis = axis_for(both.plain)
    _, cache = both.bridge.run_with_cache(PROMPTS[:1])
    batched = lens.projections(cache, axis)[1]
    _, cache = both.bridge.run_with_cache(PROMPTS[:1], remove_batch_dim=True)
    assert torch.equal(lens.projections(cache, axis)[1], batched[0]) and batched.shape == (1, 6)
    row = torch.as_tensor(axis.array("direction")[1])
    assert torch.equal(batched[0], projected(cache["blocks.1.hook_out"], row))
