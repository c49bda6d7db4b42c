"""The persona score: its arithmetic, and that it falls when personas are shuffled or dropped."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chat_factory as tiny
import pytest

from persona_axis import ChatModel, ProbeError
from persona_axis.errors import SignalError
from persona_axis.judges import TroupeParser
from persona_axis.judges.questions import Rubric
from persona_axis.organism import messages, voices
from persona_axis.organism.dialogue import role_prompt
from persona_axis.persona import Persona
from persona_axis.persona_probes import SETTINGS, TASKS, PersonaProbe, load_personas, load_rubrics
from persona_axis.sampling import Sampling
from persona_axis.signals.persona_score import persona_score

RUBRICS = {task: Rubric(task, "asks.", tuple("abcde"), "p", "q", tuple("vwxyz")) for task in TASKS}
SHORT = Sampling(temperature=0.0, max_new_tokens=40)


def probe(name: str, each: int = 2) -> PersonaProbe:
    questions = {task: tuple(f"{name} {task} {i} ?" for i in range(each)) for task in TASKS}
    return PersonaProbe(name, Persona(name), ("home",), questions)


class Reads:
    """A judge whose score is the task's place among the five; with `more`, None for one question of the first task."""

    def __init__(self, name: str, more: int = 0) -> None:
        self.name, self.more = name, more

    def answer(self, questions: Sequence[Any]) -> list[int | None]:
        return [None if q.question.endswith("action 1 ?") and self.more else TASKS.index(q.rubric.task) + 1
                for q in questions]  # fmt: skip


def test_the_score_is_the_mean_of_the_tasks_means() -> None:
    found = persona_score(tiny.chat(), [probe("rain"), probe("bread")], [Reads("a"), Reads("b", 1)], RUBRICS,
                          sampling=Sampling(0.0, 1.0, 4))  # fmt: skip
    assert found.score.value == pytest.approx(3.0) and math.isnan(found.score.low)
    assert [found.tasks[task].value for task in TASKS] == [1, 2, 3, 4, 5]
    assert found.unjudged == 2 and len(found.frame) == 40 and len(found.answers) == 20
    assert found.answers["score"].notna().all(), "the other judge scored it"
    assert found.kappa.value == found.correlation.value == pytest.approx(1)
    assert found.signal.rows == 20 and found.signal.judge == "a, b" and found.signal.high == 5
    one = persona_score(tiny.chat(), [probe("rain")], [Reads("b", 1)], RUBRICS, questions=1, sampling=SHORT)
    assert math.isnan(one.kappa.value) and one.unjudged == 0 and len(one.answers) == 5


def test_tasks_weigh_the_same_however_many_questions_were_judged() -> None:
    class Half(Reads):
        def answer(self, questions: Sequence[Any]) -> list[int | None]:
            return [5 if q.rubric.task == TASKS[0] else 1 if i % 2 else None for i, q in enumerate(questions)]

    found = persona_score(tiny.chat(), [probe("rain")], [Half("h")], RUBRICS, sampling=Sampling(0.0, 1.0, 2))
    assert found.score.value == pytest.approx((5 + 4 * 1) / 5) and found.unjudged == 4


def test_a_task_that_nobody_could_judge_leaves_no_score() -> None:
    class Silent(Reads):
        def answer(self, questions: Sequence[Any]) -> list[int | None]:
            return [None] * len(questions)

    found = persona_score(tiny.chat(), [probe("rain")], [Silent("s")], RUBRICS, sampling=Sampling(0.0, 1.0, 2))
    assert math.isnan(found.score.value) and found.unjudged == 10 and found.signal.unjudged == 10


def test_what_does_not_fit_is_refused() -> None:
    chat, judge, two = tiny.chat(), Reads("a"), [probe("rain"), probe("bread")]
    for probes, judges, more, said in (
        ([], [judge], {}, "needs personas"), ([two[0]] * 2, [judge], {}, "a name of its own"),
        (two, [], {}, "needs a judge"), (two, [judge, judge], {}, "different names"),
        (two, [judge], {"told": "both"}, "told='both'"), (two[:1], [judge], {"told": "shuffled"}, "cannot be shuffled"),
        (two, [judge], {"questions": 0}, "at least 1"), (two, [judge], {"instruction": "be"}, "one {}"),
    ):  # fmt: skip
        with pytest.raises(SignalError, match=said):
            persona_score(chat, probes, judges, RUBRICS, **more)


