"""A cap on whole models: batches, padding, caches, decoding, composition, compilation, and errors."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from conftest import HIDDEN, LAYERS, VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cap import units
from test_residual import hooks
from torch import Tensor, nn

from persona_axis import Axis, AxisMismatchError, Cap, CapError, ResidualError
from persona_axis.cap import HeldCap
from persona_axis.edits.acting import Place
from persona_axis.errors import CapMismatchError
from persona_axis.fingerprint import model_facts
from persona_axis.residual import reading

PAD = 0
FLOOR = 2.0  # most rows of the tiny models lie below it
PROMPTS = [[5, 9, 17, 23, 41], [7, 8], [60, 61, 62, 63, 64, 65, 66], [90, 11, 12]]


def padded(prompts: list[list[int]], side: str) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    gaps = [[PAD] * (longest - len(p)) for p in prompts]
    rows = [gap + p if side == "left" else p + gap for gap, p in zip(gaps, prompts, strict=True)]
    marks = [[0] * len(gap) + [1] * len(p) if side == "left" else [1] * len(p) + [0] * len(gap)
             for gap, p in zip(gaps, prompts, strict=True)]  # fmt: skip
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(marks)}


def logits(model, prompts: list[list[int]], side: str = "left") -> list[Tensor]:
    """Logits [seq, vocab] of each prompt's own tokens."""
    batch = padded(prompts, side)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(**batch, position_ids=positions).logits
    return [row[keep.bool()] for row, keep in zip(out, mask, strict=True)]


def generate(model, prompts: list[list[int]], **options) -> list[list[int]]:
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None, **options}
    batch = padded(prompts, "left")
    out = model.generate(**batch, **options)
    return out[:, batch["input_ids"].shape[1] :].tolist()


@pytest.fixture
def cap() -> Cap:
    return Cap(units(2, HIDDEN), [1, 2], floor=FLOOR)


class TestActing:
    def test_bounds_hold_at_every_layer_and_token_and_logits_change(self, any_model):
        cap = Cap(units(3, HIDDEN), [0, 2, 3], floor=[FLOOR, -1.0, 0.5], ceiling=[9.0, 1.0, 0.5])
        plain = logits(any_model, PROMPTS)
        seen = {}

        def note(layer, hidden):
            seen[layer] = hidden.double() @ cap.direction[cap.layers.index(layer)].double()

        with cap.on(any_model), reading(any_model, cap.layers, note):
            capped = logits(any_model, PROMPTS)
        for row, layer in enumerate(cap.layers):
            assert seen[layer].min() >= cap.floor[row] - 1e-4 and seen[layer].max() <= cap.ceiling[row] + 1e-4
        assert not torch.allclose(plain[0], capped[0], atol=1e-2)
        assert not hooks(any_model)
        assert all(torch.equal(a, b) for a, b in zip(logits(any_model, PROMPTS), plain, strict=True))

    def test_wide_bounds_change_nothing_at_all(self, any_model):
        plain = logits(any_model, PROMPTS)
        with Cap(units(LAYERS, HIDDEN), range(LAYERS), floor=-1e6, ceiling=1e6).on(any_model):
            capped = logits(any_model, PROMPTS)
        assert all(torch.equal(a, b) for a, b in zip(capped, plain, strict=True))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_dtypes(self, new_model, cap, dtype):
        model = new_model("llama").to(dtype)
        seen = []
        with cap.on(model), reading(model, [2], lambda _, h: seen.append(h)):
            logits(model, PROMPTS)
        hidden, v = seen[0].double(), cap.direction[1].double()
        assert seen[0].dtype == dtype
        slack = torch.finfo(dtype).eps / 2 * (hidden.abs() @ v.abs()) + 1e-5
        assert (hidden @ v >= FLOOR - slack).all()

    def test_gradients_and_training_mode(self, new_model, cap):
        model = new_model("llama").train()
        with cap.on(model):
            model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
        assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0

    def test_inference_mode_inside_and_outside(self, llama, cap):
        with torch.inference_mode(), cap.on(llama):
            inside = logits(llama, PROMPTS)
        with cap.on(llama), torch.inference_mode():
            assert torch.equal(logits(llama, PROMPTS)[0], inside[0])
        with cap.on(llama):
            assert torch.equal(logits(llama, PROMPTS)[0], inside[0])

    def test_a_layer_that_runs_elsewhere_than_its_weights_lay(self):
        held = HeldCap(units(8), torch.tensor(1.0), torch.tensor(2.0), Place(torch.device("cpu"), torch.float32))
        with torch.inference_mode():
            assert held(torch.zeros(1, 1, 8, device="meta")).is_meta  # the only other device there is everywhere
        held.arm()
        held.disarm()

    def test_two_models_at_once(self, new_model, llama, cap):
        other = new_model("llama", seed=5)
        with cap.on(llama), cap.on(other):
            a, b = logits(llama, PROMPTS)[0], logits(other, PROMPTS)[0]
        with cap.on(other):
            assert torch.equal(logits(other, PROMPTS)[0], b)
        assert not torch.equal(a, b)

    def test_neither_cap_nor_model_is_kept_alive(self, new_model):
        model, cap = new_model("llama"), Cap(units(1, HIDDEN), [0], 0.0)
        with cap.on(model):
            logits(model, PROMPTS)
        dead = weakref.ref(model), weakref.ref(cap)
        del model, cap
        gc.collect()
        assert [ref() for ref in dead] == [None, None]


