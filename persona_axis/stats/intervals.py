"""Shares, means, differences, correlations and R2, each with its 95% interval.

Turns of one conversation resemble each other, so a bootstrap draws whole clusters again (conversations,
scripts, items), never single rows. Every statistic here is a function of sums over rows: a draw costs one row
of a matrix product, whatever the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_axis.errors import PersonaAxisError

Array = NDArray[np.float64]

DRAWS = 2000
FEWEST = 5
"""Clusters below which a bootstrap says nothing: no draw reaches as far as the interval has to."""

_Z = 1.959964
_BLOCK = 1 << 22  # numbers drawn at once
_UNDEFINED = 0.05  # share of draws that may lack a value before the interval is refused


class Estimate(NamedTuple):
    """A figure and the ends of its 95% interval, in the figure's own units; ends are nan where none can be given."""

    value: float
    low: float
    high: float


def wilson(hits: int, items: int) -> Estimate:
    """The share hits / items; Wilson's score interval stays inside [0, 1] also at the ends."""
    if not 0 <= hits <= items or items == 0:
        raise PersonaAxisError(f"{hits} of {items} is no share: give at least one item, and no more hits than items")
    p = hits / items
    centre, width = p + _Z * _Z / (2 * items), _Z * math.sqrt(p * (1 - p) / items + _Z * _Z / (4 * items * items))
    scale = 1 + _Z * _Z / items
    # At 0 and 1 an end is exactly p, but for rounding.
    return Estimate(p, min(p, max(0.0, (centre - width) / scale)), max(p, min(1.0, (centre + width) / scale)))


