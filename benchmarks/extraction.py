"""What reading costs an extraction: rollouts a second and activation memory, beside four other ways of doing it.

    python benchmarks/extraction.py --model troupe
    python benchmarks/extraction.py --model slice          # layers of an 8B Llama's shape, random weights

All ways answer the same prompts with the same sampling and take turns, round by round; a ratio compares two ways of one
round. `--memory` measures the peak memory of whole extractions in processes of their own.

    read while generating   what `extract` does: sums over the reply's tokens, at every layer
    nothing read            the same generation alone: the floor
    continuous              `extract --engine continuous`
    two passes              generate, then read prompt and reply again with output_hidden_states, stacked, averaged
    one at a time           the same two passes, prompt by prompt
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from persona_axis import ChatModel, load_probes
from persona_axis.extract import Options, extract
from persona_axis.extraction.continuous import Continuous
from persona_axis.extraction.engines import Job
from persona_axis.extraction.means import Sums, generate_with_means
from persona_axis.extraction.plan import Plan, make_plan
from persona_axis.extraction.store import RunStore
from persona_axis.sampling import Sampling

console = Console(width=110)
READ, FLOOR, CONTINUOUS, TWICE, SINGLY = (
    "read while generating", "nothing read", "continuous", "two passes", "one at a time",
)  # fmt: skip


def sliced(layers: int) -> ChatModel:
    """Some layers of an 8B Llama's shape in bfloat16, with Troupe's tokenizer; nothing it says means anything."""
    small = ChatModel.load("troupe")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(small.tokenizer), hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096, bos_token_id=None,
        eos_token_id=small.stop_ids[0], pad_token_id=small.pad_id,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    return ChatModel.load(model, tokenizer=small.tokenizer)


class Ways:
    """The same rollouts, drawn in each of the ways."""

    def __init__(self, chat: ChatModel, plan: Plan) -> None:
        self.chat, self.plan = chat, plan
        self.job = next(
            Job(0, 1, batch, chat.encode_batch(plan.messages(item) for item in batch.items))
            for batch in plan.block(1, plan.until(plan.ceilings)).batches
            if len(batch.items) == plan.batch_size
        )
        self.held: dict[str, int] = {}
        """Bytes of activations that a way holds at once."""

    def read(self) -> int:
        """Ours."""
        sampling, seed = self.plan.options.sampling, self.job.batch.seed
        replies = generate_with_means(self.chat, self.job.prompts, sampling, seed, self.plan.layers)
        rows = len(self.job.prompts) * len(self.plan.layers) * self.chat.hidden_size * 4
        self.held[READ] = 2 * rows  # this step's, and the sums
        return len(replies.ids)

    def floor(self) -> int:
        """The generation alone, which draws the token that is thrown away, too."""
        state = Sums([], self.chat.stop_ids)
        sampling, seed = self.plan.options.sampling, self.job.batch.seed
        return len(self.chat.generate_ids(self.job.prompts, sampling, seed, watch=state.draw, extra_tokens=1))

    def continuous(self) -> int:
        """The engine, which is started and stopped in each call."""
        with tempfile.TemporaryDirectory() as folder, RunStore.open(Path(folder) / "run") as store:
            return sum(len(replies.ids) for replies in Continuous(self.chat, self.plan, store).draw([self.job]))

    def twice(self, rows: int | None = None) -> int:
        """Generate `rows` at a time, then read them again."""
        sampling, together = self.plan.options.sampling, rows or len(self.job.prompts)
        stacked: list[Tensor] = []
        for start in range(0, len(self.job.prompts), together):
            prompts = self.job.prompts[start : start + together]
            ids = self.chat.generate_ids(prompts, sampling, self.job.batch.seed + start)
            whole = [prompt + reply for prompt, reply in zip(prompts, ids, strict=True)]
            batch = self.chat.pad_right(whole)
            with torch.inference_mode():
                out = self.chat.model(
                    input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True, use_cache=False
                )
            activations = torch.stack(out.hidden_states[1:], dim=1)  # [rows, layers, tokens, hidden]
            self.held[TWICE if rows is None else SINGLY] = 2 * activations.nbytes  # the list, and the stack
            for i, (prompt, sequence) in enumerate(zip(prompts, whole, strict=True)):
                stacked.append(activations[i, :, len(prompt) : len(sequence)].float().mean(dim=1).cpu())
        return len(torch.stack(stacked))


def measured(ways: Ways, rounds: int, without: set[str]) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first round warms up."""
    calls: dict[str, Callable[[], int]] = {
        READ: ways.read, FLOOR: ways.floor, CONTINUOUS: ways.continuous, TWICE: ways.twice,
        SINGLY: partial(ways.twice, 1),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in calls if name not in without}
    for round_ in range(rounds + 1):
        for name in seconds:
            start = time.perf_counter()
            rollouts = calls[name]()
            took = time.perf_counter() - start
            assert rollouts == len(ways.job.prompts)
            if round_:
                seconds[name].append(took)
    return seconds


