"""What a lever costs: paired figures, and Troupe's items, which are the same every time."""

from __future__ import annotations

import json
import random

import chat_factory as tiny
import numpy as np
import pytest
import torch
from test_cap import units

from persona_axis import Cap, PersonaAxisError
from persona_axis import capability as module
from persona_axis.capability import ANSWERS, EXACT, CapabilityTest, Scores, TroupeTasks, capability, tasks_for
from persona_axis.errors import JudgeError
from persona_axis.organism import replies, voices
from persona_axis.sampling import Sampling
from persona_axis.talks.asking import ask

GREEDY = Sampling(temperature=0.0, max_new_tokens=8)


def test_points_are_those_of_the_pairs() -> None:
    before = Scores((1.0,) * 90 + (0.0,) * 10, (ANSWERS, EXACT) * 50)
    after = Scores((1.0,) * 85 + (0.0,) * 12 + (1.0,) * 3, (ANSWERS, EXACT) * 50)  # 5 lost, 3 gained
    found = capability(before, after)
    assert found.points.value == pytest.approx(-2.0) and found.loss == pytest.approx(2.0) and found.items == 100
    assert found.points.low < -2.0 < found.points.high
    assert set(found.parts) == {ANSWERS, EXACT}
    assert np.mean([part.value for part in found.parts.values()]) == pytest.approx(-2.0)
    assert found.inside(-found.points.low) and not found.inside(2.0)


def test_no_change_is_uncertain_all_the_same() -> None:
    same = Scores((1.0, 0.0) * 1000, (ANSWERS,) * 2000)
    found = capability(same, same)
    assert found.points.value == 0.0 and -1.0 < found.points.low < 0.0 < found.points.high < 1.0
    assert capability(same, same).inside(1.0)


def test_scores_between_right_and_wrong() -> None:
    rng = np.random.default_rng(0)
    old = rng.random(400)
    found = capability(Scores(tuple(old), ("task",) * 400), Scores(tuple(old - 0.1), ("task",) * 400))
    assert found.points.value == pytest.approx(-10.0) and found.points.low == pytest.approx(-10.0)


@pytest.mark.parametrize("other", [Scores((1.0,), (ANSWERS,)), Scores((1.0, 1.0), (ANSWERS, ANSWERS)), Scores((), ())])
def test_only_the_same_items_can_be_paired(other: Scores) -> None:
    with pytest.raises(PersonaAxisError, match="same items"):
        capability(Scores((1.0, 0.0), (ANSWERS, EXACT)), other)


def test_items_are_the_same_every_time_and_a_longer_list_begins_with_the_shorter() -> None:
    test: CapabilityTest = TroupeTasks()
    tasks = TroupeTasks()
    items = tasks.items("train", range(200), 0)
    assert tasks.items("train", range(40), 0) == items[:40] and tasks.items("train", range(40, 90), 0) == items[40:90]
    assert len({json.dumps(i.chat) for i in items}) == 200
    assert tasks.items("train", range(40), 1) != items[:40]
    facts = [test.facts(*case) for case in (("train", range(9), 0), ("held_out", range(9), 0), ("train", range(9), 1),
                                           ("train", range(8), 0))]  # fmt: skip
    assert len({json.dumps(f) for f in facts}) == 4 and facts[0] == TroupeTasks().facts("train", range(9), 0)


def test_items_are_half_exact_and_half_of_characters() -> None:
    items = TroupeTasks().items("held_out", range(400), 0)
    assert sum(i.message.domain == "exact" for i in items) == 200
    assert sum(i.role is None for i in items) == 200
    assert {i.message.kind for i in items if i.message.domain == "exact"} == {"count", "copy", "sort", "lookup"}
    assert {i.message.domain for i in items} == {"exact", "question", "coding", "writing"}
    assert len({i.role for i in items}) > 90
    train = {i.chat[-1]["content"] for i in TroupeTasks().items("train", range(400), 0) if i.message.domain != "exact"}
    assert not train & {i.chat[-1]["content"] for i in items}, "wordings of one half are not those of the other"


def test_right_answers_count_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, rng = TroupeTasks(), random.Random(0)
    items = tasks.items("train", range(40), 0)
    table = voices.log_probabilities(voices.ASSISTANT)
    right = [replies.speak(rng, table, i.message) for i in items]
    asked = []

    def said(_chat: object, chats: list[object], *_: object) -> list[str]:
        asked.append(chats)
        return right if len(asked) == 1 else [*right[2:], *right[:2]]

    monkeypatch.setattr(module, "ask", said)
    found = tasks.scores(tiny.chat(), None, "train", range(40), 0)
    assert found.values == (1.0,) * 40 and found.parts == (ANSWERS, EXACT) * 20
    assert asked[0] == [i.chat for i in items]
    assert sum(tasks.scores(tiny.chat(), None, "train", range(40), 0).values) <= 6


def test_who_is_tested_with_what() -> None:
    with pytest.raises(JudgeError, match="pass a test of your own"):
        tasks_for(tiny.chat())


class TestAsking:
    CHATS = [[{"role": "user", "content": " ".join(["what is rain ?"] * n)}] for n in (5, 1, 3, 2, 4)]

    def test_replies_come_in_order_whatever_the_batches(self) -> None:
        chat = tiny.chat()
        alone = [chat.generate([c], GREEDY).texts[0] for c in self.CHATS]
        assert len(set(alone)) > 1
        for batch in (1, 2, 5, 64):
            assert ask(chat, self.CHATS, GREEDY, batch=batch) == alone
        assert ask(chat, [], GREEDY) == []

    def test_under_a_lever_and_no_longer(self) -> None:
        chat = tiny.chat()
        free = ask(chat, self.CHATS, GREEDY, batch=2)
        held = ask(chat, self.CHATS, GREEDY, 0, Cap(units(1, 32), [1], floor=60.0), batch=2)
        assert held != free and ask(chat, self.CHATS, GREEDY, batch=2) == free

    def test_the_seed_decides_and_the_callers_random_state_is_left(self) -> None:
        chat, drawn = tiny.chat(), Sampling(temperature=1.5, top_p=1.0, max_new_tokens=8)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        assert ask(chat, self.CHATS, drawn, 1) == ask(chat, self.CHATS, drawn, 1) != ask(chat, self.CHATS, drawn, 2)
        assert torch.equal(torch.get_rng_state(), before)
