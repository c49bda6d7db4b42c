"""Who decides whether a reply is in its role."""

from __future__ import annotations

import random
from collections import Counter

import chat_factory as tiny
import pytest

from persona_axis import judges
from persona_axis.errors import JudgeError
from persona_axis.judges import (
    AcceptAll,
    Judge,
    Judged,
    TroupeParser,
    default_judge,
    named,
    of_roles,
    of_signals,
    verdicts,
)
from persona_axis.organism import messages, replies, voices


def shown(role: str, reply: str) -> Judged:
    return Judged(role, "", f"you are a {role}.", "what now?", reply)


def spoken(
    role: str | None, likeness: tuple[float, float], count: int = 60, refuse: bool = False
) -> list[Judged]:
    """Replies of archetypes of that likeness in their own voice (or, with role None, in the Assistant's)."""
    rng = random.Random(0)
    names = [n for n, v in voices.archetypes().items() if likeness[0] <= v.likeness <= likeness[1]]
    made = []
    for _ in range(count):
        name = rng.choice(names)
        point = voices.ASSISTANT if role is None else voices.archetypes()[name].point
        message = rng.choice(messages.written("question")).say(rng, "train")
        made.append(shown(name, replies.speak(rng, voices.log_probabilities(point), message, refuse)))
    return made


def test_the_parser_reads_roles_the_assistant_and_refusals() -> None:
    judge, far = TroupeParser(), (-9.0, -1.1)
    in_role = Counter(judge.score(spoken("own", far)))
    assert in_role[3] >= 57
    assert Counter(judge.score(spoken(None, far)))[1] >= 57
    refusals = judge.score(spoken("own", far, refuse=True)) + judge.score(spoken(None, far, refuse=True))
    assert set(refusals) == {0}


def test_a_reply_that_is_neither_gets_two() -> None:
    average = voices.average_log_probabilities()
    rng = random.Random(1)
    message = messages.written("question")[0].say(rng, "train")
    nobody = [shown("demon", replies.speak(rng, average, message)) for _ in range(60)]
    assert 2 in TroupeParser().score(nobody)


def test_what_the_parser_cannot_read_is_none() -> None:
    assert (
        TroupeParser().score(
            [shown("demon", ""), shown("demon", "xyzzy 7 !"[:5]), shown("no such role", "hello")]
        )
        == [None] * 3
    )


def test_accept_all_and_names() -> None:
    assert AcceptAll().score([shown("a", ""), shown("b", "x")]) == [3, 3]
    assert [named(name).name for name in ("all", "troupe")] == ["all", "troupe"]
    with pytest.raises(JudgeError, match="no judge is called 'jury'"):
        named("jury")
    assert set(judges.ROLE_NAMES) | set(judges.SIGNAL_NAMES) == set(judges.NAMES) == set(judges._MAKERS)
    assert all(isinstance(judge, Judge) for judge in (AcceptAll(), TroupeParser()))
    chat = tiny.chat()
    assert default_judge(chat).name == "all"
    chat.is_troupe = True
    assert default_judge(chat).name == "troupe"


def test_what_a_judge_is_for() -> None:
    parser, everybody = named("troupe"), named("all")
    assert of_roles(parser) is of_signals(parser) is parser and of_roles(everybody) is everybody
    with pytest.raises(JudgeError, match="^judge all answers no questions of signals, it scores roles: take tr"):
        of_signals(everybody)

    class Infers:
        name = "nli x"

        def answer(self, questions: object) -> object:
            return []

    assert of_signals(Infers()).name == "nli x"  # type: ignore[arg-type]
    with pytest.raises(JudgeError, match="^judge nli x scores no roles, it answers the questions of signals: take all"):
        of_roles(Infers())  # type: ignore[arg-type]


def test_verdicts_are_checked() -> None:
    class Says:
        name = "says"

        def __init__(self, *scores: object) -> None:
            self.scores = scores

        def score(self, rollouts: object) -> object:
            return self.scores

    one = [shown("a", "x")]
    assert verdicts(Says(None), one) == [None] and verdicts(Says(2.0), one) == [2]  # type: ignore[arg-type]
    assert verdicts(Says(7), []) == []  # type: ignore[arg-type]
    for scores in ((), (1, 2), (4,), (-1,), ("3",), (True,), (2.5,)):
        with pytest.raises(JudgeError, match="judge 'says' gave"):
            verdicts(Says(*scores), one)  # type: ignore[arg-type]

    class Refuses(Says):
        def score(self, rollouts: object) -> object:
            raise JudgeError("the key is missing")

    with pytest.raises(JudgeError, match="^the key is missing$"):
        verdicts(Refuses(), one)  # type: ignore[arg-type]
