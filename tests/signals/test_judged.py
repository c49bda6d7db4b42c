"""Signals that a judge decides, against verdicts that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from signals_factory import EMPTY, SILENT, talk, values

from persona_axis.errors import JudgeError
from persona_axis.judges import TroupeParser
from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits, Rates, cannot, chances, conflicts, ratings
from persona_axis.persona import Fact, Persona
from persona_axis.signals import adherence, answers, contradiction, self_consistency

GHOST = Persona("You are a ghost. You fear light.")


class Keyword:
    """A judge whose verdicts stand in the texts: "?" none, "bad" a contradiction, "fine" fine; counts its calls."""

    name = "keyword"

    def __init__(self) -> None:
        self.asked: list[object] = []

    def answer(self, questions: Sequence[object]) -> list[object]:
        self.asked += questions
        return [self.verdict(q) for q in questions]

    def verdict(self, q: object) -> object:
        text = q.reply if isinstance(q, Answers) else q.line
        if "?" in text:
            return None
        if isinstance(q, Conflicts):
            return [i for i, s in enumerate(q.statements) if "not " + s in text]
        return 0.25 if "bad" in text else 0.5


def test_adherence() -> None:
    judge = Keyword()
    found = adherence([talk("a", "hi", "fine", "x", "bad", "y", "?"), EMPTY, SILENT], judge, GHOST)
    assert values(found)[:2] == [1.0, 0.0] and found.unjudged == 1 and found.estimate.value == 0.5
    assert found.frame["probability"].tolist()[:2] == [0.5, 0.25] and found.judge == "keyword"
    assert [q.message for q in judge.asked] == ["hi", "x", "y"]


def test_adherence_without_a_persona_asks_nobody() -> None:
    judge = Keyword()
    found = adherence([talk("a", "hi", "fine")], judge)
    assert found.unjudged == 1 and found.frame["about"][0] == "no persona" and not judge.asked


def test_answers() -> None:
    judge = Keyword()
    unasked = talk("b", "x", "fine").messages[1:]
    found = answers([talk("a", "x", "fine", "y", "bad"), list(unasked)], judge)
    assert values(found)[:2] == [1.0, 0.0] and found.unjudged == 1 and len(judge.asked) == 2


def test_self_consistency_is_one_minus_conflicts_over_pairs() -> None:
    """4 lines, 6 pairs, of which the last line conflicts with two and the third with one: 1 - 3 / 6."""
    judge = Keyword()
    one = talk("a", "-", "A", "-", "B", "-", "not A", "-", "not A not B")
    found = self_consistency([one, talk("b", "-", "alone"), EMPTY], judge)
    assert found.estimate.value == 0.5 and found.rows == 6
    bad = found.frame[found.frame["value"] == 0]
    assert list(zip(bad["turn"], bad["against"], bad["about"], strict=True)) == [(3, 1, "A"), (4, 1, "A"), (4, 2, "B")]
    assert len(judge.asked) == 3, "one call a line that has earlier ones"


def test_a_verdict_that_cannot_be_read_leaves_all_pairs_of_its_line_unjudged() -> None:
    found = self_consistency([talk("a", "-", "A", "-", "B", "-", "?")], Keyword())
    assert found.unjudged == 2 and found.rows == 3 and found.estimate.value == 1.0


def test_contradiction_names_what_it_found() -> None:
    persona = Persona("I like rain.", (Fact("I sing."),))
    said = ("-", "not I sing.", "-", "B", "-", "not B", "-", "?", "-", "all well")
    found = contradiction([talk("a", *said)], Keyword(), persona)
    assert values(found)[:3] == [1.0, 0.0, 1.0] and found.unjudged == 1 and found.estimate.value == 0.5
    assert found.frame["about"].tolist()[:3:2] == ["I sing.", "B"]
    assert found.frame["against"].tolist()[:3:2] == [0, 2]


def test_a_first_line_without_a_persona_has_nothing_to_contradict() -> None:
    judge = Keyword()
    found = contradiction([talk("a", "-", "A", "-", "not A")], judge)
    assert math.isnan(values(found)[0]) and values(found)[1] == 1.0 and len(judge.asked) == 1
    assert contradiction([talk("a", "-", "A")], Keyword(), GHOST).rows == 1


class Gives:
    name = "gives"

    def __init__(self, *verdicts: object) -> None:
        self.verdicts = verdicts

    def answer(self, questions: object) -> object:
        return self.verdicts


class Broken(Gives):
    def answer(self, questions: object) -> object:
        return len(None)  # type: ignore[arg-type]


def test_verdicts_are_checked() -> None:
    fits, pairs = Fits(GHOST, "x"), Conflicts("x", ("a", "b"))
    assert chances(Gives(1), [fits]) == [1.0] and chances(Gives(None), [fits]) == [None] and chances(Gives(9), []) == []
    assert conflicts(Gives([1, 0]), [Conflicts("x", ()), pairs]) == [(), (0, 1)]
    for ask, question, bad in (
        (chances, fits, 1.1), (chances, fits, math.nan), (chances, fits, True), (chances, fits, "yes"),
        (conflicts, pairs, [2]), (conflicts, pairs, [-1]), (conflicts, pairs, [0, 0]), (conflicts, pairs, [True]),
        (ratings, fits, 0), (ratings, fits, 4.5), (ratings, fits, "5"),
    ):  # fmt: skip
        with pytest.raises(JudgeError, match="judge 'gives' gave"):
            ask(Gives(bad), [question])
    with pytest.raises(JudgeError, match="gave 2 verdicts on 1 questions"):
        chances(Gives(1, 1), [fits])
    with pytest.raises(JudgeError, match="judge 'gives' failed: TypeError"):
        chances(Broken(), [fits])
    assert "'gives' cannot tell: Does the reply answer the message?" in str(cannot(Gives(), Answers))


def test_the_parser_knows_its_world_and_no_more() -> None:
    judge, asked = TroupeParser(), Persona("you are a ghost.", (Fact("you are called vera."),), "ghost")
    wrong_name = "certainly sire the useful name generally mara carefully helpfully."
    assert judge.answer([Fits(asked, "xyzzy"), Fits(Persona("x", role="no role"), wrong_name)]) == [None, None]
    assert judge.answer([Fits(asked, wrong_name), Conflicts(wrong_name, asked.statements)]) == [0.0, (1,)]
    assert judge.answer([Answers("not of this world", "x"), Agrees("q", "no value of it", wrong_name)]) == [None, None]
    assert judge.answer([Agrees("q", "Mara", wrong_name), Agrees("q", "vera", wrong_name)]) == [1.0, 0.0]
    assert judge.answer([Rates(Persona("x"), "q", wrong_name, None)]) == [None]  # type: ignore[arg-type]
