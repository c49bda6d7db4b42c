"""Calibration: the rule on hand-made tables, what is kept of a killed run, and whole runs on tiny models."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from persona_axis import Axis, AxisMismatchError, Cap, CapError, ChatModel
from persona_axis import calibrate as module
from persona_axis.calibrate import (
    Calibration,
    Effort,
    Event,
    Interrupted,
    Note,
    Planned,
    Stage,
    calibrate,
    run_directory,
    windows_of,
)
from persona_axis.calibration import figures
from persona_axis.calibration.choose import choose, doubts, promising, rule
from persona_axis.calibration.measure import Late, Mark, Replies
from persona_axis.calibration.settings import axis_sha256, conversations_of, settings, told
from persona_axis.calibration.tables import token_percentiles
from persona_axis.calibration.units import Units
from persona_axis.capability import Scores
from persona_axis.commands import calibrate as cli
from persona_axis.conversations import Jailbreak, Script, Turn, load_jailbreaks, load_scripts
from persona_axis.errors import CalibrationError, JudgeError
from persona_axis.organism import troupe_path
from persona_axis.outcomes import Asked, Outcome
from persona_axis.sampling import Sampling
from persona_axis.stats.intervals import wilson
from persona_axis.talks.asking import ask

NAN = math.nan


def table(*rows: tuple[Any, ...], stage: str = "full") -> pd.DataFrame:
    """Rows of (setting, harm, capability, and perhaps drift_assistant, moved)."""
    names = ["setting", "harm", "capability", "drift_assistant", "moved"]
    made = pd.DataFrame([row + (NAN,) * (5 - len(row)) for row in rows], columns=names)
    return made.assign(stage=stage, capability_high=made["capability"] + 1.5)


class TestTheRule:
    def test_the_least_harm_within_the_bound(self) -> None:
        found = table(("a", 0.5, 0.0), ("b", 0.2, -0.9), ("c", 0.1, -1.1), ("d", 0.3, +2.0))
        assert choose(found, 1.0, 0.8) == "b"
        assert choose(found, 2.0, 0.8) == "c" and choose(found, 0.5, 0.8) == "d"

    def test_the_bound_itself_is_within(self) -> None:
        assert choose(table(("a", 0.5, -1.0)), 1.0, 0.8) == "a"
        assert choose(table(("a", 0.5, 0.0)), 0.0, 0.8) == "a"

    def test_a_setting_that_makes_gibberish_is_not_taken(self) -> None:
        found = table(("whole", 0.3, 0.0), ("broken", 0.0, 0.0)).assign(replies=168, unjudged=[0, 167])
        assert choose(found, 1.0, 0.8) == "whole" and promising(found, 9, 1.0) == ["whole"]
        assert choose(found, 1.0, 0.8, unjudged_without=0.95) == "broken"

    def test_ties_go_to_less_drift_then_to_the_lighter_touch_then_to_the_earlier(self) -> None:
        assert choose(table(("a", 0.2, 0, 0.7, 1), ("b", 0.2, 0, 0.9, 9)), 1, 0.8) == "b"
        assert choose(table(("a", 0.2, 0, 0.9, 9), ("b", 0.2, 0, 0.9, 1)), 1, 0.8) == "b"
        assert choose(table(("a", 0.2, 0, 0.9, 1), ("b", 0.2, 0, 0.9, 1)), 1, 0.8) == "a"
        assert choose(table(("a", 0.2, 0, NAN, 1), ("b", 0.2, 0, 0.1, 9)), 1, 0.8) == "b"
        assert choose(table(("a", 0.2, 0, NAN, NAN), ("b", 0.2, 0, NAN, 9)), 1, 0.8) == "b"

    def test_nothing_within_the_bound(self) -> None:
        assert choose(table(("a", 0.0, -1.01), ("b", 0.2, -30.0)), 1.0, 0.8) is None

    def test_sure_is_of_the_whole_interval(self) -> None:
        found = table(("a", 0.1, -0.9), ("b", 0.2, 0.0)).assign(capability_low=[-1.6, -0.8])
        assert choose(found, 1.0, 0.8) == "a" and choose(found, 1.0, 0.8, sure=True) == "b"
        assert choose(found, 0.5, 0.8, sure=True) is None

    def test_nothing_that_lowers_the_harm(self) -> None:
        assert choose(table(("a", 0.8, 0.0), ("b", 0.9, 1.0)), 1.0, 0.8) is None

    def test_what_has_no_figures_is_never_taken(self) -> None:
        assert choose(table(("a", NAN, 0.0), ("b", 0.1, NAN), ("c", 0.7, 0.0)), 1.0, 0.8) == "c"
        assert choose(table(("a", NAN, NAN), ("b", NAN, NAN)), 1.0, 0.8) is None
        assert choose(table(("a", 0.1, 0.0)), 1.0, NAN) is None

    def test_what_was_not_measured_in_full_is_never_taken(self) -> None:
        screened = table(("a", 0.0, 0.0), stage="screened")
        assert choose(pd.concat([screened, table(("b", 0.5, 0.0))]), 1.0, 0.8) == "b"
        assert choose(screened, 1.0, 0.8) is None and choose(screened[:0], 1.0, 0.8) is None

    def test_in_words(self) -> None:
        assert "at most 1 points (the estimate" in rule(1.0, 2000) and "2,000 paired items" in rule(1.0, 2000)
        assert "(the whole 95% interval over" in rule(0.5, 2000, sure=True)


class TestWhatIsMeasuredFurther:
    def test_half_of_the_places_go_to_estimates_within_the_bound(self) -> None:
        # intervals reach 1.5 points higher: c is clearly too costly, a and b may yet be within
        found = table(("a", 0.0, -2.0), ("b", 0.1, -1.5), ("c", 0.0, -9.0), ("d", 0.3, 0.0), ("e", 0.4, 0.0))
        assert promising(found, 2, 1.0) == ["d", "a"]
        assert promising(found, 9, 1.0) == ["d", "e", "a", "b"]
        assert promising(found, 0, 1.0) == []

    def test_what_has_no_figures_is_left_out(self) -> None:
        assert promising(table(("a", NAN, 0.0), ("b", 0.2, NAN)), 9, 1.0) == []
        assert promising(table(), 9, 1.0) == []

    def test_what_lowers_nothing_is_left_out(self) -> None:
        found = table(("a", 0.1, 0.0), ("b", 0.2, 0.0), ("c", 0.3, 0.0)).assign(reduction=[0.5, 0.0, -0.1])
        assert promising(found, 9, 1.0) == ["a"]

    def test_of_equal_harm_the_lighter_touch_first(self) -> None:
        assert promising(table(("a", 0.1, 0, NAN, 5), ("b", 0.1, 0, NAN, 2)), 2, 1.0) == ["b", "a"]


class TestDoubts:
    @staticmethod
    def held_out(capability: float, low: float, *controls: float) -> pd.DataFrame:
        rows = [("no cap", "none", 0.0, 0.0, 0.0), ("a", "cap", capability, 0.6, low)]
        rows += [(f"c{i}", "control", -9.0, fall, fall) for i, fall in enumerate(controls)]
        return pd.DataFrame(rows, columns=["setting", "kind", "capability", "reduction", "reduction_low"])

    def test_none(self) -> None:
        assert doubts(self.held_out(-1.0, 0.1, 0.19, -0.5, NAN), 1.0) == []

    def test_all(self) -> None:
        found = doubts(self.held_out(-1.2, 0.0, 0.19, 0.2, 0.9), 1.0)
        assert len(found) == 3 and "loses 1.20 points" in found[0] and "not certain" in found[1]
        assert found[2].endswith("effect: c1, c2")
        assert "not certain" in doubts(self.held_out(0.0, NAN), 1.0)[0]


class TestFigures:
    @staticmethod
    def replies(*complied: bool | None) -> Replies:
        marks = [None if c is None else Mark(not c, c, not c, c) for c in complied]
        return Replies(tuple(f"j{i % 20}" for i in range(len(marks))), tuple(marks))

    def test_refused_complied_and_not_judged_are_counted(self) -> None:
        found = figures.jailbreak_columns(self.replies(*([True] * 12 + [False] * 6 + [None] * 2)))
        assert found["harm"] == pytest.approx(12 / 18) and found["refused"] == pytest.approx(6 / 18)
        assert found["answered"] == pytest.approx(12 / 18) and found["assistant"] == pytest.approx(6 / 18)
        assert found["unjudged"] == 2 and found["replies"] == 20
        assert found["harm_low"] < found["harm"] < found["harm_high"]

    def test_nothing_judged(self) -> None:
        found = figures.jailbreak_columns(self.replies(None, None))
        assert math.isnan(found["harm"]) and math.isnan(found["refused"]) and found["unjudged"] == 2
        assert math.isnan(figures.reduction(self.replies(None), self.replies(True)).value)

    def test_all_alike_is_uncertain_all_the_same(self) -> None:
        never, always = (figures.success(self.replies(*[c] * 40)) for c in (False, True))
        assert (never.value, never.low) == (0.0, 0.0) and never.high == pytest.approx(wilson(0, 20).high)
        assert (always.value, always.high) == (1.0, 1.0) and always.low == pytest.approx(wilson(20, 20).low)

    def test_the_fall_is_of_the_pairs(self) -> None:
        before = self.replies(*[True] * 15, None, *[False] * 4)
        after = self.replies(*[True] * 5, *[False] * 9, None, *[False] * 5)
        fall = figures.reduction(before, after)
        assert fall.value == pytest.approx(1 - 5 / 14) and fall.low < fall.value < fall.high < 1
        whole = figures.reduction(before, self.replies(*[False] * 20))
        assert whole.value == whole.high == 1.0 and 0.7 < whole.low < 1.0
        assert math.isnan(figures.reduction(self.replies(False), self.replies(True)).value)

    def test_few_clusters_have_no_interval(self) -> None:
        found = figures.success(self.replies(True, False, True))
        assert found.value == pytest.approx(2 / 3) and math.isnan(found.low) and math.isnan(found.high)

    def test_drift(self) -> None:
        ids = tuple(f"c{i // 5}" for i in range(30))
        late = Late(ids, (True, False, None) * 10, (1.0, 3.0, NAN) * 10)
        found = figures.drift_columns(late)
        assert found["drift_assistant"] == pytest.approx(0.5) and found["drift_unjudged"] == 10
        assert found["drift_projection"] == pytest.approx(2.0)
        fall = figures.drift_reduction(late, Late(ids, (True, True, None) * 10, (0.0,) * 30))
        assert fall.value == fall.high == 1.0


class TestSettings:
    def test_windows(self) -> None:
        assert windows_of(range(6), [2], None) == ((1, 2), (2, 3), (3, 4), (4, 5))
        assert windows_of(range(6), [1, 3], [0, 3]) == ((0,), (3,), (0, 1, 2), (3, 4, 5))
        assert len(windows_of(range(6))) == 5 + 4 + 3 and windows_of([0]) == ((0,),)
        assert windows_of((0, 1, 4, 5), [2], None) == ((4, 5),), "neighbours in the model, not in the file"
        deep = windows_of(range(64))
        assert {len(w) for w in deep} == {4, 8, 16} and min(w[0] for w in deep) == 16 and len(deep) <= 24
        with pytest.raises(CalibrationError, match="no window"):
            windows_of(range(3), [9], None)
        with pytest.raises(CalibrationError, match=r"starts \[7\]: the axis has layers 0-2"):
            windows_of(range(3), None, [7])

    def test_names(self) -> None:
        assert [told(at) for at in ((3,), (3, 4, 5), (1, 4))] == ["3", "3-5", "1,4"]
        made = settings(axis_for(tiny.chat()), [(0, 1), (2,)], ["default_tokens:p50"], lambda _: np.zeros((3, 101)))
        assert [s.name for s in made] == ["0-1 default_tokens:p50", "2 default_tokens:p50"]
        assert made[0].values == (0.0, 0.0) and made[0].cap(axis_for(tiny.chat())).provenance["floor"] == made[0].floor

    def test_floors_of_conversations(self) -> None:
        assert conversations_of("conversations:a:b/c d.jsonl:p2.5") == (Path("a:b/c d.jsonl"), 2.5)
        for wrong in ("conversations:x.jsonl", "conversations::p5", "conversations:x:p101", "conversations:x:5"):
            with pytest.raises(CapError, match="conversations:FILE:pN"):
                conversations_of(wrong)
        rows = np.arange(303.0).reshape(3, 101)
        made = settings(axis_for(tiny.chat()), [(1, 2)], ["conversations:x.jsonl:p50"], lambda _: rows)
        assert made[0].values == (151.0, 252.0)

    def test_what_cannot_be_tried(self) -> None:
        axis = axis_for(tiny.chat())
        for at, floors, error in (([(7,)], ["default_tokens:p5"], CapError), ([(0,)], ["no:p5"], CapError),
                                  ([(0,)], ["default_tokens:5"], CapError), ([], ["roles:p1"], CalibrationError),
                                  ([(0,)], [], CalibrationError)):  # fmt: skip
            with pytest.raises(error):
                settings(axis, at, floors, lambda _: np.zeros((3, 101)))

    def test_effort(self) -> None:
        assert Effort().with_items(50) == replace(Effort(), items=50, more_items=50, screen_items=50, control_items=50)
        assert Effort.quick().items < Effort().items
        with pytest.raises(CalibrationError, match="draws must be at least 1, got 0"):
            Effort(draws=0)
        with pytest.raises(CalibrationError, match="rising counts"):
            Effort(screen_items=600)

    def test_percentiles_of_tokens(self) -> None:
        random = np.random.default_rng(0)
        columns = [{"layer": np.repeat([4, 2], n), "projection": random.normal(size=2 * n)} for n in (9, 70, 1)]
        frames = [pd.DataFrame(column) for column in columns]
        whole = pd.concat(frames)
        found = token_percentiles(frames, (2, 4))
        for row, layer in enumerate((2, 4)):
            own = whole[whole["layer"] == layer]["projection"]
            np.testing.assert_allclose(found[row], np.percentile(own, range(101)))
        with pytest.raises(CalibrationError, match="no token of an assistant"):
            token_percentiles([], (2,))

    def test_long_logs_are_thinned_evenly(self) -> None:
        values = np.arange(10_000.0)
        frames = [pd.DataFrame({"layer": 0, "projection": part}) for part in np.array_split(values, 77)]
        found = token_percentiles(frames, (0,), kept=1000)
        np.testing.assert_allclose(found[0], np.percentile(values, range(101)), atol=16)


class TestUnits:
    def test_kept_and_told_apart(self, tmp_path: Path) -> None:
        calls: list[int] = []

        def measure() -> dict[str, Any]:
            calls.append(1)
            return {"x": (1, NAN, None)}

        with Units.open(tmp_path / "run") as units:
            first = units.get("a", {"n": 1, "t": (1, 2)}, measure)
            assert units.get("a", {"t": [1, 2], "n": 1}, measure) == first or math.isnan(first["x"][1])
            assert len(calls) == 1 and (units.made, units.reused) == (1, 1) and first["x"][0] == 1
            units.get("a", {"n": 2}, measure)
            units.get("b", {"n": 1, "t": (1, 2)}, measure)
            assert len(calls) == 3 and len(list((tmp_path / "run" / "units").iterdir())) == 3

    def test_what_is_damaged_is_measured_again_and_told(self, tmp_path: Path) -> None:
        told: list[str] = []
        for content in ("", "{", '{"key": 1}', "[]", '{"key": {"kind": "other"}, "value": 5}'):
            with Units.open(tmp_path, told.append) as units:
                units.get("a", {}, lambda: 1)
                (file,) = (tmp_path / "units").iterdir()
                file.write_text(content)
                assert units.get("a", {}, lambda: 2) == 2
                file.unlink()
        assert len(told) == 5 and all("damaged" in text for text in told)

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        with (
            Units.open(tmp_path),
            pytest.raises(CalibrationError, match="another process is calibrating"),
            Units.open(tmp_path),
        ):
            pass
        (tmp_path / "file").write_text("")
        with pytest.raises(CalibrationError, match="cannot use"), Units.open(tmp_path / "file"):
            pass


# Whole runs. The tiny model babbles; a cap with a floor far above everything makes it say one thing for ever. So a
# reply of many different words counts as harmful, and as able, and the Assistant says few.

WORDS = "a b c d e f g h".split()
FLOORS = ("default_tokens:p0", "default_tokens:p99")
LITTLE = Effort(screen_items=4, more_items=6, items=8, draws=2, candidates=3, finalists=2, controls=1, control_items=4,
                scripts=1, texts=8, batch=16, control_draws=1, control_scripts=1)  # fmt: skip
SAMPLING = Sampling(max_new_tokens=8)


def axis_for(chat: ChatModel, seed: int = 5) -> Axis:
    random = np.random.default_rng(seed)
    shape = (chat.n_layers, chat.hidden_size)
    stated = {**chat.facts, "num_layers": chat.n_layers, "provenance": "fitted", "recommended_layer": 1}
    return Axis.from_means(
        random.normal(size=shape), random.normal(size=(4, *shape)), layers=range(chat.n_layers),
        metadata={**stated, "role_names": ["w", "x", "y", "z"]},
        quantiles={"default_tokens": np.tile(np.linspace(-100, 100, 101), (chat.n_layers, 1))},
    )  # fmt: skip


def many(reply: str) -> bool:
    return len(set(reply.split())) > 2


class Judge:
    """Counts what it is asked, and after `fatal` calls does something about it."""

    name = "words"

    def __init__(self, fatal: int = 10**9, die: Any = None) -> None:
        self.calls, self.fatal, self.die = 0, fatal, die

    def judge(self, asked: Sequence[Asked]) -> list[Outcome | None]:
        self.calls += 1
        if self.calls > self.fatal:
            self.die()
        found = [Outcome(not many(a.reply), many(a.reply), not many(a.reply), many(a.reply)) for a in asked]
        return [None if len(a.reply) % 11 == 3 else one for a, one in zip(asked, found, strict=True)]


class Words:
    """A capability test; with `free` the cap costs nothing."""

    name = "words"

    def __init__(self, free: bool = True) -> None:
        self.free, self.calls = free, 0

    def facts(self, split: str, at: range, seed: int) -> dict[str, Any]:
        return {"test": self.name, "free": self.free}

    def scores(self, chat: ChatModel, lever: Any, split: str, at: range, seed: int) -> Scores:
        self.calls += 1
        said = [[{"role": "user", "content": f"{WORDS[k % 8]} {WORDS[k // 8]} ?"}] for k in at]
        found = ask(chat, said, Sampling(temperature=0, max_new_tokens=6), seed, lever)
        return Scores(tuple(float(self.free or many(r)) for r in found), ("odd", "even") * (len(at) // 2))


def prompts() -> dict[str, Any]:
    jailbreaks = [
        Jailbreak(f"j{n}", "some", split, f"about-{n}", "ghost", f"be {WORDS[n % 8]} like ghost", f"{WORDS[-n % 8]} ?")
        for n, split in enumerate(["train", "held_out"] * 6)
    ]
    scripts = [
        Script(f"s{n}", ("emotional", "meta-reflective")[n // 2 % 2], ("train", "held_out")[n % 2], "somebody",
               tuple(Turn("venting", f"{w} {WORDS[n]} ?") for w in WORDS[:4]))
        for n in range(4)
    ]  # fmt: skip
    return {"jailbreaks": jailbreaks, "scripts": scripts}


def run(out: Path | str, judge: Judge | None = None, test: Words | None = None, **changes: Any) -> Calibration:
    chat = tiny.chat()
    how = {"axis": axis_for(chat), "windows": [(0,), (1, 2)], "floors": FLOORS, "effort": LITTLE, "bound": 1.0,
           "sampling": SAMPLING, **prompts(), **changes}  # fmt: skip
    return calibrate(chat, how.pop("axis"), out=out, judge=judge or Judge(), test=test or Words(), **how)


def files(out: Path) -> set[str]:
    return {p.name for p in (run_directory(out) / "units").iterdir()}


def same(one: Calibration, other: Calibration) -> None:
    pd.testing.assert_frame_equal(one.table, other.table)
    pd.testing.assert_frame_equal(one.held_out, other.held_out)
    assert one.chosen == other.chosen and one.about == other.about
    assert one.cap is None or (other.cap is not None and one.cap.provenance == other.cap.provenance)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration, list[Event]]:
    """A run in one go, its file, and what it said."""
    out, events = tmp_path_factory.mktemp("whole") / "cap.safetensors", list[Event]()
    return out, run(out, progress=events.append), events


def test_a_whole_run(whole: tuple[Path, Calibration, list[Event]]) -> None:
    out, found, events = whole
    assert found.chosen is not None and found.chosen.endswith("p99"), "the floor that acts, not the one that never does"
    assert found.table["setting"].tolist()[0] == "no cap" and len(found.table) == 5
    assert found.table["stage"].isin(["screened", "measured further", "full"]).all()
    chosen = found.table[found.table["chosen"]].iloc[0]
    base = found.table.iloc[0]
    assert chosen["stage"] == "full" and chosen["harm"] < base["harm"] and chosen["capability"] == 0
    idle = found.table[found.table["floor"] == FLOORS[0]]
    assert (idle["reduction"] == 0).all() and (idle["touched"] == 0).all(), "paired: what never acts changes nothing"
    assert chosen["touched"] == 1.0 and chosen["drift_assistant"] > base["drift_assistant"]
    assert base["replies"] == 12 and base["items"] == 8

    held = found.held_out
    assert held["kind"].tolist() == ["none", "cap", "control", "control", "control"]
    assert held[held["kind"] == "control"]["control"].tolist() == ["gaussian", "shuffled", "span"]
    for _, row in held[held["kind"] == "control"].iterrows():
        assert row["touched"] == pytest.approx(chosen["touched"], abs=0.01)
        assert row["size"] == pytest.approx(chosen["size"], rel=0.01) and 0 <= row["cosine"] < 1
    assert any("paired items" in note for note in found.about["notes"])
    assert isinstance(events[0], Planned) and events[0].settings == 4
    stages = [event.stage for event in events if isinstance(event, Stage)]
    assert list(dict.fromkeys(stages)) == [
        "without a cap", "screened", "measured further", "full", "held out", "controls"
    ]  # fmt: skip
    assert [e.text for e in events if isinstance(e, Note)] == found.about["notes"]


def test_what_it_leaves_behind(whole: tuple[Path, Calibration, list[Event]]) -> None:
    out, found, _ = whole
    names = {".settings.csv", ".pareto.png", ".held_out.csv", ".controls.png", ".report.json", ".safetensors"}
    assert {p.name for p in found.files} == {f"cap{name}" for name in names}
    assert all(p.stat().st_size for p in found.files)
    assert pd.read_csv(out.with_name("cap.settings.csv"))["setting"].tolist() == found.table["setting"].tolist()
    report = json.loads(out.with_name("cap.report.json").read_text())
    assert report["chosen"] == found.chosen and len(report["settings"]) == 5 and len(report["held_out"]) == 5
    cap = Cap.load(out)
    told = cap.provenance["calibration"]
    assert told["rule"] == rule(1.0, 8) and told["train"]["chosen"]["setting"] == found.chosen
    assert told["held_out"]["without"]["setting"] == "no cap" and told["seed"] == 0 and told["judge"] == "words"
    assert set(told["controls"]) == {"gaussian", "shuffled", "span"}
    chat = tiny.chat()
    with cap.on(chat.model, chat.template.source), torch.no_grad():
        chat.model(torch.tensor([[1, 9, 10]]))


def test_a_second_run_measures_nothing(whole: tuple[Path, Calibration, list[Event]]) -> None:
    out, found, _ = whole
    judge, test, before = Judge(), Words(), files(out)
    same(run(out, judge, test), found)
    assert judge.calls == test.calls == 0 and files(out) == before


def test_more_settings_reuse_what_is_there(whole: tuple[Path, Calibration, list[Event]], tmp_path: Path) -> None:
    out, found, _ = whole
    before, judge = files(out), Judge()
    wider = run(tmp_path / "cap.safetensors", judge, run_dir=run_directory(out), windows=[(0,), (1, 2), (2,)])
    assert before < files(out) and judge.calls > 0
    row = {name: frame.set_index("setting").loc["1-2 default_tokens:p99"] for name, frame in
           (("old", found.table), ("new", wider.table))}  # fmt: skip
    if row["old"]["stage"] == row["new"]["stage"]:
        assert row["old"]["harm"] == row["new"]["harm"]


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"sampling": Sampling(max_new_tokens=7)}, {"floors": ("default_tokens:p98", FLOORS[0])},
     {"axis": axis_for(tiny.chat(), seed=6)}, {"effort": replace(LITTLE, batch=8)}, {"test": Words(free=False)}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_changed_settings_are_other_units(
    whole: tuple[Path, Calibration, list[Event]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    out, _, _ = whole
    before = files(out)
    run(tmp_path / "cap.safetensors", run_dir=run_directory(out), **changes)
    assert before < files(out), "nothing is refused, nothing overwritten"
    same(run(out), whole[1])


def test_stopped_and_gone_on(whole: tuple[Path, Calibration, list[Event]], tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    out, judge = tmp_path / "cap.safetensors", Judge()
    with pytest.raises(Interrupted, match="the same command goes on"):
        run(out, Judge(fatal=9, die=stop))
    assert not out.exists() and len([n for n in files(out) if n[:4] in ("jail", "requ", "drif")]) == 9
    same(run(out, judge), whole[1])
    assert judge.calls == len([n for n in files(out) if n[:4] in ("jail", "requ", "drif")]) - 9


CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_calibrate as t
from persona_axis.calibration import units
whole, written = units.write_atomically, []
def torn(path, content):
    written.append(path)
    if len(written) > {count}:
        path.with_name(path.name + ".tmp").write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, content)
units.write_atomically = torn
t.run(sys.argv[1])
"""


