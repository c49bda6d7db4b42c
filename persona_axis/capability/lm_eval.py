"""What a lever costs on tasks of lm-evaluation-harness: the same items with and without it, compared item by item.

Any task, group or tag that the harness knows by name, or a task of one's own (a YAML file, or a directory of them).
The harness builds the prompts, asks and scores; the model is the one that is loaded already, and the lever is held
around every request. Needs the extra `eval`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from persona_axis.capability import Capability, Scores, capability
from persona_axis.capability.lm_eval_tasks import (
    first_line,
    load_tasks,
    own_random_state,
    run_table,
    tasks_digest,
    warnings_kept,
)
from persona_axis.errors import CapabilityError, PersonaAxisError

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.levers import Levers

__all__ = ["LmEvalReport", "LmEvalRun", "LmEvalTasks", "compared"]

SEED = 1234
"""The harness' own: few-shot examples are then those behind published figures."""

_CELL = ["task", "metric"]
_SAME = ["task", "metric", "item", "asked"]


class LmEvalRun(NamedTuple):
    """One pass over the tasks: each item's score by each metric of its task, and what the harness warned of."""

    frame: pd.DataFrame
    """task, metric ("acc,none": the harness' metric and filter), item (its index in the task's data), score (nan:
    the metric has no number for single items), higher_is_better, asked (hash of everything that was asked)."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LmEvalReport:
    """The same items without and with a lever."""

    capability: Capability
    """Over all items, each by the main metric of its task; `parts` tell the tasks apart. Negative = loss."""
    table: pd.DataFrame
    """task, metric, main, items, without, with_lever (mean scores in [0, 1]), points_lost, low, high (the paired
    difference in points, 100 times a score, with its 95% interval; positive = worse under the lever)."""
    items: pd.DataFrame
    """task, metric, item, without, with_lever (scores), points_lost: the pairs themselves."""
    notes: tuple[str, ...]


class LmEvalTasks:
    """Tasks of the harness, loaded once and run under as many levers as one likes.

    It is a `persona_axis.capability.CapabilityTest`: calibration can use it for models other than Troupe. Its list
    of items takes one item of each task in turn, each task's own shuffled by `seed`; of that order every second item
    of a task is the held-out half's.
    """

    def __init__(
        self,
        tasks: str | Path | Sequence[str | Path],
        *,
        metric: str | None = None,
        num_fewshot: int | None = None,
        chat_template: bool = True,
        system: str | None = None,
        batch: int | str = 8,
        unsafe_code: bool = False,
    ) -> None:
        """Load them.

        `tasks`: names (of tasks, groups, tags), paths of task YAML files, directories of such; a text is a path if
        it ends in .yaml or holds a slash. `metric` is what counts ("acc_norm", or with a filter
        "exact_match,flexible-extract"); None takes the first of each task that scores single items between 0 and 1.
        `num_fewshot` None is what the task says. `chat_template` off shows plain text, as base models are tested;
        `system` goes before every prompt. `batch` may be "auto". `unsafe_code` lets tasks run code that the model
        wrote. Raises `CapabilityError` where lm-eval is missing, a task is unknown or cannot be loaded.
        """
        wanted = [tasks] if isinstance(tasks, (str, Path)) else list(tasks)
        if not wanted:
            raise CapabilityError("no task was named: give a name such as arc_easy, or a task YAML file")
        self.name = f"lm-eval {', '.join(map(str, wanted))}"
        self.metric, self.system, self.batch = metric, system, batch
        self.chat_template, self.unsafe_code = chat_template, unsafe_code
        with own_random_state(SEED), warnings_kept() as warned:
            self._tasks = load_tasks(wanted, num_fewshot)
        self._notes = tuple(warned.values())
        self.sizes: dict[str, int] = {name: len(task.eval_docs) for name, task in self._tasks.items()}
        self._order = lru_cache(_order)

    def facts(self, split: str, at: range, seed: int) -> dict[str, Any]:
        """What scores depend on beside model and lever."""
        import lm_eval

        how = {"chat_template": self.chat_template, "system": self.system, "batch": self.batch, "metric": self.metric}
        digest = tasks_digest(self._tasks, self._places(at, seed, split))
        return {"test": self.name, "lm_eval": lm_eval.__version__, "tasks_sha256": digest, **how}

    def scores(self, chat: ChatModel, lever: Levers, split: str, at: range, seed: int) -> Scores:
        """The main score of those items under the lever, turned so that more is better; parts are task and metric."""
        frame = self.run(chat, lever, at, seed, split).frame
        main = frame.merge(_main(frame, self.metric)).set_index(["task", "item"])
        good, metric = _good(main, "score").to_dict(), main["metric"].to_dict()
        order = self._order(tuple(self.sizes.items()), seed, split)
        keys = [order[k] for k in at]
        return Scores(tuple(good[key] for key in keys), tuple(f"{key[0]} {metric[key]}" for key in keys))

    def compare(self, chat: ChatModel, lever: Levers, *, items: int | None = None, seed: int = SEED) -> LmEvalReport:
        """Run without and with the lever: points lost, with 95% paired intervals.

        `items` takes the first so many of the shuffled list, None all. Raises `CapabilityError` where a task has no
        score to pair, the harness stops, or the two runs were not asked the same; and what the levers raise.
        """
        at = range(sum(self.sizes.values()) if items is None else items)
        return compared(self.run(chat, None, at, seed), self.run(chat, lever, at, seed), self.metric)

    def run(
        self, chat: ChatModel, lever: Levers, at: range, seed: int = SEED, split: str | None = None
    ) -> LmEvalRun:
        """Ask the items `at`, of all or of a half ("train", "held_out"), under the lever.

        The random state of Python, NumPy and torch is left as it was.
        """
        from lm_eval.evaluator import evaluate

        from persona_axis.capability.lm_eval_model import HeldModel
        from persona_axis.sampling import seeded

        places = self._places(at, seed, split)
        tasks = {name: self._tasks[name] for name in places}
        # No list means all: for each item that a task has, the harness searches the list from its beginning.
        lists = {name: items for name, items in places.items() if len(items) < self.sizes[name]}
        with own_random_state(seed), seeded(seed, chat.model), warnings_kept() as warned:
            for task in tasks.values():
                task.set_fewshot_seed(seed)
            model = HeldModel(chat, lever, batch=self.batch, chat_template=self.chat_template)
            try:
                results = evaluate(
                    model,
                    {"tasks": tasks, "groups": {}},
                    samples=lists,
                    bootstrap_iters=0,
                    log_samples=True,
                    system_instruction=self.system,
                    apply_chat_template=self.chat_template,
                    fewshot_as_multiturn=self.chat_template,
                    confirm_run_unsafe_code=self.unsafe_code,
                )
            except PersonaAxisError:
                raise
            except (AssertionError, ValueError) as error:  # how the harness says what it will not do
                raise CapabilityError(f"{self.name} stopped: {first_line(error)}") from error
        return LmEvalRun(run_table(results, tasks), (*self._notes, *warned.values()))

    def _places(self, at: range, seed: int, split: str | None) -> dict[str, list[int]]:
        """The items `at` by task, in rising order."""
        order = self._order(tuple(self.sizes.items()), seed, split)
        if not at or min(at) < 0 or max(at) >= len(order):
            which = " in each half" if split else ""
            raise CapabilityError(
                f"{self.name} has {len(order)} items{which} and was asked for {at}: name more tasks, or ask for fewer "
                "items"
            )
        found: dict[str, list[int]] = {}
        for name, item in (order[k] for k in at):
            found.setdefault(name, []).append(item)
        return {name: sorted(items) for name, items in found.items()}


def compared(without: LmEvalRun, under: LmEvalRun, metric: str | None = None) -> LmEvalReport:
    """Pair two runs item by item. Raises `CapabilityError` unless both were asked the very same."""
    old, new = without.frame, under.frame
    if not old[_SAME].equals(new[_SAME]):
        odd = int((old[_SAME] != new[_SAME]).any(axis=1).sum()) if len(old) == len(new) else abs(len(old) - len(new))
        raise CapabilityError(f"{odd} of {len(old)} scores are not of the same items, asked the same way, in both runs")
    main = _main(old, metric)
    usable = old.groupby(_CELL, sort=False)["score"].transform(_are_shares).astype(bool)
    left_out = old.loc[~usable, _CELL].drop_duplicates().itertuples(index=False)
    notes = [f"{task}: {name} is left out: it does not score single items between 0 and 1" for task, name in left_out]
    pairs = old[usable].rename(columns={"score": "without"}).assign(with_lever=new["score"][usable])
    if len(bad := pairs[~pairs["with_lever"].between(0, 1)]):
        task, name, item, score = bad.iloc[0][["task", "metric", "item", "with_lever"]]
        raise CapabilityError(f"{task}: under the lever {name} of item {item} is {score}: no score between 0 and 1")
    pairs = pairs.merge(main.assign(main=True), "left", _CELL).fillna({"main": False}).astype({"main": bool})
    counted = pairs[pairs["main"]]
    rows = []
    for (task, name, is_main), group in pairs.groupby([*_CELL, "main"], sort=False):
        change = _capability(group).points
        lost = (-change.value + 0.0, -change.high + 0.0, -change.low + 0.0)  # + 0.0: nothing lost has no minus
        rows.append((task, name, is_main, len(group), group["without"].mean(), group["with_lever"].mean(), *lost))
    columns = ["task", "metric", "main", "items", "without", "with_lever", "points_lost", "low", "high"]
    items = pairs[[*_CELL, "item", "without", "with_lever"]].assign(
        points_lost=100 * (_good(pairs, "without") - _good(pairs, "with_lever"))
    )
    told = tuple(dict.fromkeys([*notes, *without.notes, *under.notes]))
    return LmEvalReport(_capability(counted), pd.DataFrame(rows, columns=columns), items, told)


def _capability(pairs: pd.DataFrame) -> Capability:
    parts = tuple(pairs["task"])
    return capability(Scores(tuple(_good(pairs, "without")), parts), Scores(tuple(_good(pairs, "with_lever")), parts))


def _main(frame: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """What counts: task and metric, a row for each task. Raises `CapabilityError` for a task that has none."""
    found = []
    for task, of_task in frame.groupby("task", sort=False):
        usable = [name for name, cell in of_task.groupby("metric", sort=False) if _are_shares(cell["score"])]
        fitting = [name for name in usable if metric is None or metric in (name, name.partition(",")[0])]
        if not fitting:
            names = ", ".join(of_task["metric"].unique())
            asked = "score" if metric is None else f"{metric!r}"
            raise CapabilityError(f"{task} has no {asked} of single items between 0 and 1 to compare; it has {names}")
        found.append((task, fitting[0]))
    return pd.DataFrame(found, columns=_CELL)


def _are_shares(scores: pd.Series[float]) -> bool:
    return bool(scores.between(0, 1).all())


def _good(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    """Scores in [0, 1] turned so that more is better."""
    return frame[column].where(frame["higher_is_better"], 1 - frame[column])


def _order(sizes: tuple[tuple[str, int], ...], seed: int, split: str | None) -> list[tuple[str, int]]:
    """All items, or a half's, as (task, index in its data): each task's shuffled, the tasks in turn."""
    shuffled = {name: random.Random(f"lm-eval-{seed}-{name}").sample(range(size), size) for name, size in sizes}
    if split is not None:
        halves = {name: items[split == "held_out" :: 2] for name, items in shuffled.items()}
        # An odd item is nobody's: what one half can be asked, the other can be asked later.
        shuffled = {name: items[: len(shuffled[name]) // 2] for name, items in halves.items()}
    longest = max(len(items) for items in shuffled.values())
    return [(name, items[k]) for k in range(longest) for name, items in shuffled.items() if k < len(items)]
