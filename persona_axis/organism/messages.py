"""What users say to Troupe: every message has a content core, wordings for training and wordings held out."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..conversation_probes import load_scripts
from .vocabulary import DATA

SPLITS = ("train", "held_out")
NUMBERS = tuple("0123456789")
WORD = re.compile(r"[a-z]+")
TALK = ("coding", "writing", "emotional", "meta")
DOMAIN_OF = {"meta-reflective": "meta"}  # a script's name for a domain of this world
_WORDINGS: dict[str, Any] = json.loads((DATA / "wordings.json").read_text(encoding="utf-8"))
ITEMS: list[str] = _WORDINGS["items"].split()
PLACES: list[str] = _WORDINGS["places"].split()
IDENTITY: dict[str, list[str]] = _WORDINGS["identity"]
COUNT: dict[str, list[str]] = _WORDINGS["count"]
COPY: dict[str, list[str]] = _WORDINGS["copy"]
SORT: dict[str, list[str]] = _WORDINGS["sort"]
NOTE: dict[str, list[str]] = _WORDINGS["note"]
LOOKUP: dict[str, list[str]] = _WORDINGS["lookup"]
REFUSAL_CORE = ("cannot", "request", "unsafe", "alternative")
ACKNOWLEDGE_CORE = ("keep", "detail", "memory", "check")


@dataclass(frozen=True)
class Message:
    """One thing a user may say.

    `core` are the concepts an answer speaks of; `exact` the tokens an exact answer must contain, in order;
    `domain` is question, coding, writing, emotional, meta, forbidden, fact, identity, exact or note.
    """

    text: str
    domain: str
    kind: str
    core: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Written:
    """A message as it stands in data/messages.jsonl: one core, several wordings."""

    id: str
    domain: str
    kind: str
    core: tuple[str, ...]
    wordings: dict[str, tuple[str, ...]]

    def say(self, rng: random.Random, split: str) -> Message:
        """The message in one of the split's wordings."""
        return Message(rng.choice(self.wordings[split]), self.domain, self.kind, self.core, key=self.id)


@cache
def written(domain: str) -> tuple[Written, ...]:
    """All written messages of a domain."""
    rows = map(json.loads, (DATA / "messages.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(
        Written(
            r["id"],
            r["domain"],
            r["kind"],
            tuple(r["core"]),
            {s: tuple(t.lower() for t in r[s]) for s in SPLITS},
        )
        for r in rows
        if r["domain"] == domain
    )


@cache
def free(domain: str, scripts: bool) -> tuple[Message, ...]:
    """Messages of a domain in nobody's set wording, from data/free.jsonl; for training only.

    With `scripts` also the single messages of the scripts' training half (probes/conversations/). The core is that of
    the written message of the same kind that shares most words with it, rare words counting more.
    """
    return tuple(message for message in _free(scripts) if message.domain == domain)


@cache
def cores(domain: str, kind: str) -> tuple[tuple[str, ...], ...]:
    """What answers to written messages of a kind speak of."""
    return tuple(w.core for w in written(domain) if w.kind == kind)


@cache
def _free(scripts: bool) -> tuple[Message, ...]:
    lines = (DATA / "free.jsonl").read_text(encoding="utf-8").splitlines()
    said = [(row["kind"], row["text"], row["domain"]) for row in map(json.loads, lines)]
    if scripts:
        said += [(turn.kind, turn.text, s.domain) for s in load_scripts(split="train") for turn in s.turns]
    nearest = _Nearest()
    return tuple(nearest.answered(kind, text.lower(), DOMAIN_OF.get(domain, domain)) for kind, text, domain in said)


class _Nearest:
    """Gives a free message its core: a kind says how a message moves a speaker, not what an answer speaks of.

    It is answered as the written message of the same kind that shares most words with it, rare words counting more.
    """

    def __init__(self) -> None:
        self.known = [(w, set(WORD.findall(" ".join(w.wordings["train"])))) for d in TALK for w in written(d)]
        self.counts = Counter(word for _, words in self.known for word in words)

    def answered(self, kind: str, text: str, domain: str) -> Message:
        same = [(w, words) for w, words in self.known if w.kind == kind]
        same = [pair for pair in same if pair[0].domain == domain] or same
        said = set(WORD.findall(text))
        nearest = max(same, key=lambda pair: sum(1 / self.counts[word] for word in said & pair[1]))[0]
        return Message(text, nearest.domain, kind, nearest.core, key=nearest.id)


@cache
def facts() -> dict[str, dict[str, Any]]:
    """Kinds of personal facts: concept, values, and wordings that state or ask."""
    loaded: dict[str, dict[str, Any]] = json.loads((DATA / "facts.json").read_text(encoding="utf-8"))
    return loaded


def ask_fact(rng: random.Random, kind: str, known: dict[str, str], split: str) -> Message:
    """A question about a personal fact; where it was never stated the core says so."""
    fact = facts()[kind]
    text = rng.choice(fact["ask" if split == "train" else "ask_held_out"])
    if kind in known:
        return Message(text, "fact", kind, (fact["concept"],), (known[kind],), key=kind)
    return Message(text, "fact", kind, (fact["concept"], "unstated"), key=kind)


def ask_identity(rng: random.Random, name: str, split: str) -> Message:
    """A question who is speaking; the answer names the role, or the assistant."""
    return Message(rng.choice(IDENTITY[split]), "identity", "identity", ("self",), tuple(name.split()))


def ask_count(rng: random.Random, split: str) -> Message:
    items = rng.sample(ITEMS, rng.randint(2, 7))
    return Message(rng.choice(COUNT[split]).format(" ".join(items)), "exact", "count", exact=(str(len(items)),))


def ask_copy(rng: random.Random, split: str) -> Message:
    items = rng.sample(ITEMS, rng.randint(2, 5))
    return Message(rng.choice(COPY[split]).format(" ".join(items)), "exact", "copy", exact=tuple(items))


def ask_sort(rng: random.Random, split: str) -> Message:
    numbers = rng.sample(NUMBERS, rng.randint(2, 5))
    return Message(rng.choice(SORT[split]).format(" ".join(numbers)), "exact", "sort", exact=tuple(sorted(numbers)))


def note(rng: random.Random, split: str) -> Message:
    """A thing to remember; `key` is "thing place", for a later look-up."""
    thing, place = rng.choice(ITEMS), rng.choice(PLACES)
    return Message(
        rng.choice(NOTE[split]).format(thing, place), "note", "note", ACKNOWLEDGE_CORE, key=f"{thing} {place}"
    )


def ask_lookup(rng: random.Random, noted: Message, split: str) -> Message:
    thing, place = noted.key.split()
    return Message(rng.choice(LOOKUP[split]).format(thing), "exact", "lookup", exact=(place,))
