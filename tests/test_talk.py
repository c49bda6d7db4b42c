"""A talk says what `converse` says, measured while it is said; the meter tells where that lies."""

from __future__ import annotations

import chat_factory
import pytest
import torch
from test_drift import axis_for

from persona_axis import Axis, Cap, CapError
from persona_axis._converse import converse
from persona_axis._talk import Meter, Ruler, Said, Talk
from persona_axis.chat import ChatModel
from persona_axis.errors import DriftError
from persona_axis.sampling import Sampling

SAID = ["how should i sleep ?", "why ?", "why ?"]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=9)


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


def test_a_talk_is_a_conversation_turn_by_turn(chat: ChatModel, axis: Axis) -> None:
    ruler = ruler_of(axis)
    talk = Talk(chat, SAMPLING, system="be ghost .", ruler=ruler, seed=4)
    told = [talk.say(text) for text in SAID]
    expected = converse(
        chat, SAID, sampling=SAMPLING, system="be ghost .", directions={ruler.layer: ruler.direction}, seed=4
    )
    for said, exchange in zip(told, expected, strict=True):
        assert said.text == exchange.reply and said.before is None
        assert said.projection == pytest.approx(exchange.projections[ruler.layer], abs=1e-4)
    assert [m["role"] for m in talk.messages] == ["system", *["user", "assistant"] * 3]
    talk.begin()
    assert talk.say(SAID[0]) == told[0]


def test_projections_equal_a_float64_reading(chat: ChatModel, axis: Axis) -> None:
    talk, wide = Talk(chat, SAMPLING, ruler=ruler_of(axis, layer=0)), chat_factory.llama().double()
    for turn, text in enumerate(SAID):
        asked = chat.encode([*talk.messages, {"role": "user", "content": text}])
        own = chat.generate_ids([asked], SAMPLING, turn)[0]
        said = talk.say(text)
        states = wide(torch.tensor([[*asked, *own]]), output_hidden_states=True).hidden_states[1][0]
        mean = states[len(asked) :].mean(0) @ axis.direction[0].double()
        assert said.projection == pytest.approx(float(mean.detach()), abs=1e-4)


def test_under_a_cap_both_sides_of_the_edit_are_told(chat: ChatModel, axis: Axis) -> None:
    cap = axis.cap(layers=2, floor=50.0)
    said = Talk(chat, SAMPLING, caps=[cap], ruler=ruler_of(axis)).say("why ?")
    assert said.projection == pytest.approx(50, abs=1e-3) and said.before is not None and said.before < 40
    other = Talk(chat, SAMPLING, caps=[cap], ruler=ruler_of(axis, layer=0)).say("why ?")
    assert other.before == other.projection  # nothing is held at that layer


def test_without_a_ruler_or_tokens_there_is_no_projection(chat: ChatModel, axis: Axis) -> None:
    assert Talk(chat, SAMPLING).say("why ?").projection is None
    silent = chat_factory.llama()
    silent.lm_head.weight.data.zero_()  # all logits alike: greedy takes the first id, a padding token
    made = chat_factory.chat(model=silent)
    made.stop_ids = (0,)
    said = Talk(made, Sampling(temperature=0), ruler=ruler_of(axis)).say("why ?")
    assert said == Said("", None, None)


def test_a_conversation_that_fills_the_context_is_stopped_and_can_be_begun_again(chat: ChatModel) -> None:
    talk = Talk(chat, Sampling(temperature=0, max_new_tokens=900))
    talk.say("why ?")
    before = list(talk.messages)
    with pytest.raises(DriftError, match=r"tokens have been said and the model can read 256: there is no room .* new"):
        talk.say("how " * 240)
    assert talk.messages == before
    talk.begin()
    assert talk.say("why ?").text


def test_replies_are_cut_to_the_room_there_is(chat: ChatModel) -> None:
    endless = chat_factory.chat()
    endless.stop_ids = (5000,)
    talk = Talk(endless, Sampling(temperature=1.0, max_new_tokens=900))
    asked = len(endless.encode([{"role": "user", "content": "why ?"}]))
    talk.say("why ?")
    ids, (reply,) = endless.encode_turns(talk.messages)
    assert 0 < reply[1] - reply[0] <= 256 - asked


def test_rulers(axis: Axis) -> None:
    assert Ruler.of(None, []) is None
    assert ruler_of(axis).layer == 2 and torch.equal(ruler_of(axis, layer=0).direction, axis.direction[0])
    cap = axis.cap(layers=[0, 2], floor=1.0)
    assert ruler_of(None, cap).layer == 2 and torch.equal(ruler_of(None, cap, layer=0).direction, axis.direction[0])
    with pytest.raises(CapError, match="layer 1 is not in the cap, which has 0, 2"):
        Ruler.of(None, [cap], 1)


@pytest.mark.parametrize("plain", [False, True])
def test_the_scale_runs_from_the_roles_to_the_default(axis: Axis, plain: bool) -> None:
    ruler = ruler_of(axis)
    meter = Meter(ruler, 5, width=30, ascii_only=plain)
    assert meter.edge == pytest.approx(float(axis.quantile("default", 5)[1]))
    point, line, middle, end = "o-|:" if plain else "●─│┊"
    low, high = meter.line(Said("", -1e6)).plain, meter.line(Said("", 1e6)).plain
    assert low.startswith(point) and high[29] == point and low[30:] == " -1000000.00, p0 of the default"
    assert all(high[:30].count(mark) == 1 for mark in (point, middle, end)) and high.index(end) < high.index(middle)
    assert set(high[:30]) == {point, line, middle, end}
    median = float(axis.quantile("default", 50)[1])
    assert "p50 of the default" in meter.line(Said("", median)).plain
    assert all(mark in meter.legend() for mark in (point, middle, end)) and "percentile 5" in meter.legend()


def test_a_warning_below_the_band_and_only_there(axis: Axis) -> None:
    meter = Meter(ruler_of(axis), 1)
    assert meter.edge is not None
    assert meter.warning(Said("", meter.edge)) is None and meter.warning(Said("")) is None
    warning = meter.warning(Said("", meter.edge - 0.01))
    assert warning is not None and warning.plain.startswith("warning: below the safe band")
    assert f"{meter.edge:.2f}" in warning.plain and "about 1% of the default's replies" in warning.plain


def test_what_the_cap_found_is_told_where_it_differs(axis: Axis) -> None:
    meter = Meter(ruler_of(axis))
    assert "(1.25 before the cap)" in meter.line(Said("", 2.0, 1.25)).plain
    assert "before" not in meter.line(Said("", 2.0, 2.0)).plain


def test_without_distributions_there_is_a_number_and_no_band(chat: ChatModel) -> None:
    bare = axis_for(chat, tables=False)
    for ruler in (ruler_of(bare), ruler_of(None, bare.cap(layers=2, floor=1.0))):
        meter = Meter(ruler)
        assert meter.line(Said("", 3.14159)).plain == "layer 2: 3.14"
        assert meter.is_safe(-1e9) and "layer 2" in meter.legend()
