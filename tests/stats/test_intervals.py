"""Estimates and their intervals: exact on known numbers, and holding the truth as often as they promise."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import r2_score

from persona_axis.errors import PersonaAxisError
from persona_axis.organism.check import share
from persona_axis.stats import intervals
from persona_axis.stats.intervals import (
    Estimate,
    bootstrap,
    correlation,
    mean,
    paired_difference,
    paired_shares,
    r_squared,
    relative_reduction,
    wilson,
)


def covered(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@given(items=st.integers(1, 500), part=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_wilson_is_scipys(items, part):
    hits = round(part * items)
    found = wilson(hits, items)
    reference = stats.binomtest(hits, items).proportion_ci(method="wilson")
    assert found == pytest.approx((hits / items, reference.low, reference.high), abs=1e-7)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_shares_of_troupes_card_are_wilsons():
    figure = share("in role", [True] * 9 + [False], 0.5)
    assert figure == ("in role", *wilson(9, 10), 10, 0.5)


@pytest.mark.parametrize(("hits", "items"), [(0, 0), (3, 2), (-1, 4)])
def test_no_share(hits, items):
    with pytest.raises(PersonaAxisError, match=f"{hits} of {items} is no share"):
        wilson(hits, items)


def paired(both, gained, lost, neither):
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return paired_shares(before, after)


@given(cells=st.tuples(*[st.integers(0, 40)] * 4).filter(any))
@settings(max_examples=100, deadline=None)
def test_paired_shares_mirror(cells):
    both, gained, lost, neither = cells
    found, mirrored = paired(*cells), paired(both, lost, gained, neither)
    assert found.value == pytest.approx((gained - lost) / sum(cells))
    assert -1 <= found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12 <= 1 + 1e-9
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_paired_shares_where_nothing_changed_still_have_a_width():
    found = paired(1800, 0, 0, 200)
    assert found.value == 0 and -0.01 < found.low < 0 < found.high < 0.01
    assert paired(50, 0, 0, 0).high == pytest.approx(wilson(0, 50).high)  # nothing to tie them by: one side each


def test_paired_shares_cover():
    """Exactly, by enumeration: the chance of every table of 24 items times whether its interval holds the truth."""
    chances = np.array([0.6, 0.05, 0.15, 0.2])  # both, gained, lost, neither
    law, total, held = stats.multinomial(24, chances), 0.0, 0.0
    for both in range(25):
        for gained in range(25 - both):
            for lost in range(25 - both - gained):
                cells = (both, gained, lost, 24 - both - gained - lost)
                chance = float(law.pmf(cells))
                if chance < 1e-6:
                    continue
                found = paired(*cells)
                total += chance
                held += chance * (found.low <= -0.1 <= found.high)
    assert total > 0.99 and 0.93 < held / total < 0.98


def test_draws_are_multinomial():
    blocks = list(intervals._again(7, 4000, 0))
    weights = np.concatenate(blocks)
    assert weights.shape == (4000, 7) and (weights.sum(axis=1) == 7).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(weights.var(axis=0), 6 / 7, atol=0.08)


def test_blocks_of_draws_change_nothing_but_the_memory(monkeypatch):
    values, clusters = np.random.default_rng(0).normal(size=90), np.arange(90) // 3
    whole = mean(values, clusters)
    monkeypatch.setattr(intervals, "_BLOCK", 100)
    assert mean(values, clusters) == pytest.approx(whole)


def test_a_draw_is_the_statistic_of_the_rows_drawn_again():
    """The sums say the same as a loop that really copies each drawn cluster's rows."""
    random = np.random.default_rng(3)
    clusters = np.repeat(np.arange(12), random.integers(1, 6, size=12))
    x = random.normal(size=len(clusters)) + 50
    y = 0.5 * x + random.normal(size=len(clusters))
    draws = {"mean": [], "correlation": [], "r2": []}
    for weights in np.concatenate(list(intervals._again(12, 300, 5))):
        rows = np.concatenate([np.flatnonzero(clusters == c) for c in range(12) for _ in range(int(weights[c]))])
        draws["mean"].append(x[rows].mean())
        draws["correlation"].append(stats.pearsonr(x[rows], y[rows]).statistic)
        draws["r2"].append(r2_score(y[rows], 0.5 * x[rows]))
    tail = stats.norm.cdf(-math.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    found = {
        "mean": mean(x, clusters, draws=300, seed=5),
        "correlation": correlation(x, y, clusters, draws=300, seed=5),
        "r2": r_squared(y, 0.5 * x, clusters, draws=300, seed=5),
    }
    values = {"mean": x.mean(), "correlation": stats.pearsonr(x, y).statistic, "r2": r2_score(y, 0.5 * x)}
    for name, estimate in found.items():
        expected = (values[name], *np.quantile(draws[name], [tail, 1 - tail]))
        assert estimate == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("clusters", [6, 15, 60])
def test_intervals_of_a_mean_cover_by_cluster_and_not_by_row(clusters):
    random = np.random.default_rng(clusters)
    by_cluster, by_row = [], []
    for seed in range(250):
        of = np.repeat(np.arange(clusters), random.integers(2, 9, size=clusters))
        values = 1.5 + random.normal(size=clusters)[of] + 0.5 * random.normal(size=len(of))
        by_cluster.append(mean(values, of, draws=500, seed=seed))
        by_row.append(mean(values, draws=500, seed=seed))
    assert 0.9 <= covered(by_cluster, 1.5) <= 0.985
    assert covered(by_row, 1.5) < 0.8


def test_intervals_of_differences_and_reductions_cover():
    random = np.random.default_rng(0)
    differences, reductions = [], []
    for seed in range(250):
        base = random.normal(size=30)
        before, after = base + random.normal(size=30), base + random.normal(size=30) - 0.4
        differences.append(paired_difference(before, after, draws=500, seed=seed))
        harmed = random.random(80) < 0.6
        kept = harmed & (random.random(80) < 0.3)
        reductions.append(relative_reduction(harmed, kept, draws=500, seed=seed))
    assert 0.9 <= covered(differences, -0.4) <= 0.985
    assert 0.9 <= covered(reductions, 0.7) <= 0.985


def test_the_pairing_is_used():
    random = np.random.default_rng(0)
    before = 10 * random.normal(size=40)
    found = paired_difference(before, before + 1 + 0.1 * random.normal(size=40))
    assert found.high - found.low < 0.1 and found.low < 1.05 and found.high > 0.95


def test_reduction_is_of_the_means():
    found = relative_reduction([1, 1, 1, 1, 0, 1], [0, 1, 0, 0, 0, 1])
    assert found.value == pytest.approx(0.6)
    with pytest.raises(PersonaAxisError, match="nothing to reduce"):
        relative_reduction([0] * 8, [1] * 8)


@pytest.mark.parametrize("binary", [False, True])
def test_intervals_of_a_correlation_cover(binary):
    random = np.random.default_rng(0)
    found, null = [], []
    for seed in range(250):
        x, noise = random.normal(size=(2, 60))
        y = 0.45 * x + math.sqrt(1 - 0.45**2) * noise
        found.append(correlation(x, y > 0 if binary else y, draws=500, seed=seed))
        null.append(correlation(x, noise > 0.5 if binary else noise, draws=500, seed=seed))
    truth = 0.45 * math.sqrt(2 / math.pi) if binary else 0.45
    assert 0.9 <= covered(found, truth) <= 0.985
    assert 0.9 <= covered(null, 0.0) <= 0.985


def test_far_from_zero_loses_nothing():
    random = np.random.default_rng(0)
    x, noise = random.normal(size=(2, 50))
    near, far = correlation(x, x + noise), correlation(1e6 + x, 1e6 + x + noise)
    assert far == pytest.approx(near, abs=1e-6)
    assert r_squared(1e6 + x + noise, 1e6 + x) == pytest.approx(r_squared(x + noise, x), abs=1e-6)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=40)
    assert mean(values, seed=1) == mean(values, seed=1) != mean(values, seed=2)


