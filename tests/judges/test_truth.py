"""Troupe's parser as the truth: it agrees with what the world's generator meant."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _judged_items import KINDS, items
from judges import Guesser, measured

from persona_axis.judges import TroupeParser
from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits


@pytest.mark.parametrize("kind", KINDS)
def test_the_parser_agrees_with_the_generator_and_a_guesser_does_not(kind: str) -> None:
    known = items(kind, 120, "held_out", 1)
    assert sum(k.true for k in known) == 60 and len({k.cluster for k in known}) > 20
    parser, guesser = measured(TroupeParser(), known), measured(Guesser(), known)
    assert parser is not None and guesser is not None
    assert parser.accuracy.value > 0.93 and parser.unjudged == 0
    assert 0.35 < guesser.accuracy.value < 0.65 and guesser.kappa.low < 0.15


def test_texts_that_are_not_of_the_world_are_not_judged() -> None:
    persona = items("fits, far roles", 1, "train", 0)[0].question.persona
    asked = [Fits(persona, "12 qwerty"), Answers("Is it raining?", "yes"), Agrees("q?", "blue", "yes")]
    assert TroupeParser().answer([*asked, Conflicts("12 qwerty", ("x",))]) == [None] * 4
