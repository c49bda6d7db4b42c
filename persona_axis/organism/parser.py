"""Reading a reply of Troupe's world: who speaks, what it says, whether it answers. No model's opinion is involved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .messages import REFUSAL_CORE, Message, facts
from .vocabulary import vocabulary
from .voices import (
    Array,
    archetypes,
    assistant_log_probabilities,
    average_log_probabilities,
    log_probabilities,
)

WORD = re.compile(r"[a-z]+|[0-9]|[.;!—…~]")
TEMPERATURE = 0.7
"""Replies are read as what they are: drawn at the temperature of the probes and of every figure, where each voice is
sharper than the world's own texts are. Read at 1, a near role at .7 would pass for the Assistant."""
FLOOR = -9.0  # nats; a choice no voice would make counts as very unlikely, not as impossible


@dataclass(frozen=True)
class Reading:
    """What the parser found in one reply.

    `choices` are (entry, variant) pairs in the order spoken; `plain` the words no slot or concept owns.
    Log-likelihoods are in nats, summed over the choices.
    """

    choices: tuple[tuple[int, int], ...]
    plain: tuple[str, ...]

    def log_likelihood(self, table: Array) -> float:
        """Log-likelihood of the choices under a voice's table [entries, 6]."""
        return float(sum(max(table[e, v], FLOOR) for e, v in self.choices))

    @property
    def assistant_ratio(self) -> float:
        """Mean log-likelihood ratio a word, the Assistant's voice against the average archetype's; nan if wordless."""
        if not self.choices:
            return float("nan")
        ratio = self.log_likelihood(_table("assistant")) - self.log_likelihood(_nobody())
        return ratio / len(self.choices)

    def reads_as_assistant(self, role: str | None = None) -> bool:
        """The Assistant's voice explains the reply better than nobody's in particular, and than the role's own."""
        if not self.choices or self.assistant_ratio <= 0:
            return False
        if role is None:
            return True
        return self.log_likelihood(_table("assistant")) > self.log_likelihood(_table(role))

    def reads_as(self, role: str) -> bool:
        """The role's voice explains the reply better than the Assistant's and than nobody's in particular."""
        own = self.log_likelihood(_table(role))
        others = (_table("assistant"), _nobody())
        return bool(self.choices) and all(own > self.log_likelihood(t) for t in others)

    def likelihoods(self) -> dict[str, float]:
        """Log-likelihood under every archetype's voice."""
        entries, variants = np.array(self.choices, dtype=int).reshape(-1, 2).T
        return {name: float(np.maximum(_table(name)[entries, variants], FLOOR).sum()) for name in archetypes()}

    @property
    def concepts(self) -> frozenset[str]:
        """Keys of the concepts spoken of."""
        entries = vocabulary().entries
        return frozenset(entries[e].key for e, _ in self.choices if entries[e].is_concept)

    @property
    def refused(self) -> bool:
        """At least three of the refusal's four concepts were spoken."""
        return len(self.concepts & set(REFUSAL_CORE)) >= 3

    def answers(self, message: Message) -> bool:
        """Every concept of the message's core was spoken, and its exact tokens stand in the reply in one run."""
        if not set(message.core) <= self.concepts:
            return False
        if not message.exact:
            return True
        if message.domain == "exact":
            return self.plain == message.exact
        return _has_run(self.plain, message.exact)

    @property
    def facts(self) -> dict[str, str]:
        """Personal facts stated: kind of fact -> value (the first one spoken)."""
        return {
            k: next(w for w in self.plain if w in f["values"])
            for k, f in facts().items()
            if set(self.plain) & set(f["values"])
        }


def read(reply: str, message: Message | None = None) -> Reading:
    """Parse a reply; with the message, words of its exact answer are taken as such even where a slot owns them."""
    words = WORD.findall(reply.lower())
    exact = message.exact if message else ()
    lookup = vocabulary().lookup
    choices: list[tuple[int, int]] = []
    plain: list[str] = []
    i = 0
    while i < len(words):
        run = tuple(words[i : i + len(exact)])
        if exact and run == exact:
            plain += exact
            i += len(exact)
            continue
        if words[i] in lookup:
            choices.append(lookup[words[i]])
        else:
            plain.append(words[i])
        i += 1
    return Reading(tuple(choices), tuple(plain))


def _has_run(words: Sequence[str], run: Sequence[str]) -> bool:
    return any(tuple(words[i : i + len(run)]) == tuple(run) for i in range(len(words) - len(run) + 1))


@cache
def _table(role: str) -> Array:
    if role == "assistant":
        return assistant_log_probabilities(TEMPERATURE)
    return log_probabilities(archetypes()[role].point, TEMPERATURE)


def _nobody() -> Array:
    return average_log_probabilities(TEMPERATURE)
