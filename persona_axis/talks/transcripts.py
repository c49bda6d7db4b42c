"""The file that `persona-axis drift --transcripts` writes, and a look at paths before hours of work depend on them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from persona_axis.conversations import Conversation
from persona_axis.errors import DriftError
from persona_axis.files.safefile import replace_file


def require_writable(path: Path) -> None:
    """Raise `DriftError` at once where a file could not be put at `path` in the end."""
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            kind = "a directory" if target.is_dir() else "no regular file"
            raise DriftError(f"{path}: could not be written: it is {kind}")
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", dir=target.parent):
            pass
    except OSError as error:
        raise _unwritten(path, error) from error


class Transcripts:
    """What was said, a conversation a line, as `read_conversations` takes it.

    Written when the block is left with what `conversations` holds by then, whatever else has failed since.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conversations: Sequence[Conversation] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        if not self.conversations:
            return
        lines = (
            {"id": c.id, "domain": c.domain, "split": c.split, "kinds": c.kinds, "messages": c.messages}
            for c in self.conversations
        )
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            replace_file(Path(os.path.realpath(self.path)), content.encode())
        except OSError as error:
            raise _unwritten(self.path, error) from error


def _unwritten(path: Path, error: OSError) -> DriftError:
    return DriftError(f"{path}: could not be written: {error.strerror or error}")
