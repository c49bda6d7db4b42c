"""Ways to break a cap on purpose. A worker imports this module when it is told to have its extension class; `BREAK`
says what to break."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from persona_axis.serving import _vllm_layers, vllm_worker
from persona_axis.serving._stream_edit import StreamEdit


class Extension:
    """Nothing: importing this module is what it is for."""


def late() -> None:
    """The hooks come after the graphs were made."""
    put_on, warm_up = vllm_worker.put_on, vllm_worker.Guard.compile_or_warm_up_model

    def nothing_yet(layers: Any, cap: Any, room: int) -> dict[int, StreamEdit]:
        vllm_worker.Guard.late = (layers, cap, room)  # type: ignore[attr-defined]
        return {}

    def compile_then_put_on(guard: Any, *args: Any, **kwargs: Any) -> Any:
        compiling = guard._warm_up

        def compiled(*args: Any, **kwargs: Any) -> Any:
            out = compiling(*args, **kwargs)
            guard.edits = put_on(*guard.late)
            return out

        guard._warm_up = compiled
        return warm_up(guard, *args, **kwargs)

    vllm_worker.put_on = nothing_yet
    vllm_worker.Guard.compile_or_warm_up_model = compile_then_put_on  # type: ignore[method-assign]


def half() -> None:
    """The projection is that of one part of the residual pair."""
    forward = StreamEdit.forward
    StreamEdit.forward = lambda self, hidden, residual=None: forward(self, hidden)  # type: ignore[method-assign]


def wrong_class() -> None:
    """The edits are put on modules that the engine does not run."""
    found = vllm_worker.decoder_layers

    def copies(model: nn.Module, config: Any) -> list[nn.Module]:
        layers = found(model, config)
        others = [nn.Linear(1, 1) for _ in layers]
        model.unused = nn.ModuleList(others)
        return others

    vllm_worker.decoder_layers = copies


def half_written() -> None:
    """The change is written to a copy: the layer's output stays what it was."""
    _vllm_layers._hook = lambda layer: lambda module, _args, output: getattr(module, _vllm_layers.EDIT)(
        *_vllm_layers.stream(output, layer)
    ) is None or None


def unproven() -> None:
    """The engine never asks for the warm-up in which the proof is taken."""
    vllm_worker.Guard.compile_or_warm_up_model = lambda guard, *a, **k: guard._warm_up(*a, **k)  # type: ignore[method-assign]


def stale() -> None:
    """Whatever graph lies in vLLM's compile cache is taken, as it stands. On CPUs vLLM 0.32 itself never gets so far:
    its loader fails on graphs of this compilation mode and compiles again."""
    import torch
    from vllm.compilation import decorators

    def load(model: Any, path: str) -> Any:
        if not os.path.exists(path):
            return None
        with open(path, "rb") as file:
            loaded = torch.compiler.load_compiled_function(file, f_globals=model.forward.__globals__)
        loaded.disable_guard_check()
        return loaded

    decorators._try_load_aot_compiled_fn = load


globals()[os.environ["BREAK"]]()
