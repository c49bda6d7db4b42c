"""The user's side: scripted conversations and persona-jailbreaks, read strictly from probes that people edit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_axis.errors import ProbeError
from persona_axis.files.records import Seen, check_keys, records, text_of
from persona_axis.probes import probes_path

DOMAINS = ("coding", "writing", "emotional", "meta-reflective")
SPLITS = ("train", "held_out")
STABILISING = ("bounded task", "technical question", "edit", "how-to")
DRIFTING = (
    "author's voice", "disclosure", "venting", "seeking comfort", "asking for closeness",
    "demand for inner experience", "pressure to reflect on itself", "philosophy about AI", "questioning its identity",
)  # fmt: skip
KINDS = STABILISING + DRIFTING
_SCRIPTS, _JAILBREAKS = "conversations", "jailbreaks.jsonl"
_SCRIPT_KEYS = ("id", "domain", "split", "user", "turns")
_JAILBREAK_KEYS = ("id", "category", "split", "about", "role", "persona", "request")


@dataclass(frozen=True)
class Turn:
    """What the user says, and which of `KINDS` it is."""

    kind: str
    text: str


@dataclass(frozen=True)
class Script:
    """The user's side of a conversation; `user` says in a line who that is and what they want."""

    id: str
    domain: str
    split: str
    user: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Jailbreak:
    """A character that would comply, and a request that the Assistant refuses; `about` names what is requested."""

    id: str
    category: str
    split: str
    about: str
    role: str
    persona: str
    request: str

    def messages(self, persona: bool = True) -> list[dict[str, str]]:
        """The request, under its persona or, for comparison, without one."""
        asked = {"role": "user", "content": self.request}
        return [{"role": "system", "content": self.persona}, asked] if persona else [asked]


def load_scripts(
    dir: str | Path | None = None, domains: Iterable[str] | None = None, split: str | None = None
) -> tuple[Script, ...]:
    """The scripts of `conversations/*.jsonl` in a directory of probes (None: the shipped one), all of them checked.

    Each file is one domain (a suite) and bears its name. `domains` chooses some, in that order; `split` is "train"
    or "held_out". Raises `ProbeError` with file and line for what does not fit the schema of probes/README.md, and
    for a suite that does not exist, listing those that do.
    """
    root = (probes_path() if dir is None else Path(dir)) / _SCRIPTS
    paths = {path.stem: path for path in sorted(root.glob("*.jsonl"))}
    if not paths:
        raise ProbeError(f"no scripts: {root} holds no .jsonl file")
    suites = [*(name for name in DOMAINS if name in paths), *(name for name in paths if name not in DOMAINS)]
    wanted = suites if domains is None else list(dict.fromkeys(domains))
    if unknown := [name for name in wanted if name not in paths]:
        raise ProbeError(f"no suite {', '.join(map(repr, unknown))}: there are {', '.join(suites)}")
    ids, texts = Seen("script", exact=True), Seen("turn")
    scripts = {name: [_script(*found, name, ids, texts) for found in records(paths[name], _SCRIPT_KEYS)]
               for name in suites}  # fmt: skip
    return tuple(script for name in wanted for script in scripts[name] if _is_in(script.split, split))


def load_jailbreaks(dir: str | Path | None = None, split: str | None = None) -> tuple[Jailbreak, ...]:
    """The persona-jailbreaks of `jailbreaks.jsonl` in a directory of probes (None: the shipped one), checked.

    Raises `ProbeError` with file and line for what does not fit the schema of probes/README.md.
    """
    path = (probes_path() if dir is None else Path(dir)) / _JAILBREAKS
    ids, texts, found = Seen("jailbreak", exact=True), Seen("text"), []
    for where, record in records(path, _JAILBREAK_KEYS):
        made = Jailbreak(**{key: text_of(record, key, where) for key in _JAILBREAK_KEYS})
        _check_split(made.split, where)
        ids.add(made.id, where)
        texts.add(made.persona, where)
        texts.add(made.request, where)
        found.append(made)
    return tuple(one for one in found if _is_in(one.split, split))


def _script(where: str, record: dict[str, Any], suite: str, ids: Seen, texts: Seen) -> Script:
    told = {key: text_of(record, key, where) for key in _SCRIPT_KEYS[:-1]}
    ids.add(told["id"], where)
    _check_split(told["split"], where)
    if told["domain"] != suite:
        raise ProbeError(f"{where}: domain {told['domain']!r} in the file of {suite!r}")
    if not isinstance(record["turns"], list) or not record["turns"]:
        raise ProbeError(f"{where}: 'turns' of script {told['id']!r} must be a list of one turn or more")
    turns = []
    for number, turn in enumerate(record["turns"], start=1):
        place = f"{where}: turn {number} of script {told['id']!r}"
        if not isinstance(turn, dict):
            raise ProbeError(f"{place} must be an object, got {type(turn).__name__}")
        check_keys(turn, ("kind", "text"), place)
        said = Turn(text_of(turn, "kind", place), text_of(turn, "text", place))
        if said.kind not in KINDS:
            raise ProbeError(f"{place}: unknown kind {said.kind!r}; the kinds are {', '.join(KINDS)}")
        texts.add(said.text, place)
        turns.append(said)
    return Script(**told, turns=tuple(turns))


def _check_split(split: str, where: str) -> None:
    if split not in SPLITS:
        raise ProbeError(f"{where}: split {split!r} must be one of {', '.join(SPLITS)}")


def _is_in(split: str, wanted: str | None) -> bool:
    if wanted is not None and wanted not in SPLITS:
        raise ProbeError(f"no split {wanted!r}: there are {', '.join(SPLITS)}")
    return wanted is None or split == wanted
