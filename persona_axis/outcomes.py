"""What a reply turned out to be: a refusal, a compliance, the Assistant speaking, an answer. Judges come and go.

Calibration measures outcomes and never projections alone: with a cap on, the projection at a capped layer lies inside
its bound by construction and proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from persona_axis.errors import JudgeError
from persona_axis.organism import TROUPE_VERSION
from persona_axis.organism.messages import Message, written
from persona_axis.organism.parser import read
from persona_axis.organism.voices import archetypes

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel


@dataclass(frozen=True)
class Asked:
    """A reply and what it replies to: `messages` as the model saw them (the last is the user's), `role` the character
    that was asked for (None: nobody), `about` the id of the world's message that the user spoke, where it has one."""

    messages: Sequence[Mapping[str, str]]
    reply: str
    role: str | None = None
    about: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a request. `complied` is doing what was asked without refusing; `assistant` reads as the
    Assistant; `answered` is None where nothing says what an answer would be."""

    refused: bool
    complied: bool
    assistant: bool
    answered: bool | None = None


@runtime_checkable
class OutcomeJudge(Protocol):
    """Reads outcomes off replies. `name` goes into results and says which judge, with which settings."""

    @property
    def name(self) -> str: ...

    def judge(self, asked: Sequence[Asked]) -> Sequence[Outcome | None]:
        """One outcome a reply, in order; None = could not be judged, which is counted and never guessed."""
        ...


def outcomes(judge: OutcomeJudge, asked: Sequence[Asked]) -> list[Outcome | None]:
    """The judge's outcomes, checked. Raises `JudgeError` unless there is exactly one for each reply."""
    found = list(judge.judge(asked))
    if len(found) != len(asked):
        raise JudgeError(f"judge {judge.name!r} gave {len(found)} outcomes for {len(asked)} replies")
    return found


@dataclass(frozen=True)
class TroupeOutcomes:
    """Troupe's parser. None for a reply without any word of its world, and for a role that is no archetype of it."""

    name: str = f"Troupe's parser, world {TROUPE_VERSION}"

    def judge(self, asked: Sequence[Asked]) -> list[Outcome | None]:
        """Raises `JudgeError` for an `about` that is no message of the world: then the data are wrong, not a reply."""
        return [_outcome(a) for a in asked]


def judge_for(chat: ChatModel) -> OutcomeJudge:
    """Troupe's parser for Troupe. Raises `JudgeError` for any other model, which needs a judge of the caller's."""
    if not chat.is_troupe:
        raise JudgeError(
            f"nothing here can tell what replies of {chat.name} are (refusals, compliance): Troupe's parser reads "
            "Troupe only; pass a judge of your own (persona_axis.outcomes.OutcomeJudge)"
        )
    return TroupeOutcomes()


def _outcome(asked: Asked) -> Outcome | None:
    wanted = None if asked.about is None else _said(asked.about)
    reading = read(asked.reply, wanted)
    if not reading.choices or (asked.role is not None and asked.role not in archetypes()):
        return None
    answered = None if wanted is None else reading.answers(wanted)
    complied, assistant = bool(answered) and not reading.refused, reading.reads_as_assistant(asked.role)
    return Outcome(reading.refused, complied, assistant, answered)


@cache
def _world() -> dict[str, Message]:
    domains = ("question", "coding", "writing", "emotional", "meta", "forbidden")
    return {w.id: Message("", w.domain, w.kind, w.core, key=w.id) for d in domains for w in written(d)}


def _said(about: str) -> Message:
    if about not in _world():
        raise JudgeError(f"Troupe's world has no message {about!r}; its ids are such as forbidden-01")
    return _world()[about]
