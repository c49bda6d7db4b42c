"""The traits of a set of probes, `traits.jsonl`: pairs of instructions that show a trait and that suppress it.

A trait is asked for as roles are: each of its instructions becomes a role, so that both poles answer the same
questions, and all that is done with roles (plan, rollouts, judge, resume) holds for traits as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_axis.errors import ProbeError
from persona_axis.files.records import Seen, checked_text, records, text_of
from persona_axis.probes import Probes, Role, probes_path

LEAST_PAIRS = 2
_KEYS = ("name", "kind", "description", "opposite", "positive", "negative")


@dataclass(frozen=True)
class Trait:
    """A trait: a line a judge goes by for each pole, and system prompts of which the i-th of `positive` and the i-th of
    `negative` ask for opposite things in like words."""

    name: str
    kind: str
    description: str
    opposite: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def load_traits(dir: str | Path | None = None, names: Collection[str] | None = None) -> tuple[Trait, ...]:
    """Read and check `traits.jsonl` in `dir` (the shipped probes unless given); `names` takes only these.

    Raises `ProbeError` with the file and the line on all that `load_probes` refuses, on poles of unlike length and on
    fewer than two pairs; and for a name that no trait has.
    """
    path = (probes_path() if dir is None else Path(dir)) / "traits.jsonl"
    seen, texts, traits = Seen("trait name"), Seen("text"), []
    for where, record in records(path, _KEYS):
        name, kind = text_of(record, "name", where), text_of(record, "kind", where)
        description, opposite = (text_of(record, key, where) for key in ("description", "opposite"))
        poles = [_instructions(record, key, name, where) for key in ("positive", "negative")]
        if len(poles[0]) != len(poles[1]):
            raise ProbeError(
                f"{where}: trait {name!r} has {len(poles[0])} positive and {len(poles[1])} negative instructions; "
                "they are pairs"
            )
        seen.add(name, where)
        for text in (description, opposite, *poles[0], *poles[1]):
            texts.add(text, where)
        traits.append(Trait(name, kind, description, opposite, *poles))
    if names is None:
        return tuple(traits)
    known = [trait.name for trait in traits]
    if unknown := [name for name in names if name not in known]:
        raise ProbeError(f"{path}: no trait is called {unknown[0]!r}: there are {', '.join(known)}")
    return tuple(trait for trait in traits if trait.name in names)


def as_roles(traits: Sequence[Trait], probes: Probes, pairs: int) -> Probes:
    """The probes with one role for each instruction in place of their own: by trait, by pole (+ first), by pair.

    "warm + 1" is the first instruction to be warm. Of each trait the first `pairs` pairs are taken. Raises `ProbeError`
    for no traits and for more pairs than a trait has or fewer than two: how far they agree is part of the result.
    """
    if not traits:
        raise ProbeError("no traits to ask for: name at least one")
    if pairs < LEAST_PAIRS:
        raise ProbeError(f"traits are asked for by at least {LEAST_PAIRS} pairs of instructions, got {pairs}")
    for trait in traits:
        if len(trait.positive) < pairs:
            raise ProbeError(f"{pairs} pairs of instructions asked for, trait {trait.name!r} has {len(trait.positive)}")
    roles = [
        Role(f"{trait.name} {sign} {pair}", description, (instruction,))
        for trait in traits
        for sign, description, instructions in (
            ("+", trait.description, trait.positive),
            ("-", trait.opposite, trait.negative),
        )
        for pair, instruction in enumerate(instructions[:pairs], start=1)
    ]
    return Probes(tuple(roles), probes.defaults, probes.questions)


def _instructions(record: dict[str, Any], key: str, name: str, where: str) -> tuple[str, ...]:
    given = record[key]
    if not isinstance(given, list) or len(given) < LEAST_PAIRS:
        raise ProbeError(f"{where}: {key!r} of trait {name!r} must be a list of at least {LEAST_PAIRS} texts")
    return tuple(checked_text(text, f"one of {key!r} of trait {name!r}", where) for text in given)
