"""A device, a pipe or a socket in place of a file: one sentence at once, whoever was asked to read it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persona_axis import Axis, Cap, PersonaAxisError, load_probes
from persona_axis.conversations import load_jailbreaks, load_scripts, read_conversations
from persona_axis.files.plainfile import open_file, read_file
from persona_axis.files.safefile import stated_format
from persona_axis.trait_probes import load_traits
from persona_axis.traits import Traits
from persona_axis.vectors.reading import read, read_check, sha256_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps such things elsewhere")

KINDS = {"pipe": "a pipe", "socket": "a socket", "device": "a device", "link": "a device"}
PROBES = ("roles", "defaults", "questions")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Whoever opens the pipe would wait until the end of the world."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # an address may not be long
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "device":
        return Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    return path


LOADERS: dict[str, Callable[[Path], object]] = {
    "axis": Axis.load,
    "cap": Cap.load,
    "traits": Traits.load,
    "import": read,
    "check": read_check,
    "sha256": sha256_of,
    "conversations": read_conversations,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, loader: str) -> None:
    path = put(kind, tmp_path / "file", monkeypatch)
    with pytest.raises(PersonaAxisError) as error:
        LOADERS[loader](path)
    assert f"it is {KINDS[kind]}, and only regular files are read" in str(error.value) and str(path) in str(error.value)
    assert stated_format(path) == ""


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_loaders_of_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """One file among others: of probes, of scripts, of role vectors."""
    for name in PROBES:
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    (tmp_path / "roles.jsonl").unlink()
    (tmp_path / "conversations").mkdir()
    for name, load in (
        ("roles.jsonl", load_probes), ("traits.jsonl", load_traits), ("jailbreaks.jsonl", load_jailbreaks),
        ("conversations/coding.jsonl", load_scripts), ("role.pt", read), ("role.pt", sha256_of),
    ):  # fmt: skip
        (tmp_path / name).unlink(missing_ok=True)
        put(kind, tmp_path / name, monkeypatch)
        with pytest.raises(PersonaAxisError, match=rf"{name}.*it is {KINDS[kind]}, and only regular files"):
            load(tmp_path)


def test_what_is_a_file_is_read(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"abc")
    link.symlink_to(path)
    assert read_file(path) == read_file(link) == b"abc"
    with open_file(str(link)) as file:
        assert file.read(2) == b"ab"
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nothing")
