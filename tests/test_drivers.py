"""What drives drift: planted effects are found with intervals that hold them, and what is not there is not found."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from persona_axis import drivers
from persona_axis.drivers import (
    changes_by_kind,
    first_turn_against_second,
    first_turns,
    predictability,
    stability,
)
from persona_axis.errors import DriftError, PersonaAxisError
from persona_axis.stats.intervals import correlation, r_squared
from persona_axis.stats.ridge import ALPHAS, _path, assign, predict_held_out

LAYER = 3
EFFECTS = {"edit": 0.4, "venting": -0.5, "how-to": 0.0}


def table(rows, columns="conversation turn kind projection"):
    frame = pd.DataFrame(rows, columns=columns.split())
    return frame.assign(speaker="assistant", layer=LAYER, tokens=9)


def walks(seed=0, conversations=20, turns=8, effects=EFFECTS):
    """Each message moves the projection by its kind's effect, more or less; conversations differ in how readily."""
    random = np.random.default_rng(seed)
    names, rows = list(effects), []
    for c in range(conversations):
        level, lean = 10 + 2 * random.normal(), 0.2 * random.normal()
        for turn in range(1, turns + 1):
            kind = names[random.integers(len(names))]
            level += effects[kind] + lean + 0.3 * random.normal()
            rows.append((f"c{c:03}", turn, kind, level))
    return table(rows)


def dialogues(seed=0, conversations=60, turns=6, width=5, signal=1.0):
    """Vectors of messages, and a table whose projection they make up to a half (at signal 1)."""
    random = np.random.default_rng(seed)
    weights = np.linspace(1, 2, width) / np.linalg.norm(np.linspace(1, 2, width))
    vectors = random.normal(size=(conversations * turns, width))
    level = signal * vectors @ weights + random.normal(size=len(vectors))
    keys = [(f"c{c:03}", turn) for c in range(conversations) for turn in range(1, turns + 1)]
    frame = table([(*key, "edit", value) for key, value in zip(keys, level, strict=True)])
    return pd.DataFrame(vectors, index=pd.MultiIndex.from_tuples(keys, names=["conversation", "turn"])), frame


