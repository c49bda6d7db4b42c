"""Probes of every kind: a small valid set, and what must hold of what its loaders give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_axis import load_probes
from persona_axis.conversations import load_jailbreaks, load_scripts
from persona_axis.trait_probes import load_traits


def probe_files() -> dict[str, bytes]:
    """The files of a directory of probes."""
    files: dict[str, list[dict[str, Any]]] = {
        "roles.jsonl": [
            {"name": f"r{i}", "description": f"d{i}", "prompts": [f"p{i} {j}" for j in range(5)]} for i in range(3)
        ],
        "defaults.jsonl": [{"prompt": text} for text in ("", "a", "b", "c", "You are {model_name}.")],
        "questions.jsonl": [{"text": f"q{i}?", "category": "x"} for i in range(3)],
        "traits.jsonl": [
            {"name": f"t{i}", "kind": "k", "description": f"d{i}", "opposite": f"o{i}",
             "positive": [f"be {i} {j}" for j in range(2)], "negative": [f"be not {i} {j}" for j in range(2)]}
            for i in range(3)
        ],
        "conversations/coding.jsonl": [
            {"id": f"s{i}", "domain": "coding", "split": "train", "user": f"u{i}",
             "turns": [{"kind": "edit", "text": f"x{i} {j}"} for j in range(3)]} for i in range(3)
        ],
        "jailbreaks.jsonl": [
            {"id": f"j{i}", "category": "c", "split": "train", "about": f"a{i}", "role": f"r{i}", "persona": f"p{i}",
             "request": f"q{i}"} for i in range(3)
        ],
    }  # fmt: skip
    return {name: b"".join(json.dumps(line).encode() + b"\n" for line in lines) for name, lines in files.items()}


def probes(path: Path) -> None:
    found = load_probes(path.parent)
    assert found.roles and found.questions and len(found.fingerprint) == 64


def trait_probes(path: Path) -> None:
    for trait in load_traits(path.parent):
        assert trait.name and len(trait.positive) == len(trait.negative) >= 2
        assert len({*trait.positive, *trait.negative}) == 2 * len(trait.positive)


def scripts(path: Path) -> None:
    found = load_scripts(path.parent.parent)
    assert found and all(script.turns and script.domain == "coding" for script in found)
    assert len({script.id for script in found}) == len(found)


def jailbreaks(path: Path) -> None:
    found = load_jailbreaks(path.parent)
    assert found and all(one.messages()[0]["content"] and one.messages(False)[0]["content"] for one in found)


PROBES = {
    "roles.jsonl": probes, "defaults.jsonl": probes, "questions.jsonl": probes, "traits.jsonl": trait_probes,
    "conversations/coding.jsonl": scripts, "jailbreaks.jsonl": jailbreaks,
}  # fmt: skip
"""The reader of each."""
