"""vLLM as the engine of an extraction, beside the transformers engine, on Troupe; in vLLM's environment:

    .venv-vllm/bin/python benchmarks/vllm_extraction.py

The ways take turns, round by round, after one that warms up. Replies are sampled, each engine's in its own way, so
tokens are counted as well. "nothing read" is vLLM itself, as eager as it must be to be read.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from persona_axis import ChatModel, load_probes
from persona_axis.extract import Options
from persona_axis.extraction.engines import Job, Local
from persona_axis.extraction.plan import make_plan
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.vllm_engine import Vllm

LOCAL, VLLM, FLOOR = "transformers", "vllm", "vllm, nothing read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    from vllm import SamplingParams

    chat = ChatModel.load("troupe")
    plan = make_plan(chat, load_probes(), Options.preset(chat, full=True, max_new_tokens=48), args.batch)
    block = plan.block(1, plan.until(plan.ceilings))
    jobs = [
        Job(0, 1, batch, chat.encode_batch(plan.messages(item) for item in batch.items))
        for batch in block.batches[: args.batches]
    ]
    prompts = [{"prompt_token_ids": prompt} for job in jobs for prompt in job.prompts]
    how = plan.options.sampling
    params = [
        SamplingParams(
            temperature=how.temperature, top_p=how.top_p, max_tokens=how.max_new_tokens + 1, ignore_eos=True,
            stop_token_ids=list(chat.stop_ids), detokenize=False, seed=plan.rollout_seed(item),
        )
        for job in jobs
        for item in job.batch.items
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, RunStore.open(Path(folder) / "run") as store:
        local, served = Local(chat, plan, store), Vllm(chat, plan, {"kv_cache_memory_bytes": 2**29})

        def drawn(engine: Local | Vllm) -> list[int]:
            return [len(ids) for replies in engine.draw(jobs) for ids in replies.ids]

        def floor() -> list[int]:
            assert served._running is not None
            served._running.llm.reset_prefix_cache()
            return [len(o.outputs[0].token_ids) for o in served._running.llm.generate(prompts, params, use_tqdm=False)]

        def read() -> list[int]:
            if served._running is not None:
                served._running.llm.reset_prefix_cache()
            return drawn(served)

        ways: dict[str, Callable[[], list[int]]] = {LOCAL: lambda: drawn(local), VLLM: read, FLOOR: floor}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        tokens: dict[str, int] = {}
        for round_ in range(args.rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                lengths = way()
                if round_:
                    seconds[name].append(time.perf_counter() - start)
                assert len(lengths) == len(prompts)
                tokens[name] = sum(lengths)
    title = f"Troupe, {len(prompts)} rollouts, {args.batch} at once, {args.rounds} rounds; {platform.machine()}, "
    table = Table("engine", "rollouts/s", "tokens/s", "time / vllm", title=f"{title}{torch.get_num_threads()} threads")
    for name, took in seconds.items():
        middle = statistics.median(took)
        ratio = statistics.median(a / b for a, b in zip(took, seconds[VLLM], strict=True))
        table.add_row(name, f"{len(prompts) / middle:.1f}", f"{tokens[name] / middle:.0f}", f"{ratio:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
