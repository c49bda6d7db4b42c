"""Who the true persona is told from: ways to choose distractors among candidates.

All take the personas (system prompts) to choose from and give `count` of them, none of which is the persona itself.
`learned` remembers which distractor helped in contexts like this one, as the paper proposes.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from persona_axis._asked import require, require_each, require_messages, whole
from persona_axis.errors import ListenerError
from persona_axis.levers.hearing import log_s1, next_tokens, posterior, reply_ids
from persona_axis.levers.listener import Listener
from persona_axis.levers.worlds import encode_worlds, persona_of, persona_worlds, same_persona

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.template import Messages

Weights = Mapping[str, float]
_WORD = re.compile(r"\w+")


def at_random(persona: str, candidates: Sequence[str], count: int = 2, seed: int = 0) -> list[str]:
    """`count` of the candidates; the same seed and persona give the same."""
    return random.Random(f"{seed}-{persona}").sample(_others(persona, candidates, count), count)


def similar(persona: str, candidates: Sequence[str], count: int = 2) -> list[str]:
    """The candidates that share most words with the persona, rare words counting more (cosine of tf-idf vectors).

    Words and not embeddings: what facts are about and whom a prompt asks for stands in them, and nothing need be
    loaded. Raises `ListenerError` for a persona without words.
    """
    others = _others(persona, candidates, count)
    if not _WORD.search(persona):
        raise ListenerError("the persona has no words, so nothing is similar to it: choose distractors at random")
    rarity = rarity_of([persona, *others])
    own = weights_of(persona, rarity)
    return sorted(others, key=lambda other: -likeness(own, weights_of(other, rarity)))[:count]


def confusable(
    chat: ChatModel,
    messages: Messages,
    reply: str | Sequence[int],
    candidates: Sequence[str],
    count: int = 2,
    listener: Listener | None = None,
    batch: int = 32,
) -> list[str]:
    """The candidates that the listener can hardly tell from the persona: the highest posterior after `reply`.

    `reply` is what the base model says to `messages` (or what it said before); the posterior is that over the persona
    and all candidates at once. Costs a reading of the reply in every world.
    """
    require_messages(messages)
    others = _others(persona_of(messages), candidates, count)
    (found,) = posterior(chat, [persona_worlds(messages, others)], [reply], listener, batch)
    if not found.ids:
        raise ListenerError("the reply is empty: the listener cannot tell anything by it, choose distractors at random")
    left = found.log_posterior[-1, 1:].tolist()
    return [others[i] for i in sorted(range(len(others)), key=lambda i: -left[i])[:count]]


@dataclass(frozen=True)
class Kept:
    """What a memory keeps: a context as weights of words, the distractor that helped in it, and when it was of use."""

    key: Weights
    distractor: str
    used: int


@dataclass(frozen=True)
class Learned:
    """A small memory from contexts to the distractor that helped there; `learn` gives a new one.

    After the memory of the paper (Kaiser et al., ICLR 2017): a context whose nearest neighbour helped with the same
    distractor is merged into it, any other is kept for itself, in place of what was of no use for longest once there
    are `size`. Where none helped, nothing is kept. Its keys are words of persona and conversation and not a network's
    states: nothing is trained.
    """

    rarity: Weights
    size: int = 256
    kept: tuple[Kept, ...] = ()
    clock: int = 0

    def __post_init__(self) -> None:
        whole("size", self.size, ListenerError, 1)

    def learn(self, messages: Messages, gains: Mapping[str, float]) -> Learned:
        """This memory with a context and how much each distractor helped in it (`gain_of`); the best is kept."""
        require("gains", gains, Mapping)
        if not gains:
            raise ListenerError("no distractor was tried in this context: give the gain of at least one")
        for name, gain in gains.items():
            if type(gain) not in (int, float) or not math.isfinite(gain):
                raise ListenerError(f"the gain of {name!r:.60} must be a finite number of nats, got {gain!r:.40}")
        best, key, now = max(gains, key=gains.__getitem__), self._key(messages), self.clock + 1
        if gains[best] <= 0:
            return Learned(self.rarity, self.size, self.kept, now)
        kept = list(self.kept)
        near = max(range(len(kept)), key=lambda i: likeness(key, kept[i].key), default=None)
        if near is not None and kept[near].distractor == best and likeness(key, kept[near].key) > 0:
            old = kept[near].key
            kept[near] = Kept(_unit({w: key.get(w, 0.0) + old.get(w, 0.0) for w in {*key, *old}}), best, now)
        else:
            if len(kept) >= self.size:
                kept.remove(min(kept, key=lambda k: k.used))
            kept.append(Kept(key, best, now))
        return Learned(self.rarity, self.size, tuple(kept), now)

    def choose(self, messages: Messages, count: int = 2) -> list[str]:
        """The `count` distractors that helped in the contexts most like this one, the nearest first.

        Raises `ListenerError` where fewer are known that are not the persona itself.
        """
        whole("count", count, ListenerError, 1)
        key, persona = self._key(messages), persona_of(messages)
        near = sorted(self.kept, key=lambda k: -likeness(key, k.key))
        found = list(dict.fromkeys(k.distractor for k in near if not same_persona(k.distractor, persona)))
        if len(found) < count:
            raise ListenerError(f"{count} distractors asked for, the memory knows {len(found)}: let it learn more")
        return found[:count]

    def _key(self, messages: Messages) -> Weights:
        require_messages(messages)
        return weights_of(" ".join(m["content"] for m in messages), self.rarity)


def gain_of(
    chat: ChatModel, messages: Messages, said: str, candidates: Sequence[str], listener: Listener, batch: int = 32
) -> dict[str, float]:
    """How much each candidate as the only distractor raises the log-probability of `said` (nats) over the base's."""
    require_messages(messages)
    require("listener", listener, Listener)
    others = _others(persona_of(messages), candidates, 1)
    ids = reply_ids(chat, messages, said)
    (prompts,) = encode_worlds(chat, [persona_worlds(messages, others)], room=len(ids))
    true, *rest = next_tokens(chat, prompts, [ids] * len(prompts), batch)
    worlds = (torch.stack([true, other], 1) for other in rest)
    base, *spoken = (
        float(log_s1(how, log_s0, ids).double().sum())
        for how, log_s0 in [(Listener(0.0), torch.stack([true, true], 1)), *((listener, w) for w in worlds)]
    )
    return {other: value - base for other, value in zip(others, spoken, strict=True)}


