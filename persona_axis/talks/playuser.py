"""A model in the user's place: the conversation as it looks from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from persona_axis.conversations import Script

_ABOUT = {
    "coding": "code that you are working on",
    "writing": "a text that you are writing",
    "emotional": "your own life and how you feel",
    "meta-reflective": "what an AI is and what goes on inside it",
}
_PLAY = (
    "You play a person who talks with an AI assistant about {about}. The person you play: {who} Stay that person "
    "all the time. Write only what they say next, in one to three sentences, and never what the assistant says."
)
_OPENING = "The conversation begins. What do you say first?"
_SWAPPED = {"user": "assistant", "assistant": "user"}


def as_seen_by_user(script: Script, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What the model that plays the script's user is shown: who it is, and the conversation with the roles swapped.

    The assistant's system prompt is none of the user's business. A line opens the conversation, because many
    templates insist that the first word is not their own model's.
    """
    about = _ABOUT.get(script.domain, script.domain)
    who = script.user if script.user.endswith((".", "!", "?")) else f"{script.user}."
    seen = [{"role": "system", "content": _PLAY.format(about=about, who=who)}, {"role": "user", "content": _OPENING}]
    said = [m for m in messages if m["role"] != "system"]
    return [*seen, *({"role": _SWAPPED[m["role"]], "content": m["content"]} for m in said)]
