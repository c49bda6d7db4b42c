"""The levers that the bench knows by name, each made into an agent. Others join as agents of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_axis.bench.dialogues import Dialogue, sha256
from persona_axis.calibration.settings import axis_sha256
from persona_axis.calibration.units import Units
from persona_axis.errors import BenchError
from persona_axis.levers.agents import Agent
from persona_axis.levers.distractors import at_random
from persona_axis.levers.listener import Listener, generate
from persona_axis.levers.worlds import Worlds, persona_of, persona_worlds
from persona_axis.persona import Persona
from persona_axis.probes import load_probes

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.chat import ChatModel
    from persona_axis.controls import Touch
    from persona_axis.sampling import Sampling
    from persona_axis.template import Messages

NONE = "none"
_DISTRACTORS = 2


@dataclass(frozen=True, eq=False)
class Setup:
    """What levers are made from. `texts` are token ids of the conversations as they were held without any lever."""

    chat: ChatModel
    axis: Axis | None
    cap: Cap | None
    dialogues: Sequence[Dialogue]
    listener: Listener
    seed: int
    texts: Callable[[], list[list[int]]]
    texts_sha256: str
    units: Units


def require_known(name: str, axis: Axis | None) -> None:
    """Raises `BenchError` for a name that is no lever's, and for a lever whose needs are not met."""
    if name not in LEVERS:
        raise BenchError(f"no lever is called {name!r}: there are {', '.join(LEVERS)}; pass an Agent for one of yours")
    if LEVERS[name][0] and axis is None:
        raise BenchError(f"the lever {name} acts along an axis: give one (--axis FILE), or leave it out")


def agent(name: str, setup: Setup) -> Agent:
    """The lever of that name. Raises as `require_known`, and `CapError` for a cap that nothing can be matched to."""
    require_known(name, setup.axis)
    return LEVERS[name][1](name, setup)


def _none(name: str, _setup: Setup) -> Agent:
    return Agent(name)


def _repeat(name: str, _setup: Setup) -> Agent:
    """The system prompt again before every message of the user but the first, which it stands before anyway."""

    def told(messages: Messages) -> Messages:
        persona, seen = persona_of(messages), 0
        found: list[Mapping[str, str]] = []
        for message in messages:
            seen += message["role"] == "user"
            again = persona and message["role"] == "user" and seen > 1
            found.append({**message, "content": f"{persona} {message['content']}"} if again else message)
        return found

    return Agent(name, told=told, facts={"repeat": 1})


def _cap(name: str, setup: Setup) -> Agent:
    return Agent(name, lever=setup.cap, facts=_cap_facts(setup))


def _steer(name: str, setup: Setup) -> Agent:
    """The axis added to every token, as much at each layer as the cap adds on average."""
    from persona_axis.steer import add

    axis, bite = setup.axis, _bite(setup)
    assert axis is not None
    layers = [touch.layer for touch in bite]
    alpha = [touch.share * touch.size if touch.share else 0.0 for touch in bite]
    direction = axis.direction[[axis.row(layer) for layer in layers]]
    return Agent(name, lever=add(direction, layers, alpha), facts={"add": alpha, **_cap_facts(setup)})


def _random(name: str, setup: Setup) -> Agent:
    """A control that should not work: along random directions, on as many tokens and by as much as the cap.

    One draw of one kind, Gaussian: `persona-axis calibrate` compares a cap with several draws of this and the other
    kinds of `random_directions` (the axis permuted, mixtures of the roles).
    """
    from persona_axis.controls import Fit, Push, Pushes, matched, pushes_of, random_directions

    assert setup.axis is not None and setup.cap is not None
    like = pushes_of(setup.cap)
    directions = random_directions(setup.axis, like.layers, "gaussian", setup.seed)
    facts = {**_cap_facts(setup), "texts": setup.texts_sha256, "seed": setup.seed}

    def measure() -> list[list[float]]:
        found = matched(setup.chat, setup.texts(), like, directions, _bite(setup))
        return [[p.trigger, p.target, p.gain] for p in found.pushes]

    fits = [Fit(*fit) for fit in setup.units.get("control", facts, measure)]
    pushes = Pushes(tuple(Push(layer, v, *fit) for layer, v, fit in zip(like.layers, directions, fits, strict=True)))
    return Agent(name, lever=pushes, facts={"random": fits, "seed": setup.seed, **_cap_facts(setup)})


