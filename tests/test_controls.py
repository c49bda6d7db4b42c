"""Controls: exact arithmetic, and as much done to as many tokens as the cap they are matched to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cap import units
from test_drift import axis_for, states

from persona_axis import AxisFileError, Cap, CapError
from persona_axis.chat import ChatModel
from persona_axis.controls import (
    KINDS,
    MIXTURE,
    SHARE_TOLERANCE,
    SIZE_TOLERANCE,
    Push,
    Pushes,
    fit,
    matched,
    projections,
    pushed,
    pushes_of,
    random_directions,
    touches,
)
from persona_axis.errors import CapMismatchError
from persona_axis.levers import Lever

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat()


@pytest.fixture(scope="module")
def texts(chat: ChatModel) -> list[list[int]]:
    """Token ids of different lengths; they need not make sense."""
    random = np.random.default_rng(3)
    return [[1, *random.integers(9, len(tiny.tokenizer()), size=n).tolist()] for n in random.integers(5, 40, size=90)]


def cap_for(chat: ChatModel, texts: Sequence[Sequence[int]], percentiles: Sequence[float] = (60, 35)) -> Cap:
    """A cap whose floors lie at these percentiles of the texts' own tokens."""
    axis = axis_for(chat, LAYERS)
    found = projections(chat, texts, {layer: axis.direction[axis.row(layer)] for layer in LAYERS})
    floors = [float(np.percentile(found[at], p)) for at, p in zip(LAYERS, percentiles, strict=True)]
    return axis.cap(layers=LAYERS, floor=floors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 10**6), gain=st.floats(0, 2), size=st.floats(0, 30))
@settings(max_examples=25, deadline=None)
def test_a_push_against_float64(dtype: torch.dtype, seed: int, gain: float, size: float) -> None:
    made = torch.Generator().manual_seed(seed)
    direction = units(16, seed=seed)
    hidden = (torch.randn(50, 16, generator=made, dtype=torch.float64) * 5).to(dtype)
    exact = hidden.double() @ direction.double()
    trigger = float(exact.median()) + 1e-3
    target = trigger + size
    found = pushed(hidden, direction, trigger, target, gain)
    below = exact < trigger
    unsure = (exact - trigger).abs() < 1e-5
    assert found.dtype == dtype and torch.equal(found[~below & ~unsure], hidden[~below & ~unsure])
    moved = gain * (target - exact[below & ~unsure])
    along = direction.double() / direction.double().square().sum()  # float32 rows are unit vectors only to 1e-7
    wanted = hidden[below & ~unsure].double() + moved[:, None] * along
    work, largest = torch.finfo(torch.promote_types(dtype, torch.float32)).eps, hidden.double().abs().max()
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + 40 * work * (1 + moved.abs().max() + largest)
    assert ((found[below & ~unsure].double() - wanted).abs() <= allowed).all()


def test_a_push_with_its_target_at_the_trigger_is_a_floor(chat: ChatModel, texts: list[list[int]]) -> None:
    cap, ids = cap_for(chat, texts), torch.tensor([texts[0][:5], texts[1][:5]])
    as_pushes = pushes_of(cap)
    assert isinstance(as_pushes, Lever) and as_pushes.layers == cap.layers
    found = []
    for lever in (cap, as_pushes, None):
        with chat.under(lever), torch.no_grad():
            found.append(chat.model(ids).logits)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-3


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200),
    share=st.floats(0, 1), size=st.floats(1e-3, 1e3),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_fit_touches_the_share_and_moves_by_the_size(values: list[float], share: float, size: float) -> None:
    p = np.array(values, dtype=np.float32)
    push = fit(p, share, size)
    wide = p.astype(np.float64)
    hit = wide[wide < push.trigger]
    if round(share * len(p)) == 0:
        assert not len(hit)
        return
    equal = max(np.unique(p, return_counts=True)[1])
    assert len(hit) and abs(len(hit) - share * len(p)) <= equal
    moves = push.gain * (push.target - hit)
    assert (moves >= 0).all() and push.target >= push.trigger
    assert np.mean(moves) == pytest.approx(size, rel=1e-6, abs=1e-9)


def test_a_fit_without_anything_to_match() -> None:
    for push in (fit(np.arange(5.0), 0.0, 3.0), fit(np.arange(5.0), 0.5, float("nan")), fit(np.arange(5.0), 0.5, 0.0)):
        assert push.trigger == -np.inf
    with pytest.raises(CapError, match="finite projections"):
        fit(np.array([]), 0.5, 1.0)
    with pytest.raises(CapError, match="finite projections"):
        fit(np.array([1.0, np.nan]), 0.5, 1.0)


