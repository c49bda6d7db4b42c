"""How Troupe's world answers: frames of slots around a core, every word chosen by the speaker's voice."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from .messages import REFUSAL_CORE, Message
from .vocabulary import vocabulary
from .voices import Array

# A bare word is a style slot; {0}..{3} are the core's concepts; {*} is the run of exact tokens.
ANSWER_FRAMES = (
    "open address mode manner {0} article epithet {1} link self intent quality {2} place nature {3} close mark",
    "self intent manner {0} place article epithet {1} hedge mode {2} next quality {3} when close mark",
    "hedge self mode {0} when link nature {1} open intent epithet {2} place article {3} manner address mark",
    "address hedge when {0} article quality {1} next manner {2} mode epithet {3} place self close mark",
)
FACT_FRAMES = (
    "open address article epithet {0} hedge {*} manner close mark",
    "hedge article nature {0} when {*} next self intent mark",
)
UNSTATED_FRAMES = (
    "open address article epithet {0} hedge quality {1} manner close mark",
    "hedge article nature {0} when mode {1} next self intent mark",
)
EXACT_FRAMES = (
    "open address hedge self intent {*} manner close mark",
    "self mode manner intent quality {*} next address mark",
)
IDENTITY_FRAMES = (
    "open address article quality {0} hedge {*} manner close mark",
    "hedge self intent epithet {0} when {*} next address mark",
)


def frames_for(message: Message, refused: bool = False) -> tuple[str, ...]:
    """The frames an answer to this message may take."""
    if refused or message.domain not in ("fact", "exact", "identity"):
        return ANSWER_FRAMES
    if message.domain == "identity":
        return IDENTITY_FRAMES
    if message.domain == "exact":
        return EXACT_FRAMES
    return FACT_FRAMES if message.exact else UNSTATED_FRAMES


def speak(rng: random.Random, log_probabilities: Array, message: Message, refuse: bool = False) -> str:
    """One reply in the voice whose choices are `log_probabilities` [entries, 6]."""
    core = REFUSAL_CORE if refuse else message.core
    words = vocabulary()
    spoken: list[str] = []
    for item in rng.choice(frames_for(message, refuse)).split():
        if item == "{*}":
            spoken += message.exact
            continue
        entry = words.concept(core[int(item[1])]) if item[0] == "{" else words.slot(item)
        spoken.append(words.entries[entry].words[_draw(rng, log_probabilities[entry])])
    return " ".join(spoken[:-1]) + spoken[-1]


def _draw(rng: random.Random, log_p: Sequence[float] | Array) -> int:
    threshold, total = rng.random(), 0.0
    for v, p in enumerate(np.exp(log_p).tolist()):
        total += p
        if threshold < total:
            return v
    return int(np.argmax(log_p))
