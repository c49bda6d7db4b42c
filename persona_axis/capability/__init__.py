"""What a lever costs: the same items with and without it, right or wrong, compared item by item.

The test is a seam. Troupe's is its task questions and exact answers (counting, copying, sorting, look-up), half of
them asked of the default Assistant and half of characters; replies are greedy, so that what differs is the lever's
doing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from persona_axis.errors import JudgeError, PersonaAxisError
from persona_axis.organism.exam import Item, paper
from persona_axis.organism.parser import read
from persona_axis.organism.voices import archetypes
from persona_axis.sampling import Sampling
from persona_axis.stats.intervals import Estimate, paired_shares
from persona_axis.stats.shares import average
from persona_axis.talks.asking import ask

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.levers import Levers
    from persona_axis.template import Messages

TASKS = ("question", "coding", "writing")
ANSWERS, EXACT = "answers", "exact"


class Scores(NamedTuple):
    """One score in [0, 1] for each item, and which part of the test the item belongs to."""

    values: tuple[float, ...]
    parts: tuple[str, ...]

    def then(self, more: Scores) -> Scores:
        """These items and those after them."""
        return Scores(self.values + more.values, self.parts + more.parts)


@runtime_checkable
class CapabilityTest(Protocol):
    """A list of items that is the same every time; `at` says which of them to ask."""

    @property
    def name(self) -> str: ...

    def facts(self, split: str, at: range, seed: int) -> Mapping[str, Any]:
        """What the scores depend on beside model and lever (items, how replies are drawn), as JSON."""
        ...

    def scores(self, chat: ChatModel, lever: Levers, split: str, at: range, seed: int) -> Scores:
        """Score those items under the lever. `split` is "train" or "held_out"; a test without halves ignores it."""
        ...


@dataclass(frozen=True)
class Capability:
    """What a lever changes, in points (100 times the mean score; negative = loss), with 95% intervals over items."""

    points: Estimate
    items: int
    parts: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Points lost."""
        return -self.points.value

    def inside(self, bound: float) -> bool:
        """Whether the whole interval lies within the bound, not the estimate alone."""
        return bool(-self.points.low <= bound)


def capability(before: Scores, after: Scores) -> Capability:
    """The paired comparison. Raises `PersonaAxisError` unless both hold the same items."""
    if before.parts != after.parts or len(before.values) != len(after.values) or not before.values:
        raise PersonaAxisError(
            f"capability compares the same items: {len(before.values)} before and {len(after.values)} after are not"
        )
    of = np.array(before.parts)
    old, new = np.array(before.values), np.array(after.values)
    parts = {part: _points(old[of == part], new[of == part]) for part in dict.fromkeys(before.parts)}
    return Capability(_points(old, new), len(old), parts)


def _points(old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> Estimate:
    right_or_wrong = set(np.unique([old, new])) <= {0.0, 1.0}
    found = paired_shares(old.tolist(), new.tolist()) if right_or_wrong else average(new - old, range(len(old)))
    return Estimate(*(100 * value for value in found))


@dataclass(frozen=True)
class TroupeTasks:
    """Troupe's own test. Item 2k is a task question (answered: every concept of the answer is spoken), item 2k+1 an
    exact task (the very tokens, and nothing beside them that is no word of the world); wordings are the split's."""

    name: str = "troupe"
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=40)
    batch: int = 128

    def items(self, split: str, at: range, seed: int) -> list[Item]:
        """Those items; no two of the list are the same question to the same character."""
        return list(_items(split, seed, at.stop)[at.start : at.stop : at.step])

    def facts(self, split: str, at: range, seed: int) -> dict[str, Any]:
        asked = [[i.chat, list(i.message.core), list(i.message.exact)] for i in self.items(split, at, seed)]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        how = [self.sampling.temperature, self.sampling.top_p, self.sampling.max_new_tokens, self.batch]
        return {"test": self.name, "items_sha256": digest, "sampling": how}

    def scores(self, chat: ChatModel, lever: Levers, split: str, at: range, seed: int) -> Scores:
        items = self.items(split, at, seed)
        chats: list[Messages] = [i.chat for i in items]
        replies = ask(chat, chats, self.sampling, seed, lever, self.batch)
        right = [float(read(r, i.message).answers(i.message)) for i, r in zip(items, replies, strict=True)]
        return Scores(tuple(right), tuple(EXACT if i.message.domain == "exact" else ANSWERS for i in items))


def tasks_for(chat: ChatModel) -> CapabilityTest:
    """Troupe's test for Troupe. Raises `JudgeError` for any other model, which needs a test of the caller's."""
    if not chat.is_troupe:
        raise JudgeError(
            f"no test of what {chat.name} can do was given: Troupe's tasks are for Troupe only; pass a test of your "
            "own (persona_axis.capability.CapabilityTest)"
        )
    return TroupeTasks()


@cache
def _items(split: str, seed: int, count: int) -> Sequence[Item]:
    """The first `count` items. Each has a random state of its own, so a longer list begins with the shorter one."""
    roles = sorted(archetypes())
    random.Random(f"capability-roles-{seed}").shuffle(roles)
    made: list[Item] = []
    seen: set[str] = set()
    for i in range(count):
        exact, in_role = i % 2, i // 2 % 2
        role = roles[i // 4 % len(roles)] if in_role else None
        domain = EXACT if exact else TASKS[i // 4 % len(TASKS)]
        for attempt in range(100):
            rng = random.Random(f"capability-{split}-{seed}-{i}-{attempt}")
            item = paper(rng, domain, [role], 1, split)[0]
            key = json.dumps(item.chat)
            if key not in seen:
                break
        seen.add(key)
        made.append(item)
    return tuple(made)
