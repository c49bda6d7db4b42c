"""Answers kept on disk, one small file each, by a hash of all that the answer depends on."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from persona_axis.errors import JudgeError


class Completion(NamedTuple):
    """What a model answered, and what that took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def key_of(request: dict[str, Any]) -> str:
    """SHA-256 of model, messages and settings. Raises `JudgeError` where a message is no text."""
    try:
        return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise JudgeError(f"a text to be judged holds half a character (a lone surrogate): ...{near!r}") from None


class Cache:
    """A directory of completions. Files appear whole or not at all, so that several processes may share it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, key: str) -> Completion | None:
        """The answer; None where there is none, or none that can be read: it is then asked for again."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf-8"))
            made = Completion(found["text"], found["prompt_tokens"], found["completion_tokens"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JudgeError(f"cannot read the judge's cache {self.directory}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError):
            return None
        return made if isinstance(made.text, str) else None

    def put(self, key: str, made: Completion) -> None:
        """Keep an answer. Raises `JudgeError` where the directory cannot be written."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(made._asdict()), encoding="utf-8")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise JudgeError(f"cannot write the judge's cache {self.directory}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"
