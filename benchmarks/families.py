"""Every causal language model that the installed transformers can make, held to the package's promises.

    python benchmarks/families.py                        # all of them, as a table
    python benchmarks/families.py --only llama,mamba     # some
    python benchmarks/families.py --out docs/families.md

Each type is examined in a process of its own with a limit on its time and memory, so that one that hangs, grows or
crashes is a line in the table and nothing else. What is checked: the layers are found, `ChatModel.check`'s proof holds,
what is read is what transformers returns, a cap is exact, with a cache as without, batched as alone, from its file as
from memory, and each of its layers alone. The exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from _family import FAILED, NO_CACHE, NOT_BUILT, PASSED, REFUSED, Verdict, examine
from rich.console import Console
from rich.table import Table
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as REGISTRY

SECONDS, GIGABYTES = 180, 8
ORDER = (FAILED, PASSED, NO_CACHE, REFUSED, NOT_BUILT)
HEADINGS = {
    PASSED: "Everything holds. A remark says what the model does by itself, with no cap on it.",
    NO_CACHE: "Everything holds, but transformers generates with these models without a cache, so cached = uncached is "
    "true of nothing.",
    REFUSED: "The package refuses these models when they are loaded, and says why.",
    NOT_BUILT: "No tiny model could be made or run from the type's own config class: nothing is known about them.",
    FAILED: "A promise is broken.",
}


def main() -> None:
    """Examine, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
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


def counts(verdicts: list[Verdict]) -> str:
    """One line: how many of each."""
    found = Counter(v.status for v in verdicts)
    each = ", ".join(f"{found[status]} {status}" for status in ORDER if found[status])
    return f"{len(verdicts)} model types: {each}"


def table(verdicts: list[Verdict]) -> Table:
    """For the terminal."""
    shown = Table("type", "verdict", "layers", "why, or what the model by itself cannot do", show_lines=False)
    for v in verdicts:
        shown.add_row(v.model_type, v.status, v.stack, v.reason)
    return shown


def markdown(verdicts: list[Verdict]) -> str:
    """The page of the docs."""
    lines = [
        "# Which models",
        "",
        f"{counts(verdicts)}. Written by `python benchmarks/families.py --out docs/families.md` with transformers "
        f"{transformers.__version__}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}.",
        "",
        "Each type of transformers' causal-LM registry is built from its own config class, shrunk to a few layers with "
        "random weights, and held to this: its layers are found by structure; one forward pass proves that each is "
        "read, run once and in order, looks at no later token and reaches the logits; what is read is what "
        "transformers returns; a cap changes nothing inside its bounds and lands on them outside; generating with a "
        "cache gives what generating without one gives; a batch gives what its rows give; a cap from its file does "
        "what it did in memory, and each of its layers acts alone. A tiny random model says nothing about the quality "
        "of a checkpoint.",
    ]
    for status in ORDER:
        chosen = [v for v in verdicts if v.status == status]
        if not chosen:
            continue
        reason = "remark" if status in (PASSED, NO_CACHE) else "reason"
        lines += ["", f"## {status.capitalize()}: {len(chosen)}", "", HEADINGS[status], ""]
        lines += [f"| type | class | layers | {reason} |", "| --- | --- | --- | --- |"]
        for v in chosen:
            cells = (v.model_type, v.kind, v.stack, v.reason)
            lines.append("| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
