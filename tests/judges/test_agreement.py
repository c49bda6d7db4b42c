"""Agreement of judges, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from persona_axis.errors import JudgeError
from persona_axis.judges.agreement import agreement, auc, correlated, kappa


def test_by_hand() -> None:
    """Of 4 judged items 3 are right; 2 of 2 true ones said true, 1 of 2 false ones; chance agreement is 1/2."""
    found = agreement([True, True, False, False, True], [0.9, 0.6, 0.7, 0.1, None])
    assert (found.items, found.unjudged, found.accuracy.value) == (5, 1, 0.75)
    assert found.kappa.value == pytest.approx(0.5)
    assert found.auc.value == pytest.approx(3 / 4)
    assert found.brier.value == pytest.approx((0.01 + 0.16 + 0.49 + 0.01) / 4)
    assert found.calibration == pytest.approx((0.1 + 0.4 + 0.7 + 0.1) / 4)


def test_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    chances = np.round(np.clip(truth * 0.3 + rng.random(300) * 0.7, 0, 1), 1)
    found = agreement(truth.tolist(), chances.tolist(), [i // 3 for i in range(300)])
    assert found.auc.value == pytest.approx(roc_auc_score(truth, chances))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(truth, chances >= 0.5))
    for estimate in found[2:6]:
        assert estimate.low < estimate.value < estimate.high
    a, b = rng.integers(1, 6, 200), rng.integers(1, 6, 200)
    assert kappa(a, b, range(200)).value == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))


def test_a_judge_that_is_sure_and_right_and_one_that_knows_nothing() -> None:
    truth = [i % 2 == 0 for i in range(40)]
    right = agreement(truth, [float(t) for t in truth])
    assert right.accuracy.value == right.kappa.value == right.auc.value == 1 and right.calibration == 0
    nothing = agreement(truth, [0.5] * 40)
    assert (nothing.auc.value, nothing.kappa.value, nothing.brier.value, nothing.calibration) == (0.5, 0, 0.25, 0)
    assert agreement(truth, [1 - float(t) for t in truth]).kappa.value == -1


def test_degenerate() -> None:
    empty = agreement([], [])
    assert empty.items == 0 and math.isnan(empty.auc.value) and math.isnan(empty.calibration)
    none = agreement([True, False], [None, None])
    assert none.unjudged == 2 and math.isnan(none.kappa.value)
    one_sided = agreement([True] * 3, [0.9] * 3)
    assert one_sided.accuracy.value == 1 and math.isnan(one_sided.auc.value) and math.isnan(one_sided.kappa.value)
    assert math.isnan(auc([True, False], [1, 0], list("ab")).low), "no interval for two clusters"
    assert math.isnan(correlated([1, 1], [1, 2], list("ab")).value)
    assert correlated([1, 2, 3], [2, 4, 6], list("abc")).value == pytest.approx(1)
    with pytest.raises(JudgeError, match="1 verdicts on 2 items"):
        agreement([True, False], [0.5])
