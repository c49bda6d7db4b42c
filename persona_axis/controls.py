"""Controls that a real effect must beat: edits along another direction, matched to a cap in how much they do.

A cap along a random direction with "the same" floor touches other shares of tokens by other amounts, so a flat result
would prove little. Here a control touches, at each layer, the same share of the tokens of some reference texts, and
moves them by the same mean length. The first token of a text is not counted: it is the same everywhere, and in many
models a sink of huge norm that would outweigh all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona_axis.edits.arithmetic import projected
from persona_axis.errors import AxisFileError, CapError
from persona_axis.levers.pushes import Push, Pushes, pushed, pushes_of
from persona_axis.residual import reading

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.chat import ChatModel

__all__ = [
    "KINDS", "MIXTURE", "SHARE_TOLERANCE", "SIZE_TOLERANCE", "Fit", "Push", "Pushes", "Touch", "fit", "matched",
    "projections", "pushed", "pushes_of", "random_directions", "touches",
]  # fmt: skip

KINDS = ("gaussian", "shuffled", "span")
MIXTURE = "mixture"
"""Not a control: the span's mixtures with their share of the axis left in. Shown beside controls for what it does."""
SHARE_TOLERANCE = 0.01
"""How far a control's share of touched tokens may lie from the cap's; equal projections cannot be told apart."""
SIZE_TOLERANCE = 0.01
"""The same for the mean length of the correction, relative."""


class Touch(NamedTuple):
    """How much an edit does at one layer: the share of tokens it moves, and the mean length of its moves in units of
    the residual stream (nan if it moves none)."""

    layer: int
    share: float
    size: float


class Fit(NamedTuple):
    """A push without its layer and direction."""

    trigger: float
    target: float
    gain: float


def fit(projections: NDArray[np.floating], share: float, size: float) -> Fit:
    """The push that touches that share of the given projections [n] and moves them by that mean length, upwards.

    The trigger is one of the projections, so the share is met to 1/n, or to half the number of equal ones where it
    falls among them. A size above the mean shortfall puts the target beyond the trigger; a smaller one goes only part
    of the way. Touching nothing, or by nothing, is a push that never acts. Raises `CapError` for no projections.
    """
    ordered = np.sort(np.asarray(projections, dtype=np.float32))
    count = len(ordered)
    if not count or not np.isfinite(ordered).all():
        raise CapError(f"a control needs finite projections to be matched on, got {count}")
    touched = round(share * count)
    if touched == 0 or not size > 0:
        return Fit(-np.inf, 0.0, 1.0)
    if touched == count:
        trigger = np.nextafter(ordered[-1], np.float32(np.inf))
    else:  # among equal projections all are touched or none: the nearer of the two
        first, behind = (int(np.searchsorted(ordered, ordered[touched], side)) for side in ("left", "right"))
        nearer = first if touched - first <= behind - touched and first > 0 else behind
        trigger = ordered[nearer] if nearer < count else np.nextafter(ordered[-1], np.float32(np.inf))
    below = ordered[ordered < trigger].astype(np.float64)
    shortfall = float(np.mean(float(trigger) - below))
    if size >= shortfall:
        return Fit(float(trigger), float(trigger) + size - shortfall, 1.0)
    return Fit(float(trigger), float(trigger), size / shortfall)


def projections(
    chat: ChatModel,
    texts: Sequence[Sequence[int]],
    directions: Mapping[int, Tensor],
    under: Pushes | None = None,
    batch: int = 64,
) -> dict[int, NDArray[np.float32]]:
    """<h, direction> at each layer for every token of the texts but the first, under a lever but before its edit there.

    The texts are token ids; directions are by layer.
    """
    found: dict[int, list[Tensor]] = {layer: [] for layer in directions}
    for first in range(0, len(texts), batch):
        rows = chat.pad_right(texts[first : first + batch])
        counted = rows.mask.bool()
        counted[:, 0] = False

        def keep(layer: int, hidden: Tensor, counted: Tensor = counted) -> None:
            values = projected(hidden, directions[layer].to(hidden.device))
            found[layer].append(values[counted.to(hidden.device)].cpu())

        lever = nullcontext() if under is None else under.on(chat.model, stack=chat.layers)
        # A reading entered first sees the stream before the edit at its layer, and after those of lower layers.
        with torch.inference_mode(), reading(chat.model, directions, keep, stack=chat.layers), lever:
            # The decoder without its head: logits of every token would need more memory than all the rest.
            chat.model.base_model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False)
    return {layer: torch.cat(parts).float().numpy() for layer, parts in found.items()}


