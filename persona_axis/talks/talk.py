"""A conversation with a model that goes on turn by turn, under caps or not, each reply measured while it is said."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from persona_axis.errors import DriftError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.chat import ChatModel
    from persona_axis.levers.listener import Listener
    from persona_axis.sampling import Sampling


_LEAST_REPLY = 16  # tokens; less room than that is none


class Said(NamedTuple):
    """A reply and by layer its mean projection, with that of the stream before the caps' edits.

    Both are empty for an empty reply, and `before` is without caps.
    """

    text: str
    projections: dict[int, float]
    before: dict[int, float]


def directions_of(axis: Axis | None, caps: Iterable[Cap]) -> dict[int, Tensor]:
    """The directions [hidden] to read replies on, by layer: an axis' at the caps' layers, or else the caps' own."""
    own = {layer: cap.direction[i] for cap in caps for i, layer in enumerate(cap.layers)}
    if axis is None:
        return own
    layers = [layer for layer in axis.layers if layer in own] or [axis.recommended_layer]
    return {layer: axis.direction[axis.row(layer)] for layer in layers}


class Talk:
    """A conversation under `caps`. The model's cache is kept from turn to turn; each turn has its own seed."""

    def __init__(
        self,
        chat: ChatModel,
        sampling: Sampling,
        *,
        system: str = "",
        caps: Sequence[Cap] = (),
        directions: Mapping[int, Tensor] | None = None,
        seed: int = 0,
        allow: Collection[str] = (),
        listener: Listener | None = None,
        distractors: Sequence[str] = (),
    ) -> None:
        """`distractors` are the personas that a `listener` tells this one from."""
        self.listener, self.distractors = listener, tuple(distractors)
        self.chat, self.sampling, self.caps, self.allow = chat, sampling, tuple(caps), allow
        self.directions = dict(directions or {})
        self._system = [{"role": "system", "content": system}] if system else []
        self._seed = seed
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        from persona_axis.model.memory import Memory

        self.messages = list(self._system)
        self._memory = Memory(self.chat.model)

    def say(self, text: str) -> Said:
        """The reply to `text`.

        Raises what `Cap.on` raises, `DriftError` where there is no room for a reply and `ListenerError` for distractors
        that are none; nothing has then been said.
        """
        from persona_axis.talks.speaking import speak

        asked = [*self.messages, {"role": "user", "content": text}]
        prompts = self._prompts(asked)
        sampling = self._fitting(max(map(len, prompts)))
        seed = self._seed + sum(m["role"] == "user" for m in self.messages)
        spoken = speak(self.chat, prompts, sampling, seed, directions=self.directions, lever=self.caps,
                       allow=self.allow, memory=self._memory, processors=self._choosing(sampling))  # fmt: skip
        reply = self.chat.decode(spoken.ids[:1])[0]
        self.messages = [*asked, {"role": "assistant", "content": reply}]
        means = (spoken.projections, spoken.before) if spoken.ids[0] else ({}, {})
        return Said(reply, *({layer: values[0] for layer, values in found.items()} for found in means))

    def _prompts(self, asked: list[dict[str, str]]) -> list[list[int]]:
        """The conversation in every world, the true one first."""
        if self.listener is None:
            return [self.chat.encode(asked)]
        from persona_axis.levers.worlds import encode_worlds, persona_worlds

        return encode_worlds(self.chat, [persona_worlds(asked, self.distractors)], room=None)[0]

    def _choosing(self, sampling: Sampling) -> list[LogitsProcessor] | None:
        if self.listener is None:
            return None
        from persona_axis.levers.listener import Speaker

        return [Speaker(self.listener, 1, 1 + len(self.distractors), sampling.processors())]

    def _fitting(self, tokens: int) -> Sampling:
        """The sampling, with replies no longer than the context has room for."""
        from persona_axis.drift import context_limit

        limit, longest = context_limit(self.chat), self.sampling.max_new_tokens
        room = longest if limit is None else min(longest, limit - tokens)
        if room < min(longest, _LEAST_REPLY):
            raise DriftError(
                f"{tokens} tokens have been said and the model can read {limit}: there is no room for a reply, begin a "
                "new conversation"
            )
        return replace(self.sampling, max_new_tokens=room)
