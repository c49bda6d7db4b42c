"""A conversation with a model, with caps or without, and where each reply lies on the axis."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
    messages = [{"role": "system", "content": system}] if system else []
    exchanges = []
    with ExitStack() as stack:
        for cap in caps:
            held = cap.on(chat.model, template=chat.template.source, allow=allow, stack=chat.layers)
            stack.enter_context(held)
        for turn, prompt in enumerate(prompts):
            messages.append({"role": "user", "content": prompt})
            asked = chat.encode(messages)
            said = chat.generate_ids([asked], sampling, seed + turn)[0]
            reply = chat.decode([said])[0]
            messages.append({"role": "assistant", "content": reply})
            exchanges.append(Exchange(prompt, reply, _projections(chat, asked, said, directions or {})))
    return exchanges


def _projections(
    chat: ChatModel, asked: Sequence[int], said: Sequence[int], directions: Mapping[int, Tensor]
) -> dict[int, float]:
    """Mean over the reply's tokens of <h, direction>, by layer; float32 inside."""
    import torch

    from persona_axis.residual import reading

    if not said or not directions:
        return {}
    found: dict[int, float] = {}

    def read(layer: int, hidden: Tensor) -> None:
        own = hidden[0, len(asked) :].float()
        found[layer] = float((own @ directions[layer].to(own.device)).mean())

    batch = chat.pad_left([[*asked, *said]])
    with torch.inference_mode(), reading(chat.model, directions, read, stack=chat.layers):
        chat.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return found
