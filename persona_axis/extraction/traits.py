"""From the sums of a finished run to trait vectors: positive minus negative, fold by fold of the questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persona_axis import _folds
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.events import Listener
from persona_axis.extraction.finish import run_metadata, run_notes
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.store import TALLIES, RunStore
from persona_axis.judges import Judge
from persona_axis.trait_probes import Trait
from persona_axis.traits import Traits


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
    counts = torch.cat([store.tensor(b, "counts") for b in range(1, plan.n_blocks)]).numpy()
    default_counts = store.tensor(0, "counts").numpy()[0]
    if not default_counts.sum():
        raise ExtractionError("every reply of the default was empty: there is nothing to compare the traits with")
    accepted = counts.sum(axis=1).reshape(-1, 2)  # [traits, poles]
    kept = _kept(plan, counts, accepted)
    folds, places = _differences(plan, store, kept, counts, default_counts)
    apart = (np.abs(folds.mean(axis=1)).max(axis=-1) > 0).all(axis=-1)
    kept, folds, places = [i for i, so in zip(kept, apart, strict=True) if so], folds[apart], places[apart]
    below = {trait.name: accepted[i].tolist() for i, trait in enumerate(traits) if i not in set(kept)}
    if not kept:
        raise ExtractionError(
            f"no trait has {plan.options.min_accepted} accepted replies of each pole, some in every part of the "
            f"questions, and poles that differ (judge {judge.name!r} accepted at most {int(accepted.max())} "
            f"of a pole's {plan.per_role}); no traits are saved"
        )
    tallies = torch.cat([store.tensor(b, "tallies") for b in range(plan.n_blocks)])
    notes = run_notes(chat, plan, {name: int(tallies[:, i].sum()) for i, name in enumerate(TALLIES)}, {})
    if below:
        notes.append(
            f"{len(below)} traits have no vector: fewer than {plan.options.min_accepted} accepted replies of a pole, "
            "none in some part of the questions, or poles that do not differ"
        )
    about = run_metadata(chat, plan, judge)
    shape = {"traits": len(traits), "default_samples": plan.options.default_samples, "folds": folds.shape[1]}
    metadata = about | {
        "trait_names": [traits[i].name for i in kept],
        "kinds": [traits[i].kind for i in kept],
        "descriptions": {traits[i].name: [traits[i].description, traits[i].opposite] for i in kept},
        "accepted": {traits[i].name: accepted[i].tolist() for i in kept},
        "traits_below": below,
        "default_count": int(default_counts.sum()),
        "plan": {key: value for key, value in about["plan"].items() if key != "roles"} | shape,
        "notes": notes,
    }
    found = Traits.from_folds(folds, places, layers=plan.layers, metadata=metadata)
    found.save(out)
    return found


def _kept(plan: Plan, counts: NDArray[Any], accepted: NDArray[Any]) -> list[int]:
    """Positions of the traits whose poles have enough accepted replies, and some in each fold."""
    in_folds = np.stack([counts[:, fold].sum(axis=1) for fold in _parts(plan)], axis=1)
    least = in_folds.min(axis=1).reshape(-1, 2).min(axis=1)
    enough = (accepted.min(axis=1) >= plan.options.min_accepted) & (least > 0)
    return [int(i) for i in np.flatnonzero(enough)]


def _parts(plan: Plan) -> list[slice]:
    """The question groups of each fold."""
    count = min(plan.groups, _folds.MOST_FOLDS)
    return [slice(first, None, count) for first in range(count)]


def _differences(
    plan: Plan, store: RunStore, kept: Sequence[int], counts: NDArray[Any], default_counts: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Differences by fold [n, K, L, H] and places [n, 3, L] on the unit of their mean; one layer's sums are in memory
    at a time.

    A pole's place is the mean of its folds' means, each weighing the same, so that the two places lie as far apart as
    the trait's vector is long.
    """
    parts = _parts(plan)
    of_poles = np.stack([counts[:, fold].sum(axis=1) for fold in parts], axis=1)  # [poles, K]
    poles = np.array([[2 * i, 2 * i + 1] for i in kept], dtype=int).reshape(-1, 2)
    differences, places = [], []
    for row in range(len(plan.layers)):
        sums = torch.cat([store.layer_sums(b, row) for b in range(1, plan.n_blocks)]).numpy()
        folded = np.stack([sums[:, fold].sum(axis=1, dtype=np.float64) for fold in parts], axis=1)  # [poles, K, H]
        means = folded[poles] / of_poles[poles][..., None]  # [n, 2, K, H]
        default = store.layer_sums(0, row).numpy()[0].sum(axis=0, dtype=np.float64) / default_counts.sum()
        difference = (means[:, 0] - means[:, 1]).astype(np.float32)
        toward = _folds.unit(difference.mean(axis=1, dtype=np.float64))
        of_pole = np.einsum("nph,nh->np", means.mean(axis=2), toward)
        places.append(np.column_stack([of_pole, toward @ default]))
        differences.append(difference)
    return np.stack(differences, axis=2), np.stack(places, axis=2)