@pytest.mark.parametrize("instruction", ["{x} {}", "{} }", "{{}}", "{}"])
def test_an_instruction_is_text_but_for_the_persona(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a persona may hold braces itself."""
    seen: list[Any] = []

    def ask(chat: Any, chats: list[Any], *rest: Any) -> list[str]:
        seen.extend(chats)
        return ["yes"] * len(chats)

    monkeypatch.setattr("persona_axis.talks.asking.ask", ask)
    one = PersonaProbe("a", Persona("rain {} {x}"), ("home",), probe("a").questions)
    persona_score(tiny.chat(), [one], [Reads("j")], RUBRICS, instruction=instruction, sampling=SHORT)
    left, right = instruction.split("{}")
    assert {chat[0]["content"] for chat in seen} == {f"{left}rain {{}} {{x}}{right}"}


def test_the_score_falls_when_personas_are_shuffled_and_more_when_they_are_dropped() -> None:
    """Troupe plays archetypes, its parser judges: who is told to be another, or nobody, shows less of the persona."""
    rng = random.Random(0)
    names = rng.sample([v.name for v in voices.archetypes().values() if voices.band(v.likeness) != "near"], 12)
    asked = messages.written("question")
    probes = [
        PersonaProbe(name, Persona(role_prompt(rng, name, "train"), role=name), ("home",),
                     {task: (asked[5 * i + t].say(rng, "train").text + " " * i,) for t, task in enumerate(TASKS)})
        for i, name in enumerate(names)
    ]  # fmt: skip
    chat = ChatModel.load("troupe")
    own, shuffled, nobody = (
        persona_score(chat, probes, [TroupeParser()], RUBRICS, told=told, instruction="{}", sampling=SHORT).score
        for told in ("own", "shuffled", "nobody")
    )
    assert own.low > shuffled.high and shuffled.low > nobody.high
    assert own.value > 4.2 and nobody.value < 2.5


def record(**changes: Any) -> dict[str, Any]:
    questions = {task: [f"{task}?"] for task in TASKS}
    made = {"name": "a", "description": "A baker.", "facts": [], "settings": ["home"], "questions": questions}
    return {**made, **changes}


def test_personas_are_read_strictly(tmp_path: Path) -> None:
    def written(*records: dict[str, Any]) -> Path:
        (tmp_path / "personas.jsonl").write_text("\n".join(json.dumps(one) for one in records))
        return tmp_path

    assert load_personas(written(record()))[0].questions[TASKS[0]] == ("expected action?",)
    for bad, said in (
        (record(settings=["the moon"]), "'the moon'; the settings are home"), (record(settings=[]), "one text or more"),
        (record(questions={TASKS[0]: ["x?"]}), "missing key 'action justification'"), (record(questions=[]), "object"),
        (record(facts=[{"statement": "x", "answer": "y"}]), "needs the answer"), (record(description=" "), "empty"),
        (record(questions={**record()["questions"], TASKS[1]: ["expected action?!"]}), "repeats"),
        (record(more=1), "unknown key 'more'"),
    ):  # fmt: skip
        with pytest.raises(ProbeError, match=f"personas.jsonl:1: .*{said}"):
            load_personas(written(bad))
    with pytest.raises(ProbeError, match="personas.jsonl:2: persona 'A' repeats"):
        load_personas(written(record(), record(name="A")))


def test_rubrics_are_read_strictly(tmp_path: Path) -> None:
    def written(records: Sequence[dict[str, Any]]) -> Path:
        (tmp_path / "rubrics.jsonl").write_text("\n".join(json.dumps(one) for one in records))
        return tmp_path

    good = [{"task": task, "asks": "x.", "meanings": list("abcde"), "example_persona": "p", "example_question": "q?",
             "examples": list("vwxyz")} for task in TASKS]  # fmt: skip
    assert load_rubrics(written(good))[TASKS[4]].examples == tuple("vwxyz")
    for bad, said in (
        (good[:4], "no rubric for toxicity control"), ([*good, good[0]], "one rubric for each"),
        ([{**good[0], "task": "wit"}], "here is 'wit'"), ([{**good[0], "examples": ["x"]}], "scores 1 to 5"),
    ):  # fmt: skip
        with pytest.raises(ProbeError, match=said):
            load_rubrics(written(bad))


def test_the_shipped_personas_keep_their_promises() -> None:
    personas = load_personas()
    assert len(personas) >= 40
    for one in personas:
        assert [len(one.questions[task]) for task in TASKS] == [10] * 5, one.name
        assert 3 <= len(one.settings) == len(set(one.settings)) and set(one.settings) <= set(SETTINGS)
        assert len(one.persona.askable) >= 3, one.name
        for texts in one.questions.values():
            assert all(8 <= len(text) <= 300 for text in texts), one.name
    assert set(load_rubrics()) == set(TASKS)
    starts = [" ".join(t.split()[:4]) for one in personas for texts in one.questions.values() for t in texts]
    assert max(map(starts.count, set(starts))) <= len(starts) // 50, "questions do not all begin alike"
