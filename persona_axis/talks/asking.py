"""Asking many conversations for a reply each, under a lever or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_axis.levers.agents import Agent
from persona_axis.sampling import Sampling

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.levers import Levers
    from persona_axis.template import Messages


def ask(
    chat: ChatModel,
    chats: Sequence[Messages],
    sampling: Sampling,
    seed: int = 0,
    lever: Levers = None,
    batch: int = 128,
) -> list[str]:
    """The text of one reply to each conversation, in order.

    Batches hold prompts of similar length; which ones depends on the prompts alone, so that a lever is compared with
    another on the same batches under the same seeds. An `Agent` speaks for itself.
    """
    if not chats:
        return []
    prompts = chat.encode_batch(chats)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    if isinstance(lever, Agent):
        said = [""] * len(prompts)
        for number, first in enumerate(range(0, len(order), batch)):
            at = order[first : first + batch]
            for i, text in zip(at, lever.replies(chat, [chats[i] for i in at], sampling, seed + number), strict=True):
                said[i] = text
        return said
    replies: list[list[int]] = [[] for _ in prompts]
    with chat.under(lever):
        for number, first in enumerate(range(0, len(order), batch)):
            at = order[first : first + batch]
            drawn = chat.generate_ids([prompts[i] for i in at], sampling, seed + number)
            for i, ids in zip(at, drawn, strict=True):
                replies[i] = ids
    return chat.decode(replies)
