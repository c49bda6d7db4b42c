"""A cap inside SGLang, by its forward hooks: the hook factory, and the specification that names it.

    python -m sglang.launch_server --model-path MODEL --forward-hooks "$(persona-axis sglang cap.safetensors)"

It was written from SGLang's description of that argument (a JSON list; `name`, `target_modules`, `hook_factory` as
"module:function", `config`; the factory is called with `config` and gives `hook(module, inputs, output)`; a decoder
layer's output is the pair of hidden states and residual whose sum is the stream) and was never run on an SGLang
server: should a field be called otherwise in your version, rename it. Nothing is proven at start as it is in vLLM: a
hook that SGLang does not call, or that a CUDA graph leaves out, is a cap that does not act. Compare greedy replies with
`Cap.on` before you rely on it. What can be told here fails closed: the cap file, its layer, and an output that is not
such a pair.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from persona_axis.edits.arithmetic import correction, pushing
from persona_axis.errors import CapError
from persona_axis.serving._stream_edit import bounds_at, read_cap

FACTORY = "persona_axis.serving.sglang:hook"
Hook = Callable[[nn.Module, Any, Any], Any]


def specification(path: str | os.PathLike[str], stack: str = "model.layers") -> str:
    """The JSON for `--forward-hooks`: one entry for each layer of the cap file at `path`.

    `stack` is where SGLang's model keeps its layers. The path is made absolute: the server reads it as it starts.
    Raises `AxisFileError` for a file that is none and `CapError` for a cap whose bounds differ from row to row.
    """
    file = os.path.abspath(path)
    entries = [
        {
            "name": f"persona-axis-{layer}",
            "target_modules": [f"{stack}.{layer}"],
            "hook_factory": FACTORY,
            "config": {"cap": file, "layer": layer},
        }
        for layer in read_cap(file).layers
    ]
    return json.dumps(entries)


def hook(config: Mapping[str, Any]) -> Hook:
    """The hook of one layer; `config` has the cap file's path as `cap`, and `layer`.

    Raises `AxisFileError` for a missing or damaged file, `CapError` for a layer that the cap does not have and for a
    `config` that is not of this form, so that a server which passes the error on does not start. The hook itself
    raises `CapError` in the run where the width or the output's form does not fit.
    """
    path, layer = config.get("cap"), config.get("layer")
    if set(config) != {"cap", "layer"} or not isinstance(path, str) or type(layer) is not int:
        raise CapError(f"config {dict(config)}: expected the path of a cap file as 'cap' and a number as 'layer'")
    cap = read_cap(path)
    if layer not in cap.layers:
        raise CapError(f"{path}: layer {layer} is not in the cap, which has {', '.join(map(str, cap.layers))}")
    bounds = bounds_at(cap, layer, cap.direction.shape[1])
    placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def held(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden, residual = _stream(output, layer)
        if hidden.shape[-1] != len(bounds.direction):
            raise CapError(
                f"{path}: the cap's direction has width {len(bounds.direction)}, layer {layer}'s output "
                f"{hidden.shape[-1]}"
            )
        if hidden.device not in placed:
            both = bounds.direction, pushing(bounds.direction).float()
            placed[hidden.device] = both[0].to(hidden.device), both[1].to(hidden.device)
        direction, push = placed[hidden.device]
        part = hidden.float()
        stream = part if residual is None else part + residual.float()
        way = correction((stream * direction).sum(-1, keepdim=True), bounds.floor, bounds.ceiling)
        edited = torch.addcmul(part, way, push).to(hidden.dtype)
        return edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))

    return held


def _stream(output: Any, layer: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(output, Tensor):
        return output, None
    if type(output) in (tuple, list) and len(output) == 2 and isinstance(output[0], Tensor):
        hidden, residual = output
        if residual is None or (isinstance(residual, Tensor) and residual.shape == hidden.shape):
            return hidden, residual
    told = f"{type(output).__name__} of {len(output)}" if isinstance(output, tuple | list) else type(output).__name__
    raise CapError(f"layer {layer} returned a {told}: expected hidden states, or the pair of them and the residual")
