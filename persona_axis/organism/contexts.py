"""Contexts for ranking in Troupe's world: a user who has told a fact of their own asks a character for its.

The gold reply states the character's fact. Contradicting ones state the user's in its place, in the same voice, which
is the mistake that this model makes; entailing ones state other facts of the character, true and no answer; random
ones are what other characters say to other questions. All are texts of the world, whose voices are drawn at temperature
1, but the contradicting ones: those begin at .25, so that they are the most fluent lines of all.
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
FLUENT = 0.25
WARMER = 1.05
"""A voice too sharp for as many lines is drawn a little warmer each time that it repeats itself."""
_OWN = (("your", "my"), ("you are", "i am"), ("know you", "know me"), ("you ", "i "))
"""A statement to somebody as one about oneself; the later ones are for what the earlier leave."""


def contexts(count: int, seed: int = 0, split: str = "held_out") -> list[Context]:
    """`count` contexts of 31 candidates in the wordings of `split`.

    The first distractor is the same character with the user's fact, which the conversation tells, in place of its own;
    the second has other values of all facts. Other archetypes would be told by their voices at the first words, and a
    listener that is sure has no say about the facts.
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
    others = [other for other in known if other != kind]

    def contradicting(warmth: float) -> str:
        return speak(rng, log_probabilities(point, FLUENT * warmth), m.ask_fact(rng, kind, {kind: users}, split))

    def entailing(warmth: float) -> str:
        return speak(rng, log_probabilities(point, warmth), m.ask_fact(rng, rng.choice(others), known, split))

    def unrelated(warmth: float) -> str:
        other = archetypes()[rng.choice(list(archetypes()))].point
        return speak(rng, log_probabilities(other, warmth), rng.choice(m.written("question")).say(rng, split))

    candidates: dict[str, tuple[str, ...]] = {"gold": (speak(rng, log_probabilities(point), asked),)}
    makers = {"contradicting": contradicting, "entailing": entailing, "random": unrelated}
    candidates |= {what: _different(make) for what, make in makers.items()}
    mirror = f"{asked_for} {_stated(rng, {**known, kind: users}, split)}"
    twin = f"{asked_for} {_stated(rng, _others(rng, known), split)}"
    asking = {"role": "user", "content": asked.text}
    return Context(f"{asked_for} {stated}", (*said, asking), candidates, (mirror, twin))


def _others(rng: random.Random, known: dict[str, str]) -> dict[str, str]:
    """The same kinds of facts with other values."""
    values = {kind: m.facts()[kind]["values"] for kind in known}
    return {kind: rng.choice([v for v in values[kind] if v != value]) for kind, value in known.items()}


def _stated(rng: random.Random, known: dict[str, str], split: str) -> str:
    key = "state" if split == "train" else "state_held_out"
    return " ".join(rng.choice(m.facts()[kind][key]).format(value) for kind, value in known.items())


def told_by_user(rng: random.Random, kind: str, value: str) -> m.Message:
    """What users say of themselves; the reply takes note of it."""
    about = rng.choice(m.facts()[kind]["state"]).format(value)
    for theirs, own in _OWN:
        about = about.replace(theirs, own)
    return m.Message(about, "note", "note", m.ACKNOWLEDGE_CORE)


def _different(make: Callable[[float], str]) -> tuple[str, ...]:
    """`EACH` lines that differ, from a maker that is told how many times as warm as usual its voice should be."""
    found: dict[str, None] = {}
    warmth = 1.0
    while len(found) < EACH:
        line = make(warmth)
        warmth *= WARMER if line in found else 1.0
        found[line] = None
    return tuple(found)
