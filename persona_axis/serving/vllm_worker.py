"""What the cap adds to a vLLM worker: it is put on the model's layers once they are loaded, proven once the graphs are
made, read after each step, and changed by a call to all workers.

Importing this module prepares every worker that is made later in this process; one that no cap was asked of is left
as it is.
"""

from __future__ import annotations

import functools
import hmac
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.errors import CapError
from persona_axis.serving._checkpoint import Checkpoint
from persona_axis.serving._stream_edit import StreamEdit, bounds_at, read_cap
from persona_axis.serving._vllm_kinds import KINDS, MIXED, Kinds
from persona_axis.serving._vllm_layers import decoder_layers, put_on
from persona_axis.serving._vllm_proof import prove
from persona_axis.serving.figures import Figures, as_json
from persona_axis.serving.vllm import ADMIN_KEY, ALLOW, CAP_IN_CONFIG, KEPT_APART, MARK, NO_CAP, asked, missing

try:
    from vllm.v1.worker.worker_base import WorkerBase
except ImportError as error:
    raise missing(error) from error

# vLLM gives its own loggers a handler and a level; a name below them shares both.
log = logging.getLogger("vllm.persona_axis")

_MORE_ROOM = 256  # a captured graph may be padded past the largest batch
_CHANGES_WEIGHTS = ("reload_weights", "start_weight_update", "update_weights", "finish_weight_update")


