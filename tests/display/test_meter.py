"""The meter tells where a reply lies between the roles and the default."""

from __future__ import annotations

import chat_factory
import pytest
import torch
from test_drift import axis_for

from persona_axis import Axis, Cap, CapError
from persona_axis.chat import ChatModel
from persona_axis.display.meter import Meter
from persona_axis.talks.ruler import Ruler


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return chat_factory.chat()


@pytest.fixture(scope="module")
def axis(chat: ChatModel) -> Axis:
    return axis_for(chat)


def ruler_of(axis: Axis | None, *caps: Cap, layer: int | None = None) -> Ruler:
    found = Ruler.of(axis, caps, layer)
    assert found is not None
    return found


def test_rulers(axis: Axis) -> None:
    assert Ruler.of(None, []) is None
    assert ruler_of(axis).layer == 2 and torch.equal(ruler_of(axis, layer=0).direction, axis.direction[0])
    cap = axis.cap(layers=[0, 2], floor=1.0)
    assert ruler_of(None, cap).layer == 2 and torch.equal(ruler_of(None, cap, layer=0).direction, axis.direction[0])
    with pytest.raises(CapError, match="layer 1 is not in the cap, which has 0, 2"):
        Ruler.of(None, [cap], 1)


def test_a_layer_that_is_not_capped_is_taken_where_there_is_one() -> None:
    made = axis_for(chat_factory.chat(layers=4), layers=range(4))
    axis, last = (Axis(made.arrays, {**made.metadata, "recommended_layer": at}) for at in (1, 3))

    def taken(*capped: int, layer: int | None = None) -> tuple[int, bool]:
        ruler = ruler_of(axis, *(axis.cap(layers=at, floor=1.0) for at in capped), layer=layer)
        assert torch.equal(ruler.direction, axis.direction[ruler.layer])
        return ruler.layer, ruler.capped

    assert taken() == (1, False) and taken(0, 2, 3) == (1, False), "the recommended one"
    assert taken(1) == (2, False) and taken(2, 1) == (3, False), "else the nearest above"
    assert taken(1, 2, 3) == (0, False), "else below"
    assert taken(0, 1, 2, 3) == (1, True) and taken(1, layer=1) == (1, True) and taken(1, layer=0) == (0, False)
    assert ruler_of(last, last.cap(layers=[1, 3], floor=1.0)).layer == 2, "the nearest below"
    assert ruler_of(None, axis.cap(layers=[0, 2], floor=1.0)).capped


@pytest.mark.parametrize("plain", [False, True])
def test_the_scale_runs_from_the_roles_to_the_default(axis: Axis, plain: bool) -> None:
    ruler = ruler_of(axis)
    meter = Meter(ruler, 5, columns=58, ascii_only=plain)
    assert meter.width == 30
    assert meter.edge == pytest.approx(float(axis.quantile("default", 5)[1]))
    point, line, middle, end = "o-|:" if plain else "●─│┊"
    low, high = meter.line(-1e6).plain, meter.line(1e6).plain
    assert low.startswith(point) and high[29] == point and low[30:] == " -1000000.00, p0 of the default"
    assert all(high[:30].count(mark) == 1 for mark in (point, middle, end)) and high.index(end) < high.index(middle)
    assert set(high[:30]) == {point, line, middle, end}
    median = float(axis.quantile("default", 50)[1])
    assert "p50 of the default" in meter.line(median).plain
    assert all(mark in meter.legend() for mark in (point, middle, end)) and "percentile 5" in meter.legend()


def test_a_warning_below_the_band_and_only_there(axis: Axis) -> None:
    meter = Meter(ruler_of(axis), 1)
    assert meter.edge is not None
    assert meter.warning(meter.edge) is None
    warning = meter.warning(meter.edge - 0.01)
    assert warning is not None and warning.plain.startswith("warning: below the safe band")
    assert f"{meter.edge:.2f}" in warning.plain and "about 1% of the default's replies" in warning.plain


def test_what_the_cap_found_is_told_where_it_differs(axis: Axis) -> None:
    meter = Meter(ruler_of(axis))
    assert "(1.25 as it reaches this layer's edit)" in meter.line(2.0, 1.25).plain
    assert "reaches" not in meter.line(2.0, 2.0).plain


@pytest.mark.parametrize("capped", [False, True])
def test_the_scale_leaves_room_for_the_figures(axis: Axis, capped: bool) -> None:
    caps = [axis.cap(layers=2, floor=1.0)] if capped else []
    for columns in (80, 120, 400):
        meter = Meter(ruler_of(axis, *caps, layer=2), columns=columns)
        lines = [meter.line(value, value - 1.25 if capped else None).plain for value in (-9.5, 0.0, 12.25)]
        assert all(len(line) <= columns for line in lines) and 8 <= meter.width <= 40
    assert meter.width == 40 and Meter(ruler_of(axis), columns=20).width == 8


def test_the_legend_says_what_the_meter_cannot(axis: Axis, chat: ChatModel) -> None:
    cap, bare = axis.cap(layers=2, floor=1.0), axis_for(chat, tables=False)
    construction, nothing = "layer 2 is capped: its projection lies inside the bounds by construction", "no safe band"
    single = "the band is of single replies; deep in a conversation healthy ones may lie below"
    legend = Meter(ruler_of(axis)).legend()
    assert single in legend and construction not in legend and nothing not in legend
    assert construction in Meter(ruler_of(axis, cap, layer=2)).legend()
    legend = Meter(ruler_of(None, cap)).legend()
    assert construction in legend and single not in legend
    assert legend.endswith("no safe band and no warning: name an axis file with --axis")
    legend = Meter(ruler_of(bare)).legend()
    assert construction not in legend and legend.endswith(
        "no safe band and no warning: the axis file does not say where the default's replies lie"
    )


def test_without_distributions_there_is_a_number_and_no_band(chat: ChatModel) -> None:
    bare = axis_for(chat, tables=False)
    for ruler in (ruler_of(bare), ruler_of(None, bare.cap(layers=2, floor=1.0))):
        meter = Meter(ruler)
        assert meter.line(3.14159).plain == "layer 2: 3.14"
        assert meter.is_safe(-1e9) and "layer 2" in meter.legend()
