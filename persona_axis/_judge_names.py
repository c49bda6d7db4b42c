"""The judges' names, known to the command line before anything heavy is imported."""

from __future__ import annotations

OF_ROLES = ("all", "troupe", "listener", "api")
"""They score rollouts."""
OF_SIGNALS = ("troupe", "listener", "api", "nli")
"""They answer signals' questions."""
ALL = tuple(dict.fromkeys((*OF_ROLES, *OF_SIGNALS)))


def unfit(name: str, wanted: tuple[str, ...]) -> str:
    """What to say of a judge that is there, but not for this."""
    if wanted == OF_ROLES:
        return f"judge {name} scores no roles, it answers the questions of signals: take {', '.join(wanted)}"
    return f"judge {name} answers no questions of signals, it scores roles: take {', '.join(wanted)}"
