"""Damaged files of every form, read by the loaders: a valid value or the documented error, and nothing else ever.

    python benchmarks/fuzz.py --mutants 100000 --seed 0              # all forms
    python benchmarks/fuzz.py --loader axis,cap --seconds 60         # some, for a minute

Forms take turns. A mutant is a pure function of (seed, form, number). Children read them, with limits on time and
memory; an audit hook sees whatever would run a program or write elsewhere. Failing files are written to a folder, and
the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from _forms import Form, forms
from _mutants import mutants
from _watched import CONSTANT, FAILED, REFUSED, TIMES, VALID, Outcome, batch
from rich.console import Console
from rich.table import Table

BATCH = 200


def main() -> None:
    """Make, read, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000, help="how many in all (default 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after this long")
    parser.add_argument("--loader", help="forms or beginnings of their names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for failing files (default runs/fuzz)")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("the peak of a process's memory is read from /proc, which only Linux has")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        known = forms(Path(folder))
    wanted = args.loader.split(",") if args.loader else [""]
    chosen = {name: form for name, form in known.items() if name.startswith(tuple(wanted))}
    if not chosen or any(not any(name.startswith(one) for name in known) for one in wanted):
        parser.error(f"{args.loader}: the forms are {', '.join(known)}")
    console, began = Console(), time.monotonic()
    found: list[tuple[str, Outcome]] = []
    for name, told in campaign(chosen, args.mutants, args.seed, args.seconds):
        found.append((name, told))
        if told.result == FAILED:
            kept = keep(args.out, name, chosen[name], args.seed, told)
            console.print(f"FAILED {name} {told.number} {told.kind}: {told.why}; {kept}", markup=False, highlight=False)
        if len(found) % 5_000 == 0:
            console.print(f"{len(found)} read, {time.monotonic() - began:.0f} s", highlight=False)
    for table in (by_form(found), by_kind(found, chosen)):
        console.print(table)
    failed = sum(told.result == FAILED for _, told in found)
    console.print(f"{len(found)} mutants, {failed} failures, {time.monotonic() - began:.0f} s", highlight=False)
    sys.exit(failed > 0)


def campaign(
    chosen: dict[str, Form], count: int, seed: int, seconds: float | None = None, size: int = BATCH
) -> Iterator[tuple[str, Outcome]]:
    """(form, outcome) of `count` mutants, the forms in turn, a batch each."""
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    share, rest = divmod(count, len(chosen))
    totals = {name: share + (i < rest) for i, name in enumerate(chosen)}
    for start in range(0, max(totals.values()), size):
        for name, form in chosen.items():
            numbers = range(start, min(start + size, totals[name]))
            if time.monotonic() > end:
                return
            made = list(mutants(form.content, name, form.family, seed, numbers))
            for told in batch(form, made) if made else ():
                yield name, told


def keep(folder: Path, name: str, form: Form, seed: int, told: Outcome) -> Path:
    """The failing file, written."""
    folder.mkdir(parents=True, exist_ok=True)
    (mutant,) = mutants(form.content, name, form.family, seed, range(told.number, told.number + 1))
    path = folder / f"{name}-{seed}-{told.number}"
    path.write_bytes(mutant.content)
    return path


def by_form(found: Iterable[tuple[str, Outcome]]) -> Table:
    """One row a form."""
    shown = Table("form", "mutants", VALID, REFUSED, FAILED, "most memory, MiB", "longest, s")
    groups = defaultdict(list)
    for name, told in found:
        groups[name].append(told)
    for name, told in groups.items():
        shown.add_row(name, *counts(told))
    shown.add_row("all", *counts([one for told in groups.values() for one in told]))
    shown.caption = f"a mutant may take {CONSTANT / 2**20:.0f} MiB and {TIMES} times its own size"
    return shown


def by_kind(found: Iterable[tuple[str, Outcome]], chosen: dict[str, Form]) -> Table:
    """One row a kind of damage."""
    shown = Table("family", "kind", "mutants", VALID, REFUSED, FAILED, "most memory, MiB", "longest, s")
    groups = defaultdict(list)
    for name, told in found:
        groups[chosen[name].family, told.kind].append(told)
    for (family, kind), told in sorted(groups.items()):
        shown.add_row(family, kind, *counts(told))
    return shown


def counts(told: list[Outcome]) -> list[str]:
    results = Counter(one.result for one in told)
    most, longest = max(one.memory for one in told) / 2**20, max(one.seconds for one in told)
    return [str(len(told)), *(str(results[key]) for key in (VALID, REFUSED, FAILED)), f"{most:.1f}", f"{longest:.2f}"]


if __name__ == "__main__":
    main()
