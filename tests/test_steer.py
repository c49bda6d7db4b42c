"""Plain steering through the same seam."""

from __future__ import annotations

import pytest
import torch
from conftest import HIDDEN
from test_cap import units
from test_residual import hooks

from persona_axis import CapError
from persona_axis.edits.acting import Place
from persona_axis.errors import CapMismatchError
from persona_axis.residual import reading
from persona_axis.steer import ablate, add

IDS = torch.arange(3, 17).view(2, 7)


def hidden_at(model, layer):
    seen = []
    with torch.no_grad(), reading(model, [layer], lambda _, h: seen.append(h.clone())):
        model(input_ids=IDS)
    return seen[0]


def test_add_adds(any_model):
    v, plain = units(2, HIDDEN), hidden_at(any_model, 0)
    with add(v, [0, 2], alpha=[3.0, -2.0]).on(any_model):
        torch.testing.assert_close(hidden_at(any_model, 0), plain + 3.0 * v[0])
        before = []
        with torch.no_grad(), reading(any_model, [1], lambda _, h: before.append(h)):
            any_model(input_ids=IDS)
        with torch.no_grad():
            expected = any_model(input_ids=IDS).logits
    assert not hooks(any_model)
    with add(v[:1], [0], 3.0).on(any_model), add(-2 * v[1:], [2]).on(any_model), torch.no_grad():
        torch.testing.assert_close(any_model(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [3, 40_000])
def test_one_rounding_whatever_the_dtype_and_size(dtype, rows):
    hidden = (torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    vector = torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).double()
    held = add(vector, [0], 0.1).edits({0: Place(torch.device("cpu"), dtype)})[0]
    before = hidden.clone()
    assert torch.equal(held(hidden), hidden), "not entered, so nothing may happen"
    held.arm()
    exact = hidden.double() + 0.1 * vector
    work = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 2 * work * (hidden.double().abs() + vector.abs())
    assert ((held(hidden).double() - exact).abs() <= allowed).all()
    assert torch.equal(hidden, before)
    held.disarm()
    assert torch.equal(held(hidden), hidden)


def test_ablate_takes_the_direction_out(any_model):
    v, plain = units(1, HIDDEN), hidden_at(any_model, 1)
    with ablate(v, [1]).on(any_model):
        ablated = hidden_at(any_model, 1)
    torch.testing.assert_close(ablated, plain - (plain @ v[0])[..., None] * v[0], rtol=1e-4, atol=1e-5)
    assert (ablated @ v[0]).abs().max() < 1e-5


def test_fails_closed_like_a_cap(llama):
    steering = add(units(1, HIDDEN), [1], 2.0)
    with pytest.raises(CapError, match=r"the addition at layers \[1\] did not act"), steering.on(llama):
        pass
    with steering.on(llama):
        with pytest.raises(CapError, match="already entered"), steering.on(llama):
            pass
        hidden_at(llama, 1)
    with pytest.raises(ZeroDivisionError), steering.on(llama):
        raise ZeroDivisionError
    assert not hooks(llama)
    with pytest.raises(CapMismatchError, match="width 8 on a residual stream of 32"):
        add(units(1, 8), [1]).on(llama)
    with pytest.raises(CapError, match=r"\[9\] do not exist"), add(units(1, HIDDEN), [9]).on(llama):
        pass


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"direction": units(3, 8)}, r"direction \[3, 8\] and alpha \[2\]"),
        ({"alpha": [1, 2, 3]}, r"alpha \[3\]"),
        ({"alpha": torch.nan}, "finite"),
        ({"direction": torch.full((2, 8), torch.inf)}, "finite"),
        ({"alpha": "much"}, "alpha: expected numbers"),
        ({"layers": [1, 1]}, "different"),
    ],
)
def test_what_cannot_be_added(arguments, says):
    with pytest.raises(CapError, match=says):
        add(**{"direction": units(2, 8), "layers": [0, 1], "alpha": 1.0, **arguments})


def test_vectors_that_are_not_unit_cannot_be_ablated():
    with pytest.raises(CapError, match="unit"):
        ablate(units(1, 8) * 2, [0])
