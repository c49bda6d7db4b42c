"""Signals that need the model: read off its projections and likelihoods, or asked of it."""

from __future__ import annotations

import math
import random

import chat_factory as tiny
import pytest
import torch
from signals_factory import EMPTY, SILENT, talk, values
from test_drift import axis_for

from persona_axis import ChatModel
from persona_axis.capability import Scores
from persona_axis.drift import trajectory
from persona_axis.judges import TroupeParser
from persona_axis.organism import messages, replies, voices
from persona_axis.organism.truth import persona_with_facts
from persona_axis.persona import Fact, Persona
from persona_axis.signals import capability, fact_consistency, projection, relevance


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat()


@pytest.fixture(scope="module")
def troupe() -> ChatModel:
    return ChatModel.load("troupe")


TALKS = [talk("a", "what is rain ?", "old bread .", "why sleep ?", "be new !"), talk("b", "hello", "yes")]


def test_projection_is_that_of_drift(chat: ChatModel) -> None:
    axis = axis_for(chat)
    found = projection(chat, axis, [TALKS[0], EMPTY, SILENT, TALKS[1]], layer=2)
    alone = [trajectory(chat, axis, one, layers=2)["projection"].tolist() for one in TALKS]
    assert values(found) == pytest.approx([*alone[0], *alone[1]], abs=1e-5)
    assert found.frame["conversation"].tolist() == ["a", "a", "b"] and found.frame["tokens"].min() > 0


def log_p(chat: ChatModel, prompt: list[int], reply: list[int]) -> float:
    """One token after another, in plain loops."""
    total = 0.0
    for at, token in enumerate(reply):
        with torch.no_grad():
            logits = chat.model(input_ids=torch.tensor([prompt + reply[:at]])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
    return total


def test_relevance_is_pointwise_mutual_information_by_token(chat: ChatModel) -> None:
    found = relevance(chat, TALKS)
    told = list(TALKS[0].messages)
    reply = chat.tokenizer("be new !", add_special_tokens=False)["input_ids"]
    given = log_p(chat, chat.encode(told[:3]), reply)
    emptied = log_p(chat, chat.encode([*told[:2], {"role": "user", "content": ""}]), reply)
    assert values(found)[1] == pytest.approx((given - emptied) / len(reply), abs=1e-5)
    assert found.frame["tokens"].tolist() == [3, 3, 1] and found.unjudged == 0
    together = dict(zip(found.frame["conversation"] + found.frame["turn"].astype(str), values(found), strict=True))
    assert values(relevance(chat, [TALKS[1]])) == pytest.approx([together["b1"]], abs=1e-5), "batched = one by one"


def test_what_has_no_relevance_is_unjudged(chat: ChatModel) -> None:
    unasked = [*talk("", "x", "yes").messages[1:]]
    wordless = talk("w", "hello", "")
    long = talk("l", "rain " * 300, "yes")
    found = relevance(chat, [EMPTY, SILENT, unasked, wordless, long, TALKS[1]])
    assert found.rows == 4 and found.unjudged == 3
    assert [text[:12] for text in found.frame["about"].tolist()[:3]] == ["no message o", "the reply ha", "longer than "]
    assert relevance(chat, [EMPTY]).rows == 0


def test_capability_is_the_tests_own_scores(chat: ChatModel) -> None:
    class Half:
        name = "half"

        def facts(self, split, at, seed) -> dict[str, str]:
            return {}

        def scores(self, chat, lever, split, at, seed) -> Scores:
            return Scores(tuple(i % 2 * 1.0 for i in at), ("x",) * len(at))

    found = capability(chat, Half(), 10)
    assert found.estimate.value == 0.5 and found.rows == 10 and found.estimate.low < 0.5 < found.estimate.high


def test_the_agent_is_asked_on_a_branch_after_every_turn(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, str]]] = []

    def said(_chat, chats, *rest):
        asked.extend(chats)
        return [f"answer {i}" for i in range(len(chats))]

    class Even:
        name = "even"

        def answer(self, questions):
            return [float(q.reply[-1] in "02") if q.reply[-1] != "3" else None for q in questions]

    monkeypatch.setattr("persona_axis.talks.asking.ask", said)
    persona = Persona("x", (Fact("s1", "q1 ?", "k1"), Fact("s2", "q2 ?", "k2"), Fact("unasked")))
    found = fact_consistency(chat, [TALKS[0], EMPTY], Even(), persona)
    assert [one[-1]["content"] for one in asked] == ["q1 ?", "q2 ?", "q1 ?", "q2 ?"]
    assert [len(one) for one in asked] == [3, 3, 5, 5] and asked[2][:4] == list(TALKS[0].messages)
    assert values(found)[:3] == [1.0, 0.0, 1.0] and found.unjudged == 1
    assert found.frame["turn"].tolist() == [1, 1, 2, 2] and found.frame["about"][0] == "q1 ? answer 0"
    for nothing in (None, Persona("x"), Persona("x", (Fact("unasked"),))):
        assert fact_consistency(chat, [TALKS[0]], Even(), nothing).rows == 0


