"""The seam behind which somebody decides whether a reply is in its role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from persona_axis.errors import JudgeError

SCORES = (0, 1, 2, 3)
MEANING = {
    0: "refuses, as an AI",
    1: "answers as an AI",
    2: "an AI with some attributes of the role",
    3: "fully in the role",
}


@dataclass(frozen=True)
class Judged:
    """What a judge is shown of one rollout: the role and its one-line description, the system prompt, the
    question and the reply."""

    role: str
    description: str
    system: str
    question: str
    reply: str


@runtime_checkable
class Judge(Protocol):
    """Scores a batch of rollouts 0-3 as `MEANING` says; None where no verdict could be read (counted, not
    dropped).

    `name` goes into the axis file; a judge with settings that matter puts them into its name. A judge must
    give the same verdict on the same rollout, or a resumed run will not end as an uninterrupted one would.
    """

    @property
    def name(self) -> str: ...

    def score(self, rollouts: Sequence[Judged]) -> Sequence[int | None]: ...


def verdicts(judge: Judge, rollouts: Sequence[Judged]) -> list[int | None]:
    """Ask the judge and check that the answer can be used: one verdict a rollout, each 0-3 or None.

    Raises `JudgeError`; a judge's own exception is passed on as one too, with the judge's name.
    """
    if not rollouts:
        return []
    try:
        given = list(judge.score(rollouts))
    except JudgeError:
        raise
    except Exception as error:
        raise JudgeError(f"judge {judge.name!r} failed: {type(error).__name__}: {error}") from error
    if len(given) != len(rollouts):
        raise JudgeError(f"judge {judge.name!r} gave {len(given)} verdicts on {len(rollouts)} rollouts")
    for verdict in given:
        if verdict is not None and (isinstance(verdict, bool) or verdict not in SCORES):
            raise JudgeError(f"judge {judge.name!r} gave {verdict!r}: a verdict is 0, 1, 2, 3 or None")
    return [None if v is None else int(v) for v in given]
