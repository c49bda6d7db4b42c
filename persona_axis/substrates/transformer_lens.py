"""TransformerLens: the package on a `TransformerBridge`, and a cap among its hooks.

    from persona_axis.substrates.transformer_lens import cap_hooks, capping, chat_model, projections
    trajectory(chat_model(bridge), axis, messages)               # and extract, simulate, calibrate: all of the package
    projections(bridge.run_with_cache(tokens)[1], axis)
    bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_out", mine), *cap_hooks(cap, bridge)])
    with capping(bridge, cap): bridge.generate(tokens)           # fails closed

A bridge stands inside the model that it was booted from, so nothing is read or edited twice: layer l is the hook point
`blocks.l.hook_out`, where hooks act in the order they are entered, whoever enters them. Facts are those of the model:
an axis found plainly fits a bridge, and the other way round. transformers' own `output_hidden_states` is read before
the hook point and shows no edit made there: read with a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persona_axis._asked import layers_of, require, shown
from persona_axis.axis import Axis
from persona_axis.cap import Cap
from persona_axis.edits.acting import Edit, places
from persona_axis.errors import ArgumentError, DriftError, ModelError
from persona_axis.model.layout import find_stack

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel

__all__ = ["Hook", "cap_hooks", "capping", "chat_model", "projections"]

Hook = tuple[str, Callable[..., Tensor]]
"""A hook point's name and the function for it, as `fwd_hooks=` takes them."""


def chat_model(bridge: Any, *, layers: str | None = None, check: bool = True) -> ChatModel:
    """The model of `bridge` and its tokenizer as everything in this package takes them.

    What is asked of it runs through the bridge: hooks that are on the bridge meanwhile act. `layers` and `check` are
    those of `ChatModel.load`. Raises `ModelError`, also for a bridge whose weights were processed.
    """
    from persona_axis.chat import ChatModel

    return ChatModel.load(_inside(bridge), tokenizer=bridge.tokenizer, layers=layers, check=check)


def projections(
    cache: Mapping[str, Tensor], axis: Axis, layers: Iterable[int] | int | None = None, *, allow: Collection[str] = ()
) -> dict[int, Tensor]:
    """<h, axis> of each token in an `ActivationCache`, by layer: [batch, position], or [position] without a batch.

    `layers` are all of the axis' that the cache holds unless given. A cache that knows its bridge is compared with
    the axis (`allow`: deliberate differences). Raises `AxisMismatchError`, `ModelError`, and `DriftError` for layers
    that the cache does not hold.
    """
    require("axis", axis, Axis)
    if not isinstance(cache, Mapping) and not hasattr(cache, "cache_dict"):
        raise ArgumentError(f"cache: expected the second thing that run_with_cache gives, got {shown(cache)}")
    bridge = getattr(cache, "model", None)
    if bridge is not None:
        axis.require(_inside(bridge), bridge.tokenizer, allow)
    held = {layer: name for layer in axis.layers if (name := f"blocks.{layer}.hook_out") in cache}
    wanted = tuple(held) if layers is None else layers_of(layers, DriftError)
    if not wanted or any(layer not in held for layer in wanted):
        raise DriftError(
            f"asked for layers {list(wanted or axis.layers)}: of the axis' layers the cache holds {list(held)} "
            "(hook points blocks.N.hook_out)"
        )
    return {layer: axis.project(cache[held[layer]], layer) for layer in wanted}


def cap_hooks(cap: Cap, bridge: Any, *, allow: Collection[str] = ()) -> list[Hook]:
    """The cap as hooks for `run_with_hooks`, `hooks` and `add_hook`, where they act in their place among the others.

    The same checks as `Cap.on` and the same arithmetic; but whoever adds hooks may also drop them, and nothing tells:
    `capping` does. Raises `AxisMismatchError`, `CapMismatchError`, `CapError`, `ModelError`.
    """
    require("cap", cap, Cap)
    model = _inside(bridge)
    cap.require(model, bridge.tokenizer, allow)
    blocks: Any = find_stack(model).layers
    with torch.inference_mode(False), torch.no_grad():
        edits = cap.edits(places(blocks, cap.layers, f"the cap on layers {list(cap.layers)}"))
    return [(blocks[layer].hook_out.name, _armed(edit)) for layer, edit in edits.items()]


def capping(bridge: Any, cap: Cap, *, allow: Collection[str] = ()) -> AbstractContextManager[None]:
    """`cap.on` for a bridge: every run, whoever starts it, is held inside the bounds until the block is left.

    Hooks entered inside the block act after the cap, those that were there before it act first; caches show what the
    cap leaves. It is none of the bridge's own hooks: `reset_hooks` does not take it away. On leaving, a cap that cannot
    be shown to have acted at all its layers is a `CapError`. Raises what `Cap.on` raises, and `ModelError`.
    """
    require("cap", cap, Cap)
    return cap.on(_inside(bridge), bridge.tokenizer, allow)


def _armed(edit: Edit) -> Callable[..., Tensor]:
    edit.arm()

    def persona_cap(hidden: Tensor, hook: Any = None) -> Tensor:
        return edit(hidden)

    return persona_cap


def _inside(bridge: Any) -> Any:
    """The model that a bridge stands in. Raises `ModelError` for anything else and for processed weights."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        raise ModelError('bridges come from TransformerLens 4: pip install "persona-axis[lens]"') from None
    if not isinstance(bridge, TransformerBridge):
        raise ModelError(f"expected a TransformerBridge, got {shown(bridge)}")
    # Centring the weights that write to the stream moves it, folding changes what the fingerprint is made of.
    if getattr(bridge, "_weights_processed", bridge.compatibility_mode):
        raise ModelError(
            "the weights of this bridge were processed (enable_compatibility_mode or process_weights), which moves the "
            "residual stream: boot a fresh one, and pass no_processing=True for the old hook names alone"
        )
    try:
        return bridge.original_model
    except AttributeError as error:
        raise ModelError(f"this bridge holds no model in this process: {error}") from error
