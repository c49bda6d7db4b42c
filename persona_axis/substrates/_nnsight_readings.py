"""What drift and extraction read of a model that nnsight runs.

Registered with the plain readings, so that all that is built on them (windows, batches, a run that goes on where it
stopped) holds here as well. Only projections, and sums for each reply, come out of a trace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona_axis.cap import Cap
from persona_axis.drift import token_projections
from persona_axis.errors import DriftError, ExtractionError
from persona_axis.extraction.means import Replies, generate_with_means
from persona_axis.extraction.quantiles import read_replies
from persona_axis.levers import Lever
from persona_axis.sampling import Sampling
from persona_axis.substrates._nnsight_chat import NNsightChat, envoys, held
from persona_axis.substrates._nnsight_inside import Gauge, Means


@token_projections.register
def _(
    chat: NNsightChat,
    directions: Mapping[int, Tensor],
    sequences: Sequence[Sequence[int]],
    levers: Sequence[Lever],
    allow: Collection[str],
) -> list[Any]:
    caps = [lever for lever in levers if isinstance(lever, Cap)]
    if len(caps) != len(levers) or len(caps) > 1:
        raise DriftError("inside nnsight the lever of a trajectory is one cap, or none")
    inside = held(chat, caps[0], allow) if caps else None
    found = chat.read(Gauge(envoys(chat.sight, chat.layers), directions, inside), sequences).numpy()
    return list(found) if caps else [found]


@generate_with_means.register
def _(
    chat: NNsightChat, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, layers: Sequence[int]
) -> Replies:
    all_layers = envoys(chat.sight, chat.layers)
    inside = Means(chat.sight, {layer: all_layers[layer] for layer in layers}, chat.stop_ids)
    ids, found, passes = chat.drawn(prompts, sampling, seed, inside, extra_tokens=1)
    if found["passes"] != passes or any(fed != passes - 1 for fed in found["fed"].values()):
        raise ExtractionError(f"layers were seen in {found['fed']} of {passes - 1} steps: nnsight lost some")
    nothing = torch.zeros(len(prompts), len(layers), chat.hidden_size)
    return Replies(ids, found.get("sums", nothing), found.get("norms", nothing[..., 0]))


@read_replies.register
def _(
    chat: NNsightChat,
    layers: Sequence[int],
    directions: Tensor,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
) -> list[Any]:
    gauge = Gauge(envoys(chat.sight, chat.layers), dict(zip(layers, directions, strict=True)))
    found = chat.read(gauge, sequences).numpy()
    own = zip(starts, sequences, strict=True)
    return [np.ascontiguousarray(found[:, row, start : len(ids)]) for row, (start, ids) in enumerate(own)]
