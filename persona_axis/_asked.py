"""What a call was given, looked at as it comes in: what Python would trip over later is told in words here.

Every function raises `ArgumentError`, or the error class it is handed, with the argument's name, what it takes and what
it got.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_axis.errors import ArgumentError, ConversationError, PersonaAxisError

_TOLD = {
    "Axis": "an Axis (Axis.load gives one)",
    "Cap": "a Cap (Axis.cap and Cap.load give one)",
    "ChatModel": "a ChatModel (ChatModel.load gives one; of other toolkits' models, persona_axis.substrates)",
    "Callable": "a function",
    "Held": "what hold(model, cap) gives",
    "Iterable": "a list",
    "Judge": "a judge (persona_axis.judges has some)",
    "SignalJudge": "a judge of signals (persona_axis.judges.named gives one)",
    "OutcomeJudge": "a judge of outcomes (persona_axis.outcomes has some)",
    "CapabilityTest": "a test (persona_axis.capability has some)",
    "Listener": "a Listener, such as Listener(alpha=2.0)",
    "Context": "a Context of persona_axis.levers.ranking",
    "Dialogue": "a Dialogue (persona_axis.bench.dialogues gives some)",
    "Persona": "a Persona, such as Persona('You are a pirate.')",
    "PersonaProbe": "a PersonaProbe (load_personas gives some)",
    "DataFrame": "a table of pandas",
    "str": "a text",
    "Lever": "a Cap, another lever or several (Axis.cap gives a Cap)",
    "Mapping": "a dict",
    "Options": "Options of persona_axis.extract",
    "Probes": "Probes (load_probes gives them)",
    "Sampling": "a Sampling, such as Sampling(temperature=0)",
}
_ROLES = ("system", "user", "assistant")
_MESSAGE = 'a dict such as {"role": "user", "content": "Hi"}'


def require(name: str, given: object, kind: type) -> None:
    """Raise `ArgumentError` unless `given` is of this kind."""
    if isinstance(given, type) or not isinstance(given, kind):
        raise ArgumentError(f"{name}: expected {_TOLD.get(kind.__name__, kind.__name__)}, got {shown(given)}")


def require_each(name: str, given: Any, kind: type, error: type[PersonaAxisError] = ArgumentError) -> list[Any]:
    """`given` as a list of things of this kind. Raises `error` for what is no list, such as one of them alone, and
    says which is of another kind."""
    if isinstance(given, (str, bytes, Mapping, type)) or not hasattr(given, "__iter__"):
        told = _TOLD.get(kind.__name__, kind.__name__)
        raise error(f"{name}: expected a list, each {told}, got {shown(given)}")
    found = list(given)
    for number, one in enumerate(found):
        if isinstance(one, type) or not isinstance(one, kind):
            told = _TOLD.get(kind.__name__, kind.__name__)
            raise error(f"{name}[{number}]: expected {told}, got {shown(one)}")
    return found


def path_of(name: str, given: str | os.PathLike[str]) -> Path:
    """`given` as a path. Raises `ArgumentError` for what is none, such as the object that lies in a file."""
    if not isinstance(given, (str, os.PathLike)):
        raise ArgumentError(f"{name}: expected the path of a file or directory, got {shown(given)}")
    return Path(given)


def whole(name: str, given: Any, error: type[PersonaAxisError] = ArgumentError, least: int | None = None) -> int:
    """`given` as an int, if it is a whole number (a float or a truth value is none) of at least `least`."""
    number = _index(given)
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f"at least {least} and "
        raise error(f"{name} must be {bound}a whole number, got {shown(given)}")
    return number


def layers_of(given: Any, error: type[PersonaAxisError], *, some: bool = True) -> tuple[int, ...]:
    """One layer or several (or, without `some`, none), in the order given. Raises `error`.

    Which of them exist is for the caller to say.
    """
    try:
        at = tuple(given)
    except TypeError:  # not a list of anything: one layer, or nothing at all
        at = (given,)
    found = [layer for one in at if (layer := _index(one)) is not None]
    if (some and not at) or len(found) < len(at):
        raise error(
            f"layers={shown(given)}: expected a layer's number or a list of one or more of them, such as [2, 3], "
            "counted from 0"
        )
    return tuple(found)


def conversations_of(chats: Any) -> list[Any]:
    """The conversations one by one, at least one. Raises `ConversationError` that says which is none."""
    if isinstance(chats, (str, Mapping)) or not hasattr(chats, "__iter__"):
        raise ConversationError(f"expected a list of conversations, got {shown(chats)}")
    listed = list(chats)
    if not listed:
        raise ConversationError("the list of conversations is empty: there is nothing to reply to")
    for number, messages in enumerate(listed):
        require_messages(messages, f"conversations[{number}]: ")
    return listed


def require_messages(messages: Any, where: str = "") -> None:
    """Raise `ConversationError`, beginning with `where`, unless each message has a known role and a text."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ConversationError(
            f"{where}a conversation is a list of messages, each {_MESSAGE}, and several are a list of such lists; "
            f"got {shown(messages)} for one"
        )
    if not messages:
        raise ConversationError(f"{where}the conversation is empty: it needs a message")
    for index, message in enumerate(messages):
        at = f"{where}messages[{index}]"
        if not isinstance(message, Mapping):
            raise ConversationError(f"{at}: expected {_MESSAGE}, got {shown(message)}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                held = f"it is {shown(message[key])}" if key in message else "there is none"
                raise ConversationError(f"{at}: {key} must be a text, and {held}")
        if message["role"] not in _ROLES:
            raise ConversationError(f"{at}: unknown role {message['role']!r:.40}; the roles are {', '.join(_ROLES)}")


def shown(given: object) -> str:
    """What was given, as an error tells it: short values as they are, of others the kind."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    if given is None or isinstance(given, (str, bytes, int, float)):
        return f"{given!r:.60}"
    if type(given) in (list, tuple, set, dict) and len(repr(given)) <= 60:
        return repr(given)
    kind = type(given).__name__
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def _index(given: Any) -> int | None:
    try:
        return None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        return None
