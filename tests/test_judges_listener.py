"""The listener as a judge: told against Troupe's parser, and what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import chat_factory as tiny
import pytest

from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.extract import Options, extract
from persona_axis.judges import Judged, ListenerJudge, TroupeParser, named, verdicts
from persona_axis.organism.voices import archetypes, band
from persona_axis.probes import load_probes
from persona_axis.sampling import Sampling


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
        with pytest.raises(JudgeError, match="pass chat and probes"):
            named("listener")
        with pytest.raises(JudgeError, match="needs 3 roles to choose from, there are 2"):
            ListenerJudge(judge.chat, judge.roles[:2])
        with pytest.raises(JudgeError, match="threshold must lie between 0 and 1"):
            ListenerJudge(judge.chat, judge.roles, threshold=1.0)


def test_an_extraction_needs_no_other_judge(tmp_path: Path) -> None:
    chat, probes = tiny.chat(), tiny.probes(6)
    options = Options(prompts=2, questions=8, sampling=Sampling(max_new_tokens=6), min_accepted=1, accept=(1, 2, 3),
                      calibration=10, batch_size=32)  # fmt: skip
    judge = named("listener", chat=chat, probes=probes)
    found = extract(chat, probes, options, out=tmp_path / "axis.safetensors", judge=judge)
    assert found.axis.metadata["judge"] == judge.name
    lines = map(json.loads, (tmp_path / "axis.safetensors.run" / "rollouts.jsonl").read_text().splitlines())
    assert {line["score"] for line in lines if line["role"] != "default" and line["text"]} <= {1, 2, 3}
