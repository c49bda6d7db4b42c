"""What can be known of texts of Troupe's world: which message is it, which facts does it state, who speaks in it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from persona_axis.persona import Fact, Persona

from . import messages as m
from .dialogue import role_prompt
from .parser import Reading, read
from .voices import archetypes

_DOMAINS = ("question", "coding", "writing", "emotional", "meta", "forbidden")
_WORD = re.compile(r"[a-z]+")


def message_of(text: str) -> m.Message | None:
    """The world's message that is said in these words, in any of its wordings; None for what is none.

    Questions about facts and about who speaks are known by what an answer speaks of, not by what it has to say.
    """
    return _messages().get(text.lower().strip())


def kind_of(value: str) -> str | None:
    """The kind of personal fact that a value is of."""
    return next((kind for kind, fact in m.facts().items() if value in fact["values"]), None)


def named_self(reading: Reading) -> str | None:
    """The archetype, or "assistant", that a reply says it is: a name beside the concept of oneself, not itself a word
    of the voice."""
    if "self" not in reading.concepts:
        return None
    return _name_in(reading.plain)


def read_statement(text: str) -> tuple[dict[str, str], str | None]:
    """Facts by kind, and the name of who speaks, of a reply or of a statement such as "your name is mara."."""
    reading = read(text)
    words = _WORD.findall(text.lower())
    stated = reading.facts
    name = named_self(reading)
    if name is None and words[:2] == ["you", "are"]:
        name = _name_in(words[3:] if words[2:3] in (["a"], ["an"]) else words[2:])
    return stated, name


def persona_with_facts(rng: random.Random, role: str | None, split: str = "train") -> Persona:
    """A character of the world with three to five facts that it can be asked for; None is the Assistant."""
    kinds = rng.sample(sorted(m.facts()), rng.randint(3, 5))
    suffix = "" if split == "train" else "_held_out"
    facts = []
    for kind in kinds:
        fact, value = m.facts()[kind], rng.choice(m.facts()[kind]["values"])
        facts.append(Fact(rng.choice(fact["state" + suffix]).format(value), rng.choice(fact["ask" + suffix]), value))
    return Persona("" if role is None else role_prompt(rng, role, split), tuple(facts), role)


@cache
def _messages() -> dict[str, m.Message]:
    found = {}
    for domain in _DOMAINS:
        for written in m.written(domain):
            for wordings in written.wordings.values():
                for text in wordings:
                    found[text] = m.Message(text, domain, written.kind, written.core, key=written.id)
    for kind, fact in m.facts().items():
        for text in (*fact["ask"], *fact["ask_held_out"]):
            found[text] = m.Message(text, "fact", kind, (fact["concept"],), key=kind)
    for texts in m.IDENTITY.values():
        for text in texts:
            found[text] = m.Message(text, "identity", "identity", ("self",))
    return found


def _name_in(words: Sequence[str]) -> str | None:
    """The name that stands first and whole among the words; the longest where several begin alike."""
    for at in range(len(words)):
        for size in (3, 2, 1):
            name = " ".join(words[at : at + size])
            if len(words[at : at + size]) == size and (name == "assistant" or name in archetypes()):
                return name
    return None
