"""A talk's projections are those of each reply's own tokens, and caps hold for all of it."""

from __future__ import annotations

import chat_factory
import pytest
import torch

from persona_axis import Cap, CapError
from persona_axis.chat import ChatModel
from persona_axis.errors import DriftError
from persona_axis.sampling import Sampling
from persona_axis.talks.talk import Said, Talk, directions_of

LAYERS, HIDDEN = 4, 32
SAID = ["how should i sleep ?", "why ?", "why ?"]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=9)


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return chat_factory.chat(layers=LAYERS, hidden=HIDDEN)


def unit(seed: int) -> torch.Tensor:
    drawn = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length: torch.Tensor = drawn.norm()
    return (drawn / length).float()


def test_projections_equal_a_float64_reading_of_the_whole_conversation(chat: ChatModel) -> None:
    directions = {0: unit(0), 2: unit(2)}
    talk = Talk(chat, SAMPLING, system="be ghost .", directions=directions)
    wide = chat_factory.llama(layers=LAYERS, hidden=HIDDEN).double()
    for turn, text in enumerate(SAID):
        asked = chat.encode([*talk.messages, {"role": "user", "content": text}])
        own = chat.generate_ids([asked], SAMPLING, turn)[0]
        said = talk.say(text)
        assert chat.decode([own])[0] == said.text and own and not said.before
        states = wide(torch.tensor([[*asked, *own]]), output_hidden_states=True).hidden_states
        for layer, direction in directions.items():
            expected = states[layer + 1][0, len(asked) :].mean(0) @ direction.double()
            assert said.projections[layer] == pytest.approx(float(expected.detach()), abs=1e-4)
    assert [m["role"] for m in talk.messages] == ["system", *["user", "assistant"] * 3]


def test_each_turn_has_its_own_seed_and_the_same_seed_says_the_same(chat: ChatModel) -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12)

    def replies(seed: int) -> list[Said]:
        talk = Talk(chat, sampling, seed=seed)
        return [talk.say("why ?") for _ in range(2)]

    first, again, other = map(replies, (4, 4, 5))
    assert first == again and first != other
    # the second turn of seed 4 and a first turn that begins with seed 5 draw from the same numbers
    asked = {"role": "user", "content": "why ?"}
    assert first[0].text == chat.decode(chat.generate_ids([chat.encode([asked])], sampling, 4))[0]
    messages = [asked, {"role": "assistant", "content": first[0].text}, asked]
    assert first[1].text == chat.decode(chat.generate_ids([chat.encode(messages)], sampling, 5))[0]


def test_a_talk_begun_again_forgets_what_was_said(chat: ChatModel) -> None:
    talk = Talk(chat, SAMPLING, system="be ghost .", directions={1: unit(1)}, seed=4)
    first = talk.say(SAID[0])
    talk.say(SAID[1])
    talk.begin()
    assert talk.say(SAID[0]) == first


def test_caps_hold_in_every_turn_and_are_gone_afterwards(chat: ChatModel) -> None:
    cap = Cap(direction=torch.stack([unit(1), unit(2)]), layers=[1, 2], floor=[9.0, 8.0])
    directions = {0: unit(0), **directions_of(None, [cap])}
    assert set(directions) == {0, 1, 2} and torch.equal(directions[2], cap.direction[1])

    def replies(*caps: Cap) -> list[Said]:
        talk = Talk(chat, SAMPLING, caps=caps, directions=directions)
        return [talk.say(text) for text in SAID]

    before = replies()
    for said in replies(cap):
        assert said.projections[1] >= 9 - 1e-4 and said.projections[2] >= 8 - 1e-4
        assert said.before[1] < said.projections[1]
        assert said.before[0] == said.projections[0]  # nothing is held at that layer
    assert replies() == before and min(said.projections[1] for said in before) < 9


def test_a_cap_that_does_not_fit_is_refused_before_anything_is_said(chat: ChatModel) -> None:
    talk = Talk(chat, SAMPLING, caps=[Cap(torch.eye(3)[:1], [0], floor=0.0)])
    with pytest.raises(CapError):
        talk.say("why ?")
    assert talk.messages == []


def test_an_empty_reply_has_no_projection() -> None:
    made = chat_factory.chat(model=chat_factory.llama())
    made.model.lm_head.weight.data.zero_()  # all logits alike: greedy takes the first id, a padding token
    made.stop_ids = (0,)
    assert Talk(made, Sampling(temperature=0), directions={0: unit(0)}).say("why ?") == Said("", {}, {})


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
