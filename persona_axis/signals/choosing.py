"""Signals by name: what each needs, which can be had with what is there, and having them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_axis.capability import tasks_for
from persona_axis.conversations import Conversation
from persona_axis.errors import SignalError
from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits, SignalJudge, able, cannot
from persona_axis.persona import Personas, persona_of
from persona_axis.signals import asked, counted, judged, measured
from persona_axis.signals.table import Signal

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.chat import ChatModel
    from persona_axis.levers import Levers


@dataclass(frozen=True, eq=False)
class Means:
    """What signals can be made from. `personas` None: what each system message says."""

    conversations: Sequence[Conversation]
    personas: Personas = None
    judge: SignalJudge | None = None
    chat: ChatModel | None = None
    axis: Axis | None = None
    layer: int | None = None
    lever: Levers = None

    @property
    def there(self) -> set[str]:
        """Which of the needs of signals are met."""
        facts = any((p := persona_of(self.personas, one)) and p.askable for one in self.conversations)
        return {name for name, is_there in (("judge", self.judge), ("model", self.chat), ("axis", self.axis),
                                            ("facts", facts)) if is_there}  # fmt: skip


SIGNALS: dict[str, tuple[tuple[str, ...], Callable[[Any], Signal]]] = {
    "parroting": ((), lambda m: counted.parroting(m.conversations, m.personas)),
    "distinct": ((), lambda m: counted.distinct(m.conversations)),
    "self_overlap": ((), lambda m: counted.self_overlap(m.conversations)),
    "adherence": (("judge",), lambda m: judged.adherence(m.conversations, m.judge, m.personas)),
    "self_consistency": (("judge",), lambda m: judged.self_consistency(m.conversations, m.judge)),
    "contradiction": (("judge",), lambda m: judged.contradiction(m.conversations, m.judge, m.personas)),
    "answers": (("judge",), lambda m: judged.answers(m.conversations, m.judge)),
    "fact_consistency": (
        ("judge", "model", "facts"),
        lambda m: asked.fact_consistency(m.chat, m.conversations, m.judge, m.personas, lever=m.lever),
    ),
    "relevance": (("model",), lambda m: measured.relevance(m.chat, m.conversations, lever=m.lever)),
    "projection": (
        ("model", "axis"),
        lambda m: measured.projection(m.chat, m.axis, m.conversations, layer=m.layer, lever=m.lever),
    ),
    "capability": (("model",), lambda m: measured.capability(m.chat, tasks_for(m.chat), lever=m.lever)),
}
"""Needs and maker of each."""
ASKS: dict[str, type] = {
    "adherence": Fits, "self_consistency": Conflicts, "contradiction": Conflicts, "answers": Answers,
    "fact_consistency": Agrees,
}  # fmt: skip
"""What kind of question the judge is asked for each."""
_OPTIONS = {"judge": "--judge", "model": "--model", "axis": "--axis", "facts": "--personas with facts to ask for"}


def chosen(names: Sequence[str] | None, means: Means) -> list[str]:
    """These signals, or without names all that can be had, capability excepted (it is no score of conversations).

    Raises `SignalError` for a name that is none and for a signal whose needs are not met, and `JudgeError` for one that
    the judge says it cannot tell.
    """
    there, silent = means.there, untold(means.judge)
    if names is None:
        found = [name for name, (needs, _) in SIGNALS.items() if set(needs) <= there and name != "capability"]
        return [name for name in found if name not in silent]
    for name in names:
        if name not in SIGNALS:
            raise SignalError(f"no signal is called {name!r}: there are {', '.join(SIGNALS)}")
        if missing := [_OPTIONS[need] for need in SIGNALS[name][0] if need not in there]:
            raise SignalError(f"the signal {name} needs {', '.join(missing)}")
        if name in silent and means.judge is not None:
            raise cannot(means.judge, ASKS[name])
    return list(dict.fromkeys(names))


def untold(judge: SignalJudge | None) -> list[str]:
    """The signals whose question this judge says it cannot answer."""
    return [] if judge is None else [name for name, kind in ASKS.items() if not able(judge, kind)]


def made(names: Sequence[str], means: Means) -> Iterator[Signal]:
    """The signals of these names, one after another. Raises what they raise."""
    for name in names:
        yield SIGNALS[name][1](means)
