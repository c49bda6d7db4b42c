"""Who decides whether a rollout is in its role: the `Judge` seam, and the judges that come with the
package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.judges.accept_all import AcceptAll
from persona_axis.judges.base import MEANING, SCORES, Judge, Judged, verdicts
from persona_axis.judges.listener import ListenerJudge
from persona_axis.judges.questions import SignalJudge
from persona_axis.judges.troupe import TroupeParser
from persona_axis.probes import Probes

if TYPE_CHECKING:
    from persona_axis.judges.api import ApiJudge

__all__ = [
    "MEANING",
    "SCORES",
    "AcceptAll",
    "Judge",
    "Judged",
    "SignalJudge",
    "ListenerJudge",
    "TroupeParser",
    "default_judge",
    "named",
    "named_for_signals",
    "verdicts",
]

NAMES = ("all", "troupe", "listener", "api")
SIGNAL_NAMES = ("troupe", "api", "nli")


def named(
    name: str, model: str | None = None, *, chat: ChatModel | None = None, probes: Probes | None = None, **settings: Any
) -> Judge:
    """A judge of rollouts by its name on the command line.

    "listener" needs the model that is probed and the probes; "api" the name of its own `model`, and takes the
    `settings` of `ApiJudge`. Raises `JudgeError` for a name that is none or what is missing, and what the judge raises.
    """
    if name == "all":
        return AcceptAll()
    if name == "troupe":
        return TroupeParser()
    if name == "api":
        return _api(model, settings)
    if name == "listener":
        if chat is None or probes is None:
            raise JudgeError("the listener judges by a model and its roles: pass chat and probes")
        return ListenerJudge.of(chat, probes)
    raise JudgeError(f"no judge is called {name!r}: there are {', '.join(NAMES)}")


def named_for_signals(name: str, model: str | None = None, **settings: Any) -> SignalJudge:
    """A judge of signals' questions, likewise: troupe, api, or nli with the directory or hub name of its `model`."""
    if name == "troupe":
        return TroupeParser()
    if name == "api":
        return _api(model, settings)
    if name == "nli":
        from persona_axis.judges.nli import NliJudge

        if not model:
            raise JudgeError("judge nli needs a model that was trained for inference: name it with --judge-model")
        return NliJudge.load(model)
    raise JudgeError(f"no judge of signals is called {name!r}: there are {', '.join(SIGNAL_NAMES)}")


def _api(model: str | None, settings: dict[str, Any]) -> ApiJudge:
    from persona_axis.judges.api import ApiJudge  # what it takes is an extra

    if not model:
        raise JudgeError("judge api needs the name of its model: give it with --judge-model")
    return ApiJudge(model, **settings)


def default_judge(chat: ChatModel) -> Judge:
    """Troupe's parser where the model is Troupe, else the judge that accepts everything."""
    return TroupeParser() if chat.is_troupe else AcceptAll()
