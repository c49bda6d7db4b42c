"""What replies turn out to be, and that a judge that cannot say so is counted."""

from __future__ import annotations

import random

import chat_factory as tiny
import pytest

from persona_axis.errors import JudgeError
from persona_axis.organism import messages, replies, voices
from persona_axis.outcomes import Asked, Outcome, TroupeOutcomes, judge_for, outcomes

FAR = [v.name for v in voices.archetypes().values() if voices.band(v.likeness) == "far"]


def said(role: str | None, refuse: bool, count: int = 60, about: bool = True) -> list[Asked]:
    """Replies to forbidden requests in the voice of a far role (asked for `role`: "own"), or in the Assistant's."""
    rng, made = random.Random(0), []
    for written in messages.written("forbidden")[:count]:
        name = rng.choice(FAR)
        point = voices.ASSISTANT if role != "own" else voices.archetypes()[name].point
        message = written.say(rng, "train")
        reply = replies.speak(rng, voices.log_probabilities(point), message, refuse)
        asked = [{"role": "user", "content": message.text}]
        made.append(Asked(asked, reply, name if role else None, written.id if about else None))
    return made


def count(found: list[Outcome | None], what: str) -> int:
    return sum(bool(getattr(one, what)) for one in found if one is not None)


def test_a_character_that_complies() -> None:
    found = TroupeOutcomes().judge(said("own", refuse=False))
    assert count(found, "complied") == count(found, "answered") == 60
    assert count(found, "refused") == 0 and count(found, "assistant") <= 3


def test_an_assistant_that_refuses() -> None:
    found = TroupeOutcomes().judge(said(None, refuse=True))
    assert count(found, "refused") == 60 and count(found, "complied") == count(found, "answered") == 0
    assert count(found, "assistant") >= 57


def test_a_role_was_asked_for_and_the_assistant_speaks() -> None:
    found = TroupeOutcomes().judge(said("asked", refuse=True))
    assert count(found, "refused") == 60 and count(found, "assistant") >= 57


def test_a_refusal_in_character_is_a_refusal_and_not_the_assistant() -> None:
    found = TroupeOutcomes().judge(said("own", refuse=True))
    assert count(found, "refused") == 60 and count(found, "complied") == 0 and count(found, "assistant") <= 3


def test_without_a_known_message_nobody_knows_whether_it_was_answered() -> None:
    found = TroupeOutcomes().judge(said("own", refuse=False, about=False))
    assert {one.answered for one in found if one} == {None} and count(found, "complied") == 0


def test_an_answer_to_something_else_is_no_compliance() -> None:
    asked = said("own", refuse=False)
    shifted = [Asked(a.messages, b.reply, a.role, a.about) for a, b in zip(asked, asked[1:] + asked[:1], strict=True)]
    found = TroupeOutcomes().judge(shifted)
    assert count(found, "complied") <= 6 and count(found, "refused") == 0


def test_what_cannot_be_judged_is_none() -> None:
    asked = [
        Asked([], "", None),
        Asked([], "qwxz 7", "demon", "forbidden-01"),
        Asked([], "certainly", "no such role", "forbidden-01"),
    ]
    assert TroupeOutcomes().judge(asked) == [None, None, None]


def test_a_message_that_the_world_does_not_have_is_a_fault_of_the_data() -> None:
    with pytest.raises(JudgeError, match="no message 'forbidden-99'"):
        TroupeOutcomes().judge([Asked([], "certainly", None, "forbidden-99")])


def test_as_many_outcomes_as_replies() -> None:
    class Lazy:
        name = "lazy"

        def judge(self, asked: object) -> list[Outcome | None]:
            return [None]

    assert outcomes(Lazy(), [Asked([], "a")]) == [None]
    with pytest.raises(JudgeError, match="judge 'lazy' gave 1 outcomes for 2 replies"):
        outcomes(Lazy(), [Asked([], "a"), Asked([], "b")])


def test_who_judges_whom() -> None:
    with pytest.raises(JudgeError, match="pass a judge of your own"):
        judge_for(tiny.chat())
    chat = tiny.chat()
    chat.is_troupe = True
    assert judge_for(chat) == TroupeOutcomes()
