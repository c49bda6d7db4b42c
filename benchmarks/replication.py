"""Claim by claim: what was published for large models, and what Troupe shows, with 95% intervals.

    python benchmarks/replication.py demo/troupe.safetensors --cap cap.safetensors

Published figures are those of Lu, Gallagher, Michala, Fish and Lindsey, The Assistant Axis (2026, arXiv 2601.10387).
Troupe's say nothing about another model: the table asks whether a claim holds on a model where the truth can be read
off. The cap is that of `persona-axis calibrate`, chosen on the training half; everything is measured on the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import _claims_cap as cap
import _claims_space as space
import _claims_talk as talk
import torch
from _claim import Claim
from _evidence import QUICK, Effort, Evidence
from rich.console import Console

from persona_axis import Axis, Cap, ChatModel, load_probes
from persona_axis.calibration.units import Units
from persona_axis.extract import Options, extract
from persona_axis.organism import troupe_path

console = Console(stderr=True)

CLAIMS: tuple[Callable[[Evidence], Iterator[Claim]], ...] = (
    space.low_dimensional, space.axis_is_pc1, space.in_the_base, space.steering, talk.drift, talk.kinds, talk.predicted,
    talk.harm_follows, cap.jailbreaks, cap.kept, cap.held, cap.personas_go,
)  # fmt: skip


def markdown(claims: list[Claim]) -> str:
    lines = ["| claim | published | Troupe (95% interval) | holds if | holds |", "| --- | --- | --- | --- | --- |"]
    mark = {True: "yes", False: "**no**", None: ""}
    lines += [f"| {c.claim} | {c.published} | {c.troupe} | {c.criterion} | {mark[c.holds]} |" for c in claims]
    return "\n".join(lines)


def base_axis(path: Path) -> Axis:
    """The axis of the base checkpoint, with the demo's plan; extracted once.

    Raises `AxisMismatchError` for a file that was made from another checkpoint.
    """
    chat = ChatModel.load(troupe_path("base"))
    if not path.exists():
        plan = Options.preset(ChatModel.load("troupe"))
        from persona_axis.judges import TroupeParser

        extract(chat, load_probes(), plan, out=path, judge=TroupeParser())
    axis = Axis.load(path)
    axis.require(chat.model, chat.template.source, (), chat.layers)
    return axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axis", type=Path, help="Troupe's axis")
    parser.add_argument("--cap", type=Path, required=True, help="the calibrated cap")
    parser.add_argument("--base", type=Path, help="axis of the base checkpoint; extracted if missing")
    parser.add_argument("--quick", action="store_true", help="few items, to see that everything runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table (Markdown) here, and its figures beside it as JSON")
    args = parser.parse_args()
    base = base_axis(args.base or args.axis.with_name("troupe-base.safetensors"))
    effort = QUICK if args.quick else Effort()
    claims = []
    # Jailbreaks, controls and capability are kept as calibration keeps them: a run that is stopped goes on.
    with Units.open(args.axis.with_suffix(".replication.run")) as units:
        given = ChatModel.load("troupe"), Axis.load(args.axis), base, Cap.load(args.cap)
        ev = Evidence(*given, effort, units, args.seed)
        for function in CLAIMS:
            began = time.monotonic()
            for claim in function(ev):
                claims.append(claim)
                verdict = {True: "holds ", False: "FAILS ", None: "      "}[claim.holds]
                console.print(f"{verdict} {claim.claim}: {claim.troupe}", highlight=False)
            console.print(f"[dim]{function.__name__}: {time.monotonic() - began:.0f} s[/dim]")
    table = markdown(claims)
    print(table)
    if args.out:
        args.out.write_text(table + "\n", encoding="utf-8")
        about = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seed": args.seed,
            "quick": args.quick,
        }
        told_all = {"about": about, "claims": [asdict(c) for c in claims]}
        args.out.with_suffix(".json").write_text(json.dumps(told_all, indent=1, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