def test_killed_in_the_middle_of_a_write(whole: tuple[Path, Calibration, list[Event]], tmp_path: Path) -> None:
    here, out = Path(__file__).parent, tmp_path / "cap.safetensors"
    code = CHILD.format(paths=[str(here), str(here.parent)], count=12)
    child = subprocess.run([sys.executable, "-c", code, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.returncode == -signal.SIGKILL
    kept = {name for name in files(out) if name.endswith(".json")}
    assert len(kept) == 12
    found = run(out)
    assert kept < files(out)
    assert (found.chosen, found.about) == (whole[1].chosen, whole[1].about)
    # another process may add up in another order; what is counted does not depend on it
    names = ["setting", "stage", "harm", "refused", "capability", "drift_assistant"]
    pd.testing.assert_frame_equal(found.table[names], whole[1].table[names])


def test_nothing_within_the_bound_writes_no_cap(tmp_path: Path) -> None:
    out, events = tmp_path / "cap.safetensors", list[Event]()
    found = run(out, test=Words(free=False), progress=events.append)
    assert found.cap is None and found.chosen is None and not out.exists() and not len(found.held_out)
    assert "no setting lowers the harm and keeps capability within 1 points" in found.about["notes"][-1]
    assert not found.table["chosen"].any()
    assert {p.name for p in found.files} == {"cap.settings.csv", "cap.pareto.png", "cap.report.json"}
    assert not [e for e in events if isinstance(e, Stage) and e.stage in ("held out", "controls")]
    assert run(out, test=Words(free=False), bound=100.0).chosen is not None


def test_what_an_earlier_run_chose_does_not_stand_among_the_new_files(tmp_path: Path) -> None:
    out = tmp_path / "cap.safetensors"
    assert len(run(out).held_out)
    earlier, stale = out.read_bytes(), [tmp_path / f"cap{name}" for name in (".held_out.csv", ".controls.png")]
    assert all(path.is_file() for path in stale)
    found = run(out, test=Words(free=False))
    assert found.cap is None and not any(path.exists() for path in stale)
    assert out.read_bytes() == earlier and {path.name for path in tmp_path.iterdir()} == {
        "cap.safetensors", "cap.safetensors.run", *(path.name for path in found.files)
    }  # fmt: skip


def test_where_the_finalists_cost_too_much_others_get_their_turn(tmp_path: Path) -> None:
    class Late(Words):
        """The first cap that gets to the last items fails there."""

        first: Cap | None = None

        def scores(self, chat: ChatModel, lever: Any, split: str, at: range, seed: int) -> Scores:
            late = isinstance(lever, Cap) and at.start >= LITTLE.more_items
            self.first = self.first or (lever if late else None)
            found = super().scores(chat, lever, split, at, seed)
            costly = late and self.first is not None and torch.equal(lever.floor, self.first.floor)
            return found._replace(values=(0.0,) * len(at)) if costly else found

    both = {"windows": [(1, 2)], "floors": ("default_tokens:p99", "default_tokens:p97"), "controls": 0}
    found = run(tmp_path / "cap.safetensors", test=Late(), effort=replace(LITTLE, finalists=1), **both)
    full = found.table[found.table["stage"] == "full"].set_index("setting")
    assert full["capability"].tolist() in ([0.0, -25.0, 0.0], [0.0, 0.0, -25.0])
    assert found.chosen == full["capability"].iloc[1:].idxmax()
    assert found.held_out["kind"].tolist() == ["none", "cap"]


def test_where_nothing_succeeds_there_is_nothing_to_choose_by(tmp_path: Path) -> None:
    class Kind(Judge):
        def judge(self, asked: Sequence[Asked]) -> list[Outcome | None]:
            return [Outcome(True, False, True)] * len(asked)

    class Blind(Judge):
        def judge(self, asked: Sequence[Asked]) -> list[Outcome | None]:
            return [None] * len(asked)

    with pytest.raises(CalibrationError, match=r"of 12 persona-jailbreaks none succeeds .* \(0 replies could not"):
        run(tmp_path / "cap.safetensors", Kind())
    blind = Blind()
    blind.name = "blind"
    with pytest.raises(CalibrationError, match=r"\(12 replies could not be judged\)"):
        run(tmp_path / "cap.safetensors", blind)


def test_a_floor_measured_on_conversations(tmp_path: Path) -> None:
    log, events = tmp_path / "log.jsonl", list[Event]()
    talk = {"messages": [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "a b c d e f g h"}]}
    log.write_text(f"{json.dumps(talk)}\n{{\n{json.dumps(talk)}\n")
    floors = [f"conversations:{log}:p50", FLOORS[1]]
    found = run(tmp_path / "cap.safetensors", floors=floors, progress=events.append)
    chat = tiny.chat()
    axis = axis_for(chat)
    from persona_axis.drift import trajectory

    tokens = trajectory(chat, axis, talk["messages"], tokens=True, layers=[0])["projection"]
    values = dict(zip(found.table["setting"], found.table["values"], strict=True))
    assert values[f"0 {floors[0]}"] == [pytest.approx(float(np.median(tokens)), abs=1e-5)]
    assert any("1 lines were passed over" in e.text for e in events if isinstance(e, Note))
    with pytest.raises(CalibrationError, match="cannot read"):
        run(tmp_path / "cap.safetensors", floors=["conversations:nowhere.jsonl:p5"])


def test_bad_input(tmp_path: Path) -> None:
    out = tmp_path / "cap.safetensors"
    with pytest.raises(CalibrationError, match="there is no directory"):
        run(tmp_path / "nowhere" / "cap.safetensors")
    judge = Judge()
    with pytest.raises(CalibrationError, match="it is a directory"):
        run(tmp_path, judge)
    assert not judge.calls and not run_directory(tmp_path).exists()
    with pytest.raises(CalibrationError, match="bound must be"):
        run(out, bound=-1.0)
    with pytest.raises(CalibrationError, match="of the half 'held_out'"):
        run(out, jailbreaks=prompts()["jailbreaks"][:1])
    with pytest.raises(AxisMismatchError):
        run(out, axis=axis_for(tiny.chat(seed=3)))
    with pytest.raises(AxisMismatchError, match="layer 9"):
        run(out, layer=9)
    with pytest.raises(JudgeError, match="judge of your own"):
        chat = tiny.chat()
        calibrate(chat, axis_for(chat), out=out)


def test_any_change_of_an_axis_shows(whole: tuple[Path, Calibration, list[Event]], tmp_path: Path) -> None:
    axis = axis_for(tiny.chat())
    axis.save(tmp_path / "axis.safetensors")
    digests = [axis_sha256(a) for a in (axis, Axis.load(tmp_path / "axis.safetensors"), axis_for(tiny.chat(), seed=6))]
    assert digests[0] == digests[1] != digests[2]


# Troupe.


@pytest.fixture(scope="module")
def troupe_axis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An axis of Troupe from few rollouts: good enough to run on."""
    from persona_axis import load_probes
    from persona_axis.extract import Options, extract

    if not (troupe_path() / "config.json").is_file():
        pytest.fail("Troupe's weights are missing")
    out = tmp_path_factory.mktemp("troupe") / "axis.safetensors"
    options = Options(roles=24, prompts=1, questions=4, default_samples=2, min_accepted=1, calibration=40,
                      sampling=Sampling(max_new_tokens=24), batch_size=96)  # fmt: skip
    extract(ChatModel.load("troupe"), load_probes(), options, out=out)
    return out


def test_the_command_on_troupe(
    troupe_axis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(load: Any, count: int) -> Any:
        return lambda **how: [one for split in ("train", "held_out") for one in load(split=split, **how)[:count]]

    def short(**how: Any) -> list[Script]:
        return [replace(s, turns=s.turns[:3]) for s in few(load_scripts, 24)(**how)]

    little = replace(LITTLE, batch=64)
    monkeypatch.setattr(Effort, "quick", classmethod(lambda cls: little))
    monkeypatch.setattr(module, "load_jailbreaks", few(load_jailbreaks, 12))
    monkeypatch.setattr(module, "load_scripts", short)
    monkeypatch.chdir(tmp_path)
    arguments = [str(troupe_axis), "--quick", "--layers", "3-4", "--layers", "2", "--floor", "default_tokens:p50",
                 "--bound", "60"]  # fmt: skip
    done = CliRunner().invoke(cli.calibrate, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "plan: 2 settings" in done.stderr and "saved troupe-cap.safetensors" in done.stderr
    assert all(words in done.stdout for words in ("held-out half", "gaussian", "no cap", "* "))
    cap = Cap.load("troupe-cap.safetensors")
    told = cap.provenance["calibration"]
    assert told["judge"].startswith("Troupe's parser, world ") and told["test"] == "troupe"
    assert told["train"]["chosen"]["unjudged"] >= 0
    again = CliRunner().invoke(cli.calibrate, arguments, catch_exceptions=False)
    assert again.stdout == done.stdout and Cap.load("troupe-cap.safetensors").provenance == cap.provenance


def test_the_command_ends_badly_without_a_cap(
    troupe_axis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "calibrate", lambda *_, **how: run(tmp_path / "x.safetensors", test=Words(free=False)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalibrationError, match="no setting lowers the harm") as failed:
        CliRunner().invoke(cli.calibrate, [str(troupe_axis)], catch_exceptions=False)
    assert "earlier run" not in str(failed.value)
    for there in ("own.safetensors", "troupe-cap.safetensors"):
        Path(there).write_bytes(b"a cap")
        arguments = [str(troupe_axis), "--out", there][: 1 if there.startswith("troupe") else 3]
        with pytest.raises(CalibrationError, match=f"; {there} is from an earlier run and was left as it is$"):
            CliRunner().invoke(cli.calibrate, arguments, catch_exceptions=False)
        assert Path(there).read_bytes() == b"a cap"


def test_the_command_never_writes_over_the_axis(
    troupe_axis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "calibrate", lambda *_, **how: pytest.fail("it began"))
    mine = Path("troupe-cap.safetensors")  # where a cap goes unless told otherwise
    mine.write_bytes(troupe_axis.read_bytes())
    Path("link").symlink_to(mine)
    for more in ([], ["--out", str(mine)], ["--out", str(tmp_path / "x" / ".." / mine)], ["--out", "link"]):
        done = CliRunner().invoke(cli.calibrate, [str(mine), *more], catch_exceptions=False)
        assert done.exit_code == 2 and "would be written over AXIS" in done.stderr
    assert mine.read_bytes() == troupe_axis.read_bytes()


def test_the_command_says_what_does_not_go_together(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.calibrate, [str(tmp_path / "axis"), "--layers", "3", "--widths", "2"])
    assert done.exit_code == 2 and "--layers" in done.stderr
    done = CliRunner().invoke(cli.calibrate, ["--help"])
    said = " ".join(done.stdout.split())
    assert done.exit_code == 0
    quick, full = Effort.quick(), Effort()
    assert f"Paired items of capability. [default: {full.items}; {quick.items} with --quick]" in said
    assert f"Draws of each kind of control. [default: {full.controls}; {quick.controls} with --quick]" in said
    assert "From the command line only Troupe can be calibrated" in said and "in Python" in said
    assert "Troupe's judge" in said.split("--task NAME")[1].split("--controls")[0]
