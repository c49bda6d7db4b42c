"""What counting costs: microseconds a layer and step, of the edit alone and of the edit with its figures.

    python benchmarks/figures_cost.py

`attach` and `persona-axis serve` hold a layer by `Attached.hold`; vLLM's layers have a `StreamEdit`, and its worker
counts all of them once a step, prompts and replies apart. The variants take turns; the fastest round of each
counts, for what else the machine does only ever adds.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from persona_axis import Cap, attach
from persona_axis.edits.acting import Place
from persona_axis.serving._stream_edit import StreamEdit, bounds_at
from persona_axis.serving._vllm_kinds import KINDS, Kinds
from persona_axis.serving.figures import Figures

SHAPES = ((1, 256), (16, 256), (1, 4096), (64, 4096), (256, 4096))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layers", type=int, default=4, help="capped at once in vLLM")
    told = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads ({platform.machine()}), float32;")
    print("microseconds a layer and step\n")
    print("| rows x width | attach: edit | edit + figures | | vLLM's edit | edit + figures | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with torch.inference_mode():
        for rows, width in SHAPES:
            plain, counted = timed([*attached(rows, width)], told.rounds, rows * width)
            edit, step = timed([*in_vllm(rows, width, told.layers)], told.rounds, rows * width)
            pairs = ((plain, counted), (edit / told.layers, step / told.layers))
            cells = [cell for a, b in pairs for cell in (f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}x")]
            print(f"| {rows} x {width} | {' | '.join(cells)} |", flush=True)


def attached(rows: int, width: int) -> Iterator[Callable[[], object]]:
    """The edit of `Cap.on`, and what an attached cap does at a layer; about half of the rows are moved."""
    cap, hidden = cap_and_rows(rows, width, 1)
    edit = cap.edits({0: Place(torch.device("cpu"), torch.float32)})[0]
    edit.arm()
    config = LlamaConfig(hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=4, head_dim=8, vocab_size=64)  # fmt: skip
    handle = attach(LlamaForCausalLM(config), cap)
    yield lambda: edit(hidden[:, None])
    yield lambda: handle.hold(0, hidden[:, None])


def in_vllm(rows: int, width: int, layers: int) -> Iterator[Callable[[], object]]:
    """The edits of one step, and with what `vllm_worker.Guard` does after it: each row is one request's reply."""
    cap, hidden = cap_and_rows(rows, width, layers)
    edits = [StreamEdit(width, rows + 256, torch.device("cpu"), torch.float32) for _ in range(layers)]
    for layer, edit in enumerate(edits):
        edit.hold(bounds_at(cap, layer, width))
    bounds = torch.stack([edit.floor for edit in edits]), torch.stack([edit.ceiling for edit in edits])
    figures, kinds = {kind: Figures(range(layers), *bounds) for kind in KINDS}, Kinds()
    names = [f"request-{row}" for row in range(rows)]
    new = [SimpleNamespace(req_id=name, prompt_token_ids=[0], num_computed_tokens=0) for name in names]
    nobody = SimpleNamespace(req_ids=[], num_computed_tokens=[], resumed_req_ids=set())
    known = SimpleNamespace(req_ids=names, num_computed_tokens=[1] * rows, resumed_req_ids=set())
    count = dict.fromkeys(names, 1)
    first: Any = SimpleNamespace(finished_req_ids=[], scheduled_new_reqs=new, scheduled_cached_reqs=nobody,
                                 num_scheduled_tokens=count)  # fmt: skip
    step: Any = SimpleNamespace(finished_req_ids=[], scheduled_new_reqs=[], scheduled_cached_reqs=known,
                                num_scheduled_tokens=count)  # fmt: skip
    kinds.note(first)
    list(kinds.split(first, None, torch.zeros(layers, rows)))

    def edited() -> None:
        for edit in edits:
            edit(hidden, hidden)

    def counted() -> None:
        edited()
        kinds.note(step)
        seen = torch.stack([edit.seen[:rows] for edit in edits])
        for kind, part in kinds.split(step, None, seen):
            figures[kind].add(part)

    yield edited
    yield counted


def cap_and_rows(rows: int, width: int, layers: int) -> tuple[Cap, Tensor]:
    seeded = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(layers, width, generator=seeded), dim=1)
    return Cap(direction, range(layers), floor=0.0), torch.randn(rows, width, generator=seeded)


def timed(variants: list[Callable[[], object]], rounds: int, elements: int) -> list[float]:
    """Microseconds of a call of each."""
    calls = max(5, min(500, 2**22 // elements))
    found: list[list[float]] = [[] for _ in variants]
    for number in range(rounds + 1):
        for variant, seen in zip(variants, found, strict=True):
            began = time.perf_counter()
            for _ in range(calls):
                variant()
            if number:  # the first round warms up
                seen.append((time.perf_counter() - began) / calls * 1e6)
    return [min(seen) for seen in found]


if __name__ == "__main__":
    main()