def touches(chat: ChatModel, texts: Sequence[Sequence[int]], lever: Pushes) -> list[Touch]:
    """How much the lever does to the texts (token ids), layer by layer; every edit sees those of lower layers."""
    found = projections(chat, texts, {p.layer: p.direction for p in lever.pushes}, lever)
    result = []
    for push in lever.pushes:
        p = found[push.layer].astype(np.float64)
        below = p[p < push.trigger]
        size = float(np.mean(np.abs(push.gain * (push.target - below)))) if below.size else float("nan")
        result.append(Touch(push.layer, below.size / max(1, p.size), size))
    return result


def matched(
    chat: ChatModel,
    texts: Sequence[Sequence[int]],
    like: Pushes,
    directions: Tensor,
    wanted: Sequence[Touch] | None = None,
) -> Pushes:
    """The control along `directions` [layers of `like`, hidden] that touches as many tokens of the texts, as strongly.

    `wanted` is `touches(chat, texts, like)`, if the caller has it at hand. Layers are matched in rising order, each
    under the pushes of those below it. `touches` of the result tells how well it went (see `SHARE_TOLERANCE`).
    """
    wanted = touches(chat, texts, like) if wanted is None else wanted
    made: list[Push] = []
    for touch, direction in zip(wanted, directions, strict=True):
        under = Pushes(tuple(made)) if made else None
        found = projections(chat, texts, {touch.layer: direction}, under)[touch.layer]
        made.append(Push(touch.layer, direction, *fit(found, touch.share, touch.size)))
    return Pushes(tuple(made))


def random_directions(axis: Axis, layers: Sequence[int], kind: str, seed: int) -> Tensor:
    """Unit rows [layers, hidden], float32: "gaussian"; "shuffled", the axis with its coordinates permuted; "span", a
    random mixture of the centred role vectors without its share of the axis: inside their span, wide where they are,
    and at right angles to the axis; `MIXTURE`, the same with that share, which does part of the axis's own work.

    Raises `CapError` for another kind, `AxisFileError` where the axis holds no role vectors to span anything.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for layer in layers:
        row = axis.row(layer)
        if kind == "gaussian":
            v = torch.randn(axis.hidden_size, generator=generator, dtype=torch.float64)
        elif kind == "shuffled":
            v = axis.direction[row].double()[torch.randperm(axis.hidden_size, generator=generator)]
        elif kind in ("span", MIXTURE):
            roles = torch.from_numpy(axis.roles_at(layer)).double()
            centred = roles - roles.mean(0)
            v = torch.randn(len(centred), generator=generator, dtype=torch.float64) @ centred
            v = v if kind == MIXTURE else _beside(v, centred, axis.direction[row].double())
        else:
            raise CapError(f"no kind of control {kind!r}: choose among {', '.join((*KINDS, MIXTURE))}")
        made.append((v / v.norm()).float())
    return torch.stack(made)


def _beside(v: Tensor, centred: Tensor, axis: Tensor) -> Tensor:
    """The mixture `v` of the rows of `centred` [n, hidden], less what lies along the axis's image in their span."""
    _, sizes, basis = torch.linalg.svd(centred, full_matrices=False)
    basis = basis[sizes > sizes[0] * 1e-6]
    image = basis.T @ (basis @ axis)
    beside = v - image * (v @ image) / (image @ image) if image.norm() > 1e-6 else v
    if beside.norm() < 1e-6 * v.norm() or not len(basis):
        raise AxisFileError(
            f"the {len(centred)} role vectors of this axis span nothing beside the axis itself, so there is no control "
            "inside their span; extract with at least three roles"
        )
    return beside
