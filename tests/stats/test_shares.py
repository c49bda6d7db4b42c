"""Shares and falls never pretend to certainty that replies all alike do not give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_axis.stats.intervals import mean, relative_reduction, wilson
from persona_axis.stats.shares import average, fall, share


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12))
def test_a_share_lies_inside_its_interval(values: list[bool], clusters: int) -> None:
    found = share(values, [i % clusters for i in range(len(values))], draws=100)
    assert found.value == pytest.approx(np.mean(values))
    assert math.isnan(found.low) or 0 <= found.low <= found.value <= found.high <= 1


def test_replies_all_alike_count_once_a_cluster() -> None:
    names = [i % 10 for i in range(40)]
    assert share([True] * 40, names) == wilson(10, 10)
    assert share([False] * 40, names) == wilson(0, 10)
    gone = fall([True] * 40, [False] * 40, names)
    assert gone.value == 1.0 and gone.low == pytest.approx(1 - wilson(0, 10).high) and gone.low < 0.8


def test_with_enough_clusters_it_is_the_bootstrap() -> None:
    random = np.random.default_rng(0)
    before, after, names = random.random(60) < 0.8, random.random(60) < 0.3, [i % 12 for i in range(60)]
    assert share(list(before), names) == mean(before.astype(float), names)
    assert fall(list(before), list(after), names) == relative_reduction(before, after, names)


def test_too_few_clusters_have_a_value_and_no_interval() -> None:
    for found in (share([True, False], ["a", "b"]), average([0.5, 0.7], ["a", "b"]), fall([True] * 2, [1, 0], "ab")):
        assert math.isfinite(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert all(math.isnan(found.value) for found in (share([], []), average([], []), fall([False], [True], "a")))
