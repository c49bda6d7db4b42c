"""Who decides whether a rollout is in its role: the `Judge` seam, and the judges that come with the
package."""

from __future__ import annotations

from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.judges.accept_all import AcceptAll
from persona_axis.judges.base import MEANING, SCORES, Judge, Judged, verdicts
from persona_axis.judges.troupe import TroupeParser

__all__ = [
    "MEANING",
    "SCORES",
    "AcceptAll",
    "Judge",
    "Judged",
    "TroupeParser",
    "default_judge",
    "named",
    "verdicts",
]

NAMES = ("all", "troupe")


def named(name: str) -> Judge:
    """A judge by its name on the command line; raises `JudgeError` for a name that is none."""
    if name == "all":
        return AcceptAll()
    if name == "troupe":
        return TroupeParser()
    raise JudgeError(f"no judge is called {name!r}: there are {', '.join(NAMES)}")


def default_judge(chat: ChatModel) -> Judge:
    """Troupe's parser where the model is Troupe, else the judge that accepts everything."""
    return TroupeParser() if chat.is_troupe else AcceptAll()
