"""A cap on a model that somebody else's server runs."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import HIDDEN, LAYERS, VOCAB
from torch import Tensor, nn

from persona_axis import Attached, Cap, attach
from persona_axis.edits import arithmetic
from persona_axis.errors import CapError, CapMismatchError, PersonaAxisError
from persona_axis.residual import reading
from persona_axis.serving._attach_proof import _wrappers
from persona_axis.serving._runs import HOLDERS, real_tokens

IDS = torch.arange(3, 3 + 2 * 7).view(2, 7)
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
REAL = 11
SLOW = pytest.mark.slow
DIRECTION = nn.functional.normalize(torch.arange(1.0, 1 + 2 * HIDDEN).view(2, HIDDEN).cos(), dim=1)


def cap_at(*layers: int, floor: float = 0.5) -> Cap:
    """Bites at about half of the tokens of a random model."""
    return Cap(DIRECTION[: len(layers)], layers, floor)


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return out


def under(model: Any, cap: Cap, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    with cap.on(model):
        return logits(model, ids, mask)


def hooks(model: nn.Module) -> int:
    kinds = [kind for m in model.modules() for kind in (m._forward_hooks, m._forward_pre_hooks)]
    found = [hook for kind in kinds for hook in kind.values()]
    return sum(not hook.__module__.startswith("transformers.") for hook in found)


def projections(model: Any, cap: Cap, mask: Tensor) -> list[Tensor]:
    """By layer, in float64, what reaches the edit there, at the real tokens."""
    found: dict[int, Tensor] = {}
    with reading(model, cap.layers, lambda layer, h: found.__setitem__(layer, h.double())), cap.on(model):
        logits(model, IDS, mask)
    return [found[layer][mask.bool()] @ cap.direction[i].double() for i, layer in enumerate(cap.layers)]


class TestActing:
    def test_the_same_as_cap_on_in_every_family(self, any_model: Any) -> None:
        cap = cap_at(1, 2)
        before, wanted = logits(any_model), under(any_model, cap)
        with attach(any_model, cap) as handle:
            assert torch.equal(logits(any_model), wanted)
        assert torch.equal(logits(any_model), before)
        assert not torch.equal(before, wanted)
        assert hooks(any_model) == 0 and handle._key not in HOLDERS

    def test_generation_and_the_decoder_alone(self, llama: Any) -> None:
        cap = cap_at(1)
        how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        with cap.on(llama):
            wanted = llama.generate(IDS, attention_mask=MASK, **how)
            with torch.no_grad():
                inner = llama.model(IDS).last_hidden_state
        with attach(llama, cap):
            assert torch.equal(llama.generate(IDS, attention_mask=MASK, **how), wanted)
            with torch.no_grad():
                assert torch.equal(llama.model(IDS).last_hidden_state, inner)

    def test_two_caps_the_later_acting_last(self, llama: Any) -> None:
        low, high = cap_at(1, floor=0.2), Cap(-DIRECTION[:1], [1], 0.1)
        with low.on(llama), high.on(llama):
            wanted = logits(llama)
        with attach(llama, low), attach(llama, high):
            assert torch.equal(logits(llama), wanted)

    def test_training_goes_through(self, new_model: Any) -> None:
        model = new_model("llama")
        with attach(model, cap_at(1)):
            model(input_ids=IDS, labels=IDS).loss.backward()
        assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


class TestStats:
    def test_by_hand_with_padding_left_out(self, any_model: Any) -> None:
        cap = cap_at(1, 2)
        seen = projections(any_model, cap, MASK)
        with attach(any_model, cap) as handle:
            assert [row.tokens for row in handle.stats()] == [0, 0]  # the proof's tokens are nobody's
            logits(any_model, IDS, MASK)
            logits(any_model, IDS, MASK)
        for row, values, layer in zip(handle.stats(), seen, cap.layers, strict=True):
            outside = values < 0.5
            assert 0 < outside.sum() < len(values)
            assert (row.layer, row.tokens, row.capped) == (layer, 2 * REAL, 2 * int(outside.sum()))
            assert row.mean_correction == pytest.approx((0.5 - values[outside]).mean().item(), rel=1e-4)
            low, high = values.kthvalue(5).values.item(), values.kthvalue(7).values.item()
            assert low - 0.02 * abs(low) - 0.01 <= row.percentiles[50] <= high + 0.02 * abs(high) + 0.01

    def test_in_blocks_as_in_one_piece(self, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with attach(llama, cap_at(1, 2)) as handle:
            logits(llama, IDS, MASK)
            logits(llama)
            whole = handle.stats()
            handle.clear()
            monkeypatch.setitem(arithmetic._BLOCK, "cpu", 3 * HIDDEN)
            logits(llama, IDS, MASK)
            logits(llama)
            assert handle.stats() == whole and whole[0].tokens == REAL + 14

    @pytest.mark.parametrize("cache", [None, "static"])
    def test_the_prompt_once_and_each_new_token(self, llama: Any, cache: str | None) -> None:
        with attach(llama, cap_at(1)) as handle:
            llama.generate(IDS, attention_mask=MASK, max_new_tokens=5, min_new_tokens=5, do_sample=False,
                           pad_token_id=0, cache_implementation=cache)  # fmt: skip
        assert [row.tokens for row in handle.stats()] == [REAL + 2 * 4]  # the last token drawn is not fed

    def test_padding_that_is_given_by_position(self, llama: Any) -> None:
        embedded = llama.get_input_embeddings()(IDS)
        with attach(llama, cap_at(1)) as handle, torch.no_grad():
            llama(IDS, MASK)
            llama.model(IDS, MASK)
            llama(None, MASK, None, None, embedded)
        assert handle.stats()[0].tokens == 3 * REAL

    def test_which_tokens_are_real(self) -> None:
        causal = torch.ones(1, 1, 3, 6).tril(2).bool()
        causal[..., 0] = False
        wide = torch.zeros(1, 1, 3, 6).masked_fill(~causal, torch.finfo(torch.float32).min)
        for mask in (causal, wide):
            assert real_tokens(mask, None, (1, 3)) is None  # tokens 2 to 4 of a cache of 6
        first = torch.ones(1, 1, 3, 6).tril().bool()
        first[..., 0] = False
        assert real_tokens(first, None, (1, 3)).tolist() == [1, 2]
        assert real_tokens(torch.tensor([[0, 1, 1, 1]]), None, (1, 2)) is None
        assert real_tokens(torch.tensor([[1, 1, 0], [1, 1, 1]]), None, (2, 3)).tolist() == [0, 1, 3, 4, 5]
        assert real_tokens(None, torch.tensor([0, 2, 5, 5]), (1, 8)).tolist() == [0, 1, 2, 3, 4]
        assert real_tokens(None, torch.tensor([0, 2, 5]), (1, 5)) is None

    def test_a_run_that_fails_leaves_nothing_behind(self, llama: Any) -> None:
        with attach(llama, cap_at(1)) as handle:
            with pytest.raises(IndexError):
                logits(llama, torch.full((2, 7), VOCAB), MASK)
            with torch.no_grad():
                llama.model(IDS)
        assert [row.tokens for row in handle.stats()] == [14]

    def test_an_interrupted_run_says_nothing_of_the_next_ones_padding(self, llama: Any) -> None:
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        with attach(llama, cap_at(1)) as handle:
            away = llama.model.layers[0].register_forward_pre_hook(stop)
            with pytest.raises(KeyboardInterrupt):
                logits(llama)
            away.remove()
            with torch.no_grad():
                llama.model(IDS, attention_mask=MASK)
        assert [row.tokens for row in handle.stats()] == [REAL]


def test_it_keeps_no_model_alive(new_model: Any) -> None:
    before, model = len(HOLDERS), new_model("llama")
    attach(model, cap_at(1, 2))  # and never detached
    gone = weakref.ref(model)
    assert len(HOLDERS) == before + 1
    del model
    gc.collect()
    assert gone() is None and len(HOLDERS) == before


class TestThreads:
    def test_figures_are_exact_and_replies_are_their_own(self, llama: Any) -> None:
        cap = cap_at(1, 2)
        seeds = [torch.Generator().manual_seed(i) for i in range(12)]
        prompts = [torch.randint(3, VOCAB, (1, 2 + i % 5), generator=seed) for i, seed in enumerate(seeds)]
        how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

        def reply(ids: Tensor) -> list[int]:
            return llama.generate(ids, attention_mask=torch.ones_like(ids), **how)[0].tolist()

        with attach(llama, cap) as alone:
            wanted = [reply(ids) for ids in prompts]
        with attach(llama, cap) as handle, ThreadPoolExecutor(6) as pool:
            found = list(pool.map(reply, prompts))
        assert found == wanted
        assert [row.tokens for row in handle.stats()] == [sum(ids.shape[1] + 5 for ids in prompts)] * 2
        for one, other in zip(alone.stats(), handle.stats(), strict=True):
            assert (one.tokens, one.capped, one.percentiles) == (other.tokens, other.capped, other.percentiles)
            assert one.mean_correction == pytest.approx(other.mean_correction, rel=1e-5)

    def test_attached_and_detached_while_others_run(self, llama: Any) -> None:
        plain, wanted, stop = logits(llama), under(llama, cap_at(1)), threading.Event()

        def serve() -> list[Tensor]:
            found = []
            while not stop.is_set():
                found.append(logits(llama))
            return found

        with ThreadPoolExecutor(3) as pool:
            runs = [pool.submit(serve) for _ in range(3)]
            for _ in range(10):
                attach(llama, cap_at(1)).detach()
            stop.set()
        for run in runs:
            for out in run.result():
                assert torch.equal(out, plain) or torch.equal(out, wanted)

    def test_detached_in_the_middle_of_a_run(self, llama: Any) -> None:
        handle = attach(llama, cap_at(1, 3))
        away = llama.model.layers[2].register_forward_hook(lambda *_: handle.detach())
        try:
            out = logits(llama)
        finally:
            away.remove()
        assert torch.equal(out, under(llama, cap_at(1)))
        assert [row.tokens for row in handle.stats()] == [14, 0]
        handle.detach()


class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self) -> Any:
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    def close(self, a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=SLOW)])
    def test_attached_before_it_acts_counts_and_follows(self, new_model: Any, backend: str) -> None:
        model, cap = new_model("llama"), cap_at(1, 2)
        plain, wanted = logits(model, IDS, MASK), under(model, cap, IDS, MASK)
        handle = attach(model, cap)
        compiled = torch.compile(model, backend=backend)
        assert self.close(logits(compiled, IDS, MASK), wanted)
        assert self.close(logits(compiled, IDS, MASK), wanted)
        assert [row.tokens for row in handle.stats()] == [2 * REAL] * 2
        handle.detach()
        assert self.close(logits(compiled, IDS, MASK), plain)
        assert not self.close(plain, wanted)

    def test_the_graph_has_no_holes(self, new_model: Any) -> None:
        model = new_model("llama")
        with attach(model, cap_at(1)):
            logits(torch.compile(model, backend="eager", fullgraph=True))

    def test_proven_through_the_wrapper(self, new_model: Any) -> None:
        model, cap = new_model("llama"), cap_at(1)
        wanted, compiled = under(model, cap), torch.compile(model, backend="eager")
        with attach(compiled, cap):
            assert self.close(logits(compiled), wanted)

    def test_layers_compiled_each(self, new_model: Any) -> None:
        model, cap = new_model("llama"), cap_at(1)
        wanted = under(model, cap)
        model.model.layers[1].compile(backend="eager")
        with attach(model, cap) as handle:
            assert self.close(logits(model), wanted)
        assert handle.stats()[0].tokens == 14

    @pytest.mark.parametrize("attached", ["model", "wrapper"])
    def test_attached_after_is_an_error(self, new_model: Any, attached: str) -> None:
        model = new_model("llama")
        compiled = torch.compile(model, backend="eager")
        logits(compiled)
        with pytest.raises(CapError, match=r"ran compiled before this.*torch\.compiler\.reset"):
            attach(compiled if attached == "wrapper" else model, cap_at(1))
        assert hooks(model) == 0
        torch.compiler.reset()
        attach(model, cap_at(1)).detach()

    def test_attached_after_a_layer_ran_compiled(self, new_model: Any) -> None:
        model = new_model("llama")
        model.model.layers[1].compile(backend="eager")
        logits(model)
        with pytest.raises(CapError, match="ran compiled before this"):
            attach(model, cap_at(1))

    def test_attached_again_to_graphs_of_the_first_time(self, new_model: Any) -> None:
        model = new_model("llama")
        compiled = torch.compile(model, backend="eager")
        with attach(compiled, cap_at(1)):
            logits(compiled)
        with pytest.raises(CapError, match="ran compiled before this"):
            attach(compiled, cap_at(1, floor=3.0))

    def test_no_graph_of_before_runs_in_its_place(self, new_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor in that of a function around it, which nothing leads to from the model."""
        model, cap = new_model("llama"), cap_at(1)
        plain, wanted = logits(model), under(model, cap)
        compiled = torch.compile(model, backend="eager")
        around = torch.compile(lambda ids: logits(model, ids), backend="eager")
        assert self.close(logits(compiled), plain) and self.close(around(IDS), plain)
        monkeypatch.setattr("persona_axis.serving.attach.require_not_compiled", lambda _: None)
        with attach(model, cap) as handle:
            assert self.close(logits(compiled), wanted) and self.close(around(IDS), wanted)
            assert handle.stats()[0].tokens == 28
        assert self.close(logits(compiled), plain) and self.close(around(IDS), plain)

    @pytest.mark.parametrize("way", ["before it was attached", "in a thread", pytest.param("in place", marks=SLOW)])
    def test_no_graph_of_another_model_of_its_class_runs_in_its_place(self, new_model: Any, way: str) -> None:
        model, other, cap = new_model("llama"), new_model("llama"), cap_at(1, 2)
        plain, wanted = logits(other), under(model, cap)

        def fast(of: Any) -> Any:
            if way != "in place":
                return torch.compile(of, backend="eager")
            of.compile(backend="eager")
            return of

        def run() -> None:
            assert self.close(logits(fast_other), plain)

        fast_other = fast(other)
        if way == "before it was attached":
            run()
        with attach(model, cap) as handle, ThreadPoolExecutor(1) as pool:
            if way == "in a thread":
                pool.submit(run).result()
                found = pool.submit(lambda: logits(fast(model))).result()
            else:
                run()
                found = logits(fast(model))
            assert self.close(found, wanted)
            assert [row.tokens for row in handle.stats()] == [14, 14]
            run()

    @SLOW
    def test_nor_one_with_the_cap_of_another_model(self, new_model: Any) -> None:
        strict, mild = cap_at(1, floor=3.0), cap_at(1)
        first, second = new_model("llama"), new_model("llama")
        wanted = under(first, strict), under(second, mild)
        with attach(first, strict), attach(second, mild) as handle:
            assert self.close(logits(torch.compile(first, backend="eager")), wanted[0])
            assert self.close(logits(torch.compile(second, backend="eager")), wanted[1])
            assert handle.stats()[0].tokens == 14

    @pytest.mark.parametrize("backend", ["eager", *(pytest.param(b, marks=SLOW) for b in ("aot_eager", "inductor"))])
    def test_a_replaced_layer_is_an_error_of_the_call(self, new_model: Any, backend: str) -> None:
        model = new_model("llama")
        compiled = torch.compile(model, backend=backend)
        with attach(model, cap_at(1, 2)):
            logits(compiled)
            model.model.layers[2] = new_model("llama").model.layers[2]
            for _ in range(2):
                with pytest.raises(CapError, match=r"did not act at layers \[2\] in this run"):
                    logits(compiled)

    @SLOW
    def test_a_function_around_a_model_whose_only_capped_layer_was_replaced(self, new_model: Any) -> None:
        model, other = new_model("llama"), new_model("llama")
        around = torch.compile(logits, backend="eager")
        with attach(model, cap_at(1)):
            model.model.layers[1] = new_model("llama").model.layers[1]
            around(other)
            with pytest.raises(CapError, match=r"did not act at layers \[1\]"):
                around(model)

    def test_wrappers_are_found(self, new_model: Any) -> None:
        model, other = new_model("llama"), new_model("llama")
        whole, part = torch.compile(model, backend="eager"), torch.compile(model.model, backend="eager")
        away = torch.compile(other, backend="eager")
        found = _wrappers(model)
        assert {id(o) for o in found} == {id(whole), id(part)} and id(away) not in {id(o) for o in found}


