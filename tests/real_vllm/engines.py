"""Tiny models for a real vLLM, what transformers makes of them under a cap, and the environment of an engine."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch

from persona_axis.cap import Cap
from persona_axis.residual import reading

HERE = Path(__file__).parent
LAYERS = (1, 2)
# Longer than a step may be, so that its prefill is cut; two with the same start, so that the prefix cache serves one.
PROMPTS = [[5, 6, 7, 8], [9] * 70 + [11, 12], [20, 21], [5, 6, 7, 8, *range(30, 64)]]
FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt_neox", "olmo2")
SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 32,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip


def cap_of(folder: Path) -> Path:
    """Not inside the folder: vLLM reads every safetensors file there as weights."""
    return folder.with_suffix(".cap.safetensors")


def reference(folder: Path, cap: Cap | None, prompts: list[list[int]], tokens: int = 16) -> list[list[int]]:
    """Greedy tokens of transformers, under our own hooks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = []
    for ids in prompts:
        with torch.inference_mode(), nullcontext() if cap is None else cap.on(model):
            whole = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=tokens,
                min_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        out.append(whole[0, len(ids) :].tolist())
    return out


def projections(
    folder: Path, cap: Cap, prompts: list[list[int]], replies: list[list[int]]
) -> dict[tuple[int, str], torch.Tensor]:
    """By layer and kind ("prompt", "reply"): what reaches the cap in transformers, at every token that is fed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    for prompt, reply in zip(prompts, replies, strict=True):

        def read(layer: int, hidden: torch.Tensor, start: int = len(prompt)) -> None:
            values = hidden[0].double() @ cap.direction[cap.layers.index(layer)].double()
            found.setdefault((layer, "prompt"), []).append(values[:start])
            found.setdefault((layer, "reply"), []).append(values[start:])

        with torch.inference_mode(), reading(model, cap.layers, read), cap.on(model):
            model(torch.tensor([prompt + reply[:-1]]))
    return {key: torch.cat(parts) for key, parts in found.items()}


def environ(cap: Path | str | None, cache: Path, **more: str) -> dict[str, str]:
    """The environment of an engine on this machine's CPUs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA_AXIS")}
    kept |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": str(cache), "HF_HUB_OFFLINE": "1"}
    kept["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    if cap is not None:
        kept["PERSONA_AXIS_CAP"] = str(cap)
    return kept | more


def troupe_cap(path: Path) -> Path:
    """A cap for Troupe, from a handful of conversations: a floor halfway between its Assistant and a ghost."""
    from persona_axis.chat import ChatModel

    chat, layers = ChatModel.load("troupe", dtype="float32"), (2, 3)
    means: dict[str, torch.Tensor] = {}
    for name, system in (("default", ""), ("ghost", "You are a ghost who haunts a cold hallway.")):
        seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        for question in ("What do you like?", "How are you today?", "Can you help me with a letter?"):
            asked = [{"role": "user", "content": question}]
            asked = [{"role": "system", "content": system}, *asked] if system else asked
            said = [*asked, {"role": "assistant", "content": chat.generate([asked]).texts[0]}]
            ids, ((start, end),) = chat.encode_turns(said)
            keep = lambda layer, hidden, a=start, b=end: seen[layer].append(hidden[0, a:b].mean(0))  # noqa: B023, E731
            with torch.inference_mode(), reading(chat.model, layers, keep):
                chat.model(input_ids=torch.tensor([ids]))
        means[name] = torch.stack([torch.stack(seen[layer]).mean(0) for layer in layers])
    direction = torch.nn.functional.normalize(means["default"] - means["ghost"], dim=1)
    floor = ((means["default"] * 0.7 + means["ghost"] * 0.3) * direction).sum(1)
    Cap(direction, layers, floor=floor, facts=chat.facts).save(path)
    return path
