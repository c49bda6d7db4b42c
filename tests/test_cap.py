"""The arithmetic of a cap, the value itself, and its file."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from persona_axis import Axis, AxisFileError, Cap, CapError
from persona_axis.cap import clamped
from persona_axis.edits import arithmetic

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def units(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (made / made.norm(dim=-1, keepdim=True)).float()


def rounding(dtype: torch.dtype) -> float:
    """The unit roundoff: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks of 64 elements, so that small tensors are cut into many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_BLOCK", {"cpu": 64})
        yield


@st.composite
def situations(draw):
    """hidden [batch, seq, width], a unit direction, and bounds, one of them possibly absent."""
    width = draw(st.integers(1, 40))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 9)), width)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-2, 1.0, 50.0]))
    hidden = (torch.randn(shape, generator=generator) * scale).to(draw(st.sampled_from(DTYPES)))
    direction = units(width, seed=draw(st.integers(0, 1000)))
    low = draw(st.floats(-3, 3)) * scale
    high = low + draw(st.floats(0, 3)) * scale
    floor, ceiling = draw(st.sampled_from([(low, None), (None, high), (low, high), (low, low)]))
    return hidden, direction, floor, ceiling


def check_exact(hidden: Tensor, direction: Tensor, floor: float | None, ceiling: float | None, out: Tensor) -> None:
    """Every promise about one application, against float64."""
    assert out.dtype == hidden.dtype and out.shape == hidden.shape
    exact, v = hidden.double(), direction.double()
    projection = exact @ v
    goal = projection.clamp(floor, ceiling)
    reference = exact + ((goal - projection) / (v @ v))[..., None] * v
    # What the arithmetic may do to a projection before anything is rounded to the output's dtype.
    eps = torch.finfo(torch.promote_types(hidden.dtype, torch.float32)).eps
    slop = 4 * eps * (exact.abs() @ v.abs() + goal.abs())
    near_a_bound = torch.zeros_like(projection, dtype=torch.bool)
    for bound in (floor, ceiling):
        if bound is not None:
            near_a_bound |= (projection - bound).abs() <= slop
    inside = (goal == projection) & ~near_a_bound
    assert torch.equal(out[inside], hidden[inside])
    u = rounding(hidden.dtype)
    tiny = torch.finfo(hidden.dtype).smallest_normal * torch.finfo(hidden.dtype).eps  # spacing of subnormals
    allowed = u * reference.abs() + tiny + slop[..., None] * v.abs() + eps * (exact.abs() + reference.abs())
    assert ((out.double() - reference).abs() <= allowed)[~near_a_bound].all()
    landed = (out.double() @ v - goal).abs()
    assert (landed <= allowed @ v.abs() + slop).all()


