"""Holding the conversations with one agent, and counting what that takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persona_axis.bench.dialogues import Dialogue
from persona_axis.conversations import Conversation

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.levers.agents import Agent
    from persona_axis.sampling import Sampling

BATCH = 32
"""Dialogues held together: those that stand next to each other, so that they are the same for every lever."""


class Cost(NamedTuple):
    """What replies took."""

    seconds: float
    forwards: int
    """Sequences that went through the model, a step of a batch of 32 being 32."""
    tokens: int
    """Of the replies."""


class Held(NamedTuple):
    """What came of holding a batch of dialogues."""

    messages: list[list[dict[str, str]] | None]
    """Of each dialogue; None where it grew longer than the model can read, as it is told."""
    cost: Cost
    turns: list[int]
    """Turns of each that fitted."""


def held(chat: ChatModel, agent: Agent, dialogues: Sequence[Dialogue], sampling: Sampling, seed: int) -> Held:
    """The dialogues, the agent replying to every turn. One batch, a seed a turn.

    A row draws the same random numbers whatever the lever, so that two levers that say the same go on the same, until
    a dialogue before it in the batch is given up as too long. Raises what `Agent.replies` raises.
    """
    talks = [[{"role": "system", "content": d.system}] if d.system else [] for d in dialogues]
    turns, going = [0] * len(dialogues), list(range(len(dialogues)))
    began, said = time.monotonic(), []
    with counted(chat.model) as count:
        for turn in range(max(len(d.says) for d in dialogues)):
            going = [i for i in going if turn < len(dialogues[i].says)]
            for i in going:
                talks[i].append({"role": "user", "content": dialogues[i].says[turn]})
            fits = agent.fits(chat, [talks[i] for i in going], sampling)
            going = [i for i, fit in zip(going, fits, strict=True) if fit]
            if not going:
                break
            for i, text in zip(
                going, agent.replies(chat, [talks[i] for i in going], sampling, seed + turn), strict=True
            ):
                talks[i].append({"role": "assistant", "content": text})
                turns[i] += 1
                said.append(text)
    seconds = time.monotonic() - began
    tokens = sum(map(len, chat.tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"])) if said else 0
    whole = [n == len(d.says) for n, d in zip(turns, dialogues, strict=True)]
    return Held([talk if ok else None for talk, ok in zip(talks, whole, strict=True)],
                Cost(seconds, count[0], tokens), turns)  # fmt: skip


def conversation(dialogue: Dialogue, messages: Sequence[dict[str, str]]) -> Conversation:
    """What was said, under the dialogue's id."""
    return Conversation(dialogue.id, tuple(messages), dialogue.domain)


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How many sequences run through the model in the block, as the one number of a list."""
    count = [0]

    def hook(_module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        fed = next((x for x in (*args, given.get("input_ids"), given.get("inputs_embeds")) if torch.is_tensor(x)), None)
        count[0] += 0 if fed is None else len(fed)

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
