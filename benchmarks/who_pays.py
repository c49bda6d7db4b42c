"""Whose answers a cap costs: Troupe's capability items apart by who is asked, with 95% paired intervals.

    python benchmarks/who_pays.py cap.safetensors

The pooled figure that calibration bounds is a mean over the default and characters, task answers and exact tasks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from persona_axis import Cap, ChatModel
from persona_axis.capability import Scores, TroupeTasks, capability


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cap", type=Path, help="a cap for Troupe")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the items; 1 are those of the replication table")
    args = parser.parse_args()
    chat, tasks, at = ChatModel.load("troupe"), TroupeTasks(), range(args.items)
    asked = ["default" if i.role is None else "character" for i in tasks.items("held_out", at, args.seed)]
    told = []
    for lever in (None, Cap.load(args.cap)):
        found = tasks.scores(chat, lever, "held_out", at, args.seed)
        parts = tuple(f"{whose}, {part}" for whose, part in zip(asked, found.parts, strict=True))
        told.append(Scores(found.values, parts))
    cost = capability(*told)
    print(f"{cost.items:,} paired items, points gained (95%)")
    for name, e in {"all": cost.points, **cost.parts}.items():
        print(f"{name:20} {e.value:+.1f} ({e.low:+.1f} to {e.high:+.1f})")


if __name__ == "__main__":
    main()
