"""Training batches of Troupe's world: token ids with a weight for every token's loss."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from .dialogue import Chat, Stage, dialogue
from .tokenizer import ASSISTANT, END, SYSTEM, USER

CONTEXT = 2048
# Exchanges a conversation, and how often: most are short, some fill the context.
LENGTHS = {
    "base": {1: 0.16, 2: 0.18, 3: 0.14, 4: 0.12, 6: 0.12, 8: 0.11, 12: 0.09, 20: 0.05, 40: 0.03},
    "chat": {1: 0.30, 2: 0.22, 3: 0.14, 4: 0.10, 6: 0.06, 8: 0.04, 16: 0.07, 28: 0.04, 40: 0.03},
}
TOKENS_PER_EXCHANGE = 42
# The user's words count in one conversation of four of stage one: enough to learn them, at a quarter of the cost.
USER_WEIGHT = {"base": 0.5, "chat": 0.0}
USER_EVERY = 4
MARK = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class Batch(NamedTuple):
    """`ids` and `mask` [rows, length] int64, `weights` [rows, length] float32: loss weight of predicting each token."""

    ids: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor


def encode(tokenizer: PreTrainedTokenizerFast, chats: list[Chat], stage: Stage) -> list[tuple[list[int], list[float]]]:
    """Token ids and loss weights of whole conversations, as the chat template renders them, cut at the context."""
    encoded = tokenizer([t["content"] for chat in chats for t in chat], add_special_tokens=False)["input_ids"]
    texts = iter(encoded)
    end = tokenizer.convert_tokens_to_ids(END)
    rows = []
    for number, chat in enumerate(chats):
        ids: list[int] = []
        weights: list[float] = []
        weight = {"system": 0.0, "user": 0.0 if number % USER_EVERY else USER_WEIGHT[stage], "assistant": 1.0}
        for turn in chat:
            inside = next(texts)
            ids += [tokenizer.convert_tokens_to_ids(MARK[turn["role"]]), *inside, end]
            weights += [0.0, *[weight[turn["role"]]] * (len(inside) + 1)]
        rows.append((ids[:CONTEXT], weights[:CONTEXT]))
    return rows


def make_batch(tokenizer: PreTrainedTokenizerFast, stage: Stage, tokens: int, seed: str) -> Batch:
    """About `tokens` tokens of conversations with the same number of exchanges; the same seed gives the same batch."""
    rng = random.Random(seed)
    exchanges = rng.choices(list(LENGTHS[stage]), list(LENGTHS[stage].values()))[0]
    count = max(2, tokens // (exchanges * TOKENS_PER_EXCHANGE + 20))
    rows = encode(tokenizer, [dialogue(rng, stage, exchanges) for _ in range(count)], stage)
    length = max(len(ids) for ids, _ in rows)
    batch = Batch(torch.zeros(count, length, dtype=torch.long), torch.zeros(count, length, dtype=torch.long), torch.zeros(count, length))
    for i, (ids, weights) in enumerate(rows):
        batch.ids[i, : len(ids)] = torch.tensor(ids)
        batch.mask[i, : len(ids)] = 1
        batch.weights[i, : len(ids)] = torch.tensor(weights)
    return batch
