"""An engine on Ray: workers on as many machines as there are hold the model, take batches and give back sums.

    with over_ray("auto", workers=8) as engine:
        extract(chat, probes, out="axis.safetensors", engine=engine)

All that is decided, judged, added up and written is so in this process, in the order of the plan. Where the machines
are alike the axis has the bytes that one of them would have given.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.engines import Job, Local, MakesEngine, Splits, first_line
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.ray_crew import RayCrew
from persona_axis.extraction.ray_worker import Asked, alike
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.window import in_order

INSTALL = 'more machines are reached through Ray: pip install "persona-axis[ray]"'
_LEAST_STORE = 100 * 2**20  # bytes; Ray takes hardly less
_ANSWER = 10.0  # seconds
PATIENCE = 300.0
"""Seconds that a run waits while no worker is there."""


class RayEngine:
    """Draws batches with a crew of Ray workers."""

    name = "ray"

    def __init__(self, crew: RayCrew, plan: Plan, store: RunStore) -> None:
        self.crew, self._splits = crew, Splits(plan, store.records)

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """The replies of each job, in order. Raises `ExtractionError` where no worker is left or comes up, where a
        worker's model is not this process', and where a batch is lost again and again."""
        return in_order(jobs, self.crew, self._splits)


@contextmanager
def over_ray(
    address: str = "local",
    workers: int = 2,
    *,
    gpus: float | None = None,
    load: Mapping[str, Any] | None = None,
    patience: float = PATIENCE,
) -> Iterator[MakesEngine]:
    """What `extract` takes as its `engine`; when the block is left the workers end, and Ray if it was started here.

    `address` "local" starts Ray on this machine, for this block; "auto" or "host:port" joins a cluster that this
    machine is part of. Each of `workers` takes `gpus` GPUs (None: one if the driver's model is on one), or without any
    as many CPUs as this process has threads; it loads the model by the driver's name, revision, precision and layers,
    and whatever arguments of `ChatModel.load` stand in `load`. Raises `ExtractionError` without Ray, where the cluster
    cannot be joined, and after `patience` seconds without any worker.
    """
    if workers < 1:
        raise ExtractionError(f"workers must be at least 1, got {workers}")
    if gpus is not None and gpus < 0:
        raise ExtractionError(f"gpus must not be negative, got {gpus}")
    ray = require_ray()
    with ExitStack() as undo:
        joined = False

        def make(chat: ChatModel, plan: Plan, store: RunStore) -> RayEngine:
            nonlocal joined
            asked = _asked(chat, plan, load or {})
            held = gpus if gpus is not None else float(chat.device.type == "cuda")
            needs = {"num_cpus": 1 if held else asked.threads, "num_gpus": held}
            if not joined and not (ray.is_initialized() and address == "auto"):
                _connect(ray, address, workers, needs, plan.batch_size * len(plan.layers) * chat.hidden_size * 4)
                undo.callback(ray.shutdown)
                joined = True
            crew = RayCrew(ray, workers, needs, asked, patience)
            undo.callback(crew.close)
            return RayEngine(crew, plan, store)

        yield _OverRay(make)


@dataclass(frozen=True)
class _OverRay:
    """Makes the engine of a run."""

    make: Callable[[ChatModel, Plan, RunStore], RayEngine]
    name = Local.name
    """Workers draw as that engine does: a run that one of the two began goes on with either."""

    def __call__(self, chat: ChatModel, plan: Plan, store: RunStore) -> RayEngine:
        return self.make(chat, plan, store)


def require_ray() -> Any:
    """The ray package. Raises `ExtractionError` that says what to install."""
    try:
        import ray
    except ImportError:
        raise ExtractionError(INSTALL) from None
    return ray


def _asked(chat: ChatModel, plan: Plan, load: Mapping[str, Any]) -> Asked:
    if type(chat) is not ChatModel:
        raise ExtractionError(f"Ray workers hold a ChatModel, this is a {type(chat).__name__}: draw it in this process")
    path = Path(chat.name).expanduser()
    how = {
        "name_or_path_or_model": str(path.resolve()) if path.is_dir() and not chat.is_troupe else chat.name,
        "revision": chat.facts["revision"],
        "dtype": chat.facts["dtype"],
        "layers": chat.layers,
        **load,
    }
    return Asked(how, alike(chat), torch.get_num_threads(), plan.options.sampling, plan.layers)


def _connect(ray: Any, address: str, workers: int, needs: Mapping[str, float], batch_bytes: int) -> None:
    """Start or join a cluster; raises `ExtractionError` where that fails."""
    if ray.is_initialized():
        raise ExtractionError(f"this process is part of a Ray cluster already: pass address 'auto', not {address!r}")
    if address.startswith("ray://"):
        raise ExtractionError(
            f"{address} is the address of Ray's client: give the command on a machine of the cluster, with --ray auto"
        )
    _require_listener(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would run workers at niceness 15, and on a busy machine they would hardly get to load their model.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options = {
            "num_cpus": int(workers * needs["num_cpus"]),
            "include_dashboard": False,
            "object_store_memory": max(_LEAST_STORE, 3 * workers * batch_bytes),
        }
        if not needs["num_gpus"]:
            options["num_gpus"] = 0
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ExtractionError(f"no Ray cluster at {address!r}: {first_line(error)}") from error


def _require_listener(address: str) -> None:
    """Raise `ExtractionError` where nobody listens: Ray itself would go on trying for many minutes."""
    host, _, port = address.rpartition(":")
    if address in ("local", "auto"):
        return
    if not host or not port.isdigit():
        raise ExtractionError(f"{address!r} is no address of a Ray cluster: expected local, auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ExtractionError(f"no Ray cluster at {address!r}: {first_line(error)}") from error
