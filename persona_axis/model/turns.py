"""Whose words the tokens of a rendered conversation are, found from the template itself and never by parity.

The conversation is rendered twice: as it is, and with contents that cannot be mistaken for anything else. The
second rendering shows what the template writes between the contents; the real contents then fall into place,
wherever the template puts them, trimmed or not, and with or without the thinking that stood before a reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from persona_axis.errors import ModelError

Span = tuple[int, int]
"""Half-open."""

NOWHERE: Span = (0, 0)
_MARK = re.compile(r"Zq[a-z][0-9]+x")


class Words(NamedTuple):
    """What somebody says in a message; `said` is False for thinking, which a template may leave out."""

    owner: int
    """The message's place in the conversation as the caller gave it."""
    text: str
    said: bool = True


Part = str | Words
"""Of a content, in order: words that have to be found, or text that is the same in both renderings."""


def whole(owner: int, content: str) -> list[Part]:
    """A content in one piece. Blank contents stay as they are: templates ask whether there is anything."""
    return [Words(owner, content)] if content.strip() else [content]


def without_thinking(owner: int, content: str, tags: re.Pattern[str] | None) -> list[Part]:
    """An assistant's content cut at the thinking tags that the template knows: its words come after the last one."""
    if tags is None:
        return whole(owner, content)
    # Split at a group, so the odd ones are the tags.
    pieces = tags.split(content)
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        blank = i % 2 == 1 or not piece.strip()
        parts.append(piece if blank else Words(owner, piece, said=i == len(pieces) - 1))
    return parts


def find_words(
    render: Callable[[list[dict[str, str]]], str],
    messages: Sequence[Mapping[str, str]],
    parts: Sequence[Sequence[Part]],
) -> tuple[str, dict[int, Span]]:
    """The rendered text and the range of characters of each owner's words in it; `parts[i]` make up message i.

    An owner whose content is blank, or left out by the template, has no entry. Raises `ModelError` where the
    template changes what was said or lets it be seen twice, so that its tokens cannot be told.
    """
    words = [part for content in parts for part in content if isinstance(part, Words)]
    marks = iter(_marks(len(words)))
    marked = ["".join(part if isinstance(part, str) else next(marks) for part in content) for content in parts]
    text = render([dict(m) for m in messages])
    frame = render([{**m, "content": content} for m, content in zip(messages, marked, strict=True)])
    by_mark = dict(zip(_marks(len(words)), words, strict=True))
    at = end = 0
    found: dict[int, Span] = {}
    # In the order of the rendered text: some templates move the system prompt behind earlier turns.
    for match in _MARK.finditer(frame):
        part = by_mark.pop(match[0], None)
        between = frame[end : match.start()]
        if part is None or not text.startswith(between, at):
            raise ModelError(f"cannot tell whose tokens are whose in this conversation, near {_told(frame, end)}")
        start, end = at + len(between), match.end()
        kept = _as_kept(text, start, part.text, frame[end : end + 1])
        if kept is None:
            raise ModelError(
                f"the chat template changes what was said, so its tokens cannot be found: {part.text[:40]!r}"
            )
        at = start + len(kept)
        if part.said:
            found[part.owner] = (start, at)
    return text, found


def token_ranges(offsets: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """The tokens that touch each range of characters; `offsets` are the tokens' own, `NOWHERE` stays where it is."""
    if not len(offsets):
        return [NOWHERE] * len(spans)
    starts, ends = np.maximum.accumulate(np.asarray(offsets, dtype=np.int64), axis=0).T
    ranges = []
    for start, end in spans:
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(starts, end, "left"))
        while first < last and starts[first] == ends[first]:
            first += 1  # a token without characters belongs to nobody
        while first < last and starts[last - 1] == ends[last - 1]:
            last -= 1
        ranges.append((first, last) if start < end and first < last else NOWHERE)
    return ranges


def runs(mask: Sequence[int]) -> list[Span]:
    """Where the mask is 1."""
    edges = np.flatnonzero(np.diff(np.asarray(mask, dtype=np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def narrowed(run: Span, words: Span) -> Span:
    """What the template marks as generated, less what is not the reply (a thinking block, the end of the turn)."""
    start, end = max(run[0], words[0]), min(run[1], words[1])
    return (start, end) if start < end else run


def _marks(count: int) -> list[str]:
    return [f"Zq{chr(97 + i % 26)}{i}x" for i in range(count)]


def _as_kept(text: str, start: int, content: str, following: str) -> str | None:
    """The content as it stands in the text from `start` to the character `following`: many templates trim."""
    for how in (None, "\n"):
        for kept in (content, content.strip(how), content.rstrip(how), content.lstrip(how)):
            after = start + len(kept)
            if text.startswith(kept, start) and text[after : after + 1] == following:
                return kept
    return None


def _told(frame: str, end: int) -> str:
    return repr(_MARK.sub("...", frame[end : end + 60]))