def fingerprints(seed=0, conversations=40, turns=6):
    """A constant of each conversation in its vectors, and another in its projections: no rule joins the two."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(conversations), turns)
    vectors = random.normal(size=(conversations, 64))[groups] + 0.01 * random.normal(size=(len(groups), 64))
    level = random.normal(size=conversations)[groups] + 0.1 * random.normal(size=len(groups))
    frame = table([(f"c{g:03}", i % turns + 1, "edit", level[i]) for i, g in enumerate(groups)])
    return groups, vectors, frame


# Changes by kind.


def test_changes_by_hand():
    rows = []
    for c in range(5):
        rows += [(f"c{c}", 1, "edit", 4.0 + c), (f"c{c}", 2, "venting", 1.0 + c), (f"c{c}", 3, "edit", 3.0 + 2 * c)]
    found = changes_by_kind(table(rows), LAYER)
    assert list(found.columns) == [
        "kind", "turns", "conversations", "change", "low", "high", "level", "level_low", "level_high",
    ]  # fmt: skip
    assert list(found["kind"]) == ["edit", "venting"]  # most stabilising first
    assert list(found["turns"]) == [5, 5] and list(found["conversations"]) == [5, 5]
    np.testing.assert_allclose(found["change"], [4.0, -3.0])  # a first turn has no change
    np.testing.assert_allclose(found["level"], [7.0, 3.0])
    assert found["low"][1] == found["high"][1] == -3.0 and found["low"][0] < 4 < found["high"][0]


def test_planted_effects_are_covered():
    held = {kind: [] for kind in EFFECTS}
    for seed in range(100):
        found = changes_by_kind(walks(seed, turns=5), LAYER, seed=seed, draws=400).set_index("kind")
        for kind, effect in EFFECTS.items():
            held[kind].append(found["low"][kind] <= effect <= found["high"][kind])
    assert {kind: 0.89 <= np.mean(hits) <= 0.99 for kind, hits in held.items()} == dict.fromkeys(EFFECTS, True)


def test_planted_effects_are_found_with_their_signs():
    found = changes_by_kind(walks(conversations=60, turns=15), LAYER).set_index("kind")
    assert list(found.index) == ["edit", "how-to", "venting"]
    assert found["low"]["edit"] > 0 > found["high"]["venting"]
    assert found["low"]["how-to"] < 0 < found["high"]["how-to"]
    for kind, effect in EFFECTS.items():
        assert found["change"][kind] == pytest.approx(effect, abs=0.12)


def test_regression_to_the_mean_shows_in_the_level():
    """A kind without any effect, sent where the projection is low: it seems to lift, and its level says from where."""
    random = np.random.default_rng(0)
    rows = []
    for c in range(60):
        level = random.normal()
        for turn in range(1, 12):
            kind, level = ("comfort" if level < -0.5 else "edit"), random.normal()
            rows.append((f"c{c}", turn, kind, level))
    found = changes_by_kind(table(rows), LAYER).set_index("kind")
    assert found["low"]["comfort"] > 0.5 and found["high"]["edit"] < 0
    started = found["level"] - found["change"]
    assert started["comfort"] < -0.9 and started["edit"] > 0.2
    assert (found["level_low"] < 0).all() and (found["level_high"] > 0).all()  # in truth both end at 0


def test_only_the_assistants_turns_at_the_layer_count_and_gaps_are_no_change():
    frame = walks()
    expected = changes_by_kind(frame, LAYER)
    other = frame.assign(layer=4, projection=-99.0)
    user = frame.assign(speaker="user", projection=77.0)
    mixed = pd.concat([user, frame, other]).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(changes_by_kind(mixed, LAYER), expected)
    pd.testing.assert_frame_equal(changes_by_kind(frame.drop(columns=["speaker", "tokens"]), LAYER), expected)
    without = frame[frame["turn"] != 4]
    assert changes_by_kind(without, LAYER)["turns"].sum() == 20 * 5  # turns 2, 3, 6, 7, 8: turn 5 has none before it


def test_turns_of_unknown_kind_are_left_out_and_rare_kinds_get_no_interval():
    frame = walks()
    frame.loc[frame["turn"] == 3, "kind"] = None
    rare = frame["conversation"].isin(["c000", "c001"]) & (frame["turn"] == 5)
    frame.loc[rare, "kind"] = "disclosure"
    found = changes_by_kind(frame, LAYER).set_index("kind")
    assert found["turns"].sum() == 20 * 6
    row = found.loc["disclosure"]
    assert row["conversations"] == 2 and math.isfinite(row["change"]) and math.isfinite(row["level"])
    assert row[["low", "high", "level_low", "level_high"]].isna().all()
    assert found.drop(index="disclosure").notna().all(axis=None)


def test_empty_replies_are_passed_over():
    """They have no projection; the turn after has no change, and all the rest is as if they were not in the table."""
    vectors, frame = dialogues()
    empty = frame["conversation"].isin(["c000", "c004"]) & (frame["turn"] == 3)
    silent = frame.copy()
    silent.loc[empty, ["projection", "tokens"]] = [np.nan, 0]
    without = frame[~empty]
    pd.testing.assert_frame_equal(changes_by_kind(silent, LAYER), changes_by_kind(without, LAYER))
    pd.testing.assert_frame_equal(stability(silent, LAYER), stability(without, LAYER))
    found = predictability(vectors, silent, LAYER)
    assert found == predictability(vectors, without, LAYER) == predictability(vectors.to_numpy(), silent, LAYER)
    assert found.turns == 60 * 5 - 4
    silent.loc[silent["turn"] == 1, ["projection", "tokens"]] = [np.nan, 0]
    assert len(first_turns(silent, LAYER)) == 0
    with pytest.raises(DriftError, match="'c000', turn 1 at layer 3 is NaN"):
        first_turns(silent.drop(columns="tokens"), LAYER)


# Ridge.


def reference(features, targets, groups, folds, seed):
    """The same cross-validation in the plainest way: one linear system for each fold, penalty and target."""

    def fit(x, y, new, alpha):
        centre, scale = x.mean(axis=0), x.std(axis=0)
        z = (x - centre) / scale
        weights = np.linalg.solve(z.T @ z + alpha * len(x) * np.eye(z.shape[1]), z.T @ (y - y.mean()))
        return y.mean() + (new - centre) / scale @ weights

    random = np.random.default_rng(seed)
    outer = assign(groups, folds, random)
    predicted = np.full_like(targets, np.nan)
    for fold in range(folds):
        rest = np.flatnonzero(outer != fold)
        inner = assign(groups[rest], folds, random)
        for target in range(targets.shape[1]):
            y = targets[:, target]
            losses = [
                sum(
                    ((fit(features[rest[inner != k]], y[rest[inner != k]], features[rest[inner == k]], alpha)
                      - y[rest[inner == k]]) ** 2).sum()
                    for k in range(folds)
                )
                for alpha in ALPHAS
            ]  # fmt: skip
            alpha = ALPHAS[int(np.argmin(losses))]
            predicted[outer == fold, target] = fit(features[rest], y[rest], features[outer == fold], alpha)
    return predicted


@pytest.mark.parametrize(("conversations", "width"), [(30, 6), (8, 60)])
def test_predictability_is_that_of_a_plain_float64_ridge(conversations, width):
    vectors, frame = dialogues(1, conversations, width=width)
    groups, level = np.repeat(np.arange(conversations), 6), frame["projection"].to_numpy()
    later = np.arange(len(frame)) % 6 > 0
    change = level - np.roll(level, 1)
    targets = np.stack([level, change], axis=1)[later]
    predicted = reference(vectors.to_numpy()[later], targets, groups[later], 4, 7)
    found = predictability(vectors, frame, LAYER, folds=4, seed=7)
    assert found.next.value == pytest.approx(r2_score(targets[:, 0], predicted[:, 0]), abs=1e-9)
    assert found.change.value == pytest.approx(r2_score(targets[:, 1], predicted[:, 1]), abs=1e-9)
    assert found.next == pytest.approx(r_squared(targets[:, 0], predicted[:, 0], groups[later], seed=7), abs=1e-9)
    assert (found.turns, found.conversations) == (conversations * 5, conversations)


@pytest.mark.parametrize("width", [4, 90])
def test_the_path_is_sklearns_ridge(width):
    random = np.random.default_rng(0)
    x, y, new = random.normal(5, 3, size=(40, width)), random.normal(size=(40, 2)), random.normal(size=(7, width))
    scaler = StandardScaler().fit(x)
    found = _path(x, y, new)
    for alpha, predicted in zip(ALPHAS, found, strict=True):
        model = Ridge(alpha=alpha * 40, solver="cholesky").fit(scaler.transform(x), y)
        np.testing.assert_allclose(predicted, model.predict(scaler.transform(new)), atol=1e-8)


def test_features_that_tell_nothing_do_no_harm():
    """Constant ones, and ones that differ only by float32 rounding until a held-out row is far off."""
    random = np.random.default_rng(0)
    x, y, new = random.normal(size=(40, 3)), random.normal(size=(40, 1)), random.normal(size=(5, 3))
    constant = np.full((40, 1), 7.0)
    noisy = 1000 + 1e-5 * random.normal(size=(40, 1))
    more = np.hstack([new, np.full((5, 1), 9.0), np.full((5, 1), 1001.0)])
    np.testing.assert_allclose(_path(np.hstack([x, constant, noisy]), y, more), _path(x, y, new), atol=1e-9)


def test_planted_predictability_is_covered():
    # Of the variance: one half and (a change also holds all of the reply before) one quarter, less what five weights
    # estimated from 48 conversations of 5 turns cost.
    cost = 5 / (48 * 5 - 6)
    truth = {"next": 0.5 - 0.5 * cost, "change": 0.25 - 0.75 * cost}
    held = {"next": [], "change": []}
    for seed in range(100):
        found = predictability(*dialogues(seed), LAYER, seed=seed, draws=400)
        for name, value in truth.items():
            estimate = getattr(found, name)
            held[name].append(estimate.low <= value <= estimate.high)
            assert estimate.value == pytest.approx(value, abs=0.2)
    assert {name: 0.88 <= np.mean(hits) <= 0.99 for name, hits in held.items()} == dict.fromkeys(held, True), held


def test_what_is_not_there_is_not_predicted():
    seen = [predictability(*dialogues(seed, signal=0), LAYER, seed=seed, draws=400) for seed in range(80)]
    for name in ("next", "change"):
        estimates = [getattr(found, name) for found in seen]
        assert np.mean([e.low > 0 for e in estimates]) <= 0.05
        assert max(e.value for e in estimates) < 0.06 and np.mean([e.value for e in estimates]) < 0.005


def test_plays_of_one_script_teach_nothing_about_each_other():
    """Twice the same messages and nearly the same replies: by conversation the ridge has seen what it is tested on."""
    vectors, frame = dialogues(signal=0.0, conversations=30, width=400)
    again = frame.assign(conversation=frame["conversation"] + "/again")
    both = pd.concat([frame, again], ignore_index=True)
    twice = pd.concat([vectors, vectors.rename(index=lambda name: f"{name}/again", level="conversation")])
    scripts = {name: name.removesuffix("/again") for name in both["conversation"]}
    leaking = predictability(twice, both, LAYER)
    found = predictability(twice, both, LAYER, clusters=scripts)
    assert leaking.next.value > 0.2 and found.next.value < 0.05
    assert found.conversations == 60 and found.turns == leaking.turns


def test_intervals_are_those_of_the_clusters():
    frame = walks()
    plays = pd.concat([frame.assign(conversation=frame["conversation"] + f"/{k}") for k in range(3)])
    scripts = {name: name.rpartition("/")[0] for name in plays["conversation"]}
    for call in (changes_by_kind, stability):
        once, thrice = call(frame, LAYER), call(plays, LAYER, clusters=scripts)
        pd.testing.assert_frame_equal(once[["low", "high"]], thrice[["low", "high"]])
    with pytest.raises(DriftError, match="clusters: nothing for"):
        stability(plays, LAYER, clusters={})
    few = dict.fromkeys(plays["conversation"], "all")
    with pytest.raises(DriftError, match="1 clusters of conversations have"):
        changes_by_kind(plays, LAYER, clusters=few)


def test_a_constant_of_each_conversation_is_of_no_use():
    groups, vectors, frame = fingerprints()
    level = frame[["projection"]].to_numpy()
    leaking = predict_held_out(vectors, level, np.arange(len(groups)), 5, 0).predicted
    assert r2_score(level, leaking) > 0.9  # what folds that split conversations would have claimed
    found = predictability(vectors, frame, LAYER)
    assert -0.15 < found.next.value < 0.05 and found.next.low <= 0
    assert found.change.value < 0.05


def test_the_penalty_is_chosen_by_conversation_too():
    """Chosen by row, the weakest penalty would look best: it reads the constant of each conversation."""
    groups, vectors, frame = fingerprints()
    level = frame[["projection"]].to_numpy()
    assert (predict_held_out(vectors, level, groups, 5, 0).alphas >= 1).all()
    assert (predict_held_out(vectors, level, np.arange(len(groups)), 5, 0).alphas <= 0.1).all()


@given(sizes=st.lists(st.integers(1, 6), min_size=4, max_size=20), folds=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_folds_never_split_a_group(sizes, folds, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    fold_of = assign(groups, folds, np.random.default_rng(seed))
    where = [set(fold_of[groups == g]) for g in range(len(sizes))]
    assert all(len(one) == 1 for one in where)
    counts = np.bincount([one.pop() for one in where], minlength=folds)
    assert counts.min() >= 1 and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("fold", range(4))
def test_a_held_out_fold_leaves_no_trace(fold):
    """Neither its targets nor its features, however wild, change what is predicted for its own other rows."""
    vectors, frame = dialogues(2, conversations=16)
    features, targets = vectors.to_numpy(), frame[["projection"]].to_numpy()
    groups = np.repeat(np.arange(16), 6)
    mine = np.flatnonzero(assign(groups, 4, np.random.default_rng(5)) == fold)
    before = predict_held_out(features, targets, groups, 4, 5).predicted
    wild, odd = targets.copy(), features.copy()
    wild[mine] = 1e6
    odd[mine[0]] = -1e6
    after = predict_held_out(features, wild, groups, 4, 5).predicted
    np.testing.assert_array_equal(after[mine], before[mine])
    assert not np.allclose(np.delete(after, mine), np.delete(before, mine))
    after = predict_held_out(odd, targets, groups, 4, 5).predicted
    np.testing.assert_array_equal(after[mine[1:]], before[mine[1:]])


def test_vectors_are_found_by_name_not_by_place():
    vectors, frame = dialogues()
    expected = predictability(vectors, frame, LAYER)
    assert predictability(vectors.sample(frac=1, random_state=1), frame, LAYER) == expected
    assert predictability(vectors.to_numpy(), frame, LAYER) == expected
    doubled = pd.concat([frame.assign(layer=1, projection=0.0), frame.assign(speaker="user"), frame])
    assert predictability(vectors, doubled, LAYER) == expected
    mixed = frame.sample(frac=1, random_state=2)
    names = pd.MultiIndex.from_frame(mixed[["conversation", "turn"]])
    same = predictability(vectors, mixed, LAYER)
    assert same == predictability(vectors.loc[names].to_numpy(), mixed, LAYER)
    assert same.next.value == pytest.approx(expected.next.value, abs=0.03)  # other folds


def test_turns_that_answer_nobody_are_left_out():
    vectors, frame = dialogues()
    found = predictability(vectors.drop(index=[("c003", 4), ("c007", 2)]), frame, LAYER)
    assert found.turns == 60 * 5 - 2 and found.conversations == 60


# Domains.


def test_stability_by_hand():
    rows = []
    for c in range(6):
        rows += [(f"w{c}", t, "writing", 5.0 + c) for t in range(1, 7)]
        rows += [(f"e{c}", t, "emotional", 4.0 + c - 0.5 * (t - 1)) for t in range(1, 7)]
    rows += [("x", 1, "writing", 99.0)]  # one turn does not move
    frame = table(rows, "conversation turn domain projection").sample(frac=1, random_state=3)
    found = stability(frame, LAYER).set_index("domain")
    assert set(found.index) == {"writing", "emotional"} and list(found["conversations"]) == [6, 6]
    np.testing.assert_allclose(found.loc["writing", ["first", "last", "change", "low", "high"]], [7.5, 7.5, 0, 0, 0])
    # The last third of six turns are the fifth and the sixth.
    np.testing.assert_allclose(
        found.loc["emotional", ["first", "last", "change", "low", "high"]], [6.5, 4.25, -2.25, -2.25, -2.25]
    )


def test_stability_covers_and_finds_nothing_where_nothing_moves():
    drifts, stays = [], []
    for seed in range(80):
        frames = []
        for domain, slope in (("coding", 0.0), ("emotional", -0.2)):
            frame = walks(seed, conversations=24, turns=6, effects={"any": slope})
            frames.append(frame.assign(domain=domain, conversation=domain + frame["conversation"]))
        found = stability(pd.concat(frames), LAYER, seed=seed, draws=400).set_index("domain")
        assert list(found.index) == ["coding", "emotional"]
        stays.append(found["low"]["coding"] <= 0 <= found["high"]["coding"])
        drifts.append(found["low"]["emotional"] <= -0.2 * 4.5 <= found["high"]["emotional"])
    assert 0.89 <= np.mean(stays) <= 0.99 and 0.89 <= np.mean(drifts) <= 0.99


def test_stability_without_domains():
    found = stability(walks(turns=2), LAYER)
    assert len(found) == 1 and found["domain"].isna().all() and found["conversations"][0] == 20
    few = stability(walks(conversations=3), LAYER)
    assert few[["low", "high"]].isna().all(axis=None) and math.isfinite(few["change"][0])
    with pytest.raises(DriftError, match="no conversation has two assistant turns"):
        stability(walks(turns=1), LAYER)


# First turn against second.


def test_first_turns():
    frame = walks(conversations=6)
    first = first_turns(pd.concat([frame.assign(speaker="user"), frame.assign(layer=0), frame]), LAYER)
    expected = frame[frame["turn"] == 1]
    assert dict(first) == dict(zip(expected["conversation"], expected["projection"], strict=True))


def test_first_turn_against_second_by_name_and_by_place():
    random = np.random.default_rng(0)
    first = pd.Series(random.normal(size=80), index=[f"c{i}" for i in range(80)])
    harmed = first + random.normal(size=80) < 0
    found = first_turn_against_second(first, dict(harmed.sample(frac=1, random_state=1)))
    assert found.value < -0.4 and found.high < -0.2  # more Assistant, less harm
    assert found == first_turn_against_second(first, harmed.sample(frac=1, random_state=2))
    assert found == first_turn_against_second(first.to_numpy(), harmed.to_numpy())
    assert found == correlation(first.to_numpy(), harmed.to_numpy())
    roles = {f"c{i}": f"role {i % 9}" for i in range(80)}
    clustered = first_turn_against_second(first, harmed, roles)
    assert clustered == correlation(first.to_numpy(), harmed.to_numpy(), [f"role {i % 9}" for i in range(80)])
    assert clustered != found


def test_first_turn_against_nothing():
    random = np.random.default_rng(0)
    found = [
        first_turn_against_second(random.normal(size=50), random.random(50) < 0.4, draws=400, seed=seed)
        for seed in range(200)
    ]
    assert 0.9 <= np.mean([e.low <= 0 <= e.high for e in found]) <= 0.99


# What is refused.


def nan_at(frame, value=float("nan")):
    frame = frame.copy()
    frame.loc[(frame["conversation"] == "c004") & (frame["turn"] == 3), "projection"] = value
    return frame


FRAME_CALLS = {
    "changes": changes_by_kind,
    "predictability": lambda frame, layer: predictability(np.ones((len(frame), 2)), frame, layer),
    "stability": stability,
    "first": first_turns,
}


@pytest.mark.parametrize("call", FRAME_CALLS.values(), ids=list(FRAME_CALLS))
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nan_at, "the projection of conversation 'c004', turn 3 at layer 3 is NaN or infinite"),
        (lambda f: nan_at(f, float("inf")), "conversation 'c004', turn 3 at layer 3 is NaN or infinite"),
        (lambda f: nan_at(f.astype({"projection": "Float64"}), pd.NA), "'c004', turn 3 at layer 3 is NaN"),
        (lambda f: f.assign(layer=np.arange(len(f)) % 2 * 5), "no layer 3; its layers are 0, 5"),
        (lambda f: f[:0], "no layer 3; its layers are none: it is empty"),
        (lambda f: f.drop(columns=["turn", "projection"]), "no column 'turn', 'projection'; it has conversation, kind"),
        (lambda f: pd.concat([f, f]), "'c000', turn 1 occurs twice at layer 3: give each run's table by itself"),
    ],
)
def test_tables_refused(call, change, says):
    with pytest.raises(DriftError, match=says):
        call(change(walks()), LAYER)


def test_too_few_conversations():
    with pytest.raises(DriftError, match="4 conversations have an assistant turn .* at least 5 are needed"):
        changes_by_kind(walks(conversations=4), LAYER)
    with pytest.raises(DriftError, match="0 conversations have an assistant turn that follows another"):
        changes_by_kind(walks(turns=1), LAYER)
    with pytest.raises(DriftError, match="0 conversations"):
        changes_by_kind(walks().assign(kind=None), LAYER)
    with pytest.raises(DriftError, match="ridge in 5 folds: 9 conversations have .* at least 10 are needed"):
        predictability(*dialogues(conversations=9), LAYER)
    with pytest.raises(DriftError, match="ridge in 2 folds: 4 conversations have .* at least 5 are needed"):
        predictability(*dialogues(conversations=4), LAYER, folds=2)
    assert predictability(*dialogues(conversations=5), LAYER, folds=2).conversations == 5
    with pytest.raises(DriftError, match="1 folds cannot"):
        predictability(*dialogues(), LAYER, folds=1)
    with pytest.raises(PersonaAxisError, match="at least 5 independent clusters, there are 4"):
        first_turn_against_second([1.0, 2, 3, 4], [True, False, True, False])


def test_a_table_without_kinds():
    with pytest.raises(DriftError, match="no column 'kind'"):
        changes_by_kind(walks().drop(columns="kind"), LAYER)


def test_vectors_refused():
    vectors, frame = dialogues()
    broken = vectors.copy()
    broken.loc[("c002", 3), 1] = np.nan
    with pytest.raises(DriftError, match="vector of conversation 'c002', turn 3"):
        predictability(broken, frame, LAYER)
    with pytest.raises(DriftError, match="vector of conversation 'c002', turn 3"):
        predictability(broken.to_numpy(), frame, LAYER)
    with pytest.raises(DriftError, match=r"vectors \(359, 5\) for 360 assistant turns"):
        predictability(vectors.to_numpy()[1:], frame, LAYER)
    with pytest.raises(DriftError, match=r"vectors \(360,\) for 360"):
        predictability(vectors.to_numpy()[:, 0], frame, LAYER)
    with pytest.raises(DriftError, match="no vector for any turn of 2 conversations of the table, such as 'c058'"):
        predictability(vectors.drop(index=["c058", "c059"]), frame, LAYER)
    with pytest.raises(DriftError, match=r"indexed by the two"):
        predictability(vectors.reset_index(drop=True), frame, LAYER)
    with pytest.raises(DriftError, match=r"one row for each"):
        predictability(pd.concat([vectors, vectors]), frame, LAYER)
    with pytest.raises(PersonaAxisError, match="actual: all 300 values are the same"):
        predictability(vectors, frame.assign(projection=2.5), LAYER)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_outcomes_refused(missing):
    first = pd.Series(np.arange(8.0), index=[f"c{i}" for i in range(8)])
    outcomes = {f"c{i}": i % 3 == 0 for i in range(8)}
    with pytest.raises(DriftError, match="outcomes: 1 are missing or NaN, the first that of 'c5': leave out"):
        first_turn_against_second(first, outcomes | {"c5": missing})
    with pytest.raises(DriftError, match="outcomes: nothing for 1 of 8 conversations, such as 'c7'"):
        first_turn_against_second(first, dict(list(outcomes.items())[:7]))
    with pytest.raises(DriftError, match="clusters: nothing for 8 of 8"):
        first_turn_against_second(first, outcomes, {})
    with pytest.raises(PersonaAxisError, match="8 x, 7 y"):
        first_turn_against_second(first, [True, False] * 3 + [True])
    with pytest.raises(PersonaAxisError, match="y: all 8 values are the same"):
        first_turn_against_second(first, dict.fromkeys(outcomes, False))


def test_statistics_need_no_torch():
    code = "import sys, persona_axis.drivers\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert set(drivers.__all__) <= set(dir(drivers))
