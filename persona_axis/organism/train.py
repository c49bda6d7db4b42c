"""Training Troupe from nothing, in two stages, with resume: python -m persona_axis.organism train."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import CONTEXT, Batch, make_batch
from .dialogue import Stage
from .tokenizer import build_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. Steps are optimiser steps of about `tokens` tokens each."""

    base_steps: int = 2200
    chat_steps: int = 300
    tokens: int = 6144
    seed: int = 0
    hidden: int = 160
    layers: int = 6
    heads: int = 5
    intermediate: int = 432
    matrix_rate: float = 0.012
    other_rate: float = 3e-3
    chat_rate_factor: float = 0.15
    warmup: int = 60


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Troupe: Llama architecture, head dimension hidden / heads."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=recipe.hidden, intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, initializer_range=0.02,
        )
    )


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy in nats a token."""
    device = next(model.parameters()).device
    weights = batch.weights[:, 1:].to(device)
    chosen = weights > 0
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model.model(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][chosen])
    losses = nn.functional.cross_entropy(logits.float(), batch.ids[:, 1:].to(device)[chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()


class Optimisers:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms; one learning-rate schedule for both."""

    def __init__(self, model: nn.Module, recipe: Recipe, factor: float) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=recipe.matrix_rate * factor, momentum=0.95, weight_decay=0.05),
            torch.optim.AdamW(others, lr=recipe.other_rate * factor, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = [o.param_groups[0]["lr"] for o in self.all]

    def step(self, progress: float, warm: float) -> None:
        """One update; the rate rises over the warm-up, then falls along a cosine to a twentieth."""
        scale = min(1.0, warm) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for optimiser, peak in zip(self.all, self.peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * scale
            optimiser.step()
            optimiser.zero_grad()


def train(recipe: Recipe, out: Path, device: str = "cpu", save_every: int = 100, log: Callable[[str], None] = print) -> None:
    """Train both stages into out/base and out/chat (bf16, Hugging Face format); run again to go on where it stopped."""
    tokenizer = build_tokenizer()
    model = new_model(recipe, tokenizer).to(device)
    out.mkdir(parents=True, exist_ok=True)
    for stage, steps, factor in (("base", recipe.base_steps, 1.0), ("chat", recipe.chat_steps, recipe.chat_rate_factor)):
        done = out / stage
        if (done / "model.safetensors").exists() and (out / f"{stage}.pt").exists():
            model.load_state_dict(torch.load(out / f"{stage}.pt", weights_only=True)["model"])
            continue
        _stage(model, tokenizer, recipe, stage, steps, factor, out, save_every, log)  # type: ignore[arg-type]
        save_checkpoint(model, tokenizer, done)


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a bf16 copy in Hugging Face format."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _stage(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, stage: Stage, steps: int, factor: float,
    out: Path, save_every: int, log: Callable[[str], None],
) -> None:
    optimisers, first = Optimisers(model, recipe, factor), 0
    state_file = out / f"{stage}.pt"
    if state_file.exists():
        state: dict[str, Any] = torch.load(state_file, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{state_file} was made by another recipe: {state['recipe']}, not {asdict(recipe)}; choose another --out")
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers.all, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first = state["step"]
    started, recent = time.monotonic(), 0.0
    for step in range(first, steps):
        loss = loss_of(model, make_batch(tokenizer, stage, recipe.tokens, f"{recipe.seed}-{stage}-{step}"))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimisers.step(step / steps, (step + 1) / recipe.warmup)
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            left = (time.monotonic() - started) / (step - first + 1) * (steps - step - 1)
            log(f"{stage} step {step}/{steps} loss {recent:.3f} left {left / 60:.1f} min")
        if (step + 1) % save_every == 0 or step == steps - 1:
            _save_state(state_file, model, optimisers, step + 1, recipe)


def _save_state(path: Path, model: nn.Module, optimisers: Optimisers, step: int, recipe: Recipe) -> None:
    partial = path.with_suffix(".partial")
    states = [o.state_dict() for o in optimisers.all]
    torch.save({"model": model.state_dict(), "optimisers": states, "step": step, "recipe": asdict(recipe)}, partial)
    os.replace(partial, path)