def test_touches_by_hand(chat: ChatModel, texts: list[list[int]]) -> None:
    cap = cap_for(chat, texts)
    few = texts[:9]
    found = {t.layer: t for t in touches(chat, few, pushes_of(cap))}
    direction, floor = cap.direction.double(), cap.floor
    assert floor is not None
    short = torch.cat([floor[0] - states(chat, ids)[0][1:] @ direction[0] for ids in few])  # no first token, no padding
    hit = short[short > 0]
    assert found[0].share == pytest.approx(len(hit) / len(short))
    assert found[0].size == pytest.approx(float(hit.mean()), rel=1e-4)
    with cap.on(chat.model):  # hooks registered later see the stream after the edit; layer 2 sees layer 0's
        after = [states(chat, ids)[2][1:] @ direction[1] for ids in few]
    with Cap(cap.direction[:1], [0], floor[:1]).on(chat.model):
        before = [states(chat, ids)[2][1:] @ direction[1] for ids in few]
    short = torch.cat(after) - torch.cat(before)
    assert found[2].share == pytest.approx(float((short > 1e-4).double().mean()), abs=0.005)
    assert found[2].size == pytest.approx(float(short[short > 1e-4].mean()), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentiles", [(60, 35), (3, 99.9), (100, 0)])
def test_matched_in_share_and_size(
    chat: ChatModel, texts: list[list[int]], kind: str, percentiles: tuple[float, float]
) -> None:
    cap, axis = cap_for(chat, texts, percentiles), axis_for(chat, LAYERS)
    wanted = touches(chat, texts, pushes_of(cap))
    for draw in range(2):
        control = matched(chat, texts, pushes_of(cap), random_directions(axis, LAYERS, kind, draw), wanted)
        for own, other in zip(wanted, touches(chat, texts, control), strict=True):
            assert own.layer == other.layer
            assert other.share == pytest.approx(own.share, abs=SHARE_TOLERANCE)
            if own.share:
                assert other.size == pytest.approx(own.size, rel=SIZE_TOLERANCE)


def test_directions(chat: ChatModel) -> None:
    axis = axis_for(chat, LAYERS, roles=6)
    for kind in KINDS:
        one, same, other = (random_directions(axis, LAYERS, kind, seed) for seed in (0, 0, 1))
        assert one.shape == (2, chat.hidden_size) and one.dtype == torch.float32
        torch.testing.assert_close(one.norm(dim=1), torch.ones(2))
        assert torch.equal(one, same) and not torch.allclose(one, other) and not torch.allclose(one[0], one[1])
    shuffled = random_directions(axis, LAYERS, "shuffled", 0)
    torch.testing.assert_close(shuffled.sort(dim=1).values, axis.direction.sort(dim=1).values)
    for row, direction in enumerate(random_directions(axis, LAYERS, "span", 0)):
        roles = (axis.roles[:, row] - axis.roles[:, row].mean(0)).double().numpy()
        inside = np.linalg.lstsq(roles.T, direction.double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(roles.T @ inside, direction, atol=1e-6)
        assert abs(float(direction @ axis.direction[row])) < 1e-6
        whole = random_directions(axis, LAYERS, MIXTURE, 0)[row]
        beside = whole - (whole @ direction) * direction
        assert abs(float(whole @ axis.direction[row])) > 1e-3 and beside.norm() > 1e-3
    with pytest.raises(CapError, match="no kind of control 'sideways'"):
        random_directions(axis, LAYERS, "sideways", 0)


def test_two_roles_span_nothing_beside_the_axis(chat: ChatModel) -> None:
    with pytest.raises(AxisFileError, match="the 2 role vectors of this axis span nothing beside"):
        random_directions(axis_for(chat, LAYERS, roles=2), LAYERS, "span", 0)


def test_an_axis_without_roles_has_no_span() -> None:
    from persona_axis import Axis

    axis = Axis.from_direction(units(1, 32), layers=[0], metadata={"num_layers": 3})
    with pytest.raises(AxisFileError, match="roles"):
        random_directions(axis, [0], "span", 0)


def test_what_cannot_be_a_control(chat: ChatModel) -> None:
    rows: Any = units(2, 32)
    with pytest.raises(CapError, match="no ceiling"):
        pushes_of(Cap(rows, [0, 2], floor=0.0, ceiling=1.0))
    with pytest.raises(CapError, match="one floor a layer"):
        pushes_of(Cap(rows, [0, 2], floor=[[0.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(CapError, match="rising, each once"):
        Pushes((Push(2, rows[0], 0.0, 0.0), Push(0, rows[1], 0.0, 0.0)))
    with pytest.raises(CapError, match="one or more"):
        Pushes(())
    assert pushes_of(Cap(rows, [2, 0], floor=[1.0, -1.0])).layers == (0, 2)
    with pytest.raises(CapMismatchError, match="width 8 on a residual stream of 32"):
        Pushes((Push(0, units(8), 0.0, 0.0),)).on(chat.model)


def test_fails_closed(chat: ChatModel) -> None:
    lever = Pushes((Push(1, units(32), 0.0, 1.0),))
    with pytest.raises(CapError, match=r"the control at layers \[1\] did not act"), chat.under(lever):
        pass
    with pytest.raises(CapError, match=r"\[9\] do not exist"), chat.under(Pushes((Push(9, units(32), 0.0, 1.0),))):
        pass
    ids = torch.tensor([[1, 10, 11]])
    with torch.no_grad():
        plain = chat.model(ids).logits
        with chat.under(lever):
            held = chat.model(ids).logits
        assert torch.equal(chat.model(ids).logits, plain) and not torch.allclose(held, plain)
