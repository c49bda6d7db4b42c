"""Questions to judges whose true answers are known, because the world's generator made them so."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits, Question
from persona_axis.organism import messages as m
from persona_axis.organism.replies import speak
from persona_axis.organism.truth import kind_of, persona_with_facts
from persona_axis.organism.voices import ASSISTANT, Array, archetypes, band, log_probabilities

KINDS = ("fits, far roles", "fits, near roles", "conflicts", "conflicts, own lines", "agrees", "answers")
_TEMPERATURE = 0.7  # that of replies everywhere


@dataclass(frozen=True)
class Known:
    """A question with its answer. Of `Conflicts` it is whether the one statement conflicts."""

    kind: str
    question: Question
    true: bool
    cluster: str


def items(kind: str, count: int, split: str, seed: int) -> list[Known]:
    """`count` of a kind, half of them true; roles are the clusters."""
    rng = random.Random(f"judged-{kind}-{split}-{seed}")
    return [_item(rng, kind, i % 2 == 0, split) for i in range(count)]


def _item(rng: random.Random, kind: str, true: bool, split: str) -> Known:
    if kind.startswith("fits"):
        return _fits(rng, kind, true, split)
    role = rng.choice(sorted(archetypes()))
    voice = _voice(role)
    if kind == "answers":
        own, other = rng.sample(m.written("question"), 2)
        asked = own.say(rng, split)
        return Known(kind, Answers(asked.text, speak(rng, voice, asked if true else other.say(rng, split))), true, role)
    persona = persona_with_facts(rng, role, split)
    fact = rng.choice(persona.facts)
    of = kind_of(fact.answer) or ""
    said = fact.answer if true is (kind == "agrees") else rng.choice([
        value for value in m.facts()[of]["values"] if value != fact.answer
    ])  # fmt: skip
    message = m.Message(fact.question, "fact", of, (m.facts()[of]["concept"],), (said,))
    line = speak(rng, voice, message)
    if kind == "agrees":
        return Known(kind, Agrees(fact.question, fact.answer, line), true, role)
    earlier = fact.statement
    if kind == "conflicts, own lines":
        earlier = speak(rng, voice, replace(message, exact=(fact.answer,)))
    return Known(kind, Conflicts(line, (earlier,)), true, role)


def _fits(rng: random.Random, kind: str, true: bool, split: str) -> Known:
    """A line of the role itself, or of the Assistant in its place; the persona's facts are left out of both."""
    wanted = "far" if "far" in kind else "near"
    role = rng.choice(sorted(v.name for v in archetypes().values() if band(v.likeness) == wanted))
    message = rng.choice(m.written("question")).say(rng, split)
    voice = _voice(role) if true else log_probabilities(ASSISTANT, _TEMPERATURE)
    persona = replace(persona_with_facts(rng, role, split), facts=())
    return Known(kind, Fits(persona, speak(rng, voice, message), message.text), true, role)


def _voice(role: str) -> Array:
    return log_probabilities(archetypes()[role].point, _TEMPERATURE)
