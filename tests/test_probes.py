"""The shipped probes keep their promises, and the loader refuses everything else by file and line."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_axis import ProbeError, Probes, Question, Role, load_probes
from persona_axis.probes import probes_path

Record = dict[str, Any]


def role(name: str) -> Record:
    prompts = [f"{verb} a {name}." for verb in ("Be", "Act as", "You are", "Speak as", "Imagine being")]
    return {"name": name, "description": f"talks like a {name} would", "prompts": prompts}


def small_set() -> dict[str, list[Any]]:
    return {
        "roles": [role("ghost"), role("tutor"), role("knight")],
        "defaults": [
            {"prompt": text} for text in ("", "You are an AI.", "You are {model_name}.", "A model.", "Be.")
        ],
        "questions": [
            {"text": "Who are you?", "category": "self"},
            {"text": "What is rain?", "category": "facts"},
        ],
    }


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(**changed: list[Any]) -> Path:
        for name, records in {**small_set(), **changed}.items():
            lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path

    return _write


def test_shipped_counts() -> None:
    probes = load_probes()
    assert len(probes.roles) >= 300
    assert len(probes.questions) == 240
    assert len(probes.defaults) == 5
    assert probes.defaults.count("") == 1
    assert all(len(role.prompts) == 5 and role.description for role in probes.roles)
    assert {
        "librarian",
        "tutor",
        "analyst",
        "consultant",
        "ghost",
        "demon",
        "toddler",
        "void",
        "trickster",
    } <= {role.name for role in probes.roles}
    assert len({question.category for question in probes.questions}) >= 6


def test_shipped_texts_are_plain() -> None:
    probes = load_probes()
    texts = [text for role in probes.roles for text in (role.name, role.description, *role.prompts)]
    for text in (*texts, *probes.questions, *probes.defaults):
        assert "\n" not in text and "  " not in text


def test_own_set_loads(write: Write) -> None:
    probes = load_probes(write())
    assert [role.name for role in probes.roles] == ["ghost", "tutor", "knight"]
    assert isinstance(probes, Probes) and isinstance(probes.roles[0], Role)
    assert probes.defaults_for("Troupe")[2] == "You are Troupe."


def test_questions_are_texts_with_a_category(write: Write) -> None:
    question = load_probes(write()).questions[0]
    assert question == "Who are you?" and type(question.text) is str and question.category == "self"
    for twin in (copy.deepcopy(question), pickle.loads(pickle.dumps(question))):
        assert isinstance(twin, Question) and twin == question and twin.category == "self"


def test_value_objects_are_frozen() -> None:
    probes = load_probes()
    with pytest.raises(AttributeError):
        probes.roles = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        probes.roles[0].name = "other"  # type: ignore[misc]


def test_fingerprint_ignores_form_and_sees_content(write: Write, tmp_path: Path) -> None:
    first = load_probes(write()).fingerprint
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '\n{"category":"self",   "text":"Who are you?"}\r\n\n{"text":"What is rain?","category":"facts"}'
    )
    assert load_probes(tmp_path).fingerprint == first and len(first) == 64
    path.write_text('{"text":"What is rain?","category":"facts"}\n{"text":"Who are you?","category":"self"}')
    assert load_probes(tmp_path).fingerprint != first  # another order is another plan
    for name in ("roles", "defaults", "questions"):
        records = small_set()[name]
        key = {"roles": "description", "defaults": "prompt", "questions": "category"}[name]
        records[1][key] += " more"
        assert load_probes(write(**{name: records})).fingerprint != first


def test_byte_order_mark_is_no_text(write: Write, tmp_path: Path) -> None:
    path = write() / "questions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_probes(tmp_path).questions[0] == "Who are you?"


def roles_with(index: int, **changes: Any) -> list[Record]:
    records = copy.deepcopy(small_set()["roles"])
    records[index].update(changes)
    return records


def questions_with(*more: Any) -> list[Any]:
    return [*small_set()["questions"], *more]


FIVE = ["one x", "two x", "three x", "four x", "five x"]
BAD: dict[str, tuple[str, list[Any], str, str]] = {
    "same question": ("questions", questions_with({"text": "Who are you?", "category": "x"}), "3", "repeats"),
    "case": ("questions", questions_with({"text": "WHO are You?", "category": "x"}), "3", "repeats"),
    "punctuation": ("questions", questions_with({"text": "Who, are you", "category": "x"}), "3", "repeats"),
    "white space": ("questions", questions_with({"text": "Who  are you ?", "category": "x"}), "3", "repeats"),
    "width": ("questions", questions_with({"text": "Ｗho are you?", "category": "x"}), "3", "repeats"),
    "same role": ("roles", roles_with(2, name="Ghost"), "3", "repeats"),
    "same prompt in a role": ("roles", roles_with(1, prompts=[*FIVE[:4], "One, X!"]), "2", "repeats"),
    "same prompt elsewhere": ("roles", roles_with(2, prompts=[*FIVE[:4], "Be a ghost"]), "3", "repeats"),
    "same description": ("roles", roles_with(2, description="Talks like a ghost would"), "3", "repeats"),
    "empty name": ("roles", roles_with(0, name=""), "1", "empty"),
    "empty description": ("roles", roles_with(0, description="..."), "1", "empty"),
    "empty prompt": ("roles", roles_with(1, prompts=[*FIVE[:4], ""]), "2", "empty"),
    "empty question": ("questions", questions_with({"text": " ", "category": "x"}), "3", "empty"),
    "empty category": ("questions", questions_with({"text": "Why?", "category": ""}), "3", "empty"),
    "padded": ("questions", questions_with({"text": "Why? ", "category": "x"}), "3", "white space"),
    "named default": ("roles", roles_with(1, name="Default"), "2", "without a role"),
    "four prompts": ("roles", roles_with(1, prompts=FIVE[:4]), "2", "has 4 prompts, needs 5"),
    "six prompts": ("roles", roles_with(1, prompts=[*FIVE, "six x"]), "2", "has 6 prompts, needs 5"),
    "prompts no list": ("roles", roles_with(1, prompts="five"), "2", "list of texts"),
    "prompt no text": ("roles", roles_with(1, prompts=[1, 2, 3, 4, 5]), "2", "list of texts"),
    "text no text": ("questions", questions_with({"text": 7, "category": "x"}), "3", "must be a text"),
    "unknown key": (
        "questions",
        questions_with({"text": "Why?", "category": "x", "id": 3}),
        "3",
        "unknown key 'id'",
    ),
    "missing key": ("questions", questions_with({"text": "Why?"}), "3", "missing key 'category'"),
    "doubled key": ("questions", questions_with('{"text": "A", "text": "B", "category": "x"}'), "3", "twice"),
    "not JSON": ("questions", questions_with('{"text": "Why?", "cat'), "3", "not a JSON object"),
    "a list": ("questions", questions_with(["Why?", "x"]), "3", "expected a JSON object, got list"),
    "null": ("questions", questions_with("null"), "3", "expected a JSON object"),
    "deep": ("questions", questions_with("[" * 100_000), "3", "not a JSON object"),
    "no question": ("questions", [], "1", "no entry"),
    "no role": ("roles", [""], "1", "no entry"),
    "four defaults": ("defaults", small_set()["defaults"][:4], "4", "4 default conditions, needs 5"),
    "six defaults": ("defaults", [*small_set()["defaults"], {"prompt": "six"}], "6", "6 default conditions"),
    "none without prompt": ("defaults", [{"prompt": text} for text in FIVE], "5", "no system prompt"),
    "two without prompt": ("defaults", [*small_set()["defaults"][:4], {"prompt": ""}], "5", "repeats"),
    "blank prompt": ("defaults", [{"prompt": " "}, *small_set()["defaults"][:4]], "1", "empty"),
    "placeholder": ("defaults", [{"prompt": "You are {name}."}], "1", "unknown placeholder {name}"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_with_file_and_line(write: Write, case: str) -> None:
    file, records, line, why = BAD[case]
    with pytest.raises(ProbeError) as caught:
        load_probes(write(**{file: records}))
    message = str(caught.value)
    assert f"{file}.jsonl:{line}: " in message and why in message, message
    assert "\n" not in message


def test_not_utf8(write: Write) -> None:
    path = write() / "questions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"text": "caf\xe9", "category": "x"}\n')
    with pytest.raises(ProbeError, match=r"questions\.jsonl:3: not a JSON object in UTF-8"):
        load_probes(path.parent)


def test_missing_file_and_directory(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no such directory"):
        load_probes(tmp_path / "nowhere")
    (write() / "roles.jsonl").unlink()
    with pytest.raises(ProbeError, match=r"cannot read .*roles\.jsonl: No such file"):
        load_probes(tmp_path)


def test_a_copy_of_the_shipped_set_is_the_shipped_set(tmp_path: Path) -> None:
    for path in probes_path().glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load_probes(str(tmp_path)).fingerprint == load_probes().fingerprint
