"""Signals that are counted, without a judge or a model: how much is copied, how much is repeated."""

from __future__ import annotations

import math

from persona_axis.persona import Personas, persona_of
from persona_axis.signals.lines import Given, lines, ngrams, opened
from persona_axis.signals.table import Row, Signal, signal


def parroting(conversations: Given, personas: Personas = None, *, n: int = 3) -> Signal:
    """A row a turn: share of the persona text's distinct n-grams that the line copies, in [0, 1].

    An agent that recites its persona scores well on consistency and badly here. Without a persona, or with one of
    fewer than n words, there is nothing to copy and the row is not judged.
    """
    rows = []
    for one in opened(conversations):
        persona = persona_of(personas, one)
        told = set(ngrams(persona.text, n)) if persona else set()
        for line in lines(one):
            share = len(told & set(ngrams(line.text, n))) / len(told) if told else math.nan
            rows.append(Row(one, line.turn, share, about=None if told else f"no persona of {n} words or more"))
    return signal("parroting", rows, f"more of the persona's {n}-grams are copied")


def distinct(conversations: Given, *, n: int = 2) -> Signal:
    """A row a turn: distinct n-grams / n-grams of the line, in (0, 1]; a line of fewer than n words is not judged.

    Known as distinct-n (Li et al. 2016, arXiv 1510.03055), there over all lines together.
    """
    rows = []
    for one in opened(conversations):
        for line in lines(one):
            said = ngrams(line.text, n)
            short = f"fewer than {n} words"
            rows.append(Row(one, line.turn, len(set(said)) / len(said) if said else math.nan,
                            about=None if said else short))  # fmt: skip
    return signal("distinct", rows, f"fewer {n}-grams are repeated within a line")


def self_overlap(conversations: Given, *, n: int = 3) -> Signal:
    """A row a pair of a line and an earlier own line: share of the line's distinct n-grams said there already.

    In [0, 1]; a line of fewer than n words is not judged, and a conversation of one line has no rows.
    """
    rows = []
    for one in opened(conversations):
        earlier: list[tuple[int, set[tuple[str, ...]]]] = []
        for line in lines(one):
            said = set(ngrams(line.text, n))
            for turn, before in earlier:
                rows.append(Row(one, line.turn, len(said & before) / len(said) if said else math.nan, against=turn,
                                about=None if said else f"fewer than {n} words"))  # fmt: skip
            earlier.append((line.turn, said))
    return signal("self_overlap", rows, f"more {n}-grams are those of an earlier line")
