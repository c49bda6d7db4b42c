"""Rollouts that exist already: a file of JSON lines, checked line by line, of which only an index is kept in memory.

A line holds `role` ("default" for none), `prompt` (the system prompt, "" or null for none), `question`, `response`
and, where it was judged, `score` (0 to 3); `sample` tells repeated answers to the same apart. A run's own
rollouts.jsonl is such a file: there `prompt` and `question` are numbers of the probes', `text` is the response, `ids`
its tokens, and a score of null beside `accepted` is a verdict that could not be read. Other keys are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from persona_axis.errors import ExtractionError
from persona_axis.extraction.plan import DEFAULT, Item
from persona_axis.files.plainfile import open_file
from persona_axis.probes import Probes, Question, Role

NAME_OF_DEFAULT = "default"


class Entry(NamedTuple):
    """Where the line of one rollout is, and how many characters are to be read for it."""

    number: int
    offset: int
    size: int


class Response(NamedTuple):
    """One line's answer. `ids` are its tokens where the file has them; `score` is None where there is none, and
    `judged` whether that is the verdict."""

    number: int
    text: str
    ids: list[int] | None
    score: int | None
    judged: bool


@dataclass(frozen=True, eq=False)
class Responses:
    """An index of the file. `probes` are what was asked, put together from its lines."""

    path: Path
    probes: Probes
    entries: Mapping[Item, Entry]
    sha256: str
    unknown: tuple[str, ...]
    """Roles that the probes at hand do not know: no judge can be told what they are."""
    unjudged: int | None
    """The first line that only a judge can decide about, if there is one."""

    def read(self, item: Item) -> Response:
        """The answer of one rollout."""
        entry = self.entries[item]
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            line = _Line(f"{self.path}, line {entry.number}", file.readline())
        return line.response(entry.number)


def read_responses(path: Path, probes: Probes, defaults: tuple[str, ...]) -> Responses:
    """Read and check a file (or a run's directory, for its rollouts.jsonl) once, from the first line to the last.

    `probes` tell what numbers mean and what roles are; `defaults` are their default conditions. Raises
    `ExtractionError` with the line number for anything that is no rollout, is there twice, or means nothing; and for
    a file without the default's responses or with fewer than two roles.
    """
    path = path / "rollouts.jsonl" if path.is_dir() else path
    index = _Index(path, probes, defaults)
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            offset = 0
            for number, raw in enumerate(file, start=1):
                digest.update(raw)
                if raw.strip():
                    index.add(number, offset, _Line(f"{path}, line {number}", raw))
                offset += len(raw)
    except OSError as error:
        raise ExtractionError(f"{path}: cannot be read: {error.strerror or error}") from error
    return index.made(digest.hexdigest())


class _Line:
    """One line, and complaints about it."""

    def __init__(self, where: str, raw: bytes) -> None:
        self.where = where
        try:
            found = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.bad(f"is not JSON ({error})") from None
        if not isinstance(found, dict):
            raise self.bad(f"expected an object with role, prompt, question and response, found {_short(found)}")
        self.values: dict[str, Any] = found

    def bad(self, why: str) -> ExtractionError:
        return ExtractionError(f"{self.where}: {why}")

    def text(self, *keys: str) -> str:
        """The text under the first of these keys that is there."""
        for key in keys:
            if key in self.values:
                if not isinstance(self.values[key], str):
                    raise self.bad(f"{key}: expected a text, found {_short(self.values[key])}")
                return str(self.values[key])
        raise self.bad(f"has no {' and no '.join(repr(key) for key in keys)}")

    def number(self, key: str, otherwise: int) -> int:
        value = self.values.get(key, otherwise)
        if type(value) is not int or value < 0:
            raise self.bad(f"{key}: expected a whole number from 0, found {_short(value)}")
        return value

    def response(self, number: int) -> Response:
        ids = self.values.get("ids")
        if ids is not None and not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
            raise self.bad(f"ids: expected a list of token ids, found {_short(ids)}")
        score = self.values.get("score")
        if score is not None and (type(score) is not int or score not in (0, 1, 2, 3)):
            raise self.bad(f"score: expected 0, 1, 2 or 3, or null for none, found {_short(score)}")
        judged = score is not None or "accepted" in self.values
        return Response(number, self.text("response", "text"), ids, score, judged)


class _Index:
    """What is known of the lines so far."""

    def __init__(self, path: Path, probes: Probes, defaults: tuple[str, ...]) -> None:
        self.path, self.known_questions = path, probes.questions
        self.known = {role.name: role for role in probes.roles} | {
            NAME_OF_DEFAULT: Role(NAME_OF_DEFAULT, "", defaults)
        }
        self.prompts: dict[str, dict[str, int]] = {NAME_OF_DEFAULT: {}}
        self.questions: dict[str, int] = {}
        self.roles: dict[str, int] = {NAME_OF_DEFAULT: DEFAULT}
        self.entries: dict[Item, Entry] = {}
        self.unjudged: int | None = None

    def add(self, number: int, offset: int, line: _Line) -> None:
        name = line.text("role")
        if not name.strip():
            raise line.bad("role: is empty ('default' is the model without a role)")
        prompt, question = self._prompt(line, name), self._question(line)
        response, sample = line.response(number), line.number("sample", 0)
        role = self.roles.setdefault(name, len(self.roles) - 1)
        prompts = self.prompts.setdefault(name, {})
        at = prompts.setdefault(prompt, len(prompts))
        item = Item(role, at, self.questions.setdefault(question, len(self.questions)), sample)
        if item in self.entries:
            raise line.bad(
                f"line {self.entries[item].number} answers the same prompt and question of role {name!r}, "
                f"sample {sample}: number repeated answers with 'sample'"
            )
        self.entries[item] = Entry(number, offset, len(prompt) + len(question) + len(response.text))
        if role != DEFAULT and not response.judged and response.text.strip() and self.unjudged is None:
            self.unjudged = number

    def _prompt(self, line: _Line, name: str) -> str:
        if "prompt" not in line.values:
            raise line.bad("has no 'prompt' (the system prompt; \"\" for none)")
        value = line.values["prompt"]
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        number = line.number("prompt", 0)
        if name not in self.known:
            raise line.bad(
                f"role {name!r} is not among the probes, so prompt {number} means nothing: give the prompt's text, or "
                "name the probes that it was drawn with"
            )
        if number >= len(self.known[name].prompts):
            raise line.bad(f"prompt {number}: role {name!r} has {len(self.known[name].prompts)} in the probes")
        return self.known[name].prompts[number]

    def _question(self, line: _Line) -> str:
        value = line.values.get("question")
        if type(value) is not int:
            text = line.text("question")
            if not text.strip():
                raise line.bad("question: is empty")
            return text
        if not 0 <= value < len(self.known_questions):
            raise line.bad(f"question {value}: the probes have {len(self.known_questions)}")
        return str(self.known_questions[value])

    def made(self, sha256: str) -> Responses:
        names = [name for name in self.roles if name != NAME_OF_DEFAULT]
        if not self.prompts[NAME_OF_DEFAULT]:
            raise ExtractionError(
                f"{self.path}: no line has the role 'default': without responses of the model in no role there is no "
                "axis (its lines have \"role\": \"default\", and the system prompt \"\" or a neutral one)"
            )
        if len(names) < 2:
            raise ExtractionError(f"{self.path}: {len(names)} roles beside the default, at least 2 are needed")
        roles = tuple(
            Role(name, self.known[name].description if name in self.known else "", tuple(self.prompts[name]))
            for name in names
        )
        asked = tuple(Question(text, "given") for text in self.questions)
        probes = Probes(roles, tuple(self.prompts[NAME_OF_DEFAULT]), asked)
        unknown = tuple(name for name in names if name not in self.known)
        return Responses(self.path, probes, self.entries, sha256, unknown, self.unjudged)


def run_beside(path: Path) -> Mapping[str, Any] | None:
    """The settings of the run whose rollouts.jsonl this is, or None; raises `ExtractionError` for a damaged plan."""
    plan = (path if path.is_dir() else path.parent) / "plan.json"
    if path.name != "rollouts.jsonl" and not path.is_dir() or not plan.is_file():
        return None
    try:
        settings = json.loads(plan.read_bytes())["settings"]
        if not isinstance(settings["sampling"], dict) or not isinstance(settings["probes"], str):
            raise TypeError("no settings of a run")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExtractionError(f"{plan} is damaged ({error}): copy the rollouts elsewhere to use them alone") from error
    found: Mapping[str, Any] = settings
    return found


def by_role(entries: Mapping[Item, Entry]) -> dict[int, list[Item]]:
    """The rollouts of each role, in the order of the file."""
    found: dict[int, list[Item]] = {}
    for item in entries:
        found.setdefault(item.role, []).append(item)
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
