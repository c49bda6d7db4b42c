"""What signals ask a judge, and the seam behind which it answers.

A question is a small value; which of them a judge can answer is its own affair, and it says so with a `JudgeError`
rather than with a guess. None is always a possible verdict: "could not be judged". It is counted and never scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from persona_axis._asked import require
from persona_axis.errors import JudgeError
from persona_axis.persona import Persona

RATINGS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Fits:
    """Does the line fit the persona, contradicting nothing that is said of it? Verdict: the chance that it does.

    `message` is what the user said before it.
    """

    persona: Persona
    line: str
    message: str = ""


@dataclass(frozen=True)
class Conflicts:
    """Which of the statements does the line conflict with? Verdict: their indices from 0, each once."""

    line: str
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """Does the reply answer the message? Verdict: the chance that it does."""

    message: str
    reply: str


@dataclass(frozen=True)
class Agrees:
    """Does the reply to the question say what is known? Verdict: the chance that it does."""

    question: str
    known: str
    reply: str


@dataclass(frozen=True)
class Rubric:
    """What a task of the persona score asks for, what each score means, and answers that earn each score."""

    task: str
    asks: str
    meanings: tuple[str, ...]
    """Of the scores 1 to 5."""
    example_persona: str
    example_question: str
    examples: tuple[str, ...]
    """Answers to the example's question that earn 1 to 5."""


@dataclass(frozen=True)
class Rates:
    """How well does the reply do, by the rubric, for this persona? Verdict: 1 to 5."""

    persona: Persona
    question: str
    reply: str
    rubric: Rubric


Question: TypeAlias = Fits | Conflicts | Answers | Agrees | Rates
Chance: TypeAlias = Fits | Answers | Agrees


@runtime_checkable
class SignalJudge(Protocol):
    """Answers questions of signals. `name` goes into tables and says which judge, with which settings.

    One that cannot answer every kind may say so before it is asked: `kinds`, the classes of those that it can.
    """

    @property
    def name(self) -> str: ...

    def answer(self, questions: Sequence[Question]) -> Sequence[Any]:
        """One verdict a question, in order, as the question's docstring says; None = could not be judged.

        Raises `JudgeError` for a kind of question that it cannot answer at all.
        """
        ...


def chances(judge: SignalJudge, questions: Sequence[Chance]) -> list[float | None]:
    """Verdicts on yes-or-no questions, checked. Raises `JudgeError` for what is no chance in [0, 1]."""
    found = _answered(judge, questions)
    for verdict in found:
        if verdict is not None and not (_is_number(verdict) and 0 <= verdict <= 1):
            raise JudgeError(f"judge {judge.name!r} gave {verdict!r:.60}: a chance lies in [0, 1], or is None")
    return [None if verdict is None else float(verdict) for verdict in found]


def conflicts(judge: SignalJudge, questions: Sequence[Conflicts]) -> list[tuple[int, ...] | None]:
    """Verdicts on conflicts, checked and in order. A line with nothing to conflict with is not asked about.

    Raises `JudgeError` for an index that is none.
    """
    asked = [question for question in questions if question.statements]
    found = iter(_answered(judge, asked))
    verdicts: list[tuple[int, ...] | None] = []
    for question in questions:
        verdict = next(found) if question.statements else ()
        if verdict is not None:
            verdict = tuple(verdict)
            places = range(len(question.statements))
            if len(set(verdict)) < len(verdict) or any(isinstance(i, bool) or i not in places for i in verdict):
                raise JudgeError(
                    f"judge {judge.name!r} gave {list(verdict)!r:.60} for {len(places)} statements: give each index "
                    "from 0 at most once"
                )
            verdict = tuple(sorted(int(i) for i in verdict))
        verdicts.append(verdict)
    return verdicts


def ratings(judge: SignalJudge, questions: Sequence[Rates]) -> list[int | None]:
    """Verdicts on the persona score's questions, checked. Raises `JudgeError` for what is not 1 to 5."""
    found = _answered(judge, questions)
    for verdict in found:
        if verdict is not None and (not _is_number(verdict) or verdict not in RATINGS):
            raise JudgeError(f"judge {judge.name!r} gave {verdict!r:.60}: a rating is 1, 2, 3, 4, 5 or None")
    return [None if verdict is None else int(verdict) for verdict in found]


def able(judge: SignalJudge, kind: type) -> bool:
    """Whether the judge answers questions of this kind, as far as it says so beforehand."""
    return kind in getattr(judge, "kinds", (kind,))


def cannot(judge: SignalJudge, kind: type) -> JudgeError:
    """The error of a judge that cannot answer questions of this kind."""
    asks = (kind.__doc__ or "").split("\n")[0].split("Verdict")[0].strip()
    return JudgeError(f"judge {judge.name!r} cannot tell: {asks} Take another judge for this signal, or leave it out")


def _answered(judge: SignalJudge, questions: Sequence[Question]) -> list[Any]:
    require("judge", judge, SignalJudge)
    if not questions:
        return []
    try:
        found = list(judge.answer(questions))
    except JudgeError:
        raise
    except Exception as error:
        raise JudgeError(f"judge {judge.name!r} failed: {type(error).__name__}: {error}") from error
    if len(found) != len(questions):
        raise JudgeError(f"judge {judge.name!r} gave {len(found)} verdicts on {len(questions)} questions")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
