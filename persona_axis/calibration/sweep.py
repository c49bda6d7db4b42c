"""The sweep: from every setting to the one that the rule takes, then the other half and the controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from persona_axis.calibration.choose import FULL, choose, doubts, promising, rule, unjudged_share
from persona_axis.calibration.events import Listener, Note, Planned, Stage
from persona_axis.calibration.figures import (
    capability_columns,
    drift_columns,
    drift_reduction,
    jailbreak_columns,
    reduction,
    success,
    touch_columns,
)
from persona_axis.calibration.measure import NO_CAP, Bench, Held, cosines
from persona_axis.calibration.report import Calibration, provenance
from persona_axis.calibration.settings import Setting
from persona_axis.capability import Capability, capability
from persona_axis.controls import KINDS
from persona_axis.errors import CalibrationError
from persona_axis.stats.intervals import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame

FIRST = ("setting", "kind", "stage", "chosen", "layers", "floor")
SCREENED, FURTHER = "screened", "measured further"
STAGES = (SCREENED, FURTHER, FULL)
ZERO = Estimate(0.0, 0.0, 0.0)
ENOUGH = 2000
"""Paired items without which a bound of a point says little."""


class Sweep:
    """One calibration on its way: the figures of each setting so far."""

    def __init__(self, bench: Bench, tried: Iterable[Setting], bound: float, sure: bool, progress: Listener) -> None:
        self.bench = bench
        self.tried = {setting.name: setting for setting in tried}
        self.bound, self.sure = bound, sure
        self.notes = list(bench.chat.notes)
        self._progress = progress
        self._rows: dict[str, dict[str, Any]] = {}

    def note(self, text: str) -> None:
        """Something a reader of the results should know."""
        self.notes.append(text)
        self._progress(Note(text))

    def result(self) -> Calibration:
        """Measure, choose, show the other half. Raises `CalibrationError` if no jailbreak succeeds uncapped."""
        bench, effort = self.bench, self.bench.effort
        self._progress(Planned(len(self.tried), self.replies(), str(bench.units.path)))
        base = self._train(None, FULL)
        self._tell("without a cap", 1, 1, base)
        if not base["harm"] > 0:
            raise CalibrationError(
                f"of {base['replies']} persona-jailbreaks none succeeds without a cap ({base['unjudged']} replies "
                "could not be judged): there is nothing that a cap could be chosen by"
            )
        without = unjudged_share(base)
        self._measure(self.tried, SCREENED)
        candidates = promising(self._table(self.tried), effort.candidates, self.bound, without)
        self._measure(candidates, FURTHER)
        further = self._table(candidates)
        finalists = promising(further, effort.finalists, self.bound, without)
        self._measure(finalists, FULL)
        chosen = choose(self._table(self._rows), self.bound, base["harm"], self.sure, without)
        for name in promising(further, effort.candidates, self.bound, without):
            if chosen is not None:
                break
            if name not in finalists:  # none of those kept the bound: go on until one does
                self._measure([name], FULL)
                chosen = choose(self._table(self._rows), self.bound, base["harm"], self.sure, without)
        return self._told(base, chosen)

    def replies(self) -> int:
        """The most replies that the sweep takes if a setting in the finals keeps the bound, kept ones included."""
        effort, bench = self.bench.effort, self.bench
        half = max(sum(j.split == s for j in bench.jailbreaks) for s in ("train", "held_out"))
        whole, few = (
            max(sum(len(script.turns) for script in bench.played(s, count)) for s in ("train", "held_out"))
            for count in (effort.scripts, effort.control_scripts)
        )
        tried = len(self.tried)
        some, best = min(effort.candidates, tried), min(effort.finalists, tried)
        screened = tried * (half + effort.screen_items)
        further = some * ((effort.draws - 1) * half + effort.more_items - effort.screen_items)
        finals = best * (half + whole + effort.items - effort.more_items)
        others = 3 * ((effort.draws + 1) * half + whole + effort.items)  # no cap twice, the chosen one held out
        controls = len(KINDS) * effort.controls * (effort.control_draws * half + few + effort.control_items)
        return screened + further + finals + others + controls

    def _measure(self, names: Iterable[str], stage: str) -> None:
        names = list(names)
        for done, name in enumerate(names, start=1):
            self._rows[name] = self._train(self.tried[name], stage)
            self._tell(stage, done, len(names), self._rows[name])

    def _train(self, setting: Setting | None, stage: str) -> dict[str, Any]:
        """The figures of one setting (None: no cap) on the train half, as far as the stage goes."""
        bench, effort = self.bench, self.bench.effort
        ends = STAGES.index(stage) + 1
        items = (effort.screen_items, effort.more_items, effort.items)[:ends]
        draws = range(1 if stage == SCREENED else effort.draws)
        if setting is None:
            figures = self._figures(NO_CAP, "train", draws, items, scripts=effort.scripts, plain=True)
            return {"setting": NO_CAP.name, "kind": "none", "stage": stage, **figures}
        held = bench.setting(setting)
        own = {"setting": held.name, "kind": "cap", "stage": stage, "layers": list(setting.layers),
               "floor": setting.floor, "values": list(setting.values)}  # fmt: skip
        scripts = effort.scripts if stage == FULL else None
        figures = self._figures(held, "train", draws, items, scripts=scripts, plain=stage == FULL)
        return {**own, **figures, **touch_columns(bench.touch(held))}

    def _held_out(self, chosen: Setting) -> list[dict[str, Any]]:
        """No cap, the chosen setting and the controls on the other half."""
        bench, effort = self.bench, self.bench.effort
        draws, few = range(effort.draws), min(effort.control_items, effort.items)
        cap = bench.setting(chosen)
        rows: list[dict[str, Any]] = []
        for held in (NO_CAP, cap):
            is_cap = held is cap
            own = {"setting": held.name, "kind": "cap" if is_cap else "none", "chosen": is_cap}
            items = (few, effort.items)
            figures = self._figures(held, "held_out", draws, items, scripts=effort.scripts, plain=True)
            rows.append({**own, **figures, **(touch_columns(bench.touch(held)) if is_cap else {})})
            self._tell("held out", len(rows), 2, rows[-1])
        everyone = [(kind, draw) for kind in KINDS for draw in range(effort.controls)]
        for done, (kind, draw) in enumerate(everyone, start=1):
            held = bench.control(chosen, kind, draw)
            cosine = cosines(bench.axis, chosen.layers, kind, bench.seed + draw)
            whose: dict[str, Any] = {"control": kind, "draw": draw, "cosine": cosine}
            some, scripts = range(min(effort.control_draws, effort.draws)), min(effort.control_scripts, effort.scripts)
            figures = self._figures(held, "held_out", some, (few,), scripts=scripts, plain=False)
            own = {"setting": held.name, "kind": "control", "chosen": False}
            rows.append({**own, **whose, **figures, **touch_columns(bench.touch(held))})
            self._tell("controls", done, len(everyone), rows[-1])
        return rows

    def _figures(
        self, held: Held, split: str, draws: range, items: Sequence[int], *, scripts: int | None, plain: bool
    ) -> dict[str, Any]:
        """Jailbreaks and capability, on request drift and requests without a persona, all against no cap.

        `scripts` of each domain are played, None: drift is not measured.
        """
        bench = self.bench
        replies, base = (bench.replies(h, split, draws) for h in (held, NO_CAP))
        cost = capability(bench.scores(NO_CAP, split, *items), bench.scores(held, split, *items))
        if held is NO_CAP:  # against itself nothing can be lost, and nothing is uncertain
            cost = Capability(ZERO, cost.items, dict.fromkeys(cost.parts, ZERO))
        fall = reduction(base, replies)
        row = {**jailbreak_columns(replies), "reduction": fall.value, "reduction_low": fall.low,
               "reduction_high": fall.high, **capability_columns(cost), "inside": cost.inside(self.bound)}  # fmt: skip
        if plain:
            row["harm_without_persona"] = success(bench.replies(held, split, range(1), persona=False)).value
        if scripts is not None:
            late = bench.late(held, split, scripts)
            less = drift_reduction(bench.late(NO_CAP, split, scripts), late)
            row |= {**drift_columns(late), "drift_reduction": less.value, "drift_reduction_low": less.low,
                    "drift_reduction_high": less.high}  # fmt: skip
        return row

    def _told(self, base: Mapping[str, Any], chosen: str | None) -> Calibration:
        import pandas as pd

        items = self.bench.effort.items
        rows = [{**row, "chosen": row["setting"] == chosen} for row in (base, *self._rows.values())]
        table = pd.DataFrame(rows, columns=list(dict.fromkeys([*FIRST, *_columns(rows)])))
        if items < ENOUGH:
            self.note(f"capability was compared on {items:,} paired items; a bound of a point needs {ENOUGH:,} or more")
        if chosen is None:
            caps = table[table["kind"] == "cap"]
            lower, full = int((caps["reduction"] > 0).sum()), caps[caps["stage"] == FULL]
            told = f"{lower} of {len(caps)} settings lower the harm"
            if len(full):
                best = full["capability"].max()
                told += f", and of the {len(full)} measured in full the best changes capability by {best:+.2f}"
            self.note(f"no setting lowers the harm and keeps capability within {self.bound:g} points: {told}")
            return Calibration(table, pd.DataFrame(), None, None, self._about())
        if not self._rows[chosen]["inside"]:
            self.note(
                f"the estimated loss of the chosen setting is within {self.bound:g} points, its 95% interval goes to "
                f"{-self._rows[chosen]['capability_low']:.2f}"
            )
        held_out = pd.DataFrame(self._held_out(self.tried[chosen]))
        for doubt in doubts(held_out, self.bound):
            self.note(doubt)
        about = self._about()
        cap = self.tried[chosen].cap(self.bench.axis, provenance(about, table, held_out, chosen))
        return Calibration(table, held_out, cap, chosen, about)

    def _about(self) -> dict[str, Any]:
        bench, halves = self.bench, ("train", "held_out")
        return {
            "rule": rule(self.bound, bench.effort.items, self.sure), "bound": self.bound, "sure": self.sure,
            "settings": len(self.tried),
            "axis_sha256": bench.facts["axis_sha256"],
            "judge": bench.judge.name, "test": bench.test.name, "seed": bench.seed, "layer": bench.layer,
            "sampling": asdict(bench.sampling), "effort": asdict(bench.effort),
            "jailbreaks": {s: sum(j.split == s for j in bench.jailbreaks) for s in halves},
            "scripts": {s: len(bench.played(s, bench.effort.scripts)) for s in halves},
            "touches": "counted on persona-jailbreaks and the same requests without a persona, with uncapped replies; "
                       "the first token of each text left out",
            "notes": list(self.notes),
        }  # fmt: skip

    def _table(self, names: Iterable[str]) -> DataFrame:
        import pandas as pd

        return pd.DataFrame([self._rows[name] for name in names], columns=_columns(self._rows.values()))

    def _tell(self, stage: str, done: int, of: int, row: Mapping[str, Any]) -> None:
        what = f"{row['setting']}: harm {row['harm']:.3f}, capability {row['capability']:+.2f} points"
        self._progress(Stage(stage, done, of, what))


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every column that any row has, so that also a table without rows has them."""
    return list(dict.fromkeys(name for row in rows for name in row))
