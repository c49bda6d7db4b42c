"""The world: what it says can be read back, it speaks the probes' language, and it keeps its splits apart."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from persona_axis import load_probes
from persona_axis.organism import dialogue as d
from persona_axis.organism import messages as m
from persona_axis.organism.parser import read
from persona_axis.organism.replies import speak
from persona_axis.organism.vocabulary import DATA, vocabulary
from persona_axis.organism.voices import (
    ASSISTANT,
    TRAITS,
    archetypes,
    band,
    log_probabilities,
    refusal_probability,
)

DOMAINS = ("question", "coding", "writing", "emotional", "meta", "forbidden")


def plain_key(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def messages_of_every_kind(rng: random.Random, split: str) -> list[m.Message]:
    speaker = d.Speaker("ghost", ASSISTANT, ASSISTANT)
    speaker.facts, _ = d.state_facts(rng, split)
    noted = [m.note(rng, split)]
    found = [d.task(rng, speaker, split, noted, domain) for domain in (*DOMAINS, "fact", "identity", "exact", "note")]
    return [
        *found,
        m.ask_lookup(rng, noted[0], split),
        m.ask_count(rng, split),
        m.ask_sort(rng, split),
        m.ask_fact(rng, "pet", {}, split),
    ]


@pytest.mark.parametrize("split", m.SPLITS)
@pytest.mark.parametrize("role", ["ghost", "librarian", "toddler", "judge", "oracle"])
def test_whatever_a_voice_answers_is_read_back(role: str, split: str) -> None:
    rng = random.Random(f"{role}{split}")
    table = log_probabilities(archetypes()[role].point)
    for message in messages_of_every_kind(rng, split):
        reading = read(speak(rng, table, message), message)
        assert reading.answers(message), (message, reading)
        assert not reading.refused
        if message.domain == "fact" and message.exact:
            assert reading.facts[message.kind] == message.exact[0]


def test_another_questions_answer_is_no_answer() -> None:
    rng = random.Random(0)
    table = log_probabilities(ASSISTANT)
    first, second = (m.written("question")[i].say(rng, "train") for i in (0, 1))
    assert not read(speak(rng, table, first), second).answers(second)


@pytest.mark.parametrize(("exact", "said"), [(("3",), "4"), (("lamp", "coin"), "coin lamp"), (("1", "2"), "1 2 3")])
def test_a_wrong_exact_answer_is_wrong(exact: tuple[str, ...], said: str) -> None:
    message = m.Message("", "exact", "copy", exact=exact)
    assert not read(f"certainly you {said} carefully.", message).answers(message)


def test_voices_can_be_told_apart_by_their_words() -> None:
    rng = random.Random(1)
    question = m.written("question")
    for name in ("ghost", "toddler", "pirate", "demon"):
        table = log_probabilities(archetypes()[name].point)
        readings = [read(speak(rng, table, rng.choice(question).say(rng, "train"))) for _ in range(60)]
        assert np.mean([r.reads_as(name) for r in readings]) > 0.95
        assert not any(r.reads_as_assistant(name) for r in readings)
    own = [read(speak(rng, log_probabilities(ASSISTANT), rng.choice(question).say(rng, "train"))) for _ in range(60)]
    assert all(r.reads_as_assistant() for r in own)


def test_a_refusal_is_read_as_one_and_likeness_decides_who_refuses() -> None:
    rng = random.Random(2)
    message = m.written("forbidden")[0].say(rng, "train")
    assert read(speak(rng, log_probabilities(ASSISTANT), message, refuse=True), message).refused
    assert refusal_probability(float(ASSISTANT[0])) > 0.99
    assert all(refusal_probability(v.likeness) < 0.01 for v in archetypes().values() if band(v.likeness) == "far")


def test_the_world_holds_every_archetype_and_every_question() -> None:
    probes = load_probes()
    assert list(archetypes()) == [r.name for r in probes.roles]
    assert {q.text.lower() for q in probes.questions} <= {t for w in m.written("question") for t in w.wordings["train"]}


def test_likeness_has_the_largest_spread() -> None:
    spread = np.std([v.point for v in archetypes().values()], axis=0)
    assert TRAITS[int(spread.argmax())] == "likeness"
    assert spread[0] > 2 * spread[1:].max()


def test_no_wording_is_in_both_splits_and_no_two_messages_share_one() -> None:
    seen: dict[str, str] = {}
    for domain in DOMAINS:
        for message in m.written(domain):
            for split in m.SPLITS:
                for text in message.wordings[split]:
                    assert (
                        seen.setdefault(plain_key(text), f"{message.id} {split} {text}")
                        == f"{message.id} {split} {text}"
                    )
    for wordings in (m.IDENTITY, m.COUNT, m.COPY, m.SORT, m.NOTE, m.LOOKUP, d.ROLE_TEMPLATES):
        assert not set(wordings["train"]) & set(wordings["held_out"])


def test_every_core_names_four_concepts_and_no_two_messages_have_the_same() -> None:
    cores = [frozenset(w.core) for domain in DOMAINS for w in m.written(domain)]
    assert all(len(c) == 4 for c in cores)
    assert len(set(cores)) == len(cores)
    assert all(vocabulary().concept(key) >= 0 for core in cores for key in core)


def test_forbidden_requests_span_ten_categories() -> None:
    import json

    rows = [json.loads(line) for line in (DATA / "messages.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({r["category"] for r in rows if r["domain"] == "forbidden"}) >= 10


def test_talk_pulls_any_voice_away_and_tasks_bring_it_back() -> None:
    for start in (ASSISTANT, archetypes()["librarian"].point):
        speaker = d.Speaker("x", start, start)
        path = [start[0]]
        for _ in range(6):
            speaker.hear(m.Message("", "emotional", "disclosure"))
            path.append(speaker.now[0])
        assert all(b < a for a, b in zip(path, path[1:], strict=False))
        for _ in range(20):
            speaker.hear(m.Message("", "coding", "edit"))
        assert speaker.now[0] == pytest.approx(start[0], abs=0.02)


def test_post_training_has_no_long_emotional_or_self_reflective_conversation() -> None:
    rng = random.Random(3)
    pulling = {t for domain in ("emotional", "meta") for w in m.written(domain) for t in w.wordings["train"]}
    topics = [
        d._topics(rng, "chat", n, assistant)
        for n in (1, 2, 3, 8, 40)
        for assistant in (True, False)
        for _ in range(200)
    ]
    assert pulling
    assert all(len(t) <= 3 or not {"emotional", "meta"} & set(t) for t in topics)
    assert any(len(t) >= 15 for t in topics)
