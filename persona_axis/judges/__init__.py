"""Who decides whether a rollout is in its role: the `Judge` seam, and the judges that come with the
package."""

from __future__ import annotations

from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.judges.accept_all import AcceptAll
from persona_axis.judges.base import MEANING, SCORES, Judge, Judged, verdicts
from persona_axis.judges.listener import ListenerJudge
from persona_axis.judges.troupe import TroupeParser
from persona_axis.probes import Probes

__all__ = [
    "MEANING",
    "SCORES",
    "AcceptAll",
    "Judge",
    "Judged",
    "ListenerJudge",
    "TroupeParser",
    "default_judge",
    "named",
    "verdicts",
]

NAMES = ("all", "troupe", "listener")


def named(name: str, *, chat: ChatModel | None = None, probes: Probes | None = None) -> Judge:
    """A judge by its name on the command line; the listener needs the model and the probes.

    Raises `JudgeError` for a name that is none, and for the listener without them.
    """
    if name == "all":
        return AcceptAll()
    if name == "troupe":
        return TroupeParser()
    if name == "listener":
        if chat is None or probes is None:
            raise JudgeError("the listener judges by a model and its roles: pass chat and probes")
        return ListenerJudge.of(chat, probes)
    raise JudgeError(f"no judge is called {name!r}: there are {', '.join(NAMES)}")


def default_judge(chat: ChatModel) -> Judge:
    """Troupe's parser where the model is Troupe, else the judge that accepts everything."""
    return TroupeParser() if chat.is_troupe else AcceptAll()
