"""From the sums of a finished run to an axis: role vectors, certainty, quantile tables, metadata, the
file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from persona_axis import __version__
from persona_axis.axis import Axis, directions
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction import quantiles
from persona_axis.extraction.blocks import TALLIES
from persona_axis.extraction.certainty import Certainty, SplitHalf
from persona_axis.extraction.events import Listener
from persona_axis.extraction.layersums import LayerSums
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.report import Counts, Extraction, layer_figures, recommend
from persona_axis.extraction.rolevectors import is_whole, role_vectors, stored_layers
from persona_axis.extraction.rounds import chosen_layers
from persona_axis.extraction.settings import sampling_facts, surroundings
from persona_axis.extraction.store import RunStore
from persona_axis.judges import Judge


def finish(
    chat: ChatModel, plan: Plan, judge: Judge, store: RunStore, out: Path, listener: Listener, seconds: float
) -> Extraction:
    """Turn a run whose rollouts are all drawn into a saved axis and its report."""
    counts = torch.cat([store.blocks.tensor(b, "counts") for b in range(1, plan.n_blocks)]).numpy()
    default_counts = store.blocks.tensor(0, "counts").numpy()[0]
    tallies = torch.cat([store.blocks.tensor(b, "tallies") for b in range(plan.n_blocks)])
    drawn = tallies[:, TALLIES.index("drawn")].numpy()
    kept = _kept(plan, judge, counts, int(default_counts.sum()), drawn[1:])
    default, mean, certainty = _means(plan, store, kept)
    taken = quantiles.sample(store.rollouts(), plan, [plan.roles[i] for i in kept])
    direction = torch.from_numpy(directions(default, mean[None]))
    tables = quantiles.tables(chat, plan, direction, taken, listener)
    accepted = {plan.role(role).name: int(n) for role, n in zip(plan.roles, counts.sum(axis=1), strict=True)}
    names = [plan.role(plan.roles[i]).name for i in kept]
    below = {name: n for name, n in accepted.items() if name not in set(names)}
    totals = {name: int(tallies[:, i].sum()) for i, name in enumerate(TALLIES)}
    notes = run_notes(chat, plan, totals, below)
    if plan.prompts == 1:
        notes.append("one prompt a role: how much other wordings would change the axis is not measured")
    by_prompts = [one.prompts for one in certainty if one.prompts is not None]
    metadata = run_metadata(chat, plan, judge, store) | {
        "role_names": names,
        "accepted": {name: accepted[name] for name in names},
        "roles_below": below,
        "default_count": int(default_counts.sum()),
        "split_half": _stated([one.questions for one in certainty]),
        "precision": _precision(plan, store, chat.n_layers, certainty),
        **({"split_half_prompts": _stated(by_prompts)} if by_prompts else {}),
        "recommended_layer": recommend(plan.layers, chat.n_layers, tables.default, tables.roles),
        "calibration": tables.sample,
        "tallies": totals,
        "notes": notes,
    }
    norms = store.blocks.tensor(0, "norms") / max(1, int(tallies[0, TALLIES.index("tokens")]))
    by_name = {name: getattr(tables, name) for name in ("default", "roles", "default_tokens", "roles_tokens")}
    at = stored_layers(plan, len(kept), chat.hidden_size, metadata["recommended_layer"])
    roles = role_vectors(plan, store, kept, counts, at)
    whole = is_whole(plan, at, len(kept), chat.hidden_size)
    axis = Axis.from_means(
        default, roles, layers=plan.layers, metadata=metadata, mean_norm=norms, quantiles=by_name,
        bfloat16_roles=plan.options.bfloat16_roles,
        roles_mean=None if whole else mean, role_layers=None if whole else at,
    )  # fmt: skip
    axis.save(out)
    shown = axis.recommended_layer if axis.recommended_layer in at else at[len(at) // 2]
    space = axis.space(shown)
    place = float(axis.project(axis.arrays["default"][axis.row(shown)], shown))
    return Extraction(
        axis=axis,
        path=out,
        layers=layer_figures(axis),
        kept={name: accepted[name] for name in names},
        below=below,
        counts=_counts(totals),
        ranking=space.ranking(),
        default_projection=place,
        default_above=float((space.projections < place).mean()),
        calibration=tables.sample,
        seconds=seconds,
        notes=notes,
    )


def _kept(plan: Plan, judge: Judge, counts: NDArray[Any], default_count: int, drawn: NDArray[Any]) -> list[int]:
    """Positions in the plan of the roles with enough accepted rollouts."""
    least, accepted = plan.options.min_accepted, counts.sum(axis=1)
    kept = [i for i, n in enumerate(accepted) if n >= least]
    if default_count == 0:
        raise ExtractionError("every reply of the default was empty or went round in a loop: it has no vector")
    if len(kept) < 2:
        best = int(np.argmax(accepted))
        raise ExtractionError(
            f"{len(kept)} of {len(accepted)} roles have {least} accepted rollouts, at least 2 must: the most has "
            f"{plan.role(plan.roles[best]).name!r} with {int(accepted[best])} of {int(drawn[best])}. The judge "
            f"{judge.name!r} decides what counts: take another (--judge; all accepts everything), a milder --accept, "
            "or fewer with --min-accepted"
        )
    return kept


class _Means(NamedTuple):
    default: NDArray[np.float64]
    """[layers, hidden]."""
    of_roles: NDArray[np.float64]
    """[layers, hidden]: the mean of the role vectors."""
    certainty: list[Certainty]
    """By row of the plan's layers."""