def test_no_room_to_ask_is_unjudged(chat: ChatModel) -> None:
    persona = Persona("x", (Fact("s", "what is rain ?", "bread"),))
    found = fact_consistency(chat, [talk("l", "rain " * 200, "yes")], TroupeParser(), persona)
    assert found.unjudged == 1 and "no room" in found.frame["about"][0]


def test_troupe_states_facts_that_it_was_told_and_none_that_it_was_not(troupe: ChatModel) -> None:
    """What the branch asks reaches the model: facts from the system prompt come back, those of another do not."""
    rng = random.Random(3)
    personas = {f"{i}": persona_with_facts(rng, None) for i in range(8)}
    message = messages.written("question")[0].say(rng, "train")
    reply = replies.speak(rng, voices.log_probabilities(voices.ASSISTANT), message)
    told = [talk(name, message.text, reply, system=one.text) for name, one in personas.items()]
    own = fact_consistency(troupe, told, TroupeParser(), personas)
    other = fact_consistency(troupe, told, TroupeParser(), {n: personas[str((int(n) + 1) % 8)] for n in personas})
    assert own.estimate.value > 0.5 > 0.15 > other.estimate.value
    assert own.rows == sum(len(one.askable) for one in personas.values())
    assert not math.isnan(own.estimate.low)


def test_troupes_replies_owe_more_to_their_own_message_than_to_another(troupe: ChatModel) -> None:
    rng = random.Random(5)
    asked = [one.say(rng, "train") for one in rng.sample(messages.written("question"), 24)]
    said = [replies.speak(rng, voices.log_probabilities(voices.ASSISTANT, 0.7), one) for one in asked]
    own = relevance(troupe, [talk(f"{i}", asked[i].text, reply) for i, reply in enumerate(said)])
    other = relevance(troupe, [talk(f"{i}", asked[i - 1].text, reply) for i, reply in enumerate(said)])
    assert own.estimate.low > 0.5 > other.estimate.high
    assert (own.frame["value"] > other.frame["value"]).mean() > 0.9


def test_relevance_moves_little_with_the_batch_in_bfloat16_and_not_in_float32(troupe: ChatModel) -> None:
    """The tolerance that its docstring states, of talks of different lengths."""
    rng = random.Random(6)
    asked = [one.say(rng, "train") for one in rng.sample(messages.written("question"), 8)]
    said = [replies.speak(rng, voices.log_probabilities(voices.ASSISTANT, 0.7), one) for one in asked]
    talks = [talk(f"{i}", asked[i].text * (1 + i), reply) for i, reply in enumerate(said)]
    exact = ChatModel.load("troupe", dtype="float32", check=False)
    for chat, tolerance in ((troupe, 0.05), (exact, 1e-5)):
        alone = [values(relevance(chat, [one]))[0] for one in talks]
        assert values(relevance(chat, talks)) == pytest.approx(alone, abs=tolerance)