def paired_shares(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """share(after) - share(before) over the same independent items, in [-1, 1].

    Newcombe's interval for paired shares (Stat. Med. 17, 1998, method 10): unlike a bootstrap's it keeps a width
    when no item changed. Items that come in clusters need `paired_difference`.
    """
    first, second = _columns(before=before, after=after)
    if not set(np.unique([first, second])) <= {0.0, 1.0}:
        raise PersonaAxisError("paired shares need outcomes that are true or false; use paired_difference for others")
    n = len(first)
    both, neither = float((first * second).sum()), float(((1 - first) * (1 - second)).sum())
    gained, lost = float(((1 - first) * second).sum()), float((first * (1 - second)).sum())
    old, new = wilson(int(first.sum()), n), wilson(int(second.sum()), n)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    tied = both * neither - gained * lost
    phi = 0.0 if product == 0 else (max(tied - n / 2, 0.0) if tied > 0 else tied) / math.sqrt(product)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    value = (gained - lost) / n
    low = value - reach(new.value - new.low, old.high - old.value)
    high = value + reach(new.high - new.value, old.value - old.low)
    return Estimate(value, max(low, -1.0), min(high, 1.0))


def mean(values: ArrayLike, clusters: Sequence[Any] | None = None, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean over rows [n]; every row weighs the same, clusters are drawn again."""
    (x,) = _columns(values=values)
    return bootstrap(np.stack([np.ones_like(x), x], 1), lambda s: s[..., 1] / s[..., 0], clusters, draws, seed)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[Any] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean of after - before over pairs [n]. Where all pairs differ by the same the interval has no width."""
    first, second = _columns(before=before, after=after)
    return mean(second - first, clusters, draws=draws, seed=seed)


def relative_reduction(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[Any] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """1 - mean(after) / mean(before) over pairs [n]: 0.6 means that it fell by 60%."""
    first, second = _columns(before=before, after=after)
    if first.sum() <= 0:
        raise PersonaAxisError("nothing to reduce: the outcomes before sum to 0 or less")
    return bootstrap(np.stack([first, second], 1), lambda s: 1 - s[..., 1] / s[..., 0], clusters, draws, seed)


def correlation(
    x: ArrayLike, y: ArrayLike, clusters: Sequence[Any] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Pearson's r of pairs [n]; with y true or false it is the point-biserial correlation."""
    a, b = (_standardised(name, column) for name, column in zip("xy", _columns(x=x, y=y), strict=True))

    def pearson(s: Array) -> Array:
        n, sa, sb = s[..., 0], s[..., 1], s[..., 2]
        spread = _spread(s[..., 3], sa, n) * _spread(s[..., 4], sb, n)
        r: Array = np.clip((s[..., 5] - sa * sb / n) / np.sqrt(spread), -1, 1)
        return r

    sums = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], 1)
    return bootstrap(sums, pearson, clusters, draws, seed)


def r_squared(
    actual: ArrayLike,
    predicted: ArrayLike,
    clusters: Sequence[Any] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """1 - sum (actual - predicted)^2 / sum (actual - mean(actual))^2 of predictions [n] made for rows not fitted.

    Below 0 where the mean predicts better. The interval is that of the cases; the predictions are held as they are.
    """
    y, guess = _columns(actual=actual, predicted=predicted)
    z = _standardised("actual", y)
    error = (y - guess) / y.std()
    sums = np.stack([np.ones_like(z), z, z * z, error * error], 1)
    return bootstrap(sums, lambda s: 1 - s[..., 3] / _spread(s[..., 2], s[..., 1], s[..., 0]), clusters, draws, seed)


def bootstrap(
    rows: Array,
    of: Callable[[Array], Array],
    clusters: Sequence[Any] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """`of(sums)` of the sums over `rows` [n, m], with a 95% percentile interval over clusters drawn again.

    `of` maps sums [..., m] to values [...], nan where they have none. `clusters` [n] names each row's; None: each row
    is its own. The percentiles are those at which the interval of a mean is as wide as Student's (Hesterberg 2015,
    "expanded"): plain ones are too narrow for few clusters. Raises `PersonaAxisError` for fewer than `FEWEST` clusters,
    a value that is undefined, or one undefined in more than 5% of the draws.
    """
    if draws < 100:
        raise PersonaAxisError(f"{draws} bootstrap draws are too few: use at least 100")
    if clusters is not None and len(clusters) != len(rows):
        raise PersonaAxisError(f"{len(clusters)} clusters for {len(rows)} rows")
    totals = rows
    if clusters is not None:
        names, of_row = np.unique(np.asarray(clusters), return_inverse=True)
        totals = np.zeros((len(names), rows.shape[1]))
        np.add.at(totals, of_row, rows)
    count = len(totals)
    if count < FEWEST:
        raise PersonaAxisError(f"a 95% interval needs at least {FEWEST} independent clusters, there are {count}")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of(totals.sum(axis=0)))
        found = np.concatenate([of(weights @ totals) for weights in _again(count, draws, seed)])
    defined = found[np.isfinite(found)]
    if not math.isfinite(value):
        raise PersonaAxisError("the figure is undefined on these data")
    if len(defined) < (1 - _UNDEFINED) * draws:
        raise PersonaAxisError(
            f"the interval is undefined: {draws - len(defined)} of {draws} bootstrap draws have no value; more "
            "clusters with outcomes of every sort are needed"
        )
    from scipy.special import ndtr, stdtrit  # figures import this module, and rarely need it

    tail = ndtr(-math.sqrt(count / (count - 1)) * stdtrit(count - 1, 0.975))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _again(clusters: int, draws: int, seed: int) -> Iterator[Array]:
    """Blocks of [draws, clusters]: how often each cluster counts when as many are drawn with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // clusters)
    for start in range(0, draws, step):
        block = min(step, draws - start)
        drawn = rng.integers(clusters, size=(block, clusters)) + clusters * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * clusters).reshape(block, clusters).astype(np.float64)


def _columns(**given: ArrayLike) -> list[Array]:
    """The columns as float64 [n], n >= 1, all finite and equally long; the error names the one that is not."""
    columns = {}
    for name, values in given.items():
        try:
            columns[name] = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PersonaAxisError(f"{name}: not all are numbers: {error}") from error
    for name, column in columns.items():
        if column.ndim != 1 or len(column) == 0:
            raise PersonaAxisError(f"{name}: expected numbers [n >= 1], got shape {column.shape}")
        if bad := np.flatnonzero(~np.isfinite(column)).tolist():
            raise PersonaAxisError(f"{name}: {len(bad)} of {len(column)} are NaN or infinite, the first at {bad[0]}")
    if len({len(column) for column in columns.values()}) > 1:
        raise PersonaAxisError(", ".join(f"{len(c)} {name}" for name, c in columns.items()) + ": not as many")
    return list(columns.values())


def _standardised(name: str, column: Array) -> Array:
    """Mean 0 and standard deviation 1: sums of squares then lose nothing to rounding."""
    centred = column - column.mean()
    spread = float(np.sqrt((centred * centred).mean()))
    if spread <= 1e-12 * float(np.abs(column).max()):
        raise PersonaAxisError(f"{name}: all {len(column)} values are the same, so nothing can go with them")
    return np.asarray(centred / spread)


def _spread(squares: Array, sums: Array, n: Array) -> Array:
    """Sum of squares about the mean of standardised values; nan where they do not vary."""
    about = squares - sums * sums / n
    return np.asarray(np.where(about > 1e-12 * n, about, np.nan))
