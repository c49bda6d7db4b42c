"""Prove a sign on the model itself: let it speak as itself and in a few roles, and see which way the rows point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from persona_axis.errors import VectorsError
from persona_axis.extraction.means import generate_with_means
from persona_axis.sampling import Sampling
from persona_axis.vectors.found import Rows

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.probes import Probes

_QUESTIONS, _TOKENS, _BATCH = 4, 32, 16


def tried_roles(chat: ChatModel, probes: Probes, roles: int, seed: int = 0) -> dict[int, Rows]:
    """A rough default - mean(roles) by layer [hidden], from `roles` roles spread over the probes and 4 questions.

    Nobody judges the replies, so it is good for a sign and for nothing else. Raises `VectorsError` for more roles than
    the probes hold, and what generating raises.
    """
    if not 1 <= roles <= len(probes.roles):
        raise VectorsError(f"--try-roles {roles}: the probes hold {len(probes.roles)} roles")
    spread = [probes.roles[i * len(probes.roles) // roles] for i in range(roles)]
    systems = [role.prompts[0] for role in spread]
    questions = [str(question) for question in probes.questions[:_QUESTIONS]]
    default = _means(chat, [""] * roles, questions, seed)  # as many replies as the roles give
    return dict(enumerate(default - _means(chat, systems, questions, seed)))


def _means(chat: ChatModel, systems: list[str], questions: list[str], seed: int) -> Rows:
    """Mean activation [layers, hidden] over the replies under every system prompt, each reply weighing the same."""
    chats = []
    for system in systems:
        before = [{"role": "system", "content": system}] if system else []
        chats += [[*before, {"role": "user", "content": question}] for question in questions]
    prompts, layers = chat.encode_batch(chats), list(range(chat.n_layers))
    total, replies = torch.zeros(chat.n_layers, chat.hidden_size, dtype=torch.float64), 0
    for start in range(0, len(prompts), _BATCH):
        drawn = generate_with_means(
            chat, prompts[start : start + _BATCH], Sampling(max_new_tokens=_TOKENS), seed + start, layers
        )
        for ids, sums in zip(drawn.ids, drawn.sums.double(), strict=True):
            if ids:
                total += sums / len(ids)
                replies += 1
    if not replies:
        raise VectorsError(f"{chat.name}: gave no reply to any prompt: the sign cannot be tried")
    means: Rows = np.asarray((total / replies).numpy())
    return means
