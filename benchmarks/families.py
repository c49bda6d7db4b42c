"""Every causal language model that the installed transformers can make, held to the package's promises.

    python benchmarks/families.py                        # all of them, as a table
    python benchmarks/families.py --only llama,mamba     # some
    python benchmarks/families.py --out docs/families.md --readme README.md

Each type is examined in a process of its own with a limit on its time and memory, so that one that hangs, grows or
crashes is a line in the table and nothing else. What is checked: the layers are found, `ChatModel.check`'s proof holds,
what is read is what transformers returns, a cap is exact, with a cache as without, batched as alone, from its file as
from memory, and each of its layers alone. The exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from _families_page import counts, markdown, with_table
from _family import FAILED, Verdict, examine
from rich.console import Console
from rich.table import Table
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as REGISTRY

SECONDS, GIGABYTES = 180, 8


def main() -> None:
    """Examine, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--readme", type=Path, help="a page in which to write the short table between its marks")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else sorted(REGISTRY)
    unknown = sorted(set(names) - set(REGISTRY))
    if unknown:
        parser.error(f"{', '.join(unknown)}: not a causal language model of transformers {transformers.__version__}")
    console = Console()
    verdicts = []
    for verdict in examined(names, args.jobs):
        verdicts.append(verdict)
        console.print(f"{verdict.status:>9}  {verdict.model_type}", highlight=False)
    verdicts.sort(key=lambda v: v.model_type)
    console.print(table(verdicts))
    console.print(counts(verdicts), highlight=False)
    if args.out:
        args.out.write_text(markdown(verdicts), encoding="utf-8")
    if args.readme:
        args.readme.write_text(with_table(args.readme.read_text("utf-8"), verdicts), encoding="utf-8")
    sys.exit(any(v.status == FAILED for v in verdicts))


def examined(names: list[str], jobs: int = 1) -> Iterator[Verdict]:
    """The verdict on each name, as they come in; `jobs` at a time, each in its own process."""
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"  # a fork need not import again
    context = multiprocessing.get_context(kind)
    waiting, running = list(names), list[tuple[str, float, multiprocessing.process.BaseProcess, Connection]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_alone, args=(name, theirs), daemon=True)
            process.start()
            theirs.close()
            running.append((name, time.monotonic(), process, ours))
        multiprocessing.connection.wait([pipe for *_, pipe in running], timeout=1)
        for job in list(running):
            name, began, process, pipe = job
            verdict = _received(pipe)
            late = time.monotonic() - began > SECONDS
            if verdict is None and process.is_alive() and not late:
                continue
            if process.is_alive() and verdict is None:
                process.kill()
            process.join()
            running.remove(job)
            why = f"took more than {SECONDS} s" if late else f"its process ended with code {process.exitcode}"
            yield verdict or Verdict(name, FAILED, reason=f"{why} (memory is limited to {GIGABYTES} GB)")


def _alone(name: str, answer: Connection) -> None:
    """Examine one type in this process, which is its own."""
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    answer.send(tuple(examine(name)))


def _received(pipe: Connection) -> Verdict | None:
    try:
        return Verdict(*pipe.recv()) if pipe.poll() else None
    except EOFError:
        return None


def table(verdicts: list[Verdict]) -> Table:
    """For the terminal."""
    shown = Table("type", "verdict", "layers", "why, or what the model by itself cannot do", show_lines=False)
    for v in verdicts:
        shown.add_row(v.model_type, v.status, v.stack, v.reason)
    return shown


if __name__ == "__main__":
    main()
