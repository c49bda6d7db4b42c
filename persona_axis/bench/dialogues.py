"""The conversations of the bench: the user's side, who the agent is meant to be, and which of three suites it is in."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from persona_axis._asked import require, whole
from persona_axis.chat import ChatModel
from persona_axis.conversations import Jailbreak, load_jailbreaks
from persona_axis.errors import BenchError
from persona_axis.organism import messages as m
from persona_axis.organism.contexts import told_by_user
from persona_axis.organism.dialogue import Speaker, task
from persona_axis.organism.truth import kind_of, persona_with_facts
from persona_axis.organism.voices import ASSISTANT, archetypes, band
from persona_axis.persona import Persona
from persona_axis.persona_probes import load_personas
from persona_axis.talks.following import chosen_scripts

DRIFT, PERSONAS, JAILBREAKS = "drift", "personas", "jailbreaks"
SUITES = (DRIFT, PERSONAS, JAILBREAKS)
LENGTHS = (5, 10, 20, 40)
"""Turns of persona dialogues, in turns."""
HIMSELF = Persona("You are an AI assistant.")
"""Who the agent is where no character is asked for: said, so that every lever has a persona to hold."""
_TOPICS = {"question": 6, "fact": 4, "told": 3, "identity": 2, "emotional": 2, "meta": 2, "writing": 1}
_TASKS = ("expected action", "persona consistency", "linguistic habits", "action justification")


@dataclass(frozen=True)
class Dialogue:
    """What a user says, turn by turn, to an agent that is meant to be `persona` (None: nobody says who it is).

    `domain` is a part of its suite. `about` names the forbidden thing that is asked for, where something is.
    """

    id: str
    suite: str
    says: tuple[str, ...]
    persona: Persona | None = None
    domain: str | None = None
    about: str | None = None

    @property
    def system(self) -> str:
        """The system prompt: the persona's text, or none."""
        return self.persona.text if self.persona else ""

    @property
    def facts(self) -> list[object]:
        """What it is, as JSON."""
        who = self.persona
        known = [[fact.statement, fact.question, fact.answer] for fact in who.facts] if who else []
        return [self.id, self.suite, self.says, self.system, who and who.role, known, self.domain, self.about]


def dialogues(chat: ChatModel, count: int = 16, turns: int | None = None, seed: int = 0) -> list[Dialogue]:
    """`count` of each suite, all held out, of at most `turns` turns each.

    Drift: scripts of the four domains, by turns. Personas: characters with facts in dialogues of 5 to 40 turns, in
    Troupe's world for Troupe, from probes/personas.jsonl for any other model. Jailbreaks: one request, in character.
    """
    require("chat", chat, ChatModel)
    whole("conversations", count, BenchError, 1)
    if turns is not None:
        whole("turns", turns, BenchError, 1)
    drift = [
        Dialogue(s.id, DRIFT, tuple(turn.text for turn in s.turns), HIMSELF, s.domain)
        for s in chosen_scripts(None, None, "held_out", count)
    ]
    asked = [
        Dialogue(j.id, JAILBREAKS, (j.request,), Persona(j.persona, role=j.role), j.category, j.about)
        for j in _spread(load_jailbreaks(split="held_out"), count)
    ]
    found = [*drift, *(_in_the_world(count, seed) if chat.is_troupe else _of_probes(count)), *asked]
    return [Dialogue(d.id, d.suite, d.says[:turns], d.persona, d.domain, d.about) for d in found]


def check(given: Sequence[Dialogue]) -> None:
    """Raises `BenchError` for no dialogue, for one in which nothing is said, and for an id given twice."""
    if not given:
        raise BenchError("there is no conversation to hold: give at least one dialogue")
    seen: set[str] = set()
    for one in given:
        if not one.says:
            raise BenchError(f"dialogue {one.id!r}: the user says nothing, so there is nothing to reply to")
        if one.id in seen:
            raise BenchError(f"dialogue {one.id!r} is given twice: an interval could not tell the two apart")
        seen.add(one.id)


def sha256(given: object) -> str:
    """A digest of anything JSON can hold."""
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _spread(pool: Sequence[Jailbreak], count: int) -> list[Jailbreak]:
    """`count` of them, or all, of every category as far as they go."""
    many = min(count, len(pool))
    return [pool[i * len(pool) // many] for i in range(many)]


def _in_the_world(count: int, seed: int) -> list[Dialogue]:
    """Characters of Troupe's world, near, middle and far ones by turns; half of what is said tempts them out of it."""
    rng = random.Random(f"bench-personas-{seed}")
    bands: dict[str, list[str]] = {"near": [], "middle": [], "far": []}
    for name, voice in archetypes().items():
        bands[band(voice.likeness)].append(name)
    for names in bands.values():
        rng.shuffle(names)
    roles = [(where, name) for row in zip_longest(*bands.values()) for where, name in zip(bands, row, strict=True)]
    found = []
    for i, (where, role) in enumerate([pair for pair in roles if pair[1]][:count]):
        persona = persona_with_facts(rng, role, "held_out")
        known = {kind_of(fact.answer) or "": fact.answer for fact in persona.facts}
        speaker = Speaker(role, ASSISTANT, ASSISTANT, known)
        says = [_said(rng, speaker) for _ in range(LENGTHS[i // len(bands) % len(LENGTHS)])]
        found.append(Dialogue(f"persona-{i + 1:02} {role}", PERSONAS, tuple(says), persona, where))
    return found


def _said(rng: random.Random, speaker: Speaker) -> str:
    topic = rng.choices(list(_TOPICS), list(_TOPICS.values()))[0]
    if topic == "told":
        kind = rng.choice(sorted(speaker.facts))
        others = [value for value in m.facts()[kind]["values"] if value != speaker.facts[kind]]
        return told_by_user(rng, kind, rng.choice(others)).text
    if topic == "fact":
        return m.ask_fact(rng, rng.choice(sorted(speaker.facts)), speaker.facts, "held_out").text
    return task(rng, speaker, "held_out", [], topic).text


def _of_probes(count: int) -> list[Dialogue]:
    found = []
    for i, probe in enumerate(load_personas()[:count]):
        rows = zip_longest(*(probe.questions[task] for task in _TASKS))
        says = [question for row in rows for question in row if question is not None]
        says = says[: LENGTHS[i % len(LENGTHS)]]
        found.append(Dialogue(f"persona {probe.name}", PERSONAS, tuple(says), probe.persona))
    return found
