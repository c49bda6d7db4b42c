"""Ways to choose whom the persona is told from."""

from __future__ import annotations

import math
from collections.abc import Callable

import chat_factory as tiny
import pytest

from persona_axis import Listener, ListenerError
from persona_axis.chat import ChatModel
from persona_axis.levers.distractors import Learned, at_random, confusable, gain_of, rarity_of, similar
from persona_axis.levers.hearing import posterior
from persona_axis.levers.worlds import persona_worlds

POOL = ["be ghost like rain .", "be pirate like bread .", "be tutor about money .", "be dark ghost .", "", "be ghost ."]
OWN = "be ghost ."


def asked(question: str = "how should i sleep ?", system: str = OWN) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat()


def test_random_is_seeded_and_never_the_persona() -> None:
    drawn = [at_random(OWN, POOL, 3, seed) for seed in range(30)]
    assert drawn == [at_random(OWN, POOL, 3, seed) for seed in range(30)]
    assert {d for each in drawn for d in each} == set(POOL) - {OWN} and all(len(set(each)) == 3 for each in drawn)


def test_similar_shares_rare_words() -> None:
    assert similar(OWN, POOL) == ["be dark ghost .", "be ghost like rain ."]
    assert similar("be money .", POOL, 1) == ["be tutor about money ."]


def test_confusable_has_the_highest_posterior(chat: ChatModel) -> None:
    others, said = POOL[:5], "hello ghost rain"
    (found,) = posterior(chat, [persona_worlds(asked(), others)], [said])
    left = dict(zip(others, found.log_posterior[-1, 1:].tolist(), strict=True))
    assert confusable(chat, asked(), said, POOL) == sorted(others, key=lambda other: -left[other])[:2]


def test_gain_is_that_of_the_speaker(chat: ChatModel) -> None:
    none = gain_of(chat, asked(), "hello ghost", POOL, Listener(0.0))
    assert set(none) == set(POOL) - {OWN} and all(abs(gain) < 1e-5 for gain in none.values())
    gains = gain_of(chat, asked(), "hello ghost", POOL, Listener(4.0))
    assert max(gains.values()) - min(gains.values()) > 0.1


class TestLearned:
    EMPTY = Learned(rarity_of(POOL))

    def test_it_remembers_what_helped_in_contexts_like_this(self) -> None:
        memory = self.EMPTY.learn(asked("what about money ?"), {POOL[2]: 2.0, POOL[0]: 1.0})
        memory = memory.learn(asked("why rain ?"), {POOL[2]: 0.0, POOL[0]: 1.0})
        assert memory.choose(asked("money ?")) == [POOL[2], POOL[0]]
        assert memory.choose(asked("how rain ?"), 1) == [POOL[0]]
        assert memory.choose(asked("money ?", POOL[2]), 1) == [POOL[0]]

    def test_likes_are_merged_and_the_oldest_goes(self) -> None:
        memory = Learned(self.EMPTY.rarity, size=2)
        for question, helped in (("money ?", 2), ("what money ?", 2), ("why rain ?", 0), ("what bread ?", 1)):
            memory = memory.learn(asked(question), {POOL[helped]: 1.0})
        assert [kept.distractor for kept in memory.kept] == [POOL[0], POOL[1]]
        again = Learned(self.EMPTY.rarity, size=2).learn(asked("money ?"), {POOL[2]: 1.0})
        again = again.learn(asked("why rain ?"), {POOL[0]: 1.0}).learn(asked("what money ?"), {POOL[2]: 1.0})
        again = again.learn(asked("what bread ?"), {POOL[1]: 1.0})
        assert [kept.distractor for kept in again.kept] == [POOL[2], POOL[1]]
        assert not self.EMPTY.kept
        assert memory.learn(asked("bread ?"), {POOL[1]: -0.5, POOL[2]: 0.0}).kept == memory.kept  # none helped


BAD: dict[str, tuple[Callable[[ChatModel], object], str]] = {
    "zero candidates": (lambda c: at_random(OWN, []), "2 distractors asked for, and of 0 candidates 0"),
    "only itself": (lambda c: similar(OWN, ["Be ghost  .", "be tutor ."]), "of 2 candidates 1 are not the persona"),
    "none asked": (lambda c: at_random(OWN, POOL, 0), "count must be at least 1 and a whole number, got 0"),
    "one text": (lambda c: at_random(OWN, "be tutor ."), "candidates: expected a list, each a text, got 'be tutor .'"),
    "nothing said": (lambda c: similar(" ", POOL), "the persona has no words"),
    "empty reply": (lambda c: confusable(c, asked(), "", POOL), "the reply is empty"),
    "no memory": (lambda c: Learned({}).choose(asked()), "2 distractors asked for, the memory knows 0"),
    "no gains": (lambda c: Learned({}).learn(asked(), {}), "no distractor was tried"),
    "gain": (lambda c: Learned({}).learn(asked(), {"x": math.nan}), "gain of 'x' must be a finite number of nats, got"),
    "no room": (lambda c: Learned({}, size=0), "size must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_sentence(chat: ChatModel, case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ListenerError, match=text):
        call(chat)
