"""Controls that a real effect must beat: edits along another direction, matched to a cap in how much they do.

A cap along a random direction with "the same" floor touches other shares of tokens by other amounts, so a flat result
would prove little. Here the control's trigger is bisected until it touches the same share of tokens at each layer, and
where it lands is set so that its mean correction is the same as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from persona_axis import Axis, Cap, ChatModel
from persona_axis.residual import editing, reading


@dataclass(frozen=True)
class Push:
    """At one layer: a projection on `direction` [hidden] below `trigger` is set to `target`."""

    layer: int
    direction: Tensor
    trigger: float
    target: float

    def __call__(self, hidden: Tensor) -> Tensor:
        projection = hidden.float() @ self.direction
        change = torch.where(projection < self.trigger, self.target - projection, 0.0)
        return (hidden + change[..., None] * self.direction).to(hidden.dtype)


@dataclass(frozen=True)
class Touch:
    """How much an edit did on the reference texts at one layer."""

    layer: int
    share: float
    mean_size: float


def pushes_on(model: torch.nn.Module, pushes: Sequence[Push]) -> AbstractContextManager[object]:
    """The control as a lever."""
    return editing(model, {p.layer: p for p in pushes})


def pushes_of(cap: Cap) -> list[Push]:
    """A floor-only cap, written as pushes: trigger and target are its floor."""
    return [
        Push(layer, cap.direction[i].float(), float(cap.floor[i]), float(cap.floor[i]))
        for i, layer in enumerate(cap.layers)
    ]


def projections(
    chat: ChatModel, texts: Sequence[Sequence[int]], layer: int, direction: Tensor, under: Sequence[Push]
) -> Tensor:
    """<h, direction> at `layer` for every token of the texts, with the pushes of lower layers in force."""
    found: list[Tensor] = []
    for first in range(0, len(texts), 64):
        batch = chat.pad_right(texts[first : first + 64])

        def keep(_: int, hidden: Tensor, mask: Tensor = batch.mask) -> None:
            found.append((hidden.float() @ direction)[mask.bool()])

        with torch.inference_mode(), pushes_on(chat.model, under), reading(chat.model, [layer], keep):
            chat.model(input_ids=batch.ids, attention_mask=batch.mask)
    return torch.cat(found)


def touches(chat: ChatModel, texts: Sequence[Sequence[int]], pushes: Sequence[Push]) -> list[Touch]:
    """Share of tokens touched and mean size of the correction over the touched ones, layer by layer."""
    result = []
    for i, push in enumerate(pushes):
        p = projections(chat, texts, push.layer, push.direction, pushes[:i])
        hit = p < push.trigger
        size = (push.target - p[hit]).mean() if hit.any() else torch.tensor(0.0)
        result.append(Touch(push.layer, float(hit.float().mean()), float(size)))
    return result


def matched(chat: ChatModel, texts: Sequence[Sequence[int]], cap: Cap, directions: Tensor) -> list[Push]:
    """The control along `directions` [capped layers, hidden] that touches as many tokens, as strongly, as the cap."""
    control: list[Push] = []
    for push, touch, direction in zip(pushes_of(cap), touches(chat, texts, pushes_of(cap)), directions, strict=True):
        p = projections(chat, texts, push.layer, direction, control)
        trigger = float(torch.quantile(p[torch.linspace(0, len(p) - 1, min(len(p), 200_000)).long()], touch.share))
        hit = p < trigger
        mean = float(p[hit].mean()) if hit.any() else trigger
        control.append(replace(push, direction=direction, trigger=trigger, target=mean + touch.mean_size))
    return control


def random_directions(axis: Axis, layers: Sequence[int], kind: str, seed: int) -> Tensor:
    """Unit rows [layers, hidden]: "gaussian"; "shuffled", the axis with its coordinates permuted; "span", random inside
    the span of the role vectors."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for layer in layers:
        row = axis.row(layer)
        if kind == "gaussian":
            v = torch.randn(axis.hidden_size, generator=generator)
        elif kind == "shuffled":
            v = axis.direction[row][torch.randperm(axis.hidden_size, generator=generator)]
        elif kind == "span":
            centred = axis.roles[:, row] - axis.roles[:, row].mean(0)
            v = torch.randn(len(centred), generator=generator) @ centred
        else:
            raise ValueError(f"no kind of control {kind!r}")
        rows.append(v / v.norm())
    return torch.stack(rows)
