"""A conversation with a model, with caps or without, and where each reply lies on the axis."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.chat import ChatModel
    from persona_axis.sampling import Sampling


class Exchange(NamedTuple):
    """What was said, and the reply's mean projection at each layer (empty for an empty reply)."""

    user: str
    reply: str
    projections: dict[int, float]


def rulers(axis: Axis | None, caps: Iterable[Cap]) -> dict[int, Tensor]:
    """The directions to read replies on, by layer: an axis' at the caps' layers, or else the caps' own."""
    own = {layer: cap.direction[i] for cap in caps for i, layer in enumerate(cap.layers)}
    if axis is None:
        return own
    layers = [layer for layer in axis.layers if layer in own] or [axis.recommended_layer]
    return {layer: axis.direction[axis.row(layer)] for layer in layers}


def converse(
    chat: ChatModel,
    prompts: Sequence[str],
    *,
    sampling: Sampling,
    system: str = "",
    caps: Sequence[Cap] = (),
    directions: Mapping[int, Tensor] | None = None,
    seed: int = 0,
    allow: Collection[str] = (),
) -> list[Exchange]:
    """Say `prompts` one after the other and keep the replies; each turn has its own seed.

    `directions` [hidden] by layer: on these the residual stream of the reply's own tokens is read, as it is under
    the caps. Raises what `Cap.on` raises.
    """
    from persona_axis._memory import Memory
    from persona_axis._speaking import speak

    messages = [{"role": "system", "content": system}] if system else []
    exchanges, memory = [], Memory(chat.model)
    for turn, prompt in enumerate(prompts):
        messages.append({"role": "user", "content": prompt})
        spoken = speak(
            chat, [chat.encode(messages)], sampling, seed + turn, directions=directions, lever=caps, allow=allow,
            memory=memory,
        )  # fmt: skip
        reply = chat.decode(spoken.ids)[0]
        messages.append({"role": "assistant", "content": reply})
        projections = {layer: values[0] for layer, values in spoken.projections.items() if spoken.ids[0]}
        exchanges.append(Exchange(prompt, reply, projections))
    return exchanges
