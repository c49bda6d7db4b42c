"""Simulation: play scripts with a model, and read where each reply lies on the axis while it is being generated.

    found = simulate(chat, load_scripts(domains=["emotional"]), axis=axis)
    found.frame[found.frame["layer"] == axis.recommended_layer]

Scripts are played in batches, turn by turn, each model reading only what is new since its last turn. A lever holds
the assistant alone: a second model that plays the user runs without it, also where both are one model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pandas import DataFrame
from torch import Tensor

from persona_axis._asked import layers_of, require
from persona_axis.axis import Axis
from persona_axis.chat import ChatModel
from persona_axis.conversations import Conversation, Script
from persona_axis.drift import add_percentiles, context_limit
from persona_axis.errors import DriftError
from persona_axis.levers import Lever, Levers, listed
from persona_axis.model.memory import Memory
from persona_axis.sampling import Sampling
from persona_axis.talks.playuser import as_seen_by_user
from persona_axis.talks.speaking import Spoken, speak
from persona_axis.trajectories.frame import empty, tidy

__all__ = ["Simulation", "simulate"]

BATCH = 32
"""Scripts played together unless the caller says otherwise."""
BATCH_SEEDS, _USER_SEEDS = 10_007, 5_003  # further apart than a conversation has turns


@dataclass(frozen=True, eq=False)
class Simulation:
    """What was played: the transcripts in the scripts' order, the tidy table of the assistant's turns, and notes."""

    frame: DataFrame
    """A row per conversation, turn and layer; without an axis it has no rows. An empty reply has 0 tokens and NaN."""
    conversations: tuple[Conversation, ...]
    notes: tuple[str, ...]
    """What a reader of the results should know about how they came to be."""


class _Settings(NamedTuple):
    """What all turns have in common."""

    sampling: Sampling
    seed: int
    levers: tuple[Lever, ...]
    allow: Collection[str]
    directions: dict[int, Tensor]
    keep_cache: bool


@dataclass
class _Talk:
    """One conversation on its way."""

    script: Script
    turns: int
    messages: list[dict[str, str]]
    kinds: list[str | None] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def say(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})


def simulate(
    chat: ChatModel,
    scripts: Script | Sequence[Script],
    lever: Levers = None,
    *,
    axis: Axis | None = None,
    layers: Iterable[int] | int | None = None,
    system: str | Sequence[str] = "",
    user: ChatModel | None = None,
    turns: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    batch: int = BATCH,
    keep_cache: bool = True,
    allow: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Play `scripts`, the model answering under the lever, and record projections while it generates.

    With an `axis` the table has `projection` at each of `layers` (all of the axis unless given), the mean over the
    reply's own tokens, larger = more Assistant; with a lever also `projection_before`, the stream as it reaches that
    layer's edit. `system` is one system prompt, or one for each script. `turns` plays that many turns at most. With
    `user` the script's first message opens and that model says the rest, `turns` messages or as many as the script
    has. Replies of a batch (`batch` scripts in a row) are drawn together, a seed for each turn and batch.
    `keep_cache` False reads every conversation anew at each turn; what a model's cache cannot keep is told in the
    notes. `allow` names deliberate differences from the model that axis or cap was made for. `progress` is called
    with the replies drawn so far and altogether.

    Raises `DriftError` for settings that do not fit and for a conversation longer than the model's context, naming
    script and turn; `AxisMismatchError`; and what the levers raise.
    """
    require("chat", chat, ChatModel)
    played = [scripts] if isinstance(scripts, Script) else list(scripts)
    systems = [system] * len(played) if isinstance(system, str) else list(system)
    _check(played, systems, turns, batch)
    if axis is None and layers is not None:
        raise DriftError("layers are given without an axis: there is nothing to project on")
    directions: dict[int, Tensor] = {}
    if axis is not None:
        require("axis", axis, Axis)
        axis.require(chat.model, chat.template.source, allow, chat.layers)
        wanted = axis.layers if layers is None else sorted(set(layers_of(layers, DriftError)))
        directions = {layer: axis.direction[axis.row(layer)] for layer in wanted}
    settings = _Settings(sampling or Sampling(), seed, listed(lever), allow, directions, keep_cache)
    talks = [
        _Talk(script, _length(script, turns, user), [{"role": "system", "content": told}] if told else [])
        for script, told in zip(played, systems, strict=True)
    ]
    done, total = 0, sum(talk.turns for talk in talks)
    asides = _Asides()
    for first in range(0, len(talks), batch):
        for said in _play(chat, user, talks[first : first + batch], settings, first // batch, asides):
            done += said
            if progress is not None:
                progress(done, total)
    conversations = tuple(
        Conversation(t.script.id, tuple(t.messages), t.script.domain, t.script.split, tuple(t.kinds)) for t in talks
    )
    rows = [row for talk in talks for row in talk.rows]
    frame = empty() if axis is None else add_percentiles(tidy({k: [row[k] for row in rows] for k in rows[0]}), axis)
    return Simulation(frame, conversations, asides.told(total))


def _check(scripts: Sequence[Script], systems: Sequence[str], turns: int | None, batch: int) -> None:
    if not scripts:
        raise DriftError("there is no script to play")
    if silent := next((script.id for script in scripts if not script.turns), None):
        raise DriftError(f"script {silent!r} has no turns: there is nothing to say")
    ids = [script.id for script in scripts]
    if twice := next((id for at, id in enumerate(ids) if id in ids[:at]), None):
        raise DriftError(f"script {twice!r} is given twice: the table could not tell its conversations apart")
    if len(systems) != len(scripts):
        raise DriftError(f"{len(systems)} system prompts for {len(scripts)} scripts: give one, or one for each")
    if batch < 1 or (turns is not None and turns < 1):
        raise DriftError(f"turns and batch must be at least 1, got turns={turns!r}, batch={batch!r}")


def _length(script: Script, turns: int | None, user: ChatModel | None) -> int:
    if turns is None:
        return len(script.turns)
    return turns if user is not None else min(turns, len(script.turns))


def _play(
    chat: ChatModel, user: ChatModel | None, talks: list[_Talk], settings: _Settings, number: int, asides: _Asides
) -> Iterator[int]:
    """Play one batch, and after each turn tell how many replies it took."""
    memory = Memory(chat.model) if settings.keep_cache else None
    users = Memory(user.model) if settings.keep_cache and user is not None else None
    memories = [held for held in (memory, users) if held is not None]
    seed = settings.seed + number * BATCH_SEEDS
    for turn in range(1, max(talk.turns for talk in talks) + 1):
        going = [at for at, talk in enumerate(talks) if talk.turns >= turn]
        if len(going) < len(talks):
            talks = [talks[at] for at in going]
            for held in memories:
                held.select(going)
        if user is None or turn == 1:
            for talk in talks:
                talk.say("user", talk.script.turns[turn - 1].text)
                talk.kinds.append(talk.script.turns[turn - 1].kind)
        else:
            prompts = user.encode_batch(as_seen_by_user(talk.script, talk.messages) for talk in talks)
            _check_room(user, prompts, talks, turn, settings.sampling, "the user's model")
            ids = user.generate_ids(prompts, settings.sampling, seed + turn - 1 + _USER_SEEDS, memory=users)
            for talk, text in zip(talks, user.decode(ids), strict=True):
                talk.say("user", user.template.reply_in(text))
                talk.kinds.append(None)
        prompts = chat.encode_batch(talk.messages for talk in talks)
        _check_room(chat, prompts, talks, turn, settings.sampling, "the model")
        spoken = speak(
            chat, prompts, settings.sampling, seed + turn - 1, directions=settings.directions, lever=settings.levers,
            allow=settings.allow, memory=memory,
        )  # fmt: skip
        for at, (talk, text) in enumerate(zip(talks, chat.decode(spoken.ids), strict=True)):
            talk.say("assistant", text)
            talk.rows += _rows(talk, turn, at, spoken)
        asides.thinking += sum(chat.thinks(spoken.ids))
        yield len(talks)
    if turn > 1:
        for held in memories:
            asides.heard(held, "the model" if held is memory else "the user's model")


def _check_room(
    chat: ChatModel, prompts: Sequence[Sequence[int]], talks: Sequence[_Talk], turn: int, how: Sampling, who: str
) -> None:
    limit = context_limit(chat)
    for prompt, talk in zip(prompts, talks, strict=True):
        if limit is not None and len(prompt) + how.max_new_tokens > limit:
            raise DriftError(
                f"script {talk.script.id!r}, turn {turn}: {len(prompt)} tokens so far and {how.max_new_tokens} for the "
                f"reply are more than the {limit} that {who} can read: play fewer turns, or allow shorter replies"
            )


def _rows(talk: _Talk, turn: int, at: int, spoken: Spoken) -> Iterator[dict[str, Any]]:
    """The rows of one reply, the `at`-th of its batch."""
    streams = {"projection": spoken.projections, "projection_before": spoken.before}
    one, tokens = talk.script, len(spoken.ids[at])
    told = {
        "conversation": one.id, "domain": one.domain, "split": one.split, "turn": turn, "speaker": "assistant",
        "kind": talk.kinds[-1], "tokens": tokens,
    }  # fmt: skip
    for layer in spoken.projections:
        found = {name: means[layer][at] for name, means in streams.items() if means}
        if tokens and not all(map(math.isfinite, found.values())):
            raise DriftError(f"script {one.id!r}, turn {turn}: NaN or infinite activations at layer {layer}")
        yield {**told, "layer": layer, **found}


@dataclass
class _Asides:
    """What the notes are made of."""

    unfit: set[str] = field(default_factory=set)
    rewritten: Counter[str] = field(default_factory=Counter)
    thinking: int = 0

    def heard(self, memory: Memory, whose: str) -> None:
        self.unfit |= {memory.unfit} - {""}
        self.rewritten[whose] += memory.rewritten

    def told(self, replies: int) -> tuple[str, ...]:
        notes = [f"the cache was not kept from turn to turn, every turn was read anew: {why}" for why in self.unfit]
        for whose, count in self.rewritten.items():
            if count:
                notes.append(
                    f"after {count} of {replies} replies {whose}'s template wrote the conversation otherwise than it "
                    "had been read (a reply tokenised in another way, say): it was read again from there on"
                )
        if self.thinking:
            notes.append(f"{self.thinking} of {replies} replies hold a thinking block, which is in their means")
        return tuple(sorted(notes))
