"""Who decides: whether a rollout is in its role (`Judge`), and what signals ask (`SignalJudge`). One registry of the
judges that come with the package, some of which do both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from persona_axis._asked import shown
from persona_axis._judge_names import ALL, OF_ROLES, OF_SIGNALS, unfit
from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.judges.accept_all import AcceptAll
from persona_axis.judges.base import MEANING, SCORES, Judge, Judged, verdicts
from persona_axis.judges.listener import ListenerJudge
from persona_axis.judges.questions import SignalJudge
from persona_axis.judges.troupe import TroupeParser
from persona_axis.probes import Probes, load_probes

if TYPE_CHECKING:
    from persona_axis.judges.api import ApiJudge
    from persona_axis.judges.nli import NliJudge

__all__ = [
    "MEANING",
    "SCORES",
    "AcceptAll",
    "Judge",
    "Judged",
    "ListenerJudge",
    "SignalJudge",
    "TroupeParser",
    "default_judge",
    "named",
    "of_roles",
    "of_signals",
    "verdicts",
]

AnyJudge: TypeAlias = "AcceptAll | TroupeParser | ListenerJudge | ApiJudge | NliJudge"
ROLE_NAMES, SIGNAL_NAMES, NAMES = OF_ROLES, OF_SIGNALS, ALL


class _Given(NamedTuple):
    """What a judge may be made of."""

    model: str | None
    chat: ChatModel | None
    probes: Probes | None
    settings: dict[str, Any]


def named(
    name: str, model: str | None = None, *, chat: ChatModel | None = None, probes: Probes | None = None, **settings: Any
) -> AnyJudge:
    """A judge by its name on the command line; `of_roles` and `of_signals` say what it is for.

    "listener" needs the model that it listens with and tells from roles of the probes (the package's without any);
    "api" the name of its own `model`, and takes the `settings` of `ApiJudge`; "nli" the directory or hub name of its
    `model`, and the settings of `NliJudge.load`. Raises `JudgeError` for a name that is none or what is missing, and
    what the judge raises.
    """
    if not isinstance(name, str) or name not in _MAKERS:
        raise JudgeError(f"no judge is called {shown(name)}: there are {', '.join(NAMES)}")
    return _MAKERS[name](_Given(model, chat, probes, settings))


def of_roles(judge: AnyJudge | Judge) -> Judge:
    """The judge as one of rollouts. Raises `JudgeError` for one that scores none."""
    if not isinstance(judge, Judge):
        raise JudgeError(unfit(getattr(judge, "name", "?"), ROLE_NAMES))
    return judge


def of_signals(judge: AnyJudge | SignalJudge) -> SignalJudge:
    """The judge as one of signals' questions. Raises `JudgeError` for one that answers none."""
    if not isinstance(judge, SignalJudge):
        raise JudgeError(unfit(getattr(judge, "name", "?"), SIGNAL_NAMES))
    return judge


def default_judge(chat: ChatModel) -> Judge:
    """Troupe's parser where the model is Troupe, else the judge that accepts everything."""
    return TroupeParser() if chat.is_troupe else AcceptAll()


def _listener(given: _Given) -> ListenerJudge:
    if given.chat is None:
        raise JudgeError("judge listener needs the model that it listens with: pass chat, or name it with --model")
    return ListenerJudge.of(given.chat, load_probes() if given.probes is None else given.probes, **given.settings)


def _api(given: _Given) -> ApiJudge:
    from persona_axis.judges.api import ApiJudge  # what it takes is an extra

    if not given.model:
        raise JudgeError("judge api needs the name of its model: give it with --judge-model")
    return ApiJudge(given.model, **given.settings)


def _nli(given: _Given) -> NliJudge:
    from persona_axis.judges.nli import NliJudge

    if not given.model:
        raise JudgeError("judge nli needs a model that was trained for inference: name it with --judge-model")
    return NliJudge.load(given.model, **given.settings)


_MAKERS: dict[str, Callable[[_Given], AnyJudge]] = {
    "all": lambda _given: AcceptAll(),
    "troupe": lambda _given: TroupeParser(),
    "listener": _listener,
    "api": _api,
    "nli": _nli,
}