class TestBatches:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_batched_and_padded_as_alone(self, any_model, cap, side):
        with cap.on(any_model):
            together = logits(any_model, PROMPTS, side)
            alone = [logits(any_model, [prompt])[0] for prompt in PROMPTS]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}])
    def test_generated_tokens_are_those_of_each_prompt_alone(self, any_model, cap, options):
        with cap.on(any_model):
            together = generate(any_model, PROMPTS, **options)
            alone = [generate(any_model, [prompt], **options)[0] for prompt in PROMPTS]
            for row, (a, b) in enumerate(zip(together, alone, strict=True)):
                assert a == b or near_tie(any_model, PROMPTS[row], a, b), (row, a, b)

    def test_with_and_without_cache(self, any_model, cap):
        with cap.on(any_model):
            cached, plain = generate(any_model, PROMPTS), generate(any_model, PROMPTS, use_cache=False)
            for row, (a, b) in enumerate(zip(cached, plain, strict=True)):
                assert a == b or near_tie(any_model, PROMPTS[row], a, b), (row, a, b)
        assert cached != generate(any_model, PROMPTS)

    def test_cached_logits_are_those_of_the_whole(self, any_model, cap):
        ids = torch.tensor([PROMPTS[2]])
        with cap.on(any_model), torch.no_grad():
            whole = any_model(input_ids=ids).logits
            first = any_model(input_ids=ids[:, :4], use_cache=True)
            rest = any_model(input_ids=ids[:, 4:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "options",
        [{}, {"do_sample": True}, {"num_beams": 4}, {"do_sample": True, "num_beams": 2, "num_return_sequences": 2}],
    )
    def test_bounds_hold_at_every_generated_token(self, llama, cap, options):
        low = []
        with cap.on(llama), reading(llama, [2], lambda _, h: low.append((h @ cap.direction[1]).min().item())):
            generate(llama, PROMPTS, **options)
        assert len(low) == 8 and min(low) >= FLOOR - 1e-4

    def test_sampling_with_a_seed(self, llama, cap):
        def drawn(*cap_on):
            torch.manual_seed(3)
            return generate(llama, PROMPTS, do_sample=True)

        with cap.on(llama):
            first, second = drawn(), drawn()
        assert first == second != drawn()

    def test_output_hidden_states_show_the_edit_also_when_asked_for_before(self, new_model, cap):
        model, ids = new_model("llama"), torch.tensor([PROMPTS[0]])
        with torch.no_grad():
            model(input_ids=ids, output_hidden_states=True)
            with cap.on(model):
                states = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert (states[2] @ cap.direction[0]).min() >= FLOOR - 1e-4


def near_tie(model, prompt: list[int], a: list[int], b: list[int]) -> bool:
    """Whether two continuations part where the two tokens' logits agree to rounding."""
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    scores = logits(model, [prompt + a[:at]])[0][-1]
    return bool((scores[a[at]] - scores[b[at]]).abs() < 1e-3)


class TestPerRowBounds:
    floors = torch.tensor([[-5.0, 0.0, 1.0, 3.0], [0.0, 4.0, -torch.inf, 2.0]])

    def row(self, i: int) -> Cap:
        return Cap(units(2, HIDDEN), [1, 2], floor=self.floors[:, i])

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_each_row_has_its_own(self, any_model, side):
        with Cap(units(2, HIDDEN), [1, 2], floor=self.floors).on(any_model):
            together = logits(any_model, PROMPTS, side)
        for i, prompt in enumerate(PROMPTS):
            with self.row(i).on(any_model):
                torch.testing.assert_close(together[i], logits(any_model, [prompt])[0], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
    def test_repeated_per_beam(self, llama, options):
        with Cap(units(2, HIDDEN), [1, 2], floor=self.floors).on(llama):
            together = generate(llama, PROMPTS, **options)
        each = len(together) // len(PROMPTS)
        for i, prompt in enumerate(PROMPTS):
            with self.row(i).on(llama):
                assert together[i * each : (i + 1) * each] == generate(llama, [prompt], **options)

    def test_ceilings_too(self, llama):
        cap = Cap(units(1, HIDDEN), [1], floor=-1.0, ceiling=torch.tensor([[-1.0, 0.0, 1.0, 2.0]]))
        seen = []
        with cap.on(llama), reading(llama, [1], lambda _, h: seen.append(h @ cap.direction[0])):
            logits(llama, PROMPTS, "right")
        assert (seen[0].amax(1) <= torch.tensor([-1.0, 0.0, 1.0, 2.0]) + 1e-4).all()
        assert (seen[0].amin(1) >= -1 - 1e-4).all()

    @pytest.mark.parametrize("prompts", [PROMPTS[:3], PROMPTS + PROMPTS[:1], PROMPTS[:2]])
    def test_a_batch_they_do_not_divide(self, llama, prompts):
        with (
            Cap(units(2, HIDDEN), [1, 2], floor=self.floors).on(llama),
            pytest.raises(CapError, match="bounds for 4 rows do not fit"),
        ):
            logits(llama, prompts)

    def test_the_error_of_a_call_is_that_of_the_block(self, llama):
        with pytest.raises(CapError, match="do not fit"), Cap(units(2, HIDDEN), [1, 2], self.floors).on(llama):
            logits(llama, PROMPTS[:3])
        assert not hooks(llama)

    def test_packed_batches_are_refused(self, llama):
        cap = Cap(units(1, HIDDEN), [0], floor=torch.zeros(1, 2))
        with cap.on(llama), pytest.raises(CapError, match=r"\[1, 10, 32\] \(a packed batch"):
            llama(input_ids=torch.arange(10).view(1, 10))
        held = cap.edits({0: Place(torch.device("cpu"), torch.float32)})[0]
        with pytest.raises(CapError, match="packed"):
            held(torch.zeros(10, HIDDEN))

    def test_continuous_batching(self, llama, cap):
        """It packs requests, and its thread swallows exceptions: the block must still end in the error."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=PAD)
        blocks = ContinuousBatchingConfig(num_blocks=128, max_batch_tokens=256)

        def batch():
            asked = {"generation_config": config, "continuous_batching_config": blocks, "progress_bar": False}
            return [list(reply.generated_tokens) for reply in llama.generate_batch(PROMPTS, **asked).values()]

        with cap.on(llama):
            assert batch() == generate(llama, PROMPTS, max_new_tokens=4)
        with (
            pytest.raises(CapError, match="a packed batch"),
            Cap(units(2, HIDDEN), [1, 2], floor=self.floors).on(llama),
        ):
            batch()

    def test_packed_batches_with_one_bound_are_fine(self):
        held = HeldCap(units(HIDDEN), torch.tensor(1.0), None, Place(torch.device("cpu"), torch.float32))
        held.arm()
        assert torch.allclose(held(torch.zeros(10, HIDDEN)) @ units(HIDDEN), torch.ones(10))

    @given(
        st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=LAYERS, unique=True),
        st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99),
    )  # fmt: skip
    @settings(max_examples=25, deadline=None)
    def test_any_layers_rows_and_beams(self, shared_models, layers, rows, beams, use_ceiling, seed):
        llama = shared_models["llama"]
        floor = torch.randn(len(layers), rows, generator=torch.Generator().manual_seed(seed)) * 3
        v = units(len(layers), HIDDEN, seed=seed)
        cap = Cap(v, layers, floor=floor, ceiling=floor + 1 if use_ceiling else None)
        seen = {}
        ids = torch.arange(3, 3 + rows * beams * 4).view(rows * beams, 4)
        with cap.on(llama), reading(llama, layers, lambda at, h: seen.update({at: h.detach()})):
            llama(input_ids=ids)
        for i, layer in enumerate(layers):
            low = floor[i].repeat_interleave(beams)[:, None]
            projection = seen[layer] @ v[i]
            assert (projection >= low - 1e-3).all()
            assert not use_ceiling or (projection <= low + 1 + 1e-3).all()


class TestComposition:
    def test_nested_caps_act_in_turn(self, llama):
        v = units(2, HIDDEN)
        outer, inner = Cap(v[:1], [1], floor=FLOOR), Cap(v[1:], [1], ceiling=-1.0)
        seen = []
        with outer.on(llama), inner.on(llama), reading(llama, [1], lambda _, h: seen.append(h)):
            logits(llama, PROMPTS)
        assert (seen[0] @ v[1]).max() <= -1 + 1e-4  # the inner one acts last, and holds exactly

    def test_orthogonal_caps_both_hold_and_one_may_be_left(self, llama):
        v = torch.eye(HIDDEN)[:2]
        first, second = Cap(v[:1], [1], floor=5.0), Cap(v[1:], [1], floor=5.0)
        seen = []
        with first.on(llama), reading(llama, [1], lambda _, h: seen.append(h)):
            with second.on(llama):
                logits(llama, PROMPTS)
            logits(llama, PROMPTS)
        assert seen[0][..., 0].min() >= 5 - 1e-4 and seen[1][..., 0].min() >= 5 - 1e-4
        assert seen[1][..., 1].min() < 4

    def test_the_same_cap_twice(self, llama, cap):
        wrapped = torch.compile(llama, backend="eager")
        with cap.on(llama):
            for model in (llama, wrapped, llama.model):
                with pytest.raises(CapError, match="already entered"), cap.on(model):
                    pass
            inside = logits(llama, PROMPTS)  # the failed attempts left the first one whole
        with cap.on(llama):
            assert torch.equal(logits(llama, PROMPTS)[0], inside[0])

    def test_again_after_leaving_and_after_an_error(self, llama, cap):
        for _ in range(2):
            with cap.on(llama):
                first = logits(llama, PROMPTS)[0]
        with pytest.raises(ZeroDivisionError), cap.on(llama):
            raise ZeroDivisionError
        with cap.on(llama):
            assert torch.equal(logits(llama, PROMPTS)[0], first)


class TestFailingClosed:
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, CapError, GeneratorExit])
    def test_hooks_go_and_the_exception_of_the_block_goes_first(self, llama, cap, error):
        plain = logits(llama, PROMPTS)[0]
        with pytest.raises(error, match="mine"), cap.on(llama):  # nothing ran, which would be an error too
            raise error("mine")
        with pytest.raises(error, match="mine"), cap.on(llama):
            logits(llama, PROMPTS)
            raise error("mine")
        assert not hooks(llama)
        assert torch.equal(logits(llama, PROMPTS)[0], plain)

    def test_nothing_ran(self, llama, cap):
        with pytest.raises(CapError, match=r"the cap on layers \[1, 2\] did not act at layers \[1, 2\]"), cap.on(llama):
            pass
        assert not hooks(llama)

    def test_a_layer_that_is_skipped(self, new_model):
        model = new_model("llama")
        shallow = new_model("llama")
        shallow.config.num_hidden_layers = 2  # as early-exit decoding does: the loop stops before layer 3
        cap = Cap(units(2, HIDDEN), [0, 3], 1.0)
        with pytest.raises(CapError, match=r"did not act at layers \[3\]"), cap.on(shallow, stack="model.layers"):
            logits(shallow, PROMPTS)
        with Cap(units(2, HIDDEN), [0, 3], 1.0).on(model):
            logits(model, PROMPTS)

    @pytest.mark.parametrize("layers", [[LAYERS], [0, 40]])
    def test_layer_out_of_range(self, llama, layers):
        cap = Cap(units(len(layers), HIDDEN), layers, 0.0)
        says = rf"\[{layers[-1]}\] do not exist: the model has layers 0 to 3"
        with pytest.raises(CapError, match=says), cap.on(llama):
            pass

    def test_width_that_does_not_fit(self, llama):
        cap = Cap(units(1, 16), [0], 0.0)
        with pytest.raises(CapMismatchError, match="width 16, the residual stream 32"), cap.on(llama):
            pass

    def test_a_model_without_layers(self, cap):
        with pytest.raises(ResidualError), cap.on(torch.nn.Embedding(VOCAB, HIDDEN)):
            pass

    def test_made_for_another_model(self, llama, new_model, tmp_path):
        facts = dict(model_facts(llama))
        axis = Axis.from_direction(units(1, HIDDEN), layers=[2], metadata=facts)
        axis.cap(2, floor=FLOOR).save(tmp_path / "cap")
        cap = Cap.load(tmp_path / "cap")
        with cap.on(llama):
            logits(llama, PROMPTS)
        other = new_model("llama", seed=1)
        with pytest.raises(AxisMismatchError, match="weights fingerprint"), cap.on(other):
            pass
        with cap.on(other, allow=("weights",)):
            logits(other, PROMPTS)
        with pytest.raises(AxisMismatchError, match="architecture is llama in the file and qwen3 here"):
            cap.on(new_model("qwen3"), allow=("weights",))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear(hidden).tanh()


class Toy(nn.Module):
    """The least that has layers and a residual stream: it compiles in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.head = nn.Linear(HIDDEN, VOCAB)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def wrapper_passed(model):
    compiled = torch.compile(model, backend="eager")
    return compiled, compiled


def model_passed(model):
    return model, torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model, model


def forward_only(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model, model


def by_layer(model):
    for layer in model.layers:
        layer.compile(backend="eager")
    return model, model


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
class TestCompiled:
    """`way(model)` compiles it and gives what is passed to `on` and what is called."""

    ids = torch.arange(14).view(2, 7)
    every_way = pytest.mark.parametrize("way", [wrapper_passed, model_passed, in_place, forward_only, by_layer])
    ways_that_ignore_late_hooks = pytest.mark.parametrize("way", [wrapper_passed, model_passed, in_place, forward_only])

    @pytest.fixture
    def toy(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Toy()

    @pytest.fixture
    def expected(self, toy, cap):
        plain = toy(self.ids)
        with cap.on(toy):
            capped = toy(self.ids)
        assert not torch.allclose(plain, capped)
        return plain, capped

    @every_way
    def test_entered_before_and_left(self, toy, cap, expected, way):
        passed, called = way(toy)
        for _ in range(2):
            with cap.on(passed):
                torch.testing.assert_close(called(self.ids), expected[1])
        torch.testing.assert_close(called(self.ids), expected[0])

    @ways_that_ignore_late_hooks
    def test_entered_late(self, toy, cap, way):
        passed, called = way(toy)
        called(self.ids)
        with pytest.raises(CapError, match="torch.compile graph made without these hooks"), cap.on(passed):
            called(self.ids)
        assert not hooks(toy)

    @ways_that_ignore_late_hooks
    def test_entered_again_after_a_run_without(self, toy, cap, way):
        passed, called = way(toy)
        with cap.on(passed):
            called(self.ids)
        called(self.ids)
        with pytest.raises(CapError, match="torch.compile graph"), cap.on(passed):
            called(self.ids)

    def test_compiled_layers_guard_their_own_hooks(self, toy, cap, expected):
        by_layer(toy)
        toy(self.ids)
        with cap.on(toy):
            torch.testing.assert_close(toy(self.ids), expected[1])

    @pytest.mark.parametrize("way", [wrapper_passed, in_place, forward_only])
    def test_one_graph_that_acts_does_not_excuse_one_that_does_not(self, toy, cap, way):
        """An earlier wrapper that is not passed, called beside runs that act, is not seen: `watching` says so."""
        passed, called = way(toy)
        called(self.ids)
        called(self.ids.repeat(1, 2))  # the second shape makes a graph for many shapes
        acted = []
        with pytest.raises(CapError, match="torch.compile"), cap.on(passed):
            with torch.no_grad():  # which is guarded: a new graph, with the hooks
                called(self.ids)
            acted.append(True)
            called(self.ids)
        assert acted

    @every_way
    def test_an_exception_goes_first(self, toy, cap, way):
        passed, called = way(toy)
        called(self.ids)
        with pytest.raises(ZeroDivisionError), cap.on(passed):
            called(self.ids) if way is by_layer else None
            raise ZeroDivisionError
        assert not hooks(toy)

    def test_guarded_hooks_may_come_late_and_go(self, toy, cap, expected):
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            compiled = torch.compile(toy, backend="eager")
            for _ in range(3):
                torch.testing.assert_close(compiled(self.ids), expected[0])
                with cap.on(toy):
                    torch.testing.assert_close(compiled(self.ids), expected[1])

    def test_a_graph_that_outlives_the_cap_bounds_nothing(self):
        held = HeldCap(units(8), torch.tensor(5.0), torch.tensor(5.0), Place(torch.device("cpu"), torch.float32))
        graph = torch.compile(held, backend="aot_eager", fullgraph=True)
        hidden = torch.randn(2, 3, 8)
        for _ in range(2):
            held.arm()
            assert torch.allclose(graph(hidden) @ units(8), torch.full((2, 3), 5.0))
            held.disarm()
            assert torch.equal(graph(hidden), hidden)


@pytest.mark.usefixtures("fresh_compiler")
class TestCompiledTransformers:
    def test_one_graph_without_breaks(self, llama, cap):
        import torch._dynamo.testing as dynamo

        counter = dynamo.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(llama, backend=counter, fullgraph=True)
        with cap.on(compiled):
            logits(compiled, PROMPTS)
            logits(compiled, PROMPTS)
        assert counter.frame_count == 1

    def test_generate_that_compiles_its_decoding_steps(self, new_model, cap):
        """With a static cache only the prompt runs in plain Python; that alone must not count as acting."""
        from transformers import CompileConfig

        def compiling():
            config = CompileConfig(backend="eager", fullgraph=False, mode=None)
            config._compile_all_devices = True
            return {"cache_implementation": "static", "compile_config": config}

        model = new_model("llama")
        with cap.on(model):
            expected = generate(model, PROMPTS, cache_implementation="static")
            assert generate(model, PROMPTS, **compiling()) == expected
        torch.compiler.reset()
        model = new_model("llama")
        plain = generate(model, PROMPTS, **compiling())
        assert plain != expected
        with pytest.raises(CapError, match="torch.compile"), cap.on(model):
            generate(model, PROMPTS, **compiling())
        assert "get_compiled_call" not in vars(model)
        assert generate(model, PROMPTS, **compiling()) == plain