def interval(ratios: list[float]) -> tuple[float, float]:
    """95% of a bootstrap of the median."""
    drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def show(ways: Ways, seconds: dict[str, list[float]], title: str) -> None:
    table = Table("way", "rollouts/s", "time / ours", "95%", "activations held", title=title)
    for name, took in seconds.items():
        ratios = [other / own for other, own in zip(took, seconds[READ], strict=True)]
        low, high = interval(ratios)
        held = f"{ways.held[name] / 2**20:.1f} MiB" if name in ways.held else "" if name == CONTINUOUS else "none"
        speed = len(ways.job.prompts) / statistics.median(took)
        table.add_row(name, f"{speed:.1f}", f"{statistics.median(ratios):.2f}", f"{low:.2f}-{high:.2f}", held)
    console.print(table)


def peak(rollouts: int, layers: int, batch: int) -> None:
    """Run in a process of its own: one extraction, then the process' peak memory in MiB.

    Without oneDNN, which keeps a kernel of every shape that it has met, up to a thousand: that hides what grows.
    """
    torch.backends.mkldnn.enabled = False
    chat = ChatModel.load("troupe")
    options = Options(
        roles=64, prompts=1, questions=rollouts // 64, default_samples=1, min_accepted=1, batch_size=batch,
        layers=tuple(range(layers)), sampling=Sampling(max_new_tokens=24), precision=1, calibration=32,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        extract(chat, load_probes(), options, out=f"{folder}/axis")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def memory() -> None:
    table = Table("rollouts of roles", "layers", "peak memory, MiB", title="whole extractions of Troupe, batches of 64")
    for rollouts, layers in ((1024, 6), (4096, 6), (8192, 6), (4096, 1)):
        command = [sys.executable, __file__, "--peak", str(rollouts), str(layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        table.add_row(str(rollouts), str(layers), done.stdout.split()[-1])
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["troupe", "slice"], default="troupe")
    parser.add_argument("--layers", type=int, default=2, help="of the slice")
    parser.add_argument("--batch", type=int, help="[default: 64, 16 of the slice]")
    parser.add_argument("--tokens", type=int, help="longest reply  [default: 48, 24 of the slice]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without", action="append", default=[], choices=[CONTINUOUS, TWICE, SINGLY])
    parser.add_argument("--memory", action="store_true", help="peak memory of whole extractions, and nothing else")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(*args.peak, batch=64)
        return
    console.print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.memory:
        memory()
        return
    small = args.model == "troupe"
    chat = ChatModel.load("troupe") if small else sliced(args.layers)
    batch, tokens = args.batch or (64 if small else 16), args.tokens or (48 if small else 24)
    options = replace(Options.preset(chat, full=True), sampling=Sampling(max_new_tokens=tokens))
    ways = Ways(chat, make_plan(chat, load_probes(), options, batch))
    shape = "Troupe" if small else f"{args.layers} layers of an 8B Llama's shape, bfloat16, random"
    title = f"{shape}: {batch} rollouts of at most {tokens} tokens, {args.rounds} rounds"
    show(ways, measured(ways, args.rounds, set(args.without)), title)


if __name__ == "__main__":
    main()
