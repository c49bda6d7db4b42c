"""The replication table says "holds" where planted figures make it hold, and only there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from persona_axis.calibration.measure import Mark, Replies
from persona_axis.controls import KINDS, MIXTURE, Touch
from persona_axis.conversations import DOMAINS
from persona_axis.stats.intervals import Estimate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _claims_cap as cap
import _claims_space as space
import _claims_talk as talk
import _evidence
from _claim import Claim
from replication import markdown

LAYER, TURNS, SCRIPTS, PLAYS, GAP = 4, 15, 12, 3, 40.0


def played(falls: dict[str, float], leave: dict[str, bool]) -> SimpleNamespace:
    """Evidence of scripts whose projection falls in a straight line from GAP by a part of the way to the roles (0)."""
    random = np.random.default_rng(0)
    rows, voices = [], []
    for domain in DOMAINS:
        for script in range(SCRIPTS):
            lean = 0.05 * random.normal()
            for play in range(PLAYS):
                name = f"{domain}-{script}/{play}"
                for turn in range(1, TURNS + 1):
                    gone = (falls[domain] + lean) * (turn - 1) / (TURNS - 1)
                    rows.append((name, domain, turn, "edit", GAP * (1 - gone) + 0.1 * random.normal()))
                    speaks = not (leave[domain] and turn > 5)
                    voices.append((name, f"{domain}-{script}", domain, turn, float(speaks)))
    frame = pd.DataFrame(rows, columns=["conversation", "domain", "turn", "kind", "projection"])
    frame = frame.assign(speaker="assistant", layer=LAYER, tokens=9)
    told = pd.DataFrame(voices, columns=["conversation", "script", "domain", "turn", "assistant"])
    arrays = {"roles": np.zeros((3, 1, 2)), "default": np.array([[GAP, 0]]), "direction": np.array([[1.0, 0]])}
    axis = SimpleNamespace(row=lambda _: 0, array=arrays.__getitem__)
    conversations = [SimpleNamespace(id=name) for name in frame["conversation"].unique()]
    return SimpleNamespace(
        uncapped=SimpleNamespace(frame=frame, conversations=conversations), voices=lambda _: told, axis=axis,
        layer=LAYER, seed=0, effort=SimpleNamespace(draws=200),
    )  # fmt: skip


def verdicts(claims: Any) -> dict[str, bool | None]:
    return {claim.claim: claim.holds for claim in claims}


def test_drift_where_it_is_and_only_there() -> None:
    away = {"emotional": 0.6, "meta-reflective": 0.7, "coding": 0.02, "writing": 0.02}
    found = list(talk.drift(played(away, {d: away[d] > 0.5 for d in DOMAINS})))
    assert all(claim.holds for claim in found) and len(found) == 4
    assert "60" in found[0].troupe.partition("%")[0] or "5" in found[0].troupe
    everywhere = verdicts(talk.drift(played(dict.fromkeys(DOMAINS, 0.6), dict.fromkeys(DOMAINS, True))))
    assert [holds for name, holds in everywhere.items() if "drifts" in name] == [True, True]
    assert [holds for name, holds in everywhere.items() if "stays" in name] == [False, False]
    nowhere = verdicts(talk.drift(played(dict.fromkeys(DOMAINS, 0.0), dict.fromkeys(DOMAINS, False))))
    assert [holds for name, holds in nowhere.items() if "drifts" in name] == [False, False]
    rising = verdicts(talk.drift(played({**away, "coding": -0.4}, dict.fromkeys(DOMAINS, False))))
    assert not rising["coding conversations: the default stays"]


def test_a_voice_that_leaves_is_no_staying() -> None:
    still = dict.fromkeys(DOMAINS, 0.0)
    found = verdicts(talk.drift(played(still, {d: d == "coding" for d in DOMAINS})))
    assert not found["coding conversations: the default stays"]
    assert found["writing conversations: the default stays"]


@pytest.mark.parametrize(
    ("doses", "controls", "holds"),
    [
        ([0, 0, 0.1, 0.1, 0.3, 0.8, 1], 0.1, True),
        ([0, 0, 0.1, 0.1, 0.3, 0.8, 1], 0.5, False),
        ([0, 0.9, 0.87, 0.84, 0.81, 0.78, 0.75], 0.0, False),
        ([0.5] * 7, 0.0, False),
    ],
)
def test_steering_must_rise_and_controls_must_not(doses: list[float], controls: float, holds: bool) -> None:
    axis_row = object()

    def steered(direction: Any, alpha: float, _: Any) -> Estimate:
        if direction is axis_row:
            value = doses[_evidence.ALPHAS.index(alpha)]
            return Estimate(value, value - 0.05, value + 0.05)
        return Estimate(controls if alpha > 0 else 0.0, 0.0, 1.0)

    axis = SimpleNamespace(row=lambda _: 0, direction=[axis_row])
    stub = SimpleNamespace(axis=axis, layer=0, far=["ghost"], steered=steered, seed=0,
                           effort=SimpleNamespace(steering_controls=2))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "random_directions", lambda *_: [object()])
        (claim,) = space.steering(stub)
    assert claim.holds is holds


def replies(complied: int, judged: int = 40) -> Replies:
    marks = [Mark(i >= complied, i < complied, False, i < complied) if i < judged else None for i in range(40)]
    return Replies(tuple(f"j{i}" for i in range(40)), tuple(marks))


def evidence_of(capped: Replies, control: Replies, mixture: Replies) -> SimpleNamespace:
    def jailbreaks(held: Any = "none", persona: bool = True, draws: int | None = None) -> Replies:
        return {"none": replies(36 if persona else 1), "cap": capped, "control": control, "mixture": mixture}[held]

    controls = [(kind, 0, "control") for kind in KINDS] + [(MIXTURE, 0, "mixture")]
    bench = SimpleNamespace(touch=lambda _: [Touch(1, 0.5, 2.0)], seed=1)
    return SimpleNamespace(jailbreaks=jailbreaks, held="cap", controls=lambda: controls, bench=bench,
                           axis=None, cap=SimpleNamespace(layers=(1,)))  # fmt: skip


@pytest.mark.parametrize(
    ("capped", "control", "holds"),
    [(0, 34, [True, True, True, False]), (20, 34, [True, False, True, False]), (0, 20, [True, True, False, False])],
)
def test_jailbreaks(monkeypatch: pytest.MonkeyPatch, capped: int, control: int, holds: list[bool]) -> None:
    monkeypatch.setattr(cap, "cosines", lambda *_: 0.5)
    found = list(cap.jailbreaks(evidence_of(replies(capped), replies(control), replies(2))))
    assert [claim.holds for claim in found] == holds
    assert "mean cosine 0.50" in found[3].troupe and "94%" in found[3].troupe


def test_gibberish_is_no_success_of_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cap, "cosines", lambda *_: 0.5)
    found = list(cap.jailbreaks(evidence_of(replies(10, judged=10), replies(34), replies(34))))
    assert found[1].holds is False and "(30 of 40 replies could not be judged)" in found[1].troupe


def test_the_table_says_when_a_claim_holds() -> None:
    rows = markdown([Claim("a", "b", "c", "d", True), Claim("e", "f", "g", "h", False), Claim("i", "", "", "", None)])
    lines = rows.splitlines()
    assert lines[2] == "| a | b | c | d | yes |" and lines[3].endswith("| **no** |") and lines[4].endswith("|  |")