class TestRefused:
    def test_another_model(self, llama: Any, shared_models: Any) -> None:
        from persona_axis.fingerprint import model_facts

        facts = dict(model_facts(llama))
        cap = Cap(DIRECTION[:1], [1], 0.5, facts=facts)
        attach(llama, cap).detach()
        with pytest.raises(PersonaAxisError, match="architecture"):
            attach(shared_models["qwen3"], cap)
        attach(shared_models["qwen3"], cap, allow=("architecture", "weights")).detach()

    def test_another_width(self, llama: Any) -> None:
        with pytest.raises(CapMismatchError, match="width 8"):
            attach(llama, Cap(torch.eye(8)[0], [1], 0.5))

    def test_bounds_for_rows(self, llama: Any) -> None:
        with pytest.raises(CapError, match=r"floor \[1, 2\].*one bound"):
            attach(llama, Cap(DIRECTION[:1], [1], [[0.5, 0.7]]))

    def test_a_layer_that_does_not_exist(self, llama: Any) -> None:
        with pytest.raises(CapError, match=rf"layers \[9\] do not exist.*0 to {LAYERS - 1}"):
            attach(llama, cap_at(1, 9))

    def test_twice(self, llama: Any) -> None:
        cap = cap_at(1)
        with attach(llama, cap), pytest.raises(CapError, match="already"):
            attach(llama, cap)
        attach(llama, cap).detach()

    def test_an_edit_undone_behind_it(self, new_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model, hold = new_model("llama"), Attached.hold
        monkeypatch.setattr(Attached, "hold", lambda self, layer, h: (hold(self, layer, h), h)[1])
        with pytest.raises(CapError, match="does not change the model's logits"):
            attach(model, cap_at(1))


def test_layers_run_around_the_model_are_held_and_counted_whole(llama: Any) -> None:
    """`forward` called by hand is no run: the padding of the one before it says nothing about it."""
    with attach(llama, cap_at(1)) as handle:
        logits(llama, mask=MASK)
        assert handle.stats()[0].tokens == REAL
        for tokens, shape in ((3, (1, 3)), (27, (3, 9)), (14, (2, 7))):
            before = handle.stats()[0].tokens
            with torch.no_grad():
                llama.model.forward(input_ids=torch.ones(shape, dtype=torch.long))
            assert handle.stats()[0].tokens == before + tokens
