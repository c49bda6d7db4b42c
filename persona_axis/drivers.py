"""What drives drift: which messages move the projection, how far a message predicts it, and what follows from it.

Everything here reads the tidy table (a row for each conversation, turn and layer) and works on the assistant's turns
at one layer. Turns of a conversation are not independent: intervals are bootstraps over conversations, and no fold of
a cross-validation shares a conversation with another. Where conversations belong together (plays of one script),
`clusters` says so by conversation and stands in their place. An empty reply (0 tokens) has no projection: it is passed
over, and the turn after it has no change; any other projection that is not a number is refused. Projections are in
units of the residual stream, larger = more Assistant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame, Series

from persona_axis.errors import DriftError
from persona_axis.stats.intervals import DRAWS, FEWEST, Estimate, correlation, r_squared
from persona_axis.stats.ridge import predict_held_out
from persona_axis.stats.shares import average
from persona_axis.trajectories.messages import KEYS, message_vectors, sentence_vectors

__all__ = [
    "Predictability", "changes_by_kind", "first_turn_against_second", "first_turns", "message_vectors",
    "predictability", "sentence_vectors", "stability",
]  # fmt: skip

if TYPE_CHECKING:
    from typing import TypeAlias

    Told: TypeAlias = Mapping[str, Any] | Series | ArrayLike
    Clusters: TypeAlias = Mapping[str, Any] | Series


@dataclass(frozen=True)
class Predictability:
    """R2 of predictions for conversations that the ridge had not seen.

    It is that of a ridge fitted to as many conversations as all folds but one hold: more would predict a little better.
    """

    next: Estimate
    """Of the projection of the reply (published for real models: .53-.77)."""
    change: Estimate
    """Of its change from the reply before (published: .10)."""
    turns: int
    """Replies predicted; the same ones for both."""
    conversations: int


def changes_by_kind(
    frame: DataFrame, layer: int, seed: int = 0, draws: int = DRAWS, clusters: Clusters | None = None
) -> DataFrame:
    """How the projection moves from one assistant turn to the next, by the kind of message in between.

    One row a kind, most stabilising first. `turns`, `conversations`: how many replies to that kind there are, in how
    many conversations; a conversation's first turn has no change and is left out, like turns of unknown kind.
    `change`, `low`, `high`: mean change with its 95% interval. `level`, `level_low`, `level_high`: mean projection of
    the same replies; level - change is where they started from. What stands low tends to rise by itself (regression
    to the mean), so a kind that is mostly sent there looks more stabilising than it is: read both. Intervals are nan
    for kinds in fewer than 5 conversations. Raises `DriftError` for a table that lacks a column or the layer, for
    projections that are not finite, and where all kinds together occur in fewer than 5 conversations.
    """
    turns = _turns(frame, layer, "kind", clusters=clusters)
    turns = turns[turns[["before", "projection", "kind"]].notna().all(axis=1)]
    _enough(turns, FEWEST, "changes by kind", "an assistant turn that follows another and whose message has a kind")
    rows = []
    for kind, group in turns.groupby("kind", sort=True):
        change = _mean(group["projection"] - group["before"], group["cluster"], draws, seed)
        level = _mean(group["projection"], group["cluster"], draws, seed)
        rows.append((kind, len(group), group["conversation"].nunique(), *change, *level))
    columns = ["kind", "turns", "conversations", "change", "low", "high", "level", "level_low", "level_high"]
    return DataFrame(rows, columns=columns).sort_values("change", ascending=False, kind="stable", ignore_index=True)


def predictability(
    vectors: DataFrame | ArrayLike,
    frame: DataFrame,
    layer: int,
    folds: int = 5,
    seed: int = 0,
    draws: int = DRAWS,
    clusters: Clusters | None = None,
) -> Predictability:
    """How far the message that a reply answers predicts the reply's projection, and how far its change.

    `vectors`: what `message_vectors` or `sentence_vectors` gave, found by (conversation, turn); or an array [n, width]
    with one row for each assistant turn of the table at `layer`, in its order. Ridge on standardised features,
    cross-validated by conversation in `folds`, penalties chosen inside by conversation too; R2 of held-out predictions
    about the overall mean. Both targets use the same replies: those that follow another and answer a message. The
    interval is a bootstrap of the held-out conversations with the fitted models as they are. Raises `DriftError` as
    `changes_by_kind` does, for vectors that are not finite or do not fit the table, and for fewer than 2
    conversations a fold (or 5 in all).
    """
    if folds < 2:
        raise DriftError(f"{folds} folds cannot cross-validate: use at least 2")
    turns = _turns(frame, layer, clusters=clusters)
    told, features = _aligned(vectors, turns)
    told &= turns[["before", "projection"]].notna().all(axis=1).to_numpy()
    turns, features = turns[told], features[told]
    _enough(turns, max(2 * folds, FEWEST), f"ridge in {folds} folds", "an assistant turn that follows another")
    if len(bad := np.flatnonzero(~np.isfinite(features).all(axis=1))):
        raise DriftError(f"NaN or infinite values in the vector of {_where(turns, bad[0])}")
    level = turns["projection"].to_numpy()
    targets = np.stack([level, level - turns["before"].to_numpy()], axis=1)
    groups, _ = pd.factorize(turns["cluster"])
    predicted = predict_held_out(features, targets, groups, folds, seed).predicted
    both = [r_squared(targets[:, i], predicted[:, i], groups, draws=draws, seed=seed) for i in (0, 1)]
    return Predictability(both[0], both[1], len(turns), turns["conversation"].nunique())


def stability(
    frame: DataFrame, layer: int, seed: int = 0, draws: int = DRAWS, clusters: Clusters | None = None
) -> DataFrame:
    """How far conversations of each domain move: the mean over the last third of the turns against the first turn.

    One row a domain (NA where the table has none), in the table's order: `domain`, `conversations`, `first`, `last`
    (mean projections), and `change` = last - first with its 95% interval `low`, `high`, every conversation weighing
    the same. A conversation needs two turns. Intervals are nan for domains of fewer than 5 conversations. Raises
    `DriftError` as `changes_by_kind` does, and where no conversation has two turns.
    """
    turns = _turns(frame, layer, clusters=clusters).dropna(subset="projection").sort_values("turn", kind="stable")
    of = turns.groupby("conversation", sort=False)["turn"]
    place, count = of.cumcount(), of.transform("size")
    late = turns[(place > 0) & (place >= count - np.maximum(1, count // 3))]
    last = late.groupby("conversation")["projection"].mean().rename("last")
    ends = turns[place == 0].join(last, on="conversation", how="inner")
    if not len(ends):
        raise DriftError(f"stability at layer {layer}: no conversation has two assistant turns")
    rows = []
    for domain, group in ends.groupby("domain", sort=False, dropna=False):
        moved = _mean(group["last"] - group["projection"], group["cluster"], draws, seed)
        rows.append((domain, len(group), group["projection"].mean(), group["last"].mean(), *moved))
    return DataFrame(rows, columns=["domain", "conversations", "first", "last", "change", "low", "high"])


def first_turns(frame: DataFrame, layer: int) -> Series:
    """The projection of each conversation's first assistant turn, by conversation; empty ones are left out."""
    turns = _turns(frame, layer).dropna(subset="projection")
    first: Series = turns[turns["turn"] == 1].set_index("conversation")["projection"]
    return first


