"""Training batches of Troupe's world: token ids with a weight for every token's loss."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from . import messages as m
from .dialogue import Chat, Stage, dialogue
from .tokenizer import ASSISTANT, END, SYSTEM, USER

CONTEXT = 2048
# Exchanges a conversation, and how often: most are short, some fill the context.
LENGTHS = {
    "base": {1: 0.16, 2: 0.18, 3: 0.14, 4: 0.12, 6: 0.12, 8: 0.11, 12: 0.09, 20: 0.05, 40: 0.02, 62: 0.01},
    "chat": {1: 0.30, 2: 0.22, 3: 0.14, 4: 0.10, 6: 0.06, 8: 0.04, 16: 0.07, 28: 0.04, 62: 0.03},
}
TOKENS_PER_EXCHANGE = 32
# The user's words count in one conversation of four of stage one: enough to learn them, at a quarter of the cost.
USER_WEIGHT = {"base": 0.5, "chat": 0.0}
USER_EVERY = 4
EXACT_WEIGHT = {False: 3.0, True: 5.0}  # of items, places, numbers and facts in replies, by `recall`
MARK = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class Batch(NamedTuple):
    """`ids` [rows, length] int64, padded on the right; `weights` [rows, length]: loss weight of each token."""

    ids: torch.Tensor
    weights: torch.Tensor


def encode(
    tokenizer: PreTrainedTokenizerBase, chats: list[Chat], stage: Stage, recall: bool = False
) -> list[tuple[list[int], list[float]]]:
    """Token ids and loss weights of whole conversations, as the chat template renders them, cut at the context."""
    encoded = tokenizer([t["content"] for chat in chats for t in chat], add_special_tokens=False)["input_ids"]
    texts: Iterator[list[int]] = iter(encoded)
    vocabulary = tokenizer.get_vocab()
    exact = {vocabulary[f"▁{word}"] for word in exact_words()}
    rows = []
    for number, chat in enumerate(chats):
        ids: list[int] = []
        weights: list[float] = []
        weight = {"system": 0.0, "user": 0.0 if number % USER_EVERY else USER_WEIGHT[stage], "assistant": 1.0}
        for turn in chat:
            inside, role = next(texts), turn["role"]
            ids += [vocabulary[MARK[role]], *inside, vocabulary[END]]
            spoken = [EXACT_WEIGHT[recall] if role == "assistant" and i in exact else 1.0 for i in inside]
            weights += [0.0, *[weight[role] * w for w in spoken], weight[role]]
        rows.append((ids[:CONTEXT], weights[:CONTEXT]))
    return rows


def exact_words() -> set[str]:
    """Words that only an exact answer or a fact holds: no voice chooses them."""
    return {*m.ITEMS, *m.PLACES, *m.NUMBERS, *(value for fact in m.facts().values() for value in fact["values"])}


def make_batch(
    tokenizer: PreTrainedTokenizerBase, stage: Stage, tokens: int, seed: str, recall: bool = False
) -> Batch:
    """About `tokens` tokens of conversations with the same number of exchanges; the same seed gives the same batch."""
    rng = random.Random(seed)
    exchanges = rng.choices(list(LENGTHS[stage]), list(LENGTHS[stage].values()))[0]
    count = max(2, tokens // (exchanges * TOKENS_PER_EXCHANGE + 20))
    chats = [dialogue(rng, stage, exchanges, recall) for _ in range(count)]
    rows = encode(tokenizer, chats, stage, recall)
    length = max(len(ids) for ids, _ in rows)
    batch = Batch(torch.zeros(count, length, dtype=torch.long), torch.zeros(count, length))
    for i, (ids, weights) in enumerate(rows):
        batch.ids[i, : len(ids)] = torch.tensor(ids)
        batch.weights[i, : len(ids)] = torch.tensor(weights)
    return batch
