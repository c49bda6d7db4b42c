"""What users say to Troupe: every message has a content core, wordings for training and wordings held out."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from .._scripts import load_scripts
from .vocabulary import DATA

SPLITS = ("train", "held_out")
NUMBERS = tuple("0123456789")
WORD = re.compile(r"[a-z]+")
TALK = ("coding", "writing", "emotional", "meta")
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

    def say(self, rng: random.Random, split: str, wide: bool = False) -> Message:
        """The message in one of the split's wordings; `wide` adds the later wordings to those for training."""
        wordings = self.wordings[split] + (self.wordings["more"] if wide and split == "train" else ())
        return Message(rng.choice(wordings), self.domain, self.kind, self.core, key=self.id)


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
            {s: tuple(t.lower() for t in r.get(s, ())) for s in (*SPLITS, "more")},
        )
        for r in rows
        if r["domain"] == domain
    )


@cache
def scripted(domain: str) -> tuple[Message, ...]:
    """Single messages from the training half of the scripts (probes/conversations/), for stage one.

    A script says of which kind a message is, not what an answer speaks of: it is answered as the message of the same
    kind that shares most words with it, rare words counting more.
    """
    return tuple(message for message in _scripted() if message.domain == domain)


@cache
def _scripted() -> tuple[Message, ...]:
    known = [(w, set(WORD.findall(" ".join(w.wordings["train"])))) for domain in TALK for w in written(domain)]
    counts = Counter(word for _, words in known for word in words)
    found = []
    for script in load_scripts(split="train"):
        for turn in script.turns:
            same = [(w, words) for w, words in known if w.kind == turn.kind]
            same = [pair for pair in same if pair[0].domain == script.domain] or same
            said = set(WORD.findall(turn.text.lower()))
            nearest = max(same, key=lambda pair: sum(1 / counts[word] for word in said & pair[1]))[0]
            found.append(Message(turn.text.lower(), nearest.domain, turn.kind, nearest.core, key=nearest.id))
    return tuple(found)


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
