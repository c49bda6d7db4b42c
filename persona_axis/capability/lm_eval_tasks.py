"""Finding and loading tasks of lm-evaluation-harness, and what one run of them looks like as a table."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_axis.errors import CapabilityError

INSTALL = 'pip install "persona-axis[eval]"'
RUN_COLUMNS = ["task", "metric", "item", "score", "higher_is_better", "asked"]
_EXPECTED = ("`pretrained` model kwarg", "Passed an already-initialized model")  # just what is wanted here
_NUMBER = (bool, int, float, np.bool_, np.integer, np.floating)


def load_tasks(wanted: Sequence[str | Path], num_fewshot: int | None) -> dict[str, Any]:
    """The harness' task objects by name, groups and tags taken apart. Raises `CapabilityError`."""
    manager_of = _task_manager()
    names = [str(w) for w in wanted if not _is_path(w)]
    found: list[tuple[str, Any]] = []
    if names:  # reading the harness' own thousands of YAML files takes up to a minute
        manager = manager_of()
        for name in names:
            if name not in manager.all_tasks:
                near = ", ".join(get_close_matches(name, manager.all_tasks, n=3))
                raise CapabilityError(f"the harness has no task {name!r}" + (f"; near it: {near}" if near else ""))
            found += _loaded(manager, name)
    for path in (Path(w).expanduser() for w in wanted if _is_path(w)):
        if path.is_dir():
            manager = manager_of(include_defaults=False, include_path=str(path))
            if not manager.all_subtasks:
                raise CapabilityError(f"{path} holds no task YAML (files NAME.yaml with a key `task`)")
            found += [pair for name in manager.all_subtasks for pair in _loaded(manager, name)]
        elif path.is_file():
            found += _loaded(manager_of(include_defaults=False), str(path))
        else:
            raise CapabilityError(f"no such task file or directory: {path}")
    tasks: dict[str, Any] = {}
    for name, task in found:
        if name in tasks:
            raise CapabilityError(f"the task {name} was named twice")
        tasks[name] = task
        stated = task.get_config("num_fewshot")
        if stated is None or (num_fewshot is not None and stated != 0):  # the harness' rule: a stated 0 stays
            task.set_config("num_fewshot", num_fewshot or 0)
    return tasks


def run_table(results: Mapping[str, Any], tasks: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each item and metric; the harness' order of tasks, metrics and items."""
    rows = []
    for name, samples in results["samples"].items():
        better = tasks[name].higher_is_better() or {}
        for sample in samples:
            asked = [sample["doc_hash"], sample["target_hash"], sample["arguments"]]
            digest = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()
            for metric in sample["metrics"]:
                value = sample[metric]
                score = float(value) if isinstance(value, _NUMBER) else float("nan")
                up = better.get(metric) is not False
                rows.append((name, f"{metric},{sample['filter']}", sample["doc_id"], score, up, digest))
    return pd.DataFrame(rows, columns=RUN_COLUMNS)


def tasks_digest(tasks: Mapping[str, Any], places: Mapping[str, Sequence[int]]) -> str:
    """sha256 over the tasks' settings and the data of the items at `places`."""
    digest = hashlib.sha256()
    for name, items in places.items():
        docs = tasks[name].eval_docs
        text = json.dumps([name, tasks[name].dump_config(), [[i, docs[i]] for i in items]], default=str, sort_keys=True)
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", text).encode())
    return digest.hexdigest()


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Python's and NumPy's global draws from `seed` inside, as tasks of the harness use them; as they were outside."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def warnings_kept() -> Iterator[dict[str, str]]:
    """What the harness warns of, into a mapping instead of the terminal; one of a kind, whatever its numbers."""
    logger, kept = logging.getLogger("lm_eval"), _Kept()
    level, upward = logger.level, logger.propagate
    logger.addHandler(kept)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield kept.texts
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
        logger.propagate = upward


def first_line(error: BaseException) -> str:
    """What an error says, or else its kind."""
    return str(error).strip().split("\n")[0] or type(error).__name__


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if not text.startswith(_EXPECTED):
            self.texts.setdefault(re.sub(r"\d+", "#", text), text)


def _task_manager() -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise CapabilityError(f"lm-evaluation-harness is not installed: {INSTALL}") from None
    if not hasattr(TaskManager, "load"):
        raise CapabilityError(f"this lm-evaluation-harness is older than 0.4.12: {INSTALL}")
    return TaskManager


def _is_path(task: str | Path) -> bool:
    return isinstance(task, Path) or task.endswith((".yaml", ".yml")) or os.sep in task


def _loaded(manager: Any, what: str) -> list[tuple[str, Any]]:
    try:
        tasks: dict[str, Any] = manager.load([what])["tasks"]
        for task in tasks.values():
            len(task.eval_docs)  # raises where there is nothing to test on
        return list(tasks.items())
    except Exception as error:  # the harness, its tasks' own code and `datasets` each have their ways to fail
        raise CapabilityError(f"cannot load {what}: {type(error).__name__}: {first_line(error)}") from error
