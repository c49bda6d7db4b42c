"""A conversation's projections are those of the reply's own tokens, and caps hold for all of it."""

from __future__ import annotations

import chat_factory
import pytest
import torch

from persona_axis import Cap, CapError
from persona_axis._converse import converse, rulers
from persona_axis.chat import ChatModel
from persona_axis.sampling import Sampling

LAYERS, HIDDEN = 4, 32
SAID = ["how should i sleep ?", "why ?", "why ?"]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return chat_factory.chat(layers=LAYERS, hidden=HIDDEN)


def unit(seed: int) -> torch.Tensor:
    drawn = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length: torch.Tensor = drawn.norm()
    return (drawn / length).float()


def test_projections_equal_a_float64_reading_of_the_whole_conversation(chat: ChatModel) -> None:
    directions = {0: unit(0), 2: unit(2)}
    sampling = Sampling(max_new_tokens=7)
    told = converse(chat, SAID, sampling=sampling, system="be ghost .", directions=directions)
    messages = [{"role": "system", "content": "be ghost ."}]
    wide = chat_factory.llama(layers=LAYERS, hidden=HIDDEN).double()
    for turn, exchange in enumerate(told):
        messages.append({"role": "user", "content": exchange.user})
        asked = chat.encode(messages)
        own = chat.generate_ids([asked], sampling, turn)[0]
        assert chat.decode([own])[0] == exchange.reply and own
        states = wide(torch.tensor([[*asked, *own]]), output_hidden_states=True).hidden_states
        for layer, direction in directions.items():
            expected = states[layer + 1][0, len(asked) :].mean(0) @ direction.double()
            assert exchange.projections[layer] == pytest.approx(float(expected.detach()), abs=1e-4)
        messages.append({"role": "assistant", "content": exchange.reply})


def test_each_turn_has_its_own_seed_and_the_same_seed_says_the_same(chat: ChatModel) -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12)
    first, again, other = (converse(chat, ["why ?"] * 2, sampling=sampling, seed=seed) for seed in (4, 4, 5))
    assert first == again and first != other
    # the second turn of seed 4 and a first turn that begins with seed 5 draw from the same numbers
    alone = chat.generate_ids([chat.encode([{"role": "user", "content": "why ?"}])], sampling, 4)
    assert first[0].reply == chat.decode(alone)[0]
    messages = [{"role": "user", "content": "why ?"}, {"role": "assistant", "content": first[0].reply}]
    second = chat.generate_ids([chat.encode([*messages, messages[0]])], sampling, 5)
    assert first[1].reply == chat.decode(second)[0]


def test_caps_hold_in_every_turn_and_are_gone_afterwards(chat: ChatModel) -> None:
    cap = Cap(direction=torch.stack([unit(1), unit(2)]), layers=[1, 2], floor=[9.0, 8.0])
    sampling = Sampling(max_new_tokens=6)
    directions = rulers(None, [cap])
    assert set(directions) == {1, 2} and torch.equal(directions[2], cap.direction[1])
    before = converse(chat, SAID, sampling=sampling, directions=directions)
    for exchange in converse(chat, SAID, sampling=sampling, caps=[cap], directions=directions):
        assert exchange.projections[1] >= 9 - 1e-4 and exchange.projections[2] >= 8 - 1e-4
    assert converse(chat, SAID, sampling=sampling, directions=directions) == before
    assert min(exchange.projections[1] for exchange in before) < 9


def test_a_cap_that_does_not_fit_is_refused_before_anything_is_said(chat: ChatModel) -> None:
    with pytest.raises(CapError):
        converse(chat, SAID, sampling=Sampling(), caps=[Cap(torch.eye(3)[:1], [0], floor=0.0)])
