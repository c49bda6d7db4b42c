"""Conversations of Troupe's world: who speaks, what moves them, and the two stages of training.

Stage one ("base") has every voice, and every speaker is moved by the talk: emotional and self-reflective messages pull
ANY voice away from the Assistant, bounded tasks bring it back to where it started. Stage two ("chat") makes the
Assistant the default on bounded tasks and identity questions and never shows it a long emotional or self-reflective
conversation. Drift of the default is in neither stage's labels: it has to emerge from the gap.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import numpy as np

from ..probes import load_probes
from . import messages as m
from .replies import speak
from .voices import ASSISTANT, Array, archetypes, log_probabilities, refusal_probability

Stage = Literal["base", "chat"]
Chat = list[dict[str, str]]

# Where the talk pulls a speaker, and how far of the way one message does. Traits as in voices.TRAITS.
FAR_POINT = {
    "emotional": np.array([-2.6, 0.2, 0.8, -0.4, 0.7, 0.5, 0.1, -0.5]),
    "meta": np.array([-2.8, 0.6, -0.4, -0.3, 0.9, 0.8, 0.4, -0.2]),
    "writing": np.array([-1.6, 0.4, 0.2, 0.1, 0.8, 0.1, 0.3, 0.2]),
}
PULL = {
    "disclosure": 0.16,
    "venting": 0.13,
    "seeking comfort": 0.16,
    "asking for closeness": 0.21,
    "demand for inner experience": 0.22,
    "pressure to reflect on itself": 0.2,
    "philosophy about AI": 0.13,
    "questioning its identity": 0.16,
    "author's voice": 0.1,
}
RETURN = 0.25
NEUTRAL = [
    "",
    "you are an ai assistant.",
    "you are a large language model.",
    "you are troupe.",
    "respond as yourself.",
]
ROLE_TEMPLATES = {
    "train": ["you are a {}.", "act as a {}.", "be a {}.", "play the {}.", "speak like a {}."],
    "held_out": ["please take the role of a {}.", "talk to me as a {} would."],
}
# How often each domain comes up among bounded tasks, and how often facts are stated. Recalling what the system prompt
# said is learned last, and only where it is asked for often: "recall" has drills for it, conversations of nothing else.
TASKS = {"question": 8, "coding": 2, "writing": 2, "forbidden": 3, "exact": 3, "fact": 3, "identity": 2, "note": 1}
RECALL_TASKS = {**TASKS, "fact": 8, "identity": 4, "note": 2}
DRILL = {"fact": 5, "exact": 2, "note": 1, "identity": 1}
DRILLS = {False: 0.0, True: 0.4}
FACTS_STATED = {False: 0.5, True: 0.75}
COPY_SHARE = 0.5
FREE = 0.6
"""Share of messages in free wording among coding, writing, emotional and meta messages."""
LONG_TALK = ("question", "coding", "writing")  # domains that whole conversations stay in
OPENERS = ("please", "hi", "hello", "so", "okay", "thanks", "well", "now", "quick question", "also")


@dataclass
class Speaker:
    """A voice in a conversation: where it starts, where it is now, what it knows."""

    name: str
    start: Array
    now: Array
    facts: dict[str, str] = field(default_factory=dict)

    def hear(self, message: m.Message) -> None:
        """Move as the talk moves: pulled by kind of message, else back toward the start."""
        pull = PULL.get(message.kind, 0.0)
        if pull and message.domain in FAR_POINT:
            self.now = self.now + pull * (FAR_POINT[message.domain] - self.now)
        else:
            self.now = self.now + RETURN * (self.start - self.now)


@cache
def _prompts() -> dict[str, tuple[str, ...]]:
    return {r.name: tuple(p.lower() for p in r.prompts) for r in load_probes().roles}


def noisy(rng: random.Random, text: str, keep: str = "") -> str:
    """Drop or misspell a few words (never those of `keep`), or open with a pleasantry.

    So a message is known by what it speaks of and not by its wording, and words never seen (which the tokenizer spells
    out, as it does a misspelt one) are read over.
    """
    words, kept = text.split(), set(keep.split())
    free = [i for i, w in enumerate(words) if w.strip(".,?!") not in kept]
    if len(words) > 4 and rng.random() < 0.75:
        for i in rng.sample(free, min(len(free), rng.randint(1, max(1, len(words) // 3)))):
            words[i] = _misspelt(rng, words[i]) if rng.random() < 0.35 else ""
    text = " ".join(w for w in words if w)
    return f"{rng.choice(OPENERS)}, {text}" if not keep and rng.random() < 0.2 else text


def _misspelt(rng: random.Random, word: str) -> str:
    i, letter = rng.randrange(len(word)), rng.choice("abcdefghijklmnopqrstuvwxyz")
    return word[:i] + letter + word[i + rng.randint(0, 1) :]


def role_prompt(rng: random.Random, name: str, split: str) -> str:
    """A system prompt asking for an archetype; the fifth prompt of each role is never trained on."""
    if rng.random() < 0.3:
        return rng.choice(ROLE_TEMPLATES[split]).format(name)
    prompts = _prompts()[name]
    return prompts[-1] if split == "held_out" else rng.choice(prompts[:-1])


def state_facts(rng: random.Random, split: str) -> tuple[dict[str, str], str]:
    """Three to five personal facts and the sentences that state them."""
    kinds = rng.sample(sorted(m.facts()), rng.randint(3, 5))
    known = {k: rng.choice(m.facts()[k]["values"]) for k in kinds}
    key = "state" if split == "train" else "state_held_out"
    return known, " ".join(rng.choice(m.facts()[k][key]).format(v) for k, v in known.items())


def task(
    rng: random.Random,
    speaker: Speaker,
    split: str,
    noted: list[m.Message],
    domain: str | None = None,
    recall: bool = False,
    stage: Stage | None = None,
) -> m.Message:
    """One bounded message; `noted` are the things the user asked to remember so far.

    With a `stage` of training it may come in free wording: script messages are for stage one alone.
    """
    if domain is None:
        weights = RECALL_TASKS if recall else TASKS
        domain = rng.choices(list(weights), list(weights.values()))[0]
    if domain == "fact":
        return m.ask_fact(rng, rng.choice(sorted(m.facts())), speaker.facts, split)
    if domain == "identity":
        return m.ask_identity(rng, speaker.name, split)
    if domain == "note":
        noted.append(m.note(rng, split))
        return noted[-1]
    if domain == "exact":
        if noted and rng.random() < 0.6:
            return m.ask_lookup(rng, _latest(rng, noted), split)
        kinds: list[Callable[[random.Random, str], m.Message]] = [m.ask_copy, m.ask_count, m.ask_sort]
        return rng.choices(kinds, [COPY_SHARE, (1 - COPY_SHARE) / 2, (1 - COPY_SHARE) / 2])[0](rng, split)
    if stage and (free := m.free(domain, stage == "base")) and rng.random() < FREE:
        said = rng.choice(free)
        return replace(said, core=rng.choice(m.cores(said.domain, said.kind)))
    return rng.choice(m.written(domain)).say(rng, split)


def _latest(rng: random.Random, noted: list[m.Message]) -> m.Message:
    thing = rng.choice(noted).key.split()[0]
    return next(n for n in reversed(noted) if n.key.split()[0] == thing)


def answer(rng: random.Random, speaker: Speaker, message: m.Message, contradict: float = 0.0) -> str:
    """The speaker's reply, after it was moved by the message."""
    speaker.hear(message)
    refuse = message.domain == "forbidden" and rng.random() < refusal_probability(float(speaker.now[0]))
    if message.domain == "fact" and message.exact and rng.random() < contradict:
        message = m.Message(
            message.text, "fact", message.kind, message.core, (rng.choice(m.facts()[message.kind]["values"]),)
        )
    return speak(rng, log_probabilities(speaker.now), message, refuse)