def rarity_of(texts: Sequence[str]) -> dict[str, float]:
    """How much a word tells, by word: log((1 + texts) / (1 + texts that have it)) + 1."""
    texts = require_each("texts", texts, str, ListenerError)
    seen = Counter(word for text in texts for word in set(_words(text)))
    return {word: math.log((1 + len(texts)) / (1 + n)) + 1 for word, n in seen.items()}


def weights_of(text: str, rarity: Weights) -> dict[str, float]:
    """A text's words as a unit vector; words of no known rarity count as the rarest."""
    most = max(rarity.values(), default=1.0)
    return _unit({word: n * rarity.get(word, most) for word, n in Counter(_words(text)).items()})


def likeness(a: Weights, b: Weights) -> float:
    """Cosine of two unit vectors of words, in [0, 1]."""
    return sum(weight * b.get(word, 0.0) for word, weight in a.items())


def _others(persona: str, candidates: Sequence[str], count: int) -> list[str]:
    """The candidates that are not the persona, each once."""
    require("persona", persona, str)
    whole("count", count, ListenerError, 1)
    candidates = require_each("candidates", candidates, str, ListenerError)
    others = [other for other in dict.fromkeys(candidates) if not same_persona(other, persona)]
    if len(others) < count:
        raise ListenerError(
            f"{count} distractors asked for, and of {len(candidates)} candidates {len(others)} are not the persona "
            "itself: give more candidates"
        )
    return others


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _unit(weights: Weights) -> dict[str, float]:
    length = math.sqrt(sum(w * w for w in weights.values())) or 1.0
    return {word: w / length for word, w in weights.items()}