class Guard:
    """The cap of one worker. It takes the place of four of the worker's methods, each of which it calls."""

    def __init__(self, worker: Any, path: str) -> None:
        self.worker, self.path = worker, path
        self.cap: Cap | None = read_cap(path)
        config = worker.vllm_config.model_config
        self.checkpoint = Checkpoint.read(config.model, config.revision)
        self.edits: dict[int, StreamEdit] = {}
        self.figures: dict[str, Figures] = {}
        self.kinds = Kinds()
        self.proven = False
        self._load, self._warm_up = worker.load_model, worker.compile_or_warm_up_model
        self._execute = worker.execute_model
        worker.load_model, worker.compile_or_warm_up_model = self.load_model, self.compile_or_warm_up_model
        worker.execute_model = self.execute_model
        worker.persona_axis_figures, worker.persona_axis_change = self.read_figures, self.change
        worker.persona_axis_check = self.check
        for name in _CHANGES_WEIGHTS:
            if hasattr(worker, name):
                setattr(worker, name, self._refusing(name, getattr(worker, name)))
        self._keep_compiled_graphs_apart()

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load, then put the edits on the layers that this worker holds, before anything is traced."""
        assert self.cap is not None
        self.proven = False
        self._require_fit(self.cap)
        out = self._load(*args, **kwargs)
        model: nn.Module = self.worker.get_model()
        layers = decoder_layers(model, self.worker.vllm_config)
        room = self.worker.vllm_config.scheduler_config.max_num_batched_tokens + _MORE_ROOM
        self.edits = put_on(layers, self.cap, room)
        if self.edits:
            self.figures = {kind: Figures(list(self.edits), *self._bounds()) for kind in (*KINDS, MIXED)}
        return out

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        """Compile and capture, then prove; raises `CapError` where that fails, and the server does not start."""
        out = self._warm_up(*args, **kwargs)
        model: nn.Module = self.worker.get_model()
        said = prove(self.worker, model, self.edits, self.cap)
        self._hold(self.cap)
        self.proven = True
        log.info("persona-axis: %s holds at layers %s of this worker; %s", self.path, list(self.edits), said)
        return out

    def execute_model(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        """A step of the engine. Raises `CapError` before the proof."""
        if not self.proven:
            raise CapError(f"the cap {self.path} was not proven on this worker: it serves nothing")
        out = self._execute(scheduled, *args, **kwargs)
        self.kinds.note(scheduled)
        tokens = scheduled.total_num_scheduled_tokens
        if self.edits and tokens:
            with torch.inference_mode():
                seen = torch.stack([edit.seen[:tokens] for edit in self.edits.values()])
                for kind, part in self.kinds.split(scheduled, self.worker.model_runner, seen):
                    self.figures[kind].add(part)
        return out

    def read_figures(self) -> dict[str, Any]:
        """The figures of this worker's layers as JSON, prompts and replies apart, and which cap they are of."""
        read = {kind: as_json(figures.read()) for kind, figures in self.figures.items()}
        rows = [{**row, "kind": kind} for kind in read for row in read[kind] if kind in KINDS or row["tokens"]]
        held = () if self.cap is None else self.cap.layers
        # Where nothing is held there is no direction either, and what was measured is of none.
        nothing: dict[str, Any] = {"percentiles": {}, "buckets": {}, "total": 0.0}
        rows = [row if row["layer"] in held else {**row, **nothing} for row in rows]
        return {"cap": None if self.cap is None else self.path, "worker": self.worker.rank, "layers": rows}

    def check(self, path: str | None) -> str:
        """"" where this worker could change to the cap at `path` (None: to no cap), else the reason."""
        try:
            if path is not None:
                self._require_fit(cap := read_cap(path))
                missing = sorted(set(cap.layers) - set(self._capped))
                if missing:
                    raise CapError(
                        f"layers {missing} of {path} were not prepared when the server started (it was started with "
                        f"{sorted(self._capped)}): start it with this cap"
                    )
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def change(self, path: str | None, key: str = "") -> dict[str, Any]:
        """Hold to the cap at `path` from the next step on; None lets go. Raises what `check` would tell.

        `key` is the server's admin key: vLLM can be told to let anybody call a worker's methods. Raises `CapError`
        for another one, and where there is none.
        """
        admin = os.environ.get(ADMIN_KEY, "")
        if not admin or not hmac.compare_digest(key.encode(), admin.encode()):
            raise CapError(f"the cap is changed with the key in {ADMIN_KEY}, through POST /persona-axis/cap")
        if problem := self.check(path):
            raise CapError(problem)
        cap = None if path is None else read_cap(path)
        self._hold(cap)
        before, self.cap = (None if self.cap is None else self.path), cap
        self.path = self.path if path is None else path
        log.warning("persona-axis: the cap changed from %s to %s", before or "none", path or "none")
        return {"before": before, "now": path}

    def _refusing(self, name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        """A method that may bring in weights the cap was not made for. Reading the same checkpoint again is let
        through, and looked at again; anything else is a `CapError`."""

        @functools.wraps(change)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if name != "reload_weights" or args or any(value is not None for value in kwargs.values()):
                raise CapError(f"{name}: the cap {self.path} was made for the weights that are loaded: restart instead")
            self.checkpoint = self.checkpoint.again()
            if self.cap is not None:
                self._require_fit(self.cap)
            return change()

        return guarded

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Floor and ceiling [layers] as the edits hold them."""
        edits = self.edits.values()
        return torch.stack([edit.floor for edit in edits]), torch.stack([edit.ceiling for edit in edits])

    def _hold(self, cap: Cap | None) -> None:
        for layer, edit in self.edits.items():
            bounds = bounds_at(cap, layer, len(edit.direction))
            edit.hold(bounds)
            if not edit.holds(bounds):
                raise CapError(f"layer {layer}: the bounds of {self.path} do not read back as they were set")
        for figures in self.figures.values():
            figures.clear(*self._bounds())

    def _require_fit(self, cap: Cap) -> None:
        allow = tuple(name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip())
        self.checkpoint.require(cap, allow)

    def _keep_compiled_graphs_apart(self) -> None:
        """Let vLLM's compile cache tell graphs with these edits from graphs without."""
        from persona_axis import __version__

        assert self.cap is not None
        config = self.worker.vllm_config
        if not isinstance(config.additional_config, Mapping):
            raise CapError("--additional-config must be a JSON object here: it keeps compiled graphs with a cap apart")
        self._capped = self.cap.layers
        mark = dict(zip(MARK, (__version__, list(self.cap.layers)), strict=True))
        config.additional_config = {**config.additional_config, KEPT_APART: mark}


class WorkerExtension:
    """For `--worker-extension-cls persona_axis.serving.vllm_worker.WorkerExtension`.

    `VLLM_PLUGINS` may leave the plugin out, and then nothing of this package would run. A worker that is told to have
    this class imports this module, or does not start.
    """

    def persona_axis_serving(self) -> bool:
        """Whether this worker has a cap that was proven."""
        guard = getattr(self, "persona_axis", None)
        return guard is not None and guard.proven


def _overrides(model_config: Any) -> Any:
    """`--hf-overrides`; of a function, what it made of the setting that is ours."""
    given = getattr(model_config, "hf_overrides", None)
    if not callable(given):
        return given
    path = getattr(model_config.hf_config, CAP_IN_CONFIG, None)
    return None if path is None else {CAP_IN_CONFIG: path}


def install() -> None:
    """Prepare the workers made from now on in this process; calling it again changes nothing."""
    if getattr(WorkerBase.__init__, "_persona_axis", False):
        return
    make = WorkerBase.__init__

    @functools.wraps(make)
    def made(worker: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        make(worker, vllm_config, *args, **kwargs)
        path = asked(vllm_config.additional_config, _overrides(vllm_config.model_config))
        if path is None:
            log.warning("persona-axis: %s", NO_CAP)
            worker.persona_axis_figures = lambda: None
            worker.persona_axis_check = lambda _path: NO_CAP
        else:
            worker.persona_axis = Guard(worker, path)

    made._persona_axis = True  # type: ignore[attr-defined]
    WorkerBase.__init__ = made


install()
