from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from persona_axis.cap import Cap
from persona_axis.edits.arithmetic import clamped
from persona_axis.serving._stream_edit import Bounds, StreamEdit, bounds_at

WIDTH, ROOM = 16, 64
DIRECTION = torch.nn.functional.normalize(torch.arange(1.0, WIDTH + 1), dim=0)


def edit(floor: float = -math.inf, ceiling: float = math.inf, dtype: torch.dtype = torch.float32) -> StreamEdit:
    made = StreamEdit(WIDTH, ROOM, torch.device("cpu"), dtype)
    made.hold(Bounds(DIRECTION, floor, ceiling))
    return made


def rows(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bounds", [(0.5, math.inf), (-math.inf, -0.5), (-0.25, 0.25)])
def test_a_single_stream_is_held_as_the_cap_holds_it(bounds: tuple[float, float], dtype: torch.dtype) -> None:
    hidden = rows(0, dtype)
    assert torch.equal(edit(*bounds, dtype)(hidden), clamped(hidden, DIRECTION, *bounds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_a_pair_lands_on_the_bound_and_keeps_the_rest(dtype: torch.dtype) -> None:
    hidden, residual = rows(1, dtype), rows(2, dtype)
    moved = edit(2.0, dtype=dtype)(hidden, residual)
    before, after = hidden.double() + residual.double(), moved.double() + residual.double()
    held = clamped(before, DIRECTION, 2.0)
    # One rounding, of the part that is written.
    assert ((after - held).abs() <= torch.finfo(dtype).eps * hidden.double().abs().clamp_min(4) * 2).all()
    inside = (before @ DIRECTION.double()) >= 2.0 + 1e-3
    assert inside.any() and not inside.all()
    assert torch.equal(moved[inside], hidden[inside])


def test_it_keeps_what_it_saw_of_this_run_and_no_more() -> None:
    held = edit(2.0)
    hidden, residual = rows(3), rows(4)
    held(hidden, residual)
    assert torch.allclose(held.seen[:10], (hidden + residual) @ DIRECTION, atol=1e-5)
    held(hidden[None, :2])  # as engines have it that carry transformers' own layers
    assert torch.allclose(held.seen[:2], hidden[:2] @ DIRECTION, atol=1e-5)


def test_a_compiled_graph_follows_a_change_of_the_bounds_and_of_the_batch() -> None:
    held = edit()
    run = torch.compile(lambda h: held(h), backend="eager", dynamic=True)
    hidden = rows(5)
    assert torch.equal(run(hidden), hidden)
    held.hold(Bounds(-DIRECTION, 1.0, math.inf))
    for n in (10, 3):
        assert torch.allclose(run(hidden[:n]), clamped(hidden[:n], -DIRECTION, 1.0), atol=1e-6)


def test_bounds_read_back_or_say_that_they_do_not() -> None:
    held = edit(0.1)  # not a float32 number
    assert held.holds(Bounds(DIRECTION, 0.1, math.inf))
    assert not held.holds(Bounds(DIRECTION, 0.2, math.inf))
    assert not held.holds(Bounds(-DIRECTION, 0.1, math.inf))
    assert not held.holds(Bounds(DIRECTION, 0.1, 5.0))


def test_a_layer_without_a_bound_in_the_cap_is_left_alone() -> None:
    cap = Cap(DIRECTION[None], [3], ceiling=1.5)
    assert bounds_at(cap, 3, WIDTH)[1:] == (-math.inf, 1.5)
    held = edit(5.0)
    for nothing in (bounds_at(cap, 2, WIDTH), bounds_at(None, 3, WIDTH)):
        held.hold(nothing)
        assert torch.equal(held(rows(6)), rows(6))
