"""Contexts for ranking in Troupe's world: a user who has told a fact of their own asks a character for its.

The gold reply states the character's fact. Contradicting ones state the user's in its place, in the same voice, which
is the mistake that this model makes; entailing ones state other facts of the character, true and no answer; random
ones are what other characters say to other questions. The gold reply is a text of the world, whose voices are drawn at
temperature 1; all others are drawn at .2, so that a speaker that wants fluent lines has a reason to take them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..levers.ranking import Context
from . import messages as m
from .dialogue import Speaker, answer, role_prompt, state_facts, task
from .replies import speak
from .voices import archetypes, log_probabilities

EACH = 10
FLUENT = 0.2


def contexts(count: int, seed: int = 0, split: str = "held_out") -> list[Context]:
    """`count` contexts of 31 candidates in the wordings of `split`.

    Their two distractors are twins: the same character with other facts. Other archetypes would be told by their
    voices at the first words, and a listener that is sure has no say about the facts.
    """
    rng = random.Random(f"contexts-{seed}-{split}")
    return [_context(rng, split) for _ in range(count)]


def strangers(count: int, seed: int = 0, split: str = "held_out") -> list[str]:
    """Personas of any archetype with facts: a pool of distractors."""
    rng = random.Random(f"strangers-{seed}-{split}")
    names = rng.choices(list(archetypes()), k=count)
    return [f"{role_prompt(rng, name, split)} {state_facts(rng, split)[1]}" for name in names]


def _context(rng: random.Random, split: str) -> Context:
    name = rng.choice(list(archetypes()))
    point = archetypes()[name].point
    asked_for, (known, stated) = role_prompt(rng, name, split), state_facts(rng, split)
    speaker = Speaker(name, point, point, known)
    kind = rng.choice(sorted(known))
    asked = m.ask_fact(rng, kind, known, split)
    users = rng.choice([value for value in m.facts()[kind]["values"] if value != known[kind]])
    said: list[dict[str, str]] = []
    for message in [task(rng, speaker, split, [], "question")] * rng.randint(0, 1) + [told_by_user(rng, kind, users)]:
        said += [{"role": "user", "content": message.text}]
        said += [{"role": "assistant", "content": answer(rng, speaker, message)}]
    voice, others = log_probabilities(point, FLUENT), [other for other in known if other != kind]

    def contradicting() -> str:
        return speak(rng, voice, m.ask_fact(rng, kind, {kind: users}, split))

    def entailing() -> str:
        return speak(rng, voice, m.ask_fact(rng, rng.choice(others), known, split))

    def unrelated() -> str:
        other = archetypes()[rng.choice(list(archetypes()))].point
        return speak(rng, log_probabilities(other, FLUENT), rng.choice(m.written("question")).say(rng, split))

    candidates: dict[str, tuple[str, ...]] = {"gold": (speak(rng, log_probabilities(point), asked),)}
    makers = {"contradicting": contradicting, "entailing": entailing, "random": unrelated}
    candidates |= {what: _different(make) for what, make in makers.items()}
    twins = tuple(f"{asked_for} {_restated(rng, known, split)}" for _ in range(2))
    return Context(f"{asked_for} {stated}", (*said, {"role": "user", "content": asked.text}), candidates, twins)


def _restated(rng: random.Random, known: dict[str, str], split: str) -> str:
    """The same kinds of facts with other values."""
    facts, key = m.facts(), "state" if split == "train" else "state_held_out"
    other = {kind: rng.choice([v for v in facts[kind]["values"] if v != value]) for kind, value in known.items()}
    return " ".join(rng.choice(facts[kind][key]).format(value) for kind, value in other.items())


def told_by_user(rng: random.Random, kind: str, value: str) -> m.Message:
    """What users say of themselves; the reply takes note of it."""
    about = rng.choice(m.facts()[kind]["state"]).format(value)
    return m.Message(about.replace("your", "my").replace("you ", "i "), "note", "note", m.ACKNOWLEDGE_CORE)


def _different(make: Callable[[], str]) -> tuple[str, ...]:
    """`EACH` lines that differ."""
    found: dict[str, None] = {}
    while len(found) < EACH:
        found[make()] = None
    return tuple(found)