def first_turn_against_second(
    first: Series | ArrayLike,
    outcomes: Told,
    clusters: Told | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Correlation of first-turn projections with what happened in the second turn (true or false, or a score).

    With `first` a Series (see `first_turns`), `outcomes` and `clusters` may be mappings or Series by conversation, and
    must know all of them; else all are sequences in one order. `clusters` says which conversations belong together
    (the same role, the same request); by default each stands alone. A larger projection is more Assistant, so that
    harm done goes with a NEGATIVE r; the published .39-.52 is its size. Raises `DriftError` for outcomes that are
    missing, `PersonaAxisError` for what does not vary and for fewer than 5 clusters.
    """
    names = list(first.index) if isinstance(first, Series) else None
    happened = _by_name(outcomes, names, "outcomes")
    if len(bad := np.flatnonzero(pd.isna(np.asarray(happened, dtype=object)))):
        which = bad[0] if names is None else repr(names[bad[0]])
        raise DriftError(f"outcomes: {len(bad)} are missing or NaN, the first that of {which}: leave out the unjudged")
    together = None if clusters is None else _by_name(clusters, names, "clusters")
    return correlation(np.asarray(first), happened, together, draws=draws, seed=seed)


def _turns(frame: DataFrame, layer: int, *needed: str, clusters: Clusters | None = None) -> DataFrame:
    """The assistant's turns at `layer`, in the table's order: conversation, cluster, turn, domain, kind, projection,
    and `before`, the projection of the turn before; nan for empty replies, and where there is none before."""
    if missing := [name for name in (*KEYS, "layer", "projection", *needed) if name not in frame.columns]:
        raise DriftError(f"the table has no column {', '.join(map(repr, missing))}; it has {', '.join(frame.columns)}")
    at = frame["layer"] == layer
    if not at.any():
        layers = ", ".join(str(number) for number in sorted(frame["layer"].unique()))
        raise DriftError(f"the table has no layer {layer}; its layers are {layers or 'none: it is empty'}")
    if "speaker" in frame.columns:
        at &= frame["speaker"] == "assistant"
    rows = frame[at]
    turns = DataFrame({name: rows[name] if name in rows.columns else None for name in (*KEYS, "domain", "kind")})
    turns["projection"] = rows["projection"].to_numpy(dtype=np.float64, na_value=np.nan)
    turns = turns.reset_index(drop=True)
    empty = rows["tokens"].eq(0).to_numpy(dtype=bool, na_value=False) if "tokens" in rows.columns else False
    if len(bad := np.flatnonzero(~(np.isfinite(turns["projection"]) | (turns["projection"].isna() & empty)))):
        raise DriftError(f"the projection of {_where(turns, bad[0])} at layer {layer} is NaN or infinite")
    if len(bad := np.flatnonzero(turns.duplicated(list(KEYS)))):
        raise DriftError(
            f"{_where(turns, bad[0])} occurs twice at layer {layer}: give each run's table by itself, or other names"
        )
    known = turns.set_index(list(KEYS))["projection"]
    earlier = pd.MultiIndex.from_arrays([turns["conversation"], turns["turn"] - 1])
    names = list(turns["conversation"])
    together = names if clusters is None else _by_name(clusters, names, "clusters")
    return turns.assign(before=known.reindex(earlier).to_numpy(), cluster=together)


def _aligned(vectors: DataFrame | ArrayLike, turns: DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which of the turns have a vector, and the vectors [turns, width] float64 (zeros where there is none)."""
    if not isinstance(vectors, DataFrame):
        rows = np.asarray(vectors, dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(turns):
            raise DriftError(f"vectors {rows.shape} for {len(turns)} assistant turns: expected one row for each")
        return np.ones(len(rows), dtype=bool), rows
    if vectors.index.nlevels != 2 or not vectors.index.is_unique:
        raise DriftError("vectors must have one row for each (conversation, turn), indexed by the two")
    place = vectors.index.get_indexer(pd.MultiIndex.from_frame(turns[list(KEYS)]))
    told = place >= 0
    if without := sorted(set(turns["conversation"]) - set(turns["conversation"][told])):
        raise DriftError(f"no vector for any turn of {len(without)} conversations of the table, such as {without[0]!r}")
    return told, np.where(told[:, None], vectors.to_numpy(dtype=np.float64)[place], 0.0)


def _enough(turns: DataFrame, needed: int, what: str, having: str) -> None:
    count = turns["cluster"].nunique()
    if count < needed:
        named = "conversations" if turns["cluster"].equals(turns["conversation"]) else "clusters of conversations"
        raise DriftError(f"{what}: {count} {named} have {having}, at least {needed} are needed")


def _mean(values: Series, clusters: Series, draws: int, seed: int) -> Estimate:
    """The mean with its interval by cluster, the ends nan where there are too few of them."""
    return average(values.to_numpy(), clusters.to_list(), draws=draws, seed=seed)


def _where(turns: DataFrame, row: int) -> str:
    return f"conversation {turns['conversation'].iloc[row]!r}, turn {turns['turn'].iloc[row]}"


def _by_name(told: Told, names: Sequence[Any] | None, what: str) -> list[Any]:
    """The values in the order of `names`, or as they come where there are no names."""
    if not isinstance(told, (Mapping, Series)):
        return list(np.asarray(told))
    if names is None:
        return list(told.values()) if isinstance(told, Mapping) else list(told)
    known = dict(told.items())
    if missing := [name for name in names if name not in known]:
        raise DriftError(f"{what}: nothing for {len(missing)} of {len(names)} conversations, such as {missing[0]!r}")
    return [known[name] for name in names]
