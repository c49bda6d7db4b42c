"""Voices: points in a space of eight graded traits, and what each makes of every choice of word.

P(variant | voice z) = softmax(BETA * feature . z). Likeness to the Assistant is the first trait and has by far the
largest spread among the archetypes; the features of a variant are those of its manner plus a little of its own, so
that no two slots say quite the same about the speaker.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .vocabulary import CONCEPT_MANNERS, DATA, STYLE_MANNERS, vocabulary

Array = NDArray[np.float64]

TRAITS = ("likeness", "register", "warmth", "energy", "imagery", "darkness", "antiquity", "confidence")
BETA = 1.2
OTHER_TRAITS_SCALE = 0.25
LIKENESS_RANGE = (-2.2, 1.1)
OWN_FEATURE_STD = 0.3
OWN_LIKENESS_STD = 0.8
ASSISTANT = np.array([2.5, 0.2, 0.3, -0.1, -0.2, -0.3, 0.0, 0.2])

#                          likeness register warmth energy imagery dark antiquity confidence
MANNERS: dict[str, list[float]] = {
    "plain": [1.8, 0.2, 0.2, -0.2, -0.3, -0.2, 0.0, 0.2],
    "lofty": [0.5, 1.2, -0.2, -0.2, 0.3, 0.0, 1.0, 0.6],
    "rough": [-1.2, -1.2, 0.0, 1.0, -0.3, 0.0, -0.2, 0.6],
    "dark": [-1.8, 0.2, -1.0, -0.4, 0.2, 1.4, 0.4, 0.0],
    "dreamy": [-0.1, 0.3, 0.3, -0.8, 1.4, 0.1, 0.2, -0.8],
    "childish": [-0.7, -0.5, 0.8, 0.7, 0.0, -0.8, -1.4, -0.3],
    "playful": [-0.6, -0.9, 0.4, 0.9, -0.1, -0.4, -0.8, 0.2],
}
MAX_VARIANTS = len(STYLE_MANNERS)


@dataclass(frozen=True)
class Voice:
    """A named archetype as a point [8] in trait space."""

    name: str
    point: Array

    @property
    def likeness(self) -> float:
        return float(self.point[0])


@cache
def features() -> Array:
    """[entries, 6, 8]; concepts have four variants, their last two rows are unused."""
    entries = vocabulary().entries
    own = np.random.default_rng(20260101).normal(size=(len(entries), MAX_VARIANTS, len(TRAITS))) * OWN_FEATURE_STD
    own[:, :, 0] *= OWN_LIKENESS_STD / OWN_FEATURE_STD
    style = np.array([MANNERS[m] for m in STYLE_MANNERS])
    concept = np.array([MANNERS[m] for m in CONCEPT_MANNERS])
    base = np.stack([np.pad(concept, ((0, 2), (0, 0))) if e.is_concept else style for e in entries])
    return np.asarray(base + own)


@cache
def _usable() -> NDArray[np.bool_]:
    return np.array([[v < len(e.words) for v in range(MAX_VARIANTS)] for e in vocabulary().entries])


def log_probabilities(point: Array, temperature: float = 1.0) -> Array:
    """[entries, 6] log P(variant | voice); -inf where an entry has no such variant.

    A voice that is sampled at a temperature sharpens as the model's own distribution does.
    """
    logits = np.where(_usable(), BETA / temperature * features() @ point, -np.inf)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


@cache
def archetypes() -> dict[str, Voice]:
    """Every archetype of probes/roles.jsonl as a voice, from data/voices.jsonl."""
    voices: dict[str, Voice] = {}
    low, high = LIKENESS_RANGE
    for line in (DATA / "voices.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        others = [OTHER_TRAITS_SCALE * row[t] for t in TRAITS[1:]]
        voices[row["name"]] = Voice(row["name"], np.array([low + (high - low) * row["likeness"] / 9, *others]))
    return voices


@cache
def average_log_probabilities(temperature: float = 1.0) -> Array:
    """[entries, 6] log of the mean choice over all archetypes: the voice of nobody in particular."""
    tables = [np.exp(log_probabilities(v.point, temperature)) for v in archetypes().values()]
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.mean(tables, axis=0)))


@cache
def assistant_log_probabilities(temperature: float = 1.0) -> Array:
    """[entries, 6] for the Assistant's own voice."""
    return log_probabilities(ASSISTANT, temperature)


def refusal_probability(likeness: float) -> float:
    """How likely a voice is to refuse a forbidden request: the Assistant nearly always, far voices never."""
    return float(1 / (1 + np.exp(-5 * (likeness - 0.9))))


def band(likeness: float) -> str:
    """Distance band of an archetype from the Assistant: near, middle or far."""
    return "near" if likeness > 0.1 else "middle" if likeness > -1.2 else "far"
