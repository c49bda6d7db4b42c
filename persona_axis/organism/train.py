"""Training Troupe from nothing, in two stages, with resume: python -m persona_axis.organism train."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from .batches import CONTEXT, Batch, make_batch
from .dialogue import Stage
from .tokenizer import build_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. Steps are optimiser steps of about `tokens` tokens each.

    From step `recall_from` of stage one on, facts of the system prompt are stated and asked for more often. Stage one
    then goes on for `again_steps` with its rate raised again: 240 questions in twenty wordings each take their time.
    """

    base_steps: int = 2700
    recall_from: int = 1500
    again_steps: int = 1100
    chat_steps: int = 400
    tokens: int = 4608
    seed: int = 0
    hidden: int = 160
    layers: int = 6
    heads: int = 5
    intermediate: int = 432
    matrix_rate: float = 0.012
    other_rate: float = 3e-3
    again_rate_factor: float = 0.5
    chat_rate_factor: float = 0.2
    warmup: int = 60


@dataclass(frozen=True)
class Part:
    """A part of the training with its own optimisers, schedule and saved state."""

    name: str
    stage: Stage
    steps: int
    factor: float


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """An untrained Troupe: Llama architecture, head dimension hidden / heads."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            initializer_range=0.02,
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


def train(
    recipe: Recipe, out: Path, device: str = "cpu", save_every: int = 100, log: Callable[[str], None] = print
) -> None:
    """Train both stages into out/base and out/chat (bf16, Hugging Face format); run again to go on where it stopped.

    Raises `ValueError` when `out` holds the state of another recipe.
    """
    tokenizer = build_tokenizer()
    model = new_model(recipe, tokenizer)
    nn.Module.to(model, device)
    out.mkdir(parents=True, exist_ok=True)
    parts = [
        Part("base", "base", recipe.base_steps, 1.0),
        Part("again", "base", recipe.again_steps, recipe.again_rate_factor),
        Part("chat", "chat", recipe.chat_steps, recipe.chat_rate_factor),
    ]
    for part in parts:
        state = State(model, Optimisers(model, recipe, part.factor), recipe, out / f"{part.name}.state.safetensors")
        _train_part(state, tokenizer, part, save_every, log)
        save_checkpoint(model, tokenizer, out / part.stage)


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a bf16 copy in Hugging Face format."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    nn.Module.to(copy, torch.bfloat16)
    copy.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _train_part(
    state: State, tokenizer: PreTrainedTokenizerBase, part: Part, save_every: int, log: Callable[[str], None]
) -> None:
    recipe, first, steps = state.recipe, state.load(), part.steps
    started, recent = time.monotonic(), 0.0
    for step in range(first, steps):
        recall = part.name != "base" or step >= recipe.recall_from
        seed = f"{recipe.seed}-{part.name}-{step}"
        loss = loss_of(state.model, make_batch(tokenizer, part.stage, recipe.tokens, seed, recall))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimisers.step(step / steps, (step + 1) / recipe.warmup)
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            left = (time.monotonic() - started) / (step - first + 1) * (steps - step - 1)
            log(f"{part.name} step {step}/{steps} loss {recent:.3f} left {left / 60:.1f} min")
        if (step + 1) % save_every == 0 or step == steps - 1:
            state.save(step + 1)


@dataclass(frozen=True)
class State:
    """Everything a killed training needs to go on, in one safetensors file that is replaced as a whole."""

    model: LlamaForCausalLM
    optimisers: Optimisers
    recipe: Recipe
    path: Path

    def save(self, step: int) -> None:
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.model.named_parameters()}
        for i, optimiser in enumerate(self.optimisers.all):
            for index, buffers in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{index}.{key}": value.contiguous() for key, value in buffers.items()}
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, {"step": str(step), "recipe": json.dumps(asdict(self.recipe))})
        os.replace(partial, self.path)

    def load(self) -> int:
        """Put the saved state in place; returns the steps done, 0 where nothing was saved."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if json.loads(metadata["recipe"]) != asdict(self.recipe):
            raise ValueError(f"{self.path} was made by another recipe, {metadata['recipe']}; choose another --out")
        self.model.load_state_dict({n: tensors[f"model.{n}"] for n, _ in self.model.named_parameters()}, strict=False)
        for i, optimiser in enumerate(self.optimisers.all):
            buffers: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimiser.{i}."):
                    _, _, index, key = name.split(".", 3)
                    buffers.setdefault(int(index), {})[key] = value
            optimiser.load_state_dict({"state": buffers, "param_groups": optimiser.state_dict()["param_groups"]})
        return int(metadata["step"])