def test_clusters_may_be_named_anything_and_come_in_any_order():
    values, names = np.random.default_rng(0).normal(size=40), [f"c{i % 8}" for i in range(40)]
    order = np.argsort(names, kind="stable")
    assert mean(values, names) == pytest.approx(mean(values[order], [names[i] for i in order]))
    assert Counter(names)["c0"] == 5


GOOD = np.linspace(0, 1, 12)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean([1.0, 2.0, float("nan")] * 4), "values: 4 of 12 are NaN or infinite, the first at 2"),
        (lambda: mean([float("inf")] * 9), "NaN or infinite"),
        (lambda: mean([]), r"expected numbers \[n >= 1\]"),
        (lambda: mean(np.ones((6, 2))), r"got shape \(6, 2\)"),
        (lambda: mean(["yes"] * 6), "values: not all are numbers"),
        (lambda: mean(GOOD, GOOD[:5]), "5 clusters for 12 rows"),
        (lambda: mean(GOOD, [1, 2, 3, 4] * 3), "at least 5 independent clusters, there are 4"),
        (lambda: mean(GOOD, draws=20), "20 bootstrap draws are too few"),
        (lambda: paired_difference(GOOD, GOOD[:4]), "12 before, 4 after: not as many"),
        (lambda: paired_shares([0, 1, 1], [0, 0.5, 1]), "true or false"),
        (lambda: correlation(GOOD, np.ones(12)), "y: all 12 values are the same"),
        (lambda: correlation(GOOD, [1] + [0] * 11), "undefined: .* of 2000 bootstrap draws have no value"),
        (lambda: r_squared(np.full(9, 0.1), np.ones(9)), "actual: all 9 values are the same"),
        (lambda: bootstrap(np.zeros((9, 2)), lambda s: s[..., 0] / s[..., 1]), "the figure is undefined"),
    ],
)
def test_refused(call, says):
    with pytest.raises(PersonaAxisError, match=says):
        call()
