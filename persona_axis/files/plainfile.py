"""Files that others gave, opened: a device, a pipe or a socket may never end, so only regular files are read."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, or a link to one, opened for reading.

    Raises `OSError`, whose `strerror` says what is there instead. Nothing else is opened even for a moment: a pipe
    without a writer would wait, and opening a device may do something.
    """
    if kind := _KINDS.get(stat.S_IFMT(os.stat(path).st_mode)):
        raise OSError(errno.EINVAL, f"it is {kind}, and only regular files are read; save what it gives as one first")
    return open(path, "rb")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a regular file. Raises `OSError` as `open_file` does."""
    with open_file(path) as file:
        return file.read()
