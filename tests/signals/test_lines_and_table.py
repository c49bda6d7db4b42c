"""The shape that all signals share, and the signals that are counted."""

from __future__ import annotations

import math

import pytest
from signals_factory import EMPTY, SILENT, talk, values

from persona_axis.conversations import Conversation
from persona_axis.errors import ConversationError, SignalError
from persona_axis.persona import Fact, Persona, persona_of
from persona_axis.signals import COLUMNS, Row, distinct, parroting, self_overlap, signal, summary, together
from persona_axis.signals.lines import lines, ngrams, opened


def test_lines_are_the_agents_with_what_they_answer() -> None:
    said = ({"role": "assistant", "content": "first"}, *talk("", "a", "b").messages,
            {"role": "assistant", "content": "more"})  # fmt: skip
    assert [tuple(line) for line in lines(Conversation("x", said))] == [
        (1, 0, "first", ""), (2, 2, "b", "a"), (3, 3, "more", ""),
    ]  # fmt: skip
    assert lines(EMPTY) == lines(SILENT) == []


def test_conversations_are_told_apart() -> None:
    assert [one.id for one in opened([list(talk("", "a", "b").messages)] * 2)] == ["conversation 1", "conversation 2"]
    with pytest.raises(SignalError, match="'a' is given twice"):
        opened([talk("a", "x", "y")] * 2)
    with pytest.raises(ConversationError, match="no assistant turn"):
        opened([[{"role": "user", "content": "x"}]])


def test_ngrams() -> None:
    assert ngrams("Don't stop, don't!", 2) == [("don't", "stop"), ("stop", "don't")]
    assert ngrams("one", 2) == ngrams("", 1) == []
    with pytest.raises(SignalError, match="n must be at least 1 and a whole number, got 0"):
        ngrams("a b", 0)


def test_parroting_by_hand() -> None:
    persona = Persona("I keep bees.", (Fact("I live in Rome now."),))  # i keep bees i live in rome now: 6 trigrams
    found = parroting([talk("a", "hi", "I keep bees! Well, I live in Rome.", "so?", "No."), EMPTY], persona)
    assert values(found) == [pytest.approx(3 / 6), 0.0] and found.unjudged == 0 and found.rows == 2
    assert values(parroting([talk("a", "hi", persona.text)], persona)) == [1.0]
    assert values(parroting([talk("a", "hi", "bees bees")], persona, n=1)) == [pytest.approx(1 / 7)]


@pytest.mark.parametrize("persona", [None, Persona("two words"), {"b": Persona("three words here")}])
def test_nothing_to_parrot_is_unjudged(persona) -> None:
    found = parroting([talk("a", "hi", "yes indeed")], persona)
    assert found.unjudged == found.rows == 1 and all(math.isnan(x) for x in found.estimate)


def test_distinct_and_overlap_by_hand() -> None:
    one = talk("a", "x", "a b a b", "y", "c a b", "z", "w")
    assert values(distinct([one])) == [pytest.approx(2 / 3), 1.0, pytest.approx(math.nan, nan_ok=True)]
    overlap = self_overlap([one, talk("b", "x", "only")], n=2)
    pairs = list(zip(overlap.frame["turn"], overlap.frame["against"], overlap.frame["value"], strict=True))
    assert pairs[0] == (2, 1, 0.5) and [p[:2] for p in pairs[1:]] == [(3, 1), (3, 2)]
    assert overlap.unjudged == 2, "a word alone has no pairs of words"


def test_a_persona_is_the_system_message_unless_one_is_given() -> None:
    told = talk("a", "hi", "ho", system="You are a ghost.")
    assert persona_of(None, told) == Persona("You are a ghost.")
    assert persona_of(None, talk("a", "hi", "ho")) is None
    assert persona_of({"a": Persona("x")}, told) == Persona("x") == persona_of(Persona("x"), told)


def test_statements_are_sentences_and_facts_once_each() -> None:
    persona = Persona("You are old. You keep bees!", (Fact("You keep bees!"), Fact("You sing.", "Do you?", "yes")))
    assert persona.statements == ("You are old.", "You keep bees!", "You sing.")
    assert [fact.answer for fact in persona.askable] == ["yes"]


def test_personas_of_records() -> None:
    made = Persona.of_record({"description": "x", "role": "ghost", "facts": [{"statement": "s"}]}, "f:1")
    assert made == Persona("x", (Fact("s"),), "ghost")
    for record, wrong in (
        ({}, "'description'"), ({"description": "x", "role": 3}, "'role'"), ({"description": "x", "facts": 1}, "list"),
        ({"description": "x", "facts": [{"statement": ""}]}, r"facts\[0\]"),
        ({"description": "x", "facts": [{"statement": "s", "question": "q"}]}, r"f:1: facts\[0\].*needs the answer"),
        ({"description": "x", "facts": [{"statement": "s", "hint": "q"}]}, "hint"),
    ):  # fmt: skip
        with pytest.raises(ConversationError, match=wrong):
            Persona.of_record(record, "f:1")


def test_values_stay_in_their_range_and_nan_is_counted() -> None:
    one = talk("a", "x", "y")
    with pytest.raises(SignalError, match="turn 1: 1.5 lies outside"):
        signal("s", [Row(one, 1, 1.5)], "")
    with pytest.raises(SignalError, match="turn 1: 0.5 is not 0 or 1"):
        signal("s", [Row(one, 1, 0.5)], "", yes_or_no=True)
    found = signal("s", [Row(one, 1, 1.0), Row(one, 2, math.nan)], "more")
    assert (found.rows, found.unjudged, found.estimate.value) == (2, 1, 1.0)
    assert tuple(found.frame.columns) == COLUMNS


def test_the_interval_is_over_conversations() -> None:
    """Ten rows in each of six conversations, alike within each, are six observations."""
    clustered = signal("s", [Row(talk(f"{c}", "x", "y"), t, c % 2 * 1.0) for c in range(6) for t in range(10)], "")
    alone = signal("s", [Row(talk(f"{i}", "x", "y"), 1, i % 2 * 1.0) for i in range(60)], "")
    assert clustered.estimate.value == alone.estimate.value == 0.5
    assert clustered.estimate.high - clustered.estimate.low > 2 * (alone.estimate.high - alone.estimate.low)
    alike = [Row(talk(f"{i}", "x", "y"), 1, 1.0) for i in range(8)]
    assert signal("s", alike, "").estimate.low == 1, "a mean of values that are all alike"
    assert 0.6 < signal("s", alike, "", yes_or_no=True).estimate.low < 0.7, "a share: 8 of 8, by Wilson"
    few = signal("s", [Row(talk(f"{i}", "x", "y"), 1, 0.25 * i) for i in range(3)], "").estimate
    assert few.value == 0.25 and math.isnan(few.low)


def test_tables_of_several_signals_stand_together() -> None:
    found = [distinct([talk("a", "x", "a b")]), parroting([talk("a", "x", "a b")])]
    assert list(together(found)["signal"]) == ["distinct", "parroting"]
    table = summary(found)
    assert list(table["unjudged"]) == [0, 1] and list(table["value"].isna()) == [False, True]
    with pytest.raises(SignalError, match="no signals"):
        together([])
    empty = distinct([EMPTY])
    assert empty.rows == 0 and math.isnan(empty.estimate.value)