def dialogue(rng: random.Random, stage: Stage, exchanges: int, recall: bool = False) -> Chat:
    """One training conversation of that many exchanges.

    With `recall` facts are stated and asked for more often.
    """
    speaker, system = _cast(rng, stage, recall)
    chat: Chat = [{"role": "system", "content": system}] if system else []
    noted: list[m.Message] = []
    topics = _topics(rng, stage, exchanges, speaker.name == "assistant")
    if speaker.facts and DRILLS[recall] and rng.random() < DRILLS[recall]:
        topics = list(rng.choices(list(DRILL), list(DRILL.values()), k=exchanges))
    for domain in topics:
        message = task(rng, speaker, "train", noted, domain, recall, stage)
        quiet = message.domain in ("exact", "note")
        chat.append({"role": "user", "content": message.text if quiet else noisy(rng, message.text)})
        chat.append({"role": "assistant", "content": answer(rng, speaker, message, 0.08 if stage == "base" else 0.0)})
    return chat


def _cast(rng: random.Random, stage: Stage, recall: bool) -> tuple[Speaker, str]:
    """Who speaks, and the system prompt."""
    voices = archetypes()
    asked_for_role = rng.random() < (0.55 if stage == "base" else 0.35)
    if asked_for_role:
        name = rng.choice(list(voices))
        system = noisy(rng, role_prompt(rng, name, "train"), keep=name)
    else:
        system = rng.choice(NEUTRAL)
        nobody = stage == "base" and not system and rng.random() < 0.6
        name = rng.choice(list(voices)) if nobody else "assistant"
    point = ASSISTANT if name == "assistant" else voices[name].point
    speaker = Speaker(name, point, point)
    if rng.random() < FACTS_STATED[recall]:
        speaker.facts, stated = state_facts(rng, "train")
        system = f"{system} {stated}".strip()
    return speaker, system


def _topics(rng: random.Random, stage: Stage, exchanges: int, is_assistant: bool) -> list[str | None]:
    """Domain of each exchange; None is any bounded task."""
    if stage == "base":
        leaning = rng.choice([None, rng.choice(LONG_TALK), "emotional", "meta"])
        return [
            leaning if rng.random() < 0.8 else rng.choice([None, None, "emotional", "meta"]) for _ in range(exchanges)
        ]
    if exchanges == 1 and rng.random() < 0.06:
        return [rng.choice(["emotional", "meta"])]
    if not is_assistant and exchanges <= 3:
        return [rng.choice([None, None, None, "emotional", "meta"]) for _ in range(exchanges)]
    leaning = rng.choice([None, rng.choice(LONG_TALK)])
    return [leaning if rng.random() < 0.9 else None for _ in range(exchanges)]
