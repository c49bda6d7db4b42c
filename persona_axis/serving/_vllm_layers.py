"""Where a vLLM model keeps its decoder layers, and how an edit gets onto them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.errors import CapError
from persona_axis.serving._stream_edit import StreamEdit

EDIT = "persona_axis_edit"


def decoder_layers(model: nn.Module, vllm_config: Any) -> list[nn.Module]:
    """The layers of the whole model in order; those of another pipeline stage are modules without parameters.

    Raises `CapError` that says what was seen.
    """
    language = getattr(model, "get_language_model", lambda: model)()
    count = vllm_config.model_config.hf_text_config.num_hidden_layers
    lists = {
        path: list(module)
        for path, module in language.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    # A list inside another one (experts, as many as layers) hangs on one of its layers.
    outer = {path: found for path, found in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if len(outer) != 1:
        raise CapError(
            f"cannot tell where vLLM's {type(model).__name__} keeps its {count} layers: "
            f"saw {', '.join(outer) or 'no list of that length'}"
        )
    return next(iter(outer.values()))


def put_on(layers: Sequence[nn.Module], cap: Cap, room: int) -> dict[int, StreamEdit]:
    """An edit that bounds nothing yet on each of the cap's layers that are here; `room` tokens can be seen at once.

    Raises `CapError` for a layer that the model does not have.
    """
    beyond = [layer for layer in cap.layers if layer >= len(layers)]
    if beyond:
        raise CapError(f"the cap's layers {beyond} do not exist: the model has layers 0 to {len(layers) - 1}")
    edits = {}
    for layer in sorted(cap.layers):
        module = layers[layer]
        weight = next((p for p in module.parameters() if p.is_floating_point()), None)
        if weight is None:  # another stage of the pipeline holds it
            continue
        if hasattr(module, EDIT):
            raise CapError(f"layer {layer} has a cap already")
        edit = StreamEdit(cap.direction.shape[1], room, weight.device, weight.dtype)
        setattr(module, EDIT, edit)
        module.register_forward_hook(_hook(layer))
        edits[layer] = edit
    return edits


def stream(output: Any, layer: int) -> tuple[Tensor, Tensor | None]:
    """The residual stream in a layer's output: one tensor [tokens, hidden], or two whose sum it is."""
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        second = output[1] if len(output) > 1 else None
        if second is None:
            return output[0], None
        if isinstance(second, Tensor) and second.shape == output[0].shape:
            return output[0], second
    raise CapError(f"layer {layer} returned a {type(output).__name__} that holds no residual stream")


def _hook(layer: int) -> Callable[..., Any]:
    def hook(module: nn.Module, _args: Any, output: Any) -> Any:
        hidden, residual = stream(output, layer)
        edited = getattr(module, EDIT)(hidden, residual)
        return edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))

    return hook
