"""From the sums of a finished run to trait vectors: positive minus negative, fold by fold of the questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.blocks import TALLIES
from persona_axis.extraction.events import Listener
from persona_axis.extraction.finish import run_metadata, run_notes
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.store import RunStore
from persona_axis.judges import Judge
from persona_axis.stats import folding
from persona_axis.trait_probes import Trait
from persona_axis.traits import Traits


class _Layer(NamedTuple):
    """Differences by fold [n, K, H], places [n, 3] on the unit of their mean, agreement of the pairs [n]."""

    folds: NDArray[np.float32]
    places: NDArray[np.float64]
    wordings: NDArray[np.float64]


def finish_traits(
    chat: ChatModel,
    plan: Plan,
    judge: Judge,
    store: RunStore,
    out: Path,
    listener: Listener,
    seconds: float,
    *,
    traits: Sequence[Trait],
) -> Traits:
    """Turn a run of `as_roles(traits, probes)` whose rollouts are all drawn into a saved traits file."""
    shape = (len(traits), 2, len(plan.roles) // (2 * len(traits)))  # traits, poles, pairs
    counts = torch.cat([store.blocks.tensor(b, "counts") for b in range(1, plan.n_blocks)]).numpy().reshape(*shape, -1)
    default_counts = store.blocks.tensor(0, "counts").numpy()[0]
    if not default_counts.sum():
        raise ExtractionError("every reply of the default was empty or a loop: there is nothing to compare with")
    accepted = counts.sum(axis=(2, 3))  # [traits, poles]
    kept, parts = _kept(plan, counts)
    found = []
    for row in range(len(plan.layers)):  # one layer's sums are in memory at a time
        sums = torch.cat([store.blocks.layer_sums(b, row) for b in range(1, plan.n_blocks)]).numpy()
        default = store.blocks.layer_sums(0, row).numpy()[0].sum(axis=0, dtype=np.float64) / default_counts.sum()
        found.append(_vectors(sums.reshape(*counts.shape, -1)[kept], counts[kept], default, parts))
    folds = np.stack([vectors.folds for vectors in found], axis=2)
    places = np.stack([vectors.places for vectors in found], axis=2)
    wordings = np.stack([vectors.wordings for vectors in found], axis=1)
    apart = (np.abs(folds.mean(axis=1)).max(axis=-1) > 0).all(axis=-1)
    kept = [i for i, so in zip(kept, apart, strict=True) if so]
    below = {trait.name: accepted[i].tolist() for i, trait in enumerate(traits) if i not in set(kept)}
    if not kept:
        raise ExtractionError(
            f"no trait has {plan.options.min_accepted} accepted replies of each pole, some in every part of the "
            f"questions, and poles that differ (judge {judge.name!r} accepted at most {int(accepted.max())} "
            f"of a pole's {shape[2] * plan.per_role}); no traits are saved"
        )
    tallies = torch.cat([store.blocks.tensor(b, "tallies") for b in range(plan.n_blocks)])
    notes = run_notes(chat, plan, {name: int(tallies[:, i].sum()) for i, name in enumerate(TALLIES)}, {})
    if below:
        notes.append(
            f"{len(below)} traits have no vector: fewer than {plan.options.min_accepted} accepted replies of a pole, "
            "none of an instruction or in some part of the questions, or poles that do not differ"
        )
    about = run_metadata(chat, plan, judge, store)
    plan_facts = {key: value for key, value in about["plan"].items() if key not in ("roles", "prompts")}
    plan_facts |= {"traits": shape[0], "pairs": shape[2], "folds": folds.shape[1]}
    metadata = about | {
        "trait_names": [traits[i].name for i in kept],
        "kinds": [traits[i].kind for i in kept],
        "descriptions": {traits[i].name: [traits[i].description, traits[i].opposite] for i in kept},
        "accepted": {traits[i].name: accepted[i].tolist() for i in kept},
        "traits_below": below,
        "default_count": int(default_counts.sum()),
        "plan": plan_facts,
        "notes": notes,
    }
    made = Traits.from_folds(folds[apart], places[apart], wordings[apart], layers=plan.layers, metadata=metadata)
    made.save(out)
    return made


def _kept(plan: Plan, counts: NDArray[Any]) -> tuple[list[int], list[slice]]:
    """Positions of the traits whose poles have enough accepted replies, some of each instruction and in each fold; and
    the question groups of each fold.

    `counts` [traits, poles, pairs, groups]. A strict judge leaves some folds empty: then there are half as many, or
    half of these, rather than traits without a vector.
    """
    enough = (counts.sum(axis=(2, 3)) >= plan.options.min_accepted).all(axis=1)
    enough &= (counts.sum(axis=3) > 0).all(axis=(1, 2))
    folds = min(plan.groups, folding.MOST_FOLDS)
    while True:
        parts = [slice(first, None, folds) for first in range(folds)]
        in_all = np.all([(counts[..., fold].sum(axis=(2, 3)) > 0).all(axis=1) for fold in parts], axis=0)
        if folds < 4 or in_all[enough].all():
            return [int(i) for i in np.flatnonzero(enough & in_all)], parts
        folds //= 2


def _vectors(
    sums: NDArray[np.float32], counts: NDArray[Any], default: NDArray[np.float64], parts: Sequence[slice]
) -> _Layer:
    """The vectors of one layer: `sums` [n, poles, pairs, groups, H], `counts` without H, the mean of the default [H].

    A pole's place is the mean of its folds' means, each weighing the same, so that the two places lie as far apart as
    the trait's vector is long.
    """
    folded = [
        sums[..., fold, :].sum(axis=(2, 3), dtype=np.float64) / counts[..., fold].sum(axis=(2, 3))[..., None]
        for fold in parts
    ]
    means = np.stack(folded, axis=2)  # [n, poles, K, H]
    difference = (means[:, 0] - means[:, 1]).astype(np.float32)
    toward = folding.unit(difference.mean(axis=1, dtype=np.float64))
    places = np.column_stack([np.einsum("nph,nh->np", means.mean(axis=2), toward), toward @ default])
    by_pair = sums.sum(axis=3, dtype=np.float64) / counts.sum(axis=3)[..., None]  # [n, poles, pairs, H]
    return _Layer(difference, places, folding.agreement(by_pair[:, 0] - by_pair[:, 1]))
