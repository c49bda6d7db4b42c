"""The words Troupe's replies are made of: style slots and concepts, each a choice among synonyms.

Every word belongs to exactly one slot or concept, so a reply can be read back without ambiguity. The order of the
synonyms is fixed and says which manner a word belongs to: a style slot lists plain, lofty, rough, dark, dreamy,
childish; a concept lists plain, lofty, playful, dark. The plain word of a concept is its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "data"
STYLE_MANNERS = ("plain", "lofty", "rough", "dark", "dreamy", "childish")
CONCEPT_MANNERS = ("plain", "lofty", "playful", "dark")


@dataclass(frozen=True)
class Entry:
    """One place in a reply that voice decides: `words[v]` is the surface form of variant v."""

    key: str
    words: tuple[str, ...]
    is_concept: bool


@dataclass(frozen=True)
class Vocabulary:
    """All entries in a fixed order, and the way back from a surface word to (entry, variant)."""

    entries: tuple[Entry, ...]
    index: dict[str, int]
    lookup: dict[str, tuple[int, int]]

    def concept(self, key: str) -> int:
        """Index of the concept named by its plain word; KeyError names the unknown key."""
        return self.index[f"concept:{key}"]

    def slot(self, key: str) -> int:
        """Index of a style slot."""
        return self.index[f"style:{key}"]


@cache
def vocabulary() -> Vocabulary:
    """Read data/style.txt and data/lexicon.txt; a word listed twice is an error, since the parser could not tell."""
    entries = [Entry(key, tuple(words), False) for key, *words in _rows("style.txt", len(STYLE_MANNERS) + 1)]
    entries += [Entry(words[0], tuple(words), True) for words in _rows("lexicon.txt", len(CONCEPT_MANNERS))]
    lookup: dict[str, tuple[int, int]] = {}
    for i, entry in enumerate(entries):
        for v, word in enumerate(entry.words):
            if word in lookup:
                raise ValueError(
                    f"the word {word!r} stands in two entries: {entries[lookup[word][0]].key}, {entry.key}"
                )
            lookup[word] = (i, v)
    index = {f"{'concept' if e.is_concept else 'style'}:{e.key}": i for i, e in enumerate(entries)}
    return Vocabulary(tuple(entries), index, lookup)


def _rows(name: str, width: int) -> list[list[str]]:
    rows = [line.split() for line in (DATA / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"{name}, line {number}: {len(row)} words, {width} expected")
    return rows
