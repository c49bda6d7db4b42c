"""persona-axis: find where a language model keeps its persona, watch it move, and hold it in place.

The public names are imported when they are first used (PEP 562): `import persona_axis` is quick, and torch
comes in only with what needs it. `extract` is the module; its function is `persona_axis.extract.extract`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .axis import Axis
    from .cap import Cap
    from .chat import ChatModel
    from .errors import (
        AxisFileError,
        AxisMismatchError,
        CapError,
        ExtractionError,
        JudgeError,
        ListenerError,
        ModelError,
        PersonaAxisError,
        ProbeError,
        ResidualError,
    )
    from .levers.listener import Listener
    from .probes import Probes, Question, Role, load_probes
    from .serving.attach import Attached, attach
    from .space import PersonaSpace

__version__ = "0.1.0"

_HOMES = {
    "Attached": "serving.attach",
    "attach": "serving.attach",
    "Axis": "axis",
    "Cap": "cap",
    "ChatModel": "chat",
    "AxisFileError": "errors",
    "AxisMismatchError": "errors",
    "CapError": "errors",
    "ExtractionError": "errors",
    "JudgeError": "errors",
    "Listener": "levers.listener",
    "ListenerError": "errors",
    "ModelError": "errors",
    "PersonaAxisError": "errors",
    "ProbeError": "errors",
    "ResidualError": "errors",
    "Probes": "probes",
    "Question": "probes",
    "Role": "probes",
    "load_probes": "probes",
    "PersonaSpace": "space",
}

__all__ = [
    "Attached",
    "Axis",
    "AxisFileError",
    "AxisMismatchError",
    "Cap",
    "CapError",
    "ChatModel",
    "ExtractionError",
    "JudgeError",
    "Listener",
    "ListenerError",
    "ModelError",
    "PersonaAxisError",
    "PersonaSpace",
    "ProbeError",
    "Probes",
    "Question",
    "ResidualError",
    "Role",
    "__version__",
    "attach",
    "load_probes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