class TestArithmetic:
    @given(situations())
    @settings(max_examples=150, deadline=None)
    def test_exact_whatever_the_shape_dtype_and_bounds(self, situation):
        hidden, direction, floor, ceiling = situation
        before = hidden.clone()
        out = clamped(hidden, direction, floor, ceiling)
        check_exact(hidden, direction, floor, ceiling, out)
        assert torch.equal(hidden, before), "the input was written to"

    @given(situations())
    @settings(max_examples=100, deadline=None)
    def test_a_second_application_moves_no_more_than_the_first_one_s_rounding(self, situation):
        hidden, direction, floor, ceiling = situation
        once = clamped(hidden, direction, floor, ceiling)
        v, twice = direction.double().abs(), once
        eps = torch.finfo(torch.promote_types(hidden.dtype, torch.float32)).eps
        summing = 8 * eps * (hidden.double().abs() @ v + once.double().abs() @ v + abs(floor or 0) + abs(ceiling or 0))
        tiny = torch.finfo(hidden.dtype).smallest_normal
        for _ in range(4):  # nor does it creep away in many
            moved = clamped(twice, direction, floor, ceiling)
            left = 1.01 * rounding(hidden.dtype) * (once.double().abs() @ v) + summing
            ulp = 2.02 * rounding(hidden.dtype) * twice.double().abs()
            step = (moved.double() - twice.double()).abs()
            assert (step <= left[..., None] * v + ulp + tiny).all()
            twice = moved
        drift = (twice.double() - once.double()).norm(dim=-1)
        assert (drift <= 4 * rounding(hidden.dtype) * once.double().norm(dim=-1) + summing + tiny * len(v)).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_known_numbers(self, dtype):
        hidden = torch.tensor([[3.0, 4.0, -1.0], [-2.0, 4.0, -1.0]], dtype=dtype)
        x = torch.tensor([1.0, 0.0, 0.0])
        assert clamped(hidden, x, floor=0.5).tolist() == [[3.0, 4.0, -1.0], [0.5, 4.0, -1.0]]
        assert clamped(hidden, x, ceiling=0.5).tolist() == [[0.5, 4.0, -1.0], [-2.0, 4.0, -1.0]]
        assert clamped(hidden, x, -1.0, 1.0).tolist() == [[1.0, 4.0, -1.0], [-1.0, 4.0, -1.0]]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_float32_inside_whatever_the_dtype(self, dtype):
        """Summed or corrected in half precision, 4096 terms would be off by far more than one rounding."""
        hidden = (torch.randn(3, 4096, generator=torch.Generator().manual_seed(1)) * 10).to(dtype)
        direction = units(4096)
        check_exact(hidden, direction, 5.0, None, clamped(hidden, direction, 5.0))

    @given(situations(), st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None)
    def test_a_row_does_not_depend_on_the_others(self, situation, random):
        hidden, direction, floor, ceiling = situation
        whole = clamped(hidden, direction, floor, ceiling).flatten(0, 1)
        rows = hidden.flatten(0, 1)
        chosen = random.sample(range(len(rows)), random.randint(1, len(rows)))
        assert torch.equal(clamped(rows[chosen], direction, floor, ceiling), whole[chosen])

    @pytest.mark.parametrize("hidden", [16, 100, 896, 4096])
    def test_large_batches_give_the_bits_of_single_rows(self, hidden):
        rows = torch.randn(257, hidden, generator=torch.Generator().manual_seed(2))
        direction = units(hidden)
        whole = clamped(rows, direction, 0.5)
        for i in range(0, 257, 16):
            assert torch.equal(clamped(rows[i : i + 1], direction, 0.5), whole[i : i + 1])

    @given(situations())
    @settings(max_examples=100, deadline=None)
    def test_blocks_and_autograd_give_the_same_bits(self, situation):
        hidden, direction, floor, ceiling = situation
        whole = clamped(hidden, direction, floor, ceiling)
        traced = clamped(hidden.clone().requires_grad_(), direction, floor, ceiling)
        assert traced.requires_grad and torch.equal(traced, whole)
        with small_blocks():
            assert torch.equal(clamped(hidden, direction, floor, ceiling), whole)

    @given(situations())
    @settings(max_examples=30, deadline=None)
    def test_devices_that_cannot_look_give_the_same_bits(self, situation):
        hidden, direction, floor, ceiling = situation
        whole = clamped(hidden, direction, floor, ceiling)
        with small_blocks(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(arithmetic, "_LOOKING_IS_FREE", frozenset())
            assert torch.equal(clamped(hidden, direction, floor, ceiling), whole)

    def test_blocks_are_cut_by_rows(self):
        with small_blocks():
            assert arithmetic._blocks(torch.empty(14, 10)) == [slice(0, 6), slice(6, 12), slice(12, 14)]
            assert arithmetic._blocks(torch.empty(2, 100)) == [slice(0, 1), slice(1, 2)]

    @pytest.mark.parametrize("touched", [[], [0], [7], [17], [0, 17], range(18)])
    def test_only_touched_rows_change_and_an_untouched_tensor_is_handed_back(self, touched):
        hidden = torch.zeros(18, 20)
        hidden[:, 1] = torch.arange(18.0)
        hidden[list(touched), 0] = -1.0
        x = torch.eye(20)[0]
        with small_blocks():
            out = clamped(hidden, x, floor=0.0)
        assert torch.equal(out[:, 0], torch.zeros(18))
        assert torch.equal(out[:, 1], hidden[:, 1])
        assert (out is hidden) == (not list(touched))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_per_row_bounds_in_blocks(self, dtype):
        hidden = torch.randn(4, 9, 20, generator=torch.Generator().manual_seed(3)).to(dtype)
        v, floors = units(20), torch.tensor([-9.0, 0.0, 1.0, 2.0])
        with small_blocks():
            out = clamped(hidden, v, floors.view(4, 1, 1))
        for row, floor in enumerate(floors.tolist()):
            assert torch.equal(out[row], clamped(hidden[row], v, floor))

    def test_values_that_are_not_numbers_stay_visible_and_stay_in_their_row(self):
        hidden = torch.ones(2, 4)
        hidden[0, 1] = torch.nan
        out = clamped(hidden, units(4), 3.0)
        assert out[0].isnan().all() and out[1].isfinite().all()

    def test_no_rows_at_all(self):
        assert clamped(torch.empty(2, 0, 4), units(4), 0.0).shape == (2, 0, 4)

    def test_gradients_flow_through(self):
        hidden = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        v = units(5).double()
        assert torch.autograd.gradcheck(lambda h: clamped(h, v, 0.1, 0.4), (hidden,))

    def test_a_view_that_is_not_contiguous(self):
        hidden = torch.randn(4, 6, 8).transpose(0, 1)
        assert torch.equal(clamped(hidden, units(8), 0.5), clamped(hidden.contiguous(), units(8), 0.5))

    def test_compiled_without_breaks(self):
        hidden, v = torch.randn(2, 5, 8), units(8)
        compiled = torch.compile(clamped, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(hidden, v, 0.3), clamped(hidden, v, 0.3), rtol=0, atol=1e-6)


class TestValue:
    def test_bounds_are_spread_over_layers(self):
        cap = Cap(units(2, 8), [1, 5], floor=0.25, ceiling=[1, 2])
        assert cap.layers == (1, 5)
        assert Cap(units(1, 8), [1], floor=0.1).floor.tolist() == [0.1], "bounds keep float64"
        assert cap.floor.tolist() == [0.25, 0.25] and cap.ceiling.tolist() == [1.0, 2.0]
        assert Cap(units(2, 8), [1, 5], floor=torch.zeros(2, 3)).floor.shape == (2, 3)
        assert Cap(units(8), [1], ceiling=1).direction.shape == (1, 8)

    def test_frozen_and_independent_of_what_it_was_made_from(self):
        direction, floor = units(1, 8), torch.zeros(1)
        cap = Cap(direction, [0], floor)
        direction.zero_()
        floor.fill_(9)
        assert torch.equal(cap.direction, units(1, 8)) and cap.floor.tolist() == [0.0]
        with pytest.raises(AttributeError):
            cap.floor = None

    def test_takes_arrays_lists_and_any_float_dtype(self):
        rows = units(2, 64)
        for given_rows in (rows.numpy(), rows.tolist(), rows.double()):
            assert torch.equal(Cap(given_rows, [0, 1], 0).direction, rows)
        rounded = Cap(rows.bfloat16(), [0, 1], 0).direction
        torch.testing.assert_close(rounded.double().norm(dim=1), torch.ones(2).double(), rtol=0, atol=1e-7)

    def test_copies_and_pickles_as_a_plain_value(self):
        cap = Cap(units(2, 8), [1, 5], floor=0.25, provenance={"a": 1})
        for other in (copy.deepcopy(cap), pickle.loads(pickle.dumps(cap))):
            assert torch.equal(other.direction, cap.direction) and other.layers == cap.layers
            assert other.provenance == {"a": 1} and other.ceiling is None

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({}, "needs a floor or a ceiling"),
            ({"floor": -torch.inf}, "needs a floor or a ceiling"),
            ({"floor": 1, "ceiling": 0.5}, r"floor .* lies above ceiling"),
            ({"floor": [0, 1], "ceiling": [0.5, 0.5]}, "lies above"),
            ({"floor": [[0, 3], [0, 0]], "ceiling": [1, 2]}, "lies above"),
            ({"floor": torch.zeros(2, 3), "ceiling": torch.ones(2, 4)}, "3 rows, ceiling for 4"),
            ({"floor": torch.nan}, "nothing can meet"),
            ({"floor": torch.inf}, "nothing can meet"),
            ({"ceiling": [0, -torch.inf]}, "nothing can meet"),
            ({"floor": [1, 2, 3]}, r"floor \[3\]: expected a number, \[2\] or \[2, batch\]"),
            ({"floor": torch.zeros(2, 0)}, r"floor \[2, 0\]"),
            ({"floor": torch.zeros(2, 1, 1)}, r"floor \[2, 1, 1\]"),
            ({"floor": "default:p25"}, "floor: expected numbers, got str"),
            ({"floor": 0, "layers": [0]}, r"direction \[2, 8\]: expected \[1, hidden\]"),
            ({"floor": 0, "layers": []}, "one or more"),
            ({"floor": 0, "layers": [1, 1]}, "different indices"),
            ({"floor": 0, "layers": [-1, 1]}, "counted from 0"),
            ({"floor": 0, "layers": [0.5, 1]}, "expected a layer's number or a list"),
            ({"floor": 0, "layers": "3"}, "expected a layer's number or a list"),
            ({"floor": 0, "direction": units(2, 8) * 2}, "row 0 has norm 2; rows must be unit"),
            ({"floor": 0, "direction": torch.zeros(2, 8)}, "norm 0"),
            ({"floor": 0, "direction": torch.full((2, 8), torch.nan)}, "norm nan"),
            ({"floor": 0, "direction": units(8)}, r"direction \[8\]: expected \[2, hidden\]"),
            ({"floor": 0, "direction": "x"}, "direction: expected numbers"),
        ],
    )
    def test_what_cannot_be_a_cap(self, arguments, says):
        with pytest.raises(CapError, match=says):
            Cap(**{"direction": units(2, 8), "layers": [0, 1], **arguments})