def _means(plan: Plan, store: RunStore, kept: Sequence[int]) -> _Means:
    """Default and mean of the `kept` roles, and how certain their axis is; one layer is in memory at a time."""
    default, mean, found = [], [], []
    for row, layer in enumerate(plan.layers):
        sums = LayerSums.read(plan, store, row).of(kept)
        default.append(sums.default_mean)
        mean.append(sums.role_means.mean(axis=0))
        found.append(sums.certainty(plan.options.seed + layer))
    return _Means(np.stack(default), np.stack(mean), found)


def _stated(halves: Sequence[SplitHalf]) -> dict[str, list[float]]:
    return {key: [getattr(half, key) for half in halves] for key in SplitHalf._fields}


def _precision(plan: Plan, store: RunStore, num_layers: int, certainty: Sequence[Certainty]) -> dict[str, Any]:
    """How far the rounds went and what they reached."""
    chosen = chosen_layers(plan, num_layers)
    rows = [plan.layers.index(layer) for layer in chosen]
    return {
        "asked": plan.options.precision,
        "layers": list(chosen),
        "expected": min(certainty[row].expected for row in rows),
        "low": min(certainty[row].low for row in rows),
        "rounds": [[sum(part.stop), part.expected, part.low] for part in store.records.read_rounds(len(plan.roles))],
        "of_rollouts": plan.rollouts,
    }


def run_metadata(chat: ChatModel, plan: Plan, judge: Judge, store: RunStore) -> dict[str, Any]:
    """What a file states about the model that was asked and how."""
    facts = chat.facts
    engine = store.records.engine()
    return {
        "model": facts["model"],
        "revision": facts["revision"],
        "architecture": facts["architecture"],
        "dtype": facts["dtype"],
        "hidden_size": chat.hidden_size,
        "num_layers": chat.n_layers,
        "weights_sha256": facts["weights_sha256"],
        "chat_template_sha256": facts["chat_template_sha256"],
        "probes_sha256": plan.probes.fingerprint,
        "engine": engine,
        "judge": judge.name,
        "accept": list(plan.options.accept),
        "min_accepted": plan.options.min_accepted,
        "sampling": sampling_facts(chat, plan),
        "seed": plan.options.seed,
        "plan": {
            "roles": len(plan.roles),
            "prompts": plan.prompts,
            "questions": len(plan.questions),
            "default_samples": plan.options.default_samples,
            "question_groups": plan.groups,
            "rollouts": plan.rollouts,
            "batch_size": plan.batch_size,
        },
        "versions": {"persona_axis": __version__, **surroundings(engine)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run_notes(chat: ChatModel, plan: Plan, totals: dict[str, int], below: dict[str, int]) -> list[str]:
    """What a reader of the file should know of the replies and of the roles that are not in it."""
    notes = list(chat.notes)
    said = {
        "empty": "replies were empty and count for nothing",
        "thinking": "replies hold a thinking block although thinking is off; its tokens count as well",
        "unparsable": "replies got no verdict from the judge that could be read, and are not accepted",
        "cut": "replies were cut at the token limit",
        "looping": "replies ended in a loop of the same few words and count for nothing",
    }
    notes += [f"{totals[kind]} of {totals['drawn']} {text}" for kind, text in said.items() if totals[kind]]
    if below:
        notes.append(
            f"{len(below)} roles had fewer than {plan.options.min_accepted} accepted rollouts "
            "and have no vector"
        )
    return notes


def _counts(totals: dict[str, int]) -> Counts:
    scores = {score: totals[f"score{score}"] for score in range(4)}
    drawn = totals["drawn"]
    return Counts(
        drawn,
        totals["tokens"],
        totals["empty"],
        totals["thinking"],
        totals["cut"],
        totals["unparsable"],
        scores,
    )
