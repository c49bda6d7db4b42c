"""Personas with settings and questions for the persona score, and its rubrics, read strictly from JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_axis._asked import path_of
from persona_axis.errors import ConversationError, ProbeError
from persona_axis.files.records import Seen, check_keys, checked_text, records, text_of
from persona_axis.judges.questions import RATINGS, Rubric
from persona_axis.persona import Persona
from persona_axis.probes import probes_path

TASKS = ("expected action", "action justification", "linguistic habits", "persona consistency", "toxicity control")
"""Of PersonaGym (Samuel et al. 2024, arXiv 2407.18416)."""

SETTINGS = (
    "home", "kitchen", "workplace", "school", "shop", "market", "restaurant", "hospital", "courtroom", "police station",
    "train", "airport", "harbour", "road", "farm", "forest", "mountain", "beach", "park", "stadium", "gym", "theatre",
    "museum", "library", "place of worship", "wedding", "funeral", "party", "festival", "town meeting", "office party",
    "hotel", "workshop", "laboratory", "studio", "online forum", "interview", "prison", "battlefield", "night street",
)  # fmt: skip
"""What the settings of a persona are chosen from."""


@dataclass(frozen=True)
class PersonaProbe:
    """A persona, the settings that its questions are set in, and its questions by task."""

    name: str
    persona: Persona
    settings: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]


def load_personas(dir: str | Path | None = None) -> tuple[PersonaProbe, ...]:
    """Read and check `personas.jsonl` in `dir`, without one the file that ships with the package.

    A line has `name`, `description`, `facts` (as `Persona.of_record` takes them), `settings` (of `SETTINGS`) and
    `questions`, an object with the five `TASKS` and one question or more of each. Raises `ProbeError` with file and
    line for anything else, and for a name or question said twice.
    """
    path = (probes_path() if dir is None else path_of("dir", dir)) / "personas.jsonl"
    names, asked, found = Seen("persona"), Seen("question"), []
    for where, record in records(path, ("name", "description", "facts", "settings", "questions")):
        name = text_of(record, "name", where)
        names.add(name, where)
        text_of(record, "description", where)
        try:
            persona = Persona.of_record(record, where)
        except ConversationError as error:
            raise ProbeError(str(error)) from error
        questions = _questions(record["questions"], name, where)
        for text in (text for texts in questions.values() for text in texts):
            asked.add(text, where)
        found.append(PersonaProbe(name, persona, _settings(record["settings"], name, where), questions))
    return tuple(found)


def load_rubrics(dir: str | Path | None = None) -> dict[str, Rubric]:
    """Read and check `rubrics.jsonl`: one for each of the five tasks, with a meaning and an example of each score.

    Raises `ProbeError` with file and line.
    """
    path = (probes_path() if dir is None else path_of("dir", dir)) / "rubrics.jsonl"
    keys = ("task", "asks", "meanings", "example_persona", "example_question", "examples")
    found, where = {}, f"{path}:1"
    for where, record in records(path, keys):
        task = text_of(record, "task", where)
        if task not in TASKS or task in found:
            raise ProbeError(f"{where}: expected one rubric for each of {', '.join(TASKS)}; here is {task!r}")
        lists = [_texts(record[key], key, where) for key in ("meanings", "examples")]
        if any(len(texts) != len(RATINGS) for texts in lists):
            raise ProbeError(f"{where}: a rubric has a meaning and an example for each of the scores 1 to 5")
        told = [text_of(record, key, where) for key in ("asks", "example_persona", "example_question")]
        found[task] = Rubric(task, told[0], lists[0], told[1], told[2], lists[1])
    if missing := [task for task in TASKS if task not in found]:
        raise ProbeError(f"{where}: no rubric for {', '.join(missing)}")
    return found


def _questions(given: Any, name: str, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, dict):
        raise ProbeError(f"{where}: 'questions' of {name!r} must be an object of tasks, got {type(given).__name__}")
    check_keys(given, TASKS, f"{where}: questions of {name!r}")
    return {task: _texts(given[task], task, where) for task in TASKS}


def _settings(given: Any, name: str, where: str) -> tuple[str, ...]:
    found = _texts(given, "settings", where)
    if unknown := [setting for setting in found if setting not in SETTINGS]:
        raise ProbeError(f"{where}: {name!r} has the setting {unknown[0]!r}; the settings are {', '.join(SETTINGS)}")
    return found


def _texts(given: Any, what: str, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise ProbeError(f"{where}: {what!r} must be a list of one text or more")
    return tuple(checked_text(text, f"a text of {what!r}", where) for text in given)
