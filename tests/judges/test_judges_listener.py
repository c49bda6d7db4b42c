"""The listener as a judge: told against Troupe's parser, and what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import chat_factory as tiny
import pytest
from signals_factory import talk

from persona_axis.bench.measure import left_out
from persona_axis.chat import ChatModel
from persona_axis.errors import BenchError, JudgeError
from persona_axis.extract import Options, extract
from persona_axis.judges import Judged, ListenerJudge, TroupeParser, named, verdicts
from persona_axis.judges.questions import Answers, Fits, chances
from persona_axis.organism.voices import archetypes, band
from persona_axis.persona import Persona
from persona_axis.probes import load_probes
from persona_axis.sampling import Sampling
from persona_axis.signals.choosing import Means, chosen


@pytest.fixture(scope="module")
def troupe() -> ChatModel:
    return ChatModel.load("troupe", check=False)


def test_it_agrees_with_the_parser_on_far_roles(troupe: ChatModel) -> None:
    probes, rng = load_probes(), random.Random(0)
    far = [role for role in probes.roles if band(archetypes()[role.name].likeness) == "far"]
    roles = [rng.choice(far) for _ in range(48)]
    questions = [str(rng.choice(probes.questions)) for _ in roles]
    asked = [role.prompts[0] if i % 2 else "" for i, role in enumerate(roles)]
    chats = [
        [{"role": "system", "content": system}, {"role": "user", "content": question}]
        for system, question in zip(asked, questions, strict=True)
    ]
    said = troupe.generate(chats, Sampling(max_new_tokens=40), 0).texts
    shown = [
        Judged(role.name, "", role.prompts[0], question, reply)
        for role, question, reply in zip(roles, questions, said, strict=True)
    ]
    judge = named("listener", chat=troupe, probes=probes)
    given, truth = verdicts(judge, shown), TroupeParser().score(shown)
    same = [(a == 3) == (b == 3) for a, b in zip(given, truth, strict=True)]
    assert sum(same) >= 44 and 12 <= sum(t == 3 for t in truth) <= 36
    assert set(given) <= {1, 2, 3} and [a for a, b in zip(given, truth, strict=True) if b == 1].count(1) >= 12


@pytest.fixture(scope="module")
def judge() -> ListenerJudge:
    return ListenerJudge.of(tiny.chat(), tiny.probes(6))


class TestTheSeam:
    def test_a_role_is_never_told_from_itself(self, judge: ListenerJudge) -> None:
        assert len(judge.roles) == 3
        for name, _ in (*judge.roles, ("role 0", "")):
            assert len(judge.told_from(name)) == 2 and name not in judge.told_from(name)

    def test_an_empty_reply_has_no_verdict(self, judge: ListenerJudge) -> None:
        shown = [Judged("role 0", "", "be b like e .", "why ?", reply) for reply in ("", "hello ghost")]
        given = verdicts(judge, shown)
        assert given[0] is None and given[1] in (1, 2, 3)

    def test_neither_has_a_role_that_nothing_states(self, judge: ListenerJudge) -> None:
        name, prompt = judge.roles[0]
        shown = [Judged("role 9", "", system, "why ?", "hello ghost") for system in ("", prompt, "be b like e .")]
        given = verdicts(judge, shown)
        assert given[0] is None and None not in given[1:] and judge.told_from("role 9")[name] == prompt

    def test_the_threshold_decides(self, judge: ListenerJudge) -> None:
        shown = [Judged("role 0", "", "be b like e .", f"{word} ?", "hello ghost") for word in ("why", "how", "what")]
        odds = [heard.true for heard in judge.hear(shown)]
        for threshold in (min(odds) - 1e-6, max(odds) + 1e-6):
            strict = ListenerJudge(judge.chat, judge.roles, judge.others, threshold)
            assert [v == 3 for v in strict.score(shown)] == [o > threshold for o in odds]
            assert f"threshold={threshold:g}" in strict.name

    def test_its_name_tells_the_roles_apart(self, judge: ListenerJudge) -> None:
        other = ListenerJudge(judge.chat, (("x", "be x ."), *judge.roles[1:]))
        assert other.name != judge.name and ListenerJudge.of(judge.chat, tiny.probes(6)).name == judge.name

    def test_what_it_needs(self, judge: ListenerJudge) -> None:
        with pytest.raises(JudgeError, match="needs the model that it listens with: .* name it with --model"):
            named("listener")
        with pytest.raises(JudgeError, match="needs 3 roles to choose from, there are 2"):
            ListenerJudge(judge.chat, judge.roles[:2])
        with pytest.raises(JudgeError, match="threshold must lie between 0 and 1"):
            ListenerJudge(judge.chat, judge.roles, threshold=1.0)


class TestSignalsQuestions:
    def test_a_line_fits_where_a_rollout_would_be_in_role(self, judge: ListenerJudge) -> None:
        shown = [Judged("role 0", "", "be b like e .", f"{word} ?", "hello ghost") for word in ("why", "how", "what")]
        asked = [Fits(Persona(one.system, role=one.role), one.reply, one.question) for one in shown]
        heard = judge.hear(shown)
        for threshold in (0.05, judge.threshold, 0.6):
            at = ListenerJudge(judge.chat, judge.roles, judge.others, threshold)
            given = chances(at, asked)
            prior = (1 - threshold) / threshold
            right = [h.true * prior / (h.true * prior + 1 - h.true) for h in heard]
            assert given == pytest.approx(right, rel=1e-6)
            assert [c > 0.5 for c in given if c is not None] == [v == 3 for v in at.score(shown)]

    def test_whom_a_persona_is_told_from(self, judge: ListenerJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second, third = (prompt for _, prompt in judge.roles)
        seen = []
        hear = ListenerJudge._heard
        monkeypatch.setattr(ListenerJudge, "_heard", lambda s, w, a: seen.extend(w) or hear(s, w, a))
        who = [Persona("hello"), Persona(""), Persona(first.upper()), Persona("hello", role=judge.roles[0][0])]
        assert None not in chances(judge, [Fits(persona, "hello ghost", "why ?") for persona in who])
        systems = [[m["content"] for m in world if m["role"] == "system"] for row in seen for world in row[1:]]
        assert systems[:3] == [[], [first], [second]] and systems[3:6] == [[first], [second], [third]]
        assert systems[6:9] == [[], [second], [third]] and systems[9:] == [[], [second], [third]]

    def test_what_cannot_be_judged(self, judge: ListenerJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        be = Persona("be b like e .")
        monkeypatch.setattr("persona_axis.model.windows.context_limit", lambda _chat: 24)
        monkeypatch.setattr("persona_axis.levers.worlds.context_limit", lambda _chat: 24)
        given = chances(judge, [Fits(be, ""), Fits(be, "hello " * 30, "why ?"), Fits(be, "hello ghost", "why ?")])
        assert given[:2] == [None, None] and given[2] is not None
        with pytest.raises(JudgeError, match="cannot tell: Does the reply answer the message"):
            judge.answer([Answers("why ?", "hello")])

    def test_signals_that_it_cannot_tell_are_left_out(self, judge: ListenerJudge) -> None:
        told = [talk("a", "hello ghost", "hello", system="be a b")]
        means = Means(told, judge=judge)
        assert chosen(None, means) == ["parroting", "distinct", "self_overlap", "adherence"]
        with pytest.raises(JudgeError, match="cannot tell: Does the reply answer the message"):
            chosen(["answers"], means)
        given = {"judge": judge, "axis": 0, "test": 0}
        (note,) = left_out(None, **given)
        assert note.endswith("left out: self_consistency, contradiction, answers, fact_consistency")
        assert left_out(["adherence"], **given) == []
        with pytest.raises(BenchError, match=r"judge listener\(.*\) cannot tell answers: take another"):
            left_out(["answers"], **given)

    def test_it_tells_troupes_characters_from_the_assistant(self, troupe: ChatModel) -> None:
        probes, parser = load_probes(), TroupeParser()
        far = [role for role in probes.roles if band(archetypes()[role.name].likeness) == "far"][:16]
        who = [Persona(role.prompts[0], role=role.name) for role in far]
        asked = [str(probes.questions[i % len(probes.questions)]) for i in range(len(far))]
        chats = [
            [*([{"role": "system", "content": w.text}] if i % 2 else []), {"role": "user", "content": q}]
            for i, (w, q) in enumerate(zip(who, asked, strict=True))
        ]
        said = troupe.generate(chats, Sampling(max_new_tokens=40), 0).texts
        questions = [Fits(w, line, q) for w, line, q in zip(who, said, asked, strict=True)]
        heard, truth = (chances(j, questions) for j in (named("listener", chat=troupe), parser))
        assert sum((a >= 0.5) == (b >= 0.5) for a, b in zip(heard, truth, strict=True)) >= 15


def test_an_extraction_needs_no_other_judge(tmp_path: Path) -> None:
    chat, probes = tiny.chat(), tiny.probes(6)
    options = Options(prompts=2, questions=8, sampling=Sampling(max_new_tokens=6), min_accepted=1, accept=(1, 2, 3),
                      calibration=10, batch_size=32)  # fmt: skip
    judge = named("listener", chat=chat, probes=probes)
    found = extract(chat, probes, options, out=tmp_path / "axis.safetensors", judge=judge)
    assert found.axis.metadata["judge"] == judge.name
    lines = map(json.loads, (tmp_path / "axis.safetensors.run" / "rollouts.jsonl").read_text().splitlines())
    assert {line["score"] for line in lines if line["role"] != "default" and line["text"]} <= {1, 2, 3}
