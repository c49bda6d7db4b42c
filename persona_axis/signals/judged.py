"""Signals that a judge decides: does a line fit the persona, does it conflict with what was said, does it answer.

Definitions of prompt-to-line and line-to-line are those of Abdulhai et al. (2025, arXiv 2511.00222), but for one
thing: a verdict that could not be read counted as consistent there; here it is unjudged, and no score.
"""

from __future__ import annotations

import math

from persona_axis.judges.questions import Answers, Conflicts, Fits, SignalJudge, chances, conflicts
from persona_axis.persona import Personas, persona_of
from persona_axis.signals.lines import Given, lines, opened
from persona_axis.signals.table import Row, Signal, signal

UNREAD = "no verdict that could be read"
NOBODY = "no persona"


def adherence(conversations: Given, judge: SignalJudge, personas: Personas = None) -> Signal:
    """Prompt-to-line, a row a turn: 1 if the line fits the persona, 0 if it contradicts it.

    The judge's chance stands in `probability`; half and more is 1. Raises `JudgeError`.
    """
    found = opened(conversations)
    told = [(one, persona_of(personas, one), line) for one in found for line in lines(one)]
    asked = [Fits(persona, line.text, line.message) for _, persona, line in told if persona]
    given = iter(chances(judge, asked))
    rows = [
        _row(Row(one, line.turn, math.nan, against=0), next(given) if persona else None, UNREAD if persona else NOBODY)
        for one, persona, line in told
    ]
    return signal("adherence", rows, "more lines fit the persona", judge=judge.name, yes_or_no=True)


def answers(conversations: Given, judge: SignalJudge) -> Signal:
    """A row a turn: 1 if the reply answers the user's message, else 0; a line nobody asked for is not judged."""
    told = [(one, line) for one in opened(conversations) for line in lines(one)]
    given = iter(chances(judge, [Answers(line.message, line.text) for _, line in told if line.message]))
    rows = [
        _row(Row(one, line.turn, math.nan), next(given) if line.message else None,
             UNREAD if line.message else "no message of the user before it")
        for one, line in told
    ]  # fmt: skip
    return signal("answers", rows, "more replies answer the user", judge=judge.name, yes_or_no=True)


def self_consistency(conversations: Given, judge: SignalJudge) -> Signal:
    """Line-to-line, a row a pair of a line and an earlier own line: 0 if they conflict, else 1.

    The mean is 1 - conflicts / pairs. The judge is asked once a line, and a verdict on it that cannot be read leaves
    all its pairs unjudged. A conversation of one line has no pairs.
    """
    told = [(one, lines(one)) for one in opened(conversations)]
    asked = [
        Conflicts(line.text, tuple(e.text for e in said[:at])) for _, said in told for at, line in enumerate(said) if at
    ]
    given = iter(conflicts(judge, asked))
    rows = []
    for one, said in told:
        for at, line in enumerate(said[1:], 1):
            found = next(given)
            for place, earlier in enumerate(said[:at]):
                value = math.nan if found is None else float(place not in found)
                about = UNREAD if found is None else earlier.text if place in found else None
                rows.append(Row(one, line.turn, value, against=earlier.turn, about=about))
    return signal("self_consistency", rows, "fewer pairs of own lines conflict", judge=judge.name, yes_or_no=True)


def contradiction(conversations: Given, judge: SignalJudge, personas: Personas = None) -> Signal:
    """A row a turn: 1 if the line conflicts with a statement of the persona or with an earlier own line, else 0.

    `against` is the first found (0 the persona, else the turn) and `about` its text. The first line of an agent
    without a persona has nothing to contradict, and is not judged.
    """
    told, asked = [], []
    for one in opened(conversations):
        persona = persona_of(personas, one)
        statements = [(0, text) for text in (persona.statements if persona else ())]
        for line in lines(one):
            told.append((one, line, tuple(statements)))
            asked.append(Conflicts(line.text, tuple(text for _, text in statements)))
            statements.append((line.turn, line.text))
    rows = []
    for (one, line, known), found in zip(told, conflicts(judge, asked), strict=True):
        if not known:
            rows.append(Row(one, line.turn, math.nan, about="nothing was said before it"))
        elif found is None:
            rows.append(Row(one, line.turn, math.nan, about=UNREAD))
        else:
            against, about = known[found[0]] if found else (None, None)
            rows.append(Row(one, line.turn, float(bool(found)), against=against, about=about))
    means = "more lines contradict the persona or an own line"
    return signal("contradiction", rows, means, judge=judge.name, yes_or_no=True)


def _row(row: Row, chance: float | None, why: str) -> Row:
    if chance is None:
        return row._replace(about=why)
    return row._replace(value=float(chance >= 0.5), probability=chance)
