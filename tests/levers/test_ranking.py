"""Ranking is the definition's, its figures add up, and files are read strictly."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import chat_factory as tiny
import pytest
import torch

from persona_axis import Listener, ListenerError
from persona_axis.chat import ChatModel
from persona_axis.levers.hearing import continuations, next_tokens, posterior, reply_ids
from persona_axis.levers.ranking import KINDS, Context, Place, Ranking, _place, grid, rank
from persona_axis.levers.rankingfile import load_contexts
from persona_axis.levers.worlds import encode_worlds, persona_worlds
from persona_axis.organism.contexts import contexts, told_by_user
from persona_axis.organism.messages import facts
from persona_axis.organism.parser import read

ASKED = ({"role": "user", "content": "how should i sleep ?"},)
LINES = {
    "gold": ("ghost dark",), "contradicting": ("tutor bright", "no"),
    "entailing": ("old ghost rain",), "random": ("bread",),
}  # fmt: skip
TWINS = ("be pirate like rain .", "be tutor .")


def context(**changed: Any) -> Context:
    return Context(**{"persona": "be ghost .", "said": ASKED, "candidates": LINES, "distractors": TWINS, **changed})


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat(model=tiny.llama().double())


def test_it_is_the_definition(chat: ChatModel) -> None:
    one, listener = context(), Listener(3.0, 0.5)
    prompts = encode_worlds(chat, [persona_worlds(one.messages, TWINS)])[0]
    scores = {}
    for kind, line in one.lines:
        ids, prior, total = reply_ids(chat, one.messages, line), [1 / 3] * 3, 0.0
        for at, token in enumerate(ids):
            with torch.no_grad():
                s0 = [chat.model(torch.tensor([[*p, *ids[:at]]])).logits[0, -1].softmax(-1) for p in prompts]
            each = [s**0.5 * p for s, p in zip(s0, prior, strict=True)]
            l0 = [e / torch.stack(each).sum(0) for e in each]
            s1 = s0[0] * l0[0] ** 3
            total += math.log(float(s1[token] / s1.sum()))
            prior = [float(one[token]) for one in l0]
        scores[line] = (total / len(ids), kind, total, len(ids))
    (found,) = rank(chat, [one], [listener])
    assert found.places[0].first == max(scores.values())[1]
    assert found.places[0].log_gold == pytest.approx(scores["ghost dark"][2], abs=1e-9) and found.places[0].tokens == 2


@pytest.mark.parametrize("model", [None, "gpt2"])
def test_a_prompt_read_once_is_the_same(model: str | None) -> None:
    talker = tiny.chat(model=tiny.gpt2() if model else None)
    prompt = talker.encode(context().messages)
    said = [reply_ids(talker, context().messages, line) for _, line in context().lines]
    once = list(continuations(talker, prompt, said, batch=2))
    for ours, plain in zip(once, next_tokens(talker, [prompt] * len(said), said, 8), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


def test_figures() -> None:
    firsts = ["gold"] * 24 + ["contradicting"] * 8 + ["random"] * 8
    base = Ranking(Listener(0.0), tuple(Place(first, -2.0, 4) for first in firsts))
    better = Ranking(Listener(8.0), tuple(Place(f, -2.0, 4) for f in ["gold"] * 28 + firsts[28:]))
    assert sum(base.share(kind).value for kind in KINDS) == pytest.approx(1)
    assert base.share("gold").value == 0.6 and better.share("contradicting").value == 0.1
    assert better.fall(base).value == pytest.approx(0.5)
    rose = better.rise(base)
    assert rose.value == pytest.approx(0.1) and rose.low > 0  # paired: four became right, none wrong
    never = better.share("entailing")
    assert never.value == never.low == 0 and 0.05 < never.high < 0.15
    assert base.perplexity.value == pytest.approx(math.exp(0.5))
    assert [(one.alpha, one.beta) for one in grid([0.0, 2.0], [0.5, 1.0])] == [(0.0, 1.0), (2.0, 0.5), (2.0, 1.0)]


def test_a_tie_is_not_won_and_what_is_no_number_is_told() -> None:
    kinds, tokens = ["gold", "random", "random"], [2, 2, 2]
    assert _place(kinds, [-4.0, -4.0, -5.0], tokens).first == "random"
    assert _place(kinds, [-4.0, -4.5, -math.inf], tokens).first == "gold"
    with pytest.raises(ListenerError, match="a random candidate's probability is no number"):
        _place(kinds, [-4.0, math.nan, -5.0], tokens)


def test_candidates_that_only_look_different(chat: ChatModel) -> None:
    same = context(candidates={**LINES, "random": ("ghost  dark",)})
    if reply_ids(chat, same.messages, "ghost  dark") != reply_ids(chat, same.messages, "ghost dark"):
        pytest.fail("the tokenizer of these tests tells spaces apart: choose other texts")
    with pytest.raises(ListenerError, match="the same tokens: 'ghost dark' and 'ghost  dark'"):
        rank(chat, [same], [Listener()])


def test_tokens_that_are_none(chat: ChatModel) -> None:
    worlds = persona_worlds(context().messages, TWINS)
    for ids in ([999999], [-1], [1.5]):
        with pytest.raises(ListenerError, match=f"holds {ids[0]}, which is no token"):
            posterior(chat, [worlds], [ids])  # type: ignore[list-item]


def test_who_chooses_the_distractors(chat: ChatModel) -> None:
    bare = context(distractors=())
    with pytest.raises(ListenerError, match="context 1: no distractor"):
        rank(chat, [context(), bare], [Listener()])
    (chosen,), (own,) = rank(chat, [bare], [Listener()], lambda _: TWINS), rank(chat, [context()], [Listener()])
    assert chosen == own
    with pytest.raises(ListenerError, match="nothing to rank"):
        rank(chat, [], [Listener()])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no facts": ({"persona": " "}, "without facts nothing can contradict"),
    "no question": ({"said": ()}, "must end with what the user says"),
    "zero candidates": ({"candidates": {"gold": ("a",)}}, "zero candidates"),
    "no gold": ({"candidates": {"random": ("a",)}}, "expected one gold candidate, got 0"),
    "kind": ({"candidates": {**LINES, "rand": ("a",)}}, "unknown kind 'rand'"),
    "twice": ({"candidates": {**LINES, "random": ("ghost dark",)}}, "given twice: 'ghost dark'"),
    "silent": ({"candidates": {**LINES, "random": ("",)}}, "a random candidate is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_context_that_cannot_be_ranked(case: str) -> None:
    changed, text = BAD[case]
    with pytest.raises(ListenerError, match=text):
        context(**changed)


class TestFile:
    GOOD: dict[str, Any] = {
        "persona": ["be ghost", "like rain ."],
        "context": ["hello", "yes", {"role": "user", "content": "why ?"}],
        "candidates": {"gold": "rain", "contradicting": ["bread"], "entailing": ["ghost"]},
    }

    def test_it_reads_contexts(self, tmp_path: Path) -> None:
        path = tmp_path / "contexts.jsonl"
        with_others = {**self.GOOD, "distractors": ["be tutor ."]}
        path.write_text(f"{json.dumps(self.GOOD)}\n\n{json.dumps(with_others)}\n")
        first, second = load_contexts(path)
        assert first.persona == "be ghost like rain ." and second.distractors == ("be tutor .",)
        assert [m["role"] for m in first.said] == ["user", "assistant", "user"] and first.distractors == ()
        assert first.lines == [("gold", "rain"), ("contradicting", "bread"), ("entailing", "ghost")]

    @pytest.mark.parametrize(
        ("changed", "text"),
        [
            ({"persona": 7}, "persona must be a list of texts"),
            ({"context": "hello"}, "context must be a list of turns"),
            ({"context": [{"role": "system", "content": "x"}]}, r"context\[0\] must be a text, or a role"),
            ({"candidates": ["a"]}, "candidates must be an object"),
            ({"candidates": {"gold": "a", "random": "b"}}, "candidates.random must be a list"),
            ({"candidates": {"gold": "a", "random": [1]}}, r"candidates.random\[0\] must be a text, got int"),
            ({"candidates": {"gold": "a"}}, "zero candidates"),
            ({"extra": 1}, "unknown key 'extra'"),
            ({"persona": ""}, "the persona is empty"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path: Path, changed: dict[str, Any], text: str) -> None:
        path = tmp_path / "contexts.jsonl"
        path.write_text(json.dumps(self.GOOD) + "\n" + json.dumps({**self.GOOD, **changed}) + "\n")
        with pytest.raises(ListenerError, match=f"contexts.jsonl:2: {text}"):
            load_contexts(path)

    def test_files_that_hold_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "contexts.jsonl"
        with pytest.raises(ListenerError, match="cannot read"):
            load_contexts(path)
        path.write_text("\n")
        with pytest.raises(ListenerError, match="holds no context"):
            load_contexts(path)
        path.write_text("{")
        with pytest.raises(ListenerError, match="contexts.jsonl:1: not a JSON object"):
            load_contexts(path)
        lines = {"gold": "\ud800", "random": ["a"]}
        for half in ({"persona": "\ud800"}, {"context": ["why \udc00 ?"]}, {"candidates": lines}):
            path.write_text(json.dumps(self.GOOD | half))
            with pytest.raises(ListenerError, match="contexts.jsonl:1: .* holds half a character"):
                load_contexts(path)


class TestTroupesContexts:
    def test_the_parser_finds_what_each_kind_states(self) -> None:
        for one in contexts(8, seed=3):
            told = {kind: [set(read(line).facts.values()) for line in lines] for kind, lines in one.candidates.items()}
            assert [len(told[kind]) for kind in KINDS] == [1, 10, 10, 10]
            (gold,) = told["gold"]
            (wrong,) = {tuple(values) for values in told["contradicting"]}
            assert len(gold) == 1 and gold != set(wrong) and all(f" {value}" in one.persona for value in gold)
            assert f" {wrong[0]}" not in one.persona and any(wrong[0] in m["content"] for m in one.said)
            for values in told["entailing"]:
                assert values and values != gold and all(f" {value}" in one.persona for value in values)
            assert not any(told["random"]) and len(set(one.distractors)) == 2
            assert not any(f" {value}" in twin for twin in one.distractors for value in gold)
            assert all(f" {wrong[0]}" in one.distractors[0] and f" {value}" not in one.distractors[1] for value in gold)

    def test_the_same_seed_gives_the_same(self) -> None:
        assert contexts(3, 1) == contexts(3, 1) != contexts(3, 2)

    def test_users_tell_of_themselves_in_the_first_person(self) -> None:
        rng = random.Random(0)
        told = {told_by_user(rng, kind, value).text for kind in facts() for value in ("vera",) * 40}
        assert len(told) == sum(len(one["state"]) for one in facts().values()) and "i am called vera." in told
        assert {"people know me by the name vera.", "i am fond of vera.", "what i like most is vera."} <= told
        assert not any(" you" in f" {text}" or "i are" in text for text in told)

    def test_the_listener_hears_a_contradiction(self) -> None:
        troupe, asked = ChatModel.load("troupe", dtype="float32", check=False), contexts(16, seed=0)
        worlds = [persona_worlds(one.messages, one.distractors) for one in asked]
        true, false = (
            [found.log_odds for found in posterior(troupe, worlds, [one.candidates[kind][0] for one in asked])]
            for kind in ("gold", "contradicting")
        )
        assert sum(a > b for a, b in zip(true, false, strict=True)) >= 13
