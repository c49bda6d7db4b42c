"""Before a run: how many rollouts fit in a batch, and how long it will take.

The batch size is found from memory, never from time, so that the same machine and settings always find the
same one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from persona_axis.chat import ChatModel
from persona_axis.extraction.engines import halved
from persona_axis.extraction.means import generate_with_means
from persona_axis.extraction.plan import Plan
from persona_axis.sampling import Sampling

LARGEST = 128
_TRIAL_TOKENS = 32  # enough for short replies to end by themselves, which makes the estimate a good one


class Trial(NamedTuple):
    """A batch size that fits, the seconds a batch needs at most (None where that was not tried), and a generous guess
    for the calibration's seconds."""

    batch_size: int
    batch_seconds: float | None
    calibration_seconds: float


def try_out(chat: ChatModel, plan: Plan, batch_size: int | None) -> Trial:
    """Generate a few tokens for the longest prompts of the plan, with fewer rows each time memory does not
    suffice.

    `batch_size` None starts from what an estimate says will fit. The time of a batch assumes replies as long
    as they may be, unless every reply of the trial ended by itself.
    """
    rows = fitting_rows(chat, plan) if batch_size is None else batch_size
    tokens = min(plan.options.sampling.max_new_tokens, _TRIAL_TOKENS)
    sampling = Sampling(plan.options.sampling.temperature, plan.options.sampling.top_p, tokens)
    while True:
        prompts = chat.encode_batch(plan.messages(item) for item in plan.longest(rows))
        try:
            prefill, steps, drawn = _timed(chat, prompts, sampling, plan.layers)
            break
        except (RuntimeError, MemoryError) as error:
            rows = halved(rows, error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    longest = tokens if drawn < tokens else plan.options.sampling.max_new_tokens
    per_batch = prefill + longest * steps / max(1, drawn)
    to_read = min(plan.options.calibration, plan.default_rollouts) + min(
        plan.options.calibration, len(plan.roles) * plan.per_role
    )
    return Trial(
        rows, per_batch, to_read / rows * 2 * prefill
    )  # prompt and reply together, about twice the prompt


def fitting_rows(chat: ChatModel, plan: Plan) -> int:
    """The largest power of two, at most LARGEST, whose caches and logits take a modest part of the memory
    there is."""
    config = chat.model.config.get_text_config(decoder=True)
    queries = getattr(config, "num_attention_heads", None) or 1
    heads: int = getattr(config, "num_key_value_heads", None) or queries
    head_dim: int = getattr(config, "head_dim", None) or chat.hidden_size // queries
    size = next(chat.model.parameters()).element_size()
    longest = len(chat.encode(plan.messages(plan.longest(1)[0])))
    cache = 2 * chat.n_layers * heads * head_dim * size * (longest + plan.options.sampling.max_new_tokens)
    prefill = longest * chat.hidden_size * 20 * size
    logits = getattr(config, "vocab_size", 0) * 4 * 6
    sums = len(plan.layers) * chat.hidden_size * 4 * 3
    rows = LARGEST
    while rows > 1 and rows * (cache + prefill + logits + sums) > _budget(chat):
        rows //= 2
    return rows


def _budget(chat: ChatModel) -> float:
    """Bytes that batches may take: on a GPU half of what the weights leave, else a quarter of the machine's
    memory. Both are facts of the machine, not of the moment."""
    if chat.device.type == "cuda":
        weights = sum(
            p.numel() * p.element_size() for p in chat.model.parameters() if p.device == chat.device
        )
        return 0.5 * (torch.cuda.get_device_properties(chat.device).total_memory - weights)
    try:
        return 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2.0**31


def _timed(
    chat: ChatModel, prompts: Sequence[Sequence[int]], sampling: Sampling, layers: Sequence[int]
) -> tuple[float, float, int]:
    """Seconds until the first token, seconds of the steps after it, and how many steps there were."""
    one = Sampling(sampling.temperature, sampling.top_p, 1)
    generate_with_means(chat, prompts[:1], one, 0, layers)  # warm up
    began = time.monotonic()
    chat.generate_ids(prompts, one, 0)
    first = time.monotonic()
    replies = generate_with_means(chat, prompts, sampling, 0, layers)
    ended = time.monotonic()
    prefill = first - began
    return prefill, max(0.0, ended - first - prefill), max(1, max(len(ids) for ids in replies.ids))
