"""What a cap costs: whole generations beside two peers, the edit alone, small models, compiled models.

    make bench

Everything is a ratio within one run: the variants take turns, round by round, and each round is compared with the
plain model of the same round. Weights are random; only speed is looked at. Peers (steering-vectors, repeng) add a
vector, which is less work than a cap; one that is not installed is left out and said so. Their pins predate
transformers 5 and numpy 2, so `make bench` installs them without their requirements.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from persona_axis import Cap
from persona_axis.edits.arithmetic import clamped, pushing

console = Console()
Variant = Callable[[], AbstractContextManager[object]]


def llama(hidden: int, layers: int) -> LlamaForCausalLM:
    """A random Llama with head dimension 64 (32 where the model is small)."""
    torch.manual_seed(0)
    heads = hidden // (64 if hidden >= 512 else 32)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024, eos_token_id=None,
        pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def a_fifth(layers: int) -> list[int]:
    """A fifth of the layers, a little past the middle."""
    return list(range(layers // 2, layers // 2 + max(1, layers // 5)))


def cap_for(hidden: int, layers: list[int]) -> Cap:
    """A cap whose floor lies near the middle of what it meets, so that about half of the tokens are edited."""
    rows = torch.randn(len(layers), hidden, generator=torch.Generator().manual_seed(1))
    return Cap(torch.nn.functional.normalize(rows, dim=1), layers, floor=0.0)


def steering_vectors(model: LlamaForCausalLM, cap: Cap) -> Variant:
    from steering_vectors import SteeringVector

    vector = SteeringVector({layer: cap.direction[i] for i, layer in enumerate(cap.layers)}, "decoder_block")
    return lambda: vector.apply(model)


def repeng(model: LlamaForCausalLM, cap: Cap) -> Variant:
    if not hasattr(np, "float_"):
        # repeng 0.4.0 names a type that numpy 2 dropped; nothing else stands in its way.
        np.float_ = np.float64  # noqa: NPY201
    from repeng import ControlModel, ControlVector

    directions = {layer: cap.direction[i].numpy().astype(np.float32) for i, layer in enumerate(cap.layers)}
    vector = ControlVector(model_type="llama", directions=directions)

    @contextmanager
    def on() -> Iterator[None]:
        wrapped = ControlModel(model, list(cap.layers))
        wrapped.set_control(vector, 1.0)
        try:
            yield
        finally:
            wrapped.reset()
            wrapped.unwrap()

    return on


def peers(model: LlamaForCausalLM, cap: Cap) -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for name, make in (("steering-vectors", steering_vectors), ("repeng", repeng)):
        try:
            label = f"{name} {version(name)}"
            found[label] = make(model, cap)
        except (ImportError, PackageNotFoundError) as error:
            console.print(f"{name} is left out: {error} (pip install {name})")
    return found


def generation(
    model: LlamaForCausalLM, variants: dict[str, Variant], batch: int, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of generating `tokens` tokens a row after 32 of prompt, for each variant and round."""
    prompt = torch.randint(1, 2048, (batch, 32), generator=torch.Generator().manual_seed(2))
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    settings = {**length, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, variant in variants.items():
            with torch.inference_mode(), variant():
                start = time.perf_counter()
                model.generate(prompt, **settings)
                took = time.perf_counter() - start
            if round_:  # the first round warms up
                seconds[name].append(took)
    return seconds


def forwards(model: torch.nn.Module, variants: dict[str, Variant], batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of 20 forward passes over [batch, 64] tokens; every variant has its own compiled graph."""
    ids = torch.randint(1, 2048, (batch, 64), generator=torch.Generator().manual_seed(2))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for name, variant in variants.items():
        torch.compiler.reset()
        with torch.inference_mode(), variant():
            compiled = torch.compile(model)
            for _ in range(3):
                compiled(input_ids=ids, use_cache=False)
            for _ in range(rounds):
                start = time.perf_counter()
                for _ in range(20):
                    compiled(input_ids=ids, use_cache=False)
                seconds[name].append(time.perf_counter() - start)
    torch.compiler.reset()
    return seconds


def straightforward(hidden: Tensor, vector: Tensor, floor: float) -> Tensor:
    """The edit as one would first write it: normalise, einsum, clamp, einsum for the outer product, subtract."""
    v = (vector / vector.norm()).to(hidden.dtype)
    projection = torch.einsum("bsh,h->bs", hidden, v)
    excess = (projection - floor).clamp(max=0.0)
    return hidden - torch.einsum("bs,h->bsh", excess, v)


def microseconds(edit: Callable[..., Tensor], hidden: Tensor, vector: Tensor, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        edit(hidden, vector, 0.0)
    return (time.perf_counter() - start) / repeat * 1e6


def edit_alone(rounds: int) -> None:
    table = Table("shape", "dtype", "ours, us", "straightforward, us", "ratio", title="(b) the edit alone")
    for shape in ((8, 1, 4096), (8, 512, 4096)):
        for dtype in (torch.bfloat16, torch.float32):
            h = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
            v = torch.nn.functional.normalize(torch.randn(4096, generator=torch.Generator().manual_seed(4)), dim=0)
            times: dict[str, list[float]] = {"ours": [], "plain": []}
            for _ in range(rounds):
                for name, edit in (("ours", partial(clamped, push=pushing(v))), ("plain", straightforward)):
                    times[name].append(microseconds(edit, h, v, repeat=200 if shape[1] == 1 else 5))
            ours, plain = statistics.median(times["ours"]), statistics.median(times["plain"])
            table.add_row(str(list(shape)), str(dtype)[6:], f"{ours:.0f}", f"{plain:.0f}", f"{ours / plain:.2f}")
    console.print(table)


def show(title: str, seconds: dict[str, list[float]]) -> None:
    base = next(iter(seconds))
    table = Table("variant", f"time / {base}: median", "min", "max", title=title)
    for name, took in seconds.items():
        ratios = [a / b for a, b in zip(took, seconds[base], strict=True)]
        table.add_row(name, f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=["a", "b", "c", "d"])
    args = parser.parse_args()
    threads = torch.get_num_threads()
    console.print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}, {args.rounds} rounds")
    if args.only in (None, "a"):
        model = llama(1024, 10)
        cap = cap_for(1024, a_fifth(10))
        variants: dict[str, Variant] = {"no hook": nullcontext, "cap": lambda: cap.on(model), **peers(model, cap)}
        took = generation(model, variants, 4, 48, args.rounds)
        show("(a) generation, hidden 1024, 10 layers, batch 4, 2 layers edited", took)
    if args.only in (None, "b"):
        edit_alone(4 * args.rounds)
    if args.only in (None, "c"):
        small = llama(128, 5)
        light = cap_for(128, a_fifth(5))
        variants = {"no hook": nullcontext, "cap": lambda: light.on(small), **peers(small, light)}
        took = generation(small, variants, 8, 64, args.rounds)
        show("(c) generation, hidden 128, 5 layers, batch 8, 1 layer edited", took)
    if args.only in (None, "d"):
        model = llama(512, 5)
        cap = cap_for(512, a_fifth(5))
        took = forwards(model, {"no hook": nullcontext, "cap": lambda: cap.on(model)}, 4, args.rounds)
        show("(d) torch.compile, forward [4, 64], hidden 512, 5 layers, 1 layer edited", took)


if __name__ == "__main__":
    main()