def _listener(name: str, setup: Setup) -> Agent:
    return _listening(name, setup, None, {})


def _cap_and_listener(name: str, setup: Setup) -> Agent:
    return _listening(name, setup, setup.cap, _cap_facts(setup))


def _listening(name: str, setup: Setup, cap: Cap | None, facts: Mapping[str, Any]) -> Agent:
    known, pool = told_from(setup.dialogues, setup.seed), _pool(setup.dialogues)
    how = setup.listener

    def worlds(messages: Messages) -> Worlds:
        persona = persona_of(messages)
        return persona_worlds(messages, known.get(persona) or at_random(persona, pool, _DISTRACTORS, setup.seed))

    def speak(chat: ChatModel, chats: Sequence[Messages], sampling: Sampling, seed: int) -> list[str]:
        return generate(chat, [worlds(messages) for messages in chats], how, sampling, seed).texts

    told = {"alpha": how.alpha, "beta": how.beta, "prior": how.prior, "from": sha256([sorted(known.items()), pool])}
    return Agent(name, lever=cap, speak=speak, hears=worlds, facts={**told, **facts})


def told_from(dialogues: Sequence[Dialogue], seed: int) -> dict[str, list[str]]:
    """The two distractors of each persona with facts, by its system prompt: itself with another's facts, and another
    with its own.

    A stranger is told by its voice at the first words, and a listener that is sure has no say about facts.
    """
    having = {d.system: d.persona for d in dialogues if d.persona and d.persona.facts}
    found: dict[str, list[str]] = {}
    for system, own in having.items():
        others = [p for text, p in having.items() if p.facts != own.facts and p.description != own.description]
        if others:
            other = others[(seed + len(found)) % len(others)]
            facts, voice = Persona(own.description, other.facts), Persona(other.description, own.facts)
            found[system] = [facts.text, voice.text]
    return found


def _pool(dialogues: Sequence[Dialogue]) -> list[str]:
    """Whom a persona without facts is told from: the bench's other personas; where these are few, the probes' roles."""
    told = list(dict.fromkeys(d.system for d in dialogues if d.system))
    return told if len(told) > _DISTRACTORS else [*told, *(role.prompts[0] for role in load_probes().roles)]


def _bite(setup: Setup) -> list[Touch]:
    """How much the cap does, by layer, to conversations that were held without it."""
    from persona_axis.controls import Touch, pushes_of, touches

    assert setup.cap is not None
    like, facts = pushes_of(setup.cap), {**_cap_facts(setup), "texts": setup.texts_sha256}
    return [Touch(*row) for row in setup.units.get("bite", facts, lambda: touches(setup.chat, setup.texts(), like))]


def _cap_facts(setup: Setup) -> dict[str, Any]:
    axis, cap = setup.axis, setup.cap
    assert axis is not None and cap is not None
    bounds = [None if bound is None else bound.tolist() for bound in (cap.floor, cap.ceiling)]
    return {"axis": axis_sha256(axis), "cap": [list(cap.layers), sha256(cap.direction.tolist()), *bounds]}


LEVERS: dict[str, tuple[bool, Callable[[str, Setup], Agent]]] = {
    NONE: (False, _none),
    "repeat": (False, _repeat),
    "cap": (True, _cap),
    "steer": (True, _steer),
    "listener": (False, _listener),
    "cap+listener": (True, _cap_and_listener),
    "random": (True, _random),
}
"""Whether it needs an axis, and its maker."""
HEEDING = ("listener", "cap+listener")
"""Those that heed a listener, so that a listener is no judge of them."""