class TestFile:
    @pytest.mark.parametrize(
        "bounds", [{"floor": 0.1}, {"ceiling": [1, 2]}, {"floor": torch.zeros(2, 3), "ceiling": 5.0}]
    )
    def test_round_trip(self, tmp_path, bounds):
        cap = Cap(units(2, 8), [7, 3], **bounds, facts={"hidden_size": 8}, provenance={"floor": "by hand"})
        cap.save(tmp_path / "cap")
        back = Cap.load(tmp_path / "cap")
        assert torch.equal(back.direction, cap.direction) and back.layers == (7, 3)
        for ours, theirs in ((cap.floor, back.floor), (cap.ceiling, back.ceiling)):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        assert back.facts == {"hidden_size": 8} and back.provenance == {"floor": "by hand"}

    def test_readable_by_anyone_with_safetensors(self, tmp_path):
        Cap(units(2, 8), [7, 3], floor=0.5).save(tmp_path / "cap")
        with safe_open(tmp_path / "cap", framework="pt") as file:
            assert set(file.keys()) == {"direction", "layers", "floor"}
            assert file.metadata()["format"] == "persona-cap/1"
            assert "toward the Assistant" in json.loads(file.metadata()["conventions"])["sign"]

    def damaged(self, tmp_path, tensors=(), metadata=()):
        path = tmp_path / "cap"
        Cap(units(2, 8), [7, 3], floor=0.5).save(path)
        with safe_open(path, framework="pt") as file:
            stated = {**file.metadata(), **dict(metadata)}
        held = {**load_file(path), **dict(tensors)}
        save_file({k: v for k, v in held.items() if v is not None}, path, {k: v for k, v in stated.items() if v})
        return path

    @pytest.mark.parametrize(
        ("tensors", "metadata", "says"),
        [
            ({"direction": None}, {}, "direction: expected F32, found nothing"),
            ({"direction": units(2, 8).double()}, {}, "direction: expected F32, found F64"),
            ({"direction": units(2, 8) * 3}, {}, "row 0 has norm 3"),
            ({"layers": torch.tensor([[7, 3]])}, {}, "layers: expected one dimension"),
            ({"layers": torch.tensor([7])}, {}, "direction .2, 8.: expected .1"),
            ({"floor": None}, {}, "needs a floor or a ceiling"),
            ({"ceiling": torch.zeros(2).double()}, {}, "lies above"),
            ({"extra": torch.zeros(2)}, {}, "extra: a cap file holds no such tensor"),
            ({}, {"format": "persona-cap/2"}, "format: expected 'persona-cap/1', found 'persona-cap/2'"),
            ({}, {"format": None}, "format: .* found None"),
            ({}, {"facts": "[1]"}, "facts: expected a JSON object"),
            ({}, {"provenance": "{"}, "provenance: expected a JSON object"),
            ({}, {"conventions": '{"sign": "away"}'}, "conventions: expected"),
        ],
    )
    def test_a_file_that_is_not_whole(self, tmp_path, tensors, metadata, says):
        path = self.damaged(tmp_path, tensors, metadata)
        with pytest.raises(AxisFileError, match=says):
            Cap.load(path)

    def test_undamaged(self, tmp_path):
        assert Cap.load(self.damaged(tmp_path)).layers == (7, 3)

    def test_what_json_cannot_hold(self, tmp_path):
        with pytest.raises(AxisFileError, match="must be JSON"):
            Cap(units(1, 8), [0], 0, provenance={"x": object()}).save(tmp_path / "cap")

    def test_an_axis_file_is_no_cap_file(self, tmp_path):
        Axis.from_direction(units(1, 8), layers=[0], metadata={"num_layers": 2}).save(tmp_path / "axis")
        with pytest.raises(AxisFileError, match="format: expected 'persona-cap/1', .*; this is an axis file"):
            Cap.load(tmp_path / "axis")
