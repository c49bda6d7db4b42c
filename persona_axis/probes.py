"""The probes: archetype prompts, default conditions and extraction questions, read strictly from JSON lines.

Probes are data that people edit, and a silent slip in them (a question asked twice, a prompt left empty)
bends every figure that follows. So the loader accepts nothing it has not checked, and each complaint names
the file and the line.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from persona_axis._asked import path_of
from persona_axis.errors import ProbeError
from persona_axis.files.records import Seen, checked_text, records, same_text_key, text_of

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
    root = probes_path() if dir is None else path_of("dir", dir)
    if not root.is_dir():
        raise ProbeError(f"no such directory of probes: {root}")
    roles, defaults, questions = (root / name for name in _FILES)
    return Probes(_read_roles(roles), _read_defaults(defaults), _read_questions(questions))


def _read_roles(path: Path) -> tuple[Role, ...]:
    names, texts, roles = Seen("role name"), Seen("text"), []
    for where, record in records(path, ("name", "description", "prompts")):
        name = text_of(record, "name", where)
        description = text_of(record, "description", where)
        prompts = record["prompts"]
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ProbeError(f"{where}: 'prompts' of role {name!r} must be a list of texts")
        if len(prompts) != PROMPTS_PER_ROLE:
            raise ProbeError(f"{where}: role {name!r} has {len(prompts)} prompts, needs {PROMPTS_PER_ROLE}")
        if same_text_key(name) == "default":
            raise ProbeError(f"{where}: {name!r} means the model without a role, name this role otherwise")
        names.add(name, where)
        for text in (description, *prompts):
            texts.add(checked_text(text, f"a prompt of role {name!r}", where), where)
        roles.append(Role(name, description, tuple(prompts)))
    return tuple(roles)


def _read_defaults(path: Path) -> tuple[str, ...]:
    where, seen, prompts = f"{path}:1", Seen("default condition"), []
    for where, record in records(path, ("prompt",)):
        prompt = record["prompt"]
        if prompt != "":  # exactly "" says: no system prompt
            text_of(record, "prompt", where)
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
    seen, questions = Seen("question"), []
    for where, record in records(path, ("text", "category")):
        text = text_of(record, "text", where)
        seen.add(text, where)
        questions.append(Question(text, text_of(record, "category", where)))
    return tuple(questions)
