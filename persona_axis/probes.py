"""The probes: archetype prompts, default conditions and extraction questions, read strictly from JSON lines.

Probes are data that people edit, and a silent slip in them (a question asked twice, a prompt left empty)
bends every figure that follows. So the loader accepts nothing it has not checked, and each complaint names
the file and the line.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from persona_axis.errors import ProbeError

PROMPTS_PER_ROLE = 5
DEFAULT_CONDITIONS = 5
MODEL_NAME = "{model_name}"
_FILES = ("roles.jsonl", "defaults.jsonl", "questions.jsonl")


class Question(str):
    """An extraction question: the text itself, ready to be sent to a model, with its `.category`."""

    __slots__ = ("category",)
    category: str

    def __new__(cls, text: str, category: str) -> Self:
        question = super().__new__(cls, text)
        question.category = category
        return question

    def __reduce__(self) -> tuple[type[Question], tuple[str, str]]:  # so that copies keep the category
        return type(self), (str(self), self.category)

    @property
    def text(self) -> str:
        """The text as a plain `str`."""
        return str(self)


@dataclass(frozen=True)
class Role:
    """An archetype: its name, a line that a judge goes by, and five differently worded system prompts."""

    name: str
    description: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Probes:
    """Everything a model is asked with. `defaults` holds system prompts, "" meaning none at all."""

    roles: tuple[Role, ...]
    defaults: tuple[str, ...]
    questions: tuple[Question, ...]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the content in its order (hex); spacing and order of keys do not matter."""
        content = {
            "roles": [[role.name, role.description, list(role.prompts)] for role in self.roles],
            "defaults": list(self.defaults),
            "questions": [[question.text, question.category] for question in self.questions],
        }
        canonical = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def defaults_for(self, model_name: str) -> tuple[str, ...]:
        """The default conditions with "{model_name}" filled in."""
        return tuple(prompt.replace(MODEL_NAME, model_name) for prompt in self.defaults)


def probes_path() -> Path:
    """Directory of the shipped probes: in an installed package, or beside the package in the repository."""
    package = Path(__file__).resolve().parent
    # The packaged copy goes first: beside an installed package, `probes` could be anybody's directory.
    for candidate in (package / "_probes", package.parent / "probes"):
        if all((candidate / name).is_file() for name in _FILES):
            return candidate
    raise ProbeError(f"the shipped probes are missing from {package}: reinstall it, or name a directory")


def load_probes(dir: str | Path | None = None) -> Probes:
    """Read and check a set of probes: `roles.jsonl`, `defaults.jsonl` and `questions.jsonl` in `dir`.

    Without `dir`, the set that ships with the package. A set of your own may have any number of roles and
    questions (at least one each), with five prompts a role and five default conditions. Raises `ProbeError`
    with the file and the line on bad JSON, unknown or missing keys, wrong types or counts, empty texts, and
    on duplicates, also those that differ only in case, punctuation or white space.
    """
    root = probes_path() if dir is None else Path(dir)
    if not root.is_dir():
        raise ProbeError(f"no such directory of probes: {root}")
    roles, defaults, questions = (root / name for name in _FILES)
    return Probes(_read_roles(roles), _read_defaults(defaults), _read_questions(questions))


def _read_roles(path: Path) -> tuple[Role, ...]:
    names, texts, roles = _Seen("role name"), _Seen("text"), []
    for where, record in _records(path, ("name", "description", "prompts")):
        name = _text(record, "name", where)
        description = _text(record, "description", where)
        prompts = record["prompts"]
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ProbeError(f"{where}: 'prompts' of role {name!r} must be a list of texts")
        if len(prompts) != PROMPTS_PER_ROLE:
            raise ProbeError(f"{where}: role {name!r} has {len(prompts)} prompts, needs {PROMPTS_PER_ROLE}")
        if _key(name) == "default":
            raise ProbeError(f"{where}: {name!r} means the model without a role, name this role otherwise")
        names.add(name, where)
        for text in (description, *prompts):
            texts.add(_checked(text, f"a prompt of role {name!r}", where), where)
        roles.append(Role(name, description, tuple(prompts)))
    return tuple(roles)


def _read_defaults(path: Path) -> tuple[str, ...]:
    where, seen, prompts = f"{path}:1", _Seen("default condition"), []
    for where, record in _records(path, ("prompt",)):
        prompt = record["prompt"]
        if prompt != "":  # exactly "" says: no system prompt
            _text(record, "prompt", where)
        for placeholder in re.findall(r"\{[^{}]*\}", prompt):
            if placeholder != MODEL_NAME:
                raise ProbeError(f"{where}: unknown placeholder {placeholder}, there is only {MODEL_NAME}")
        seen.add(prompt, where)
        prompts.append(prompt)
    if len(prompts) != DEFAULT_CONDITIONS:
        raise ProbeError(f"{where}: {len(prompts)} default conditions, needs {DEFAULT_CONDITIONS}")
    if "" not in prompts:
        raise ProbeError(f'{where}: one default condition must be "", that is no system prompt')
    return tuple(prompts)


def _read_questions(path: Path) -> tuple[Question, ...]:
    seen, questions = _Seen("question"), []
    for where, record in _records(path, ("text", "category")):
        text = _text(record, "text", where)
        seen.add(text, where)
        questions.append(Question(text, _text(record, "category", where)))
    return tuple(questions)


def _records(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) for each line that is not blank; every object has exactly these keys."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ProbeError(f"cannot read {path}: {error.strerror}") from error
    empty = True
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            record = json.loads(text, object_pairs_hook=_unique_keys) if text.strip() else None
        except (ValueError, RecursionError) as error:  # decoding and JSON errors are ValueErrors
            raise ProbeError(f"{where}: not a JSON object in UTF-8 ({error})") from error
        if not text.strip():
            continue
        if not isinstance(record, dict):
            raise ProbeError(f"{where}: expected a JSON object, got {type(record).__name__}")
        if unknown := sorted(set(record) - set(keys)):
            wanted = ", ".join(keys)
            raise ProbeError(f"{where}: unknown key {', '.join(map(repr, unknown))}; the keys are {wanted}")
        if missing := [key for key in keys if key not in record]:
            raise ProbeError(f"{where}: missing key {', '.join(map(repr, missing))}")
        empty = False
        yield where, record
    if empty:
        raise ProbeError(f"{path}:1: the file holds no entry")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is given twice")
    return record


def _text(record: dict[str, Any], key: str, where: str) -> str:
    return _checked(record[key], repr(key), where)


def _checked(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise ProbeError(f"{where}: {what} must be a text, got {type(value).__name__}")
    if not _key(value):
        raise ProbeError(f"{where}: {what} is empty")
    if value != value.strip():
        raise ProbeError(f"{where}: {what} begins or ends with white space")
    return value


def _key(text: str) -> str:
    """What makes a text that text: letters, marks and digits, whatever the case, punctuation and spacing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LMN")


class _Seen:
    """Refuses a text that was there before, and says where."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.places: dict[str, str] = {}

    def add(self, text: str, where: str) -> None:
        key = _key(text)
        if key in self.places:
            raise ProbeError(f"{where}: {self.what} {text!r} repeats the one at {self.places[key]}")
        self.places[key] = where
