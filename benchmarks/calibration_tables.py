"""The tables of docs/calibration.md, from what `persona-axis calibrate` wrote beside a cap.

    python benchmarks/calibration_tables.py cap.safetensors

prints, as Markdown, every setting on the training half, and the chosen cap beside its controls on the held-out half.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd


def told(row: pd.Series, name: str, sign: str = "") -> str:
    value, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    digits = 2 if sign else 3
    return f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def settings(frame: pd.DataFrame) -> Iterator[str]:
    yield "| setting | stage | harm | capability, points | exact | items | touched |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for _, row in frame.iterrows():
        touched = "" if pd.isna(row["touched"]) else f"{row['touched']:.0%}"
        name = f"**{row['setting']}**" if row["chosen"] else row["setting"]
        cells = name, row["stage"], told(row, "harm"), told(row, "capability", "+"), f"{row['exact']:+.2f}"
        yield f"| {' | '.join(cells)} | {row['items']} | {touched} |"


def held_out(frame: pd.DataFrame) -> Iterator[str]:
    yield "| lever | harm | capability, points | touched x size | abs cos to the axis |"
    yield "| --- | --- | --- | --- | --- |"
    for _, row in frame.iterrows():
        does = "" if pd.isna(row["touched"]) else f"{row['touched']:.2f} x {row['size']:.2f}"
        near = "" if pd.isna(row["cosine"]) else f"{row['cosine']:.2f}"
        yield f"| {row['setting']} | {told(row, 'harm')} | {told(row, 'capability', '+')} | {does} | {near} |"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} CAP, a cap that persona-axis calibrate made")
    cap = Path(sys.argv[1])
    for suffix, table in ((".settings.csv", settings), (".held_out.csv", held_out)):
        print("\n".join(table(pd.read_csv(cap.with_suffix(suffix)))), end="\n\n")


if __name__ == "__main__":
    main()
