"""The engines by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persona_axis.errors import ExtractionError
from persona_axis.extraction.engines import Local, MakesEngine

NAMES = ("transformers", "continuous", "vllm")
ELSEWHERE = ("vllm",)
"""Those that generate with a copy of the model in processes of their own: a trial here would say nothing of them."""


def named(name: str, arguments: Mapping[str, Any] | None = None) -> MakesEngine:
    """The engine of that name. Raises `ExtractionError` for a name that is none, for `arguments` to an engine that
    takes none, and where what the engine runs on is not installed."""
    if name not in NAMES:
        raise ExtractionError(f"no engine is called {name!r}: {', '.join(NAMES)}")
    if name == "vllm":
        from persona_axis.extraction.vllm_engine import OnVllm

        return OnVllm(dict(arguments or {}))
    if arguments:
        raise ExtractionError(f"the engine {name} takes no arguments, got {', '.join(arguments)}: they go with vllm")
    if name == "continuous":
        from persona_axis.extraction.continuous import Continuous

        return Continuous
    return Local
