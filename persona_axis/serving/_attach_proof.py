"""The proof that an attached cap acts, and the refusal of a model that ran compiled before it was attached."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from persona_axis.errors import CapError
from persona_axis.model.layout import unwrapped
from persona_axis.serving._runs import Probe

if TYPE_CHECKING:
    from persona_axis.serving.attach import Attached

_BITE = 0.5  # how far past its own projection the probe is moved, in lengths of its residual stream
_NOTHING = 4.0  # a change must be so many times what two equal runs differ by
_TOKENS = 2


class _Seen(NamedTuple):
    probe: Probe
    logits: Tensor


def prove(handle: Attached, model: nn.Module) -> None:
    """Raise `CapError` unless each layer's edit moves a probe to its bound, and the model's logits with it.

    One run for each layer and two more, of two tokens of one seed. The bounds are of this thread only: nothing that
    other threads run meanwhile is touched.
    """
    ids = _tokens(model)
    try:
        plain, again = _run(handle, model, ids, {}), _run(handle, model, ids, {})
        noise = (plain.logits - again.logits).norm().item()
        for layer in handle.cap.layers:
            length, start = plain.probe.lengths[layer], plain.probe.before[layer].max().item()
            if not 0 < length < torch.inf:
                raise CapError(f"layer {layer}: the probe's residual stream has length {length}: nothing can be proven")
            floor = start + _BITE * length
            moved = _run(handle, model, ids, {layer: floor})
            landed = moved.probe.after[layer].float()
            eps = torch.finfo(next(p.dtype for p in model.parameters() if p.is_floating_point())).eps
            if (landed - floor).abs().max().item() > 4 * eps * max(length, abs(floor)):
                raise CapError(
                    f"layer {layer}: with a floor of {floor:.4g} the probe's projections are {landed.tolist()}"
                )
            change = (moved.logits - plain.logits).norm().item()
            if not change > _NOTHING * noise + 1e-6 * plain.logits.norm().item():
                raise CapError(f"layer {layer}: moving the probe does not change the model's logits")
    finally:
        handle.run.probe = None


def _run(handle: Attached, model: nn.Module, ids: Tensor, floors: dict[int, float]) -> _Seen:
    handle.run.probe = probe = Probe(floors)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(0)
        out = model(input_ids=ids)
    missed = [layer for layer in handle.cap.layers if layer not in probe.after]
    if missed:
        raise CapError(
            f"the cap does not act at layers {missed}: they run a graph that was compiled without it. Call "
            "torch.compiler.reset() and attach before the first compiled call"
        )
    logits = getattr(out, "logits", None)
    if logits is None:
        logits = getattr(out, "last_hidden_state", out[0] if isinstance(out, tuple) else out)
    if not isinstance(logits, Tensor) or not bool(logits.isfinite().all()):
        raise CapError("the model gives no finite logits for two tokens: nothing can be proven")
    return _Seen(probe, logits.float().clone())


def _tokens(model: nn.Module) -> Tensor:
    embedding = unwrapped(model).get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding):
        raise CapError(f"cannot tell the vocabulary of {type(unwrapped(model)).__name__}: nothing can be proven")
    hook = getattr(embedding, "_hf_hook", None)
    device = getattr(hook, "execution_device", None) if embedding.weight.is_meta else embedding.weight.device
    if device is None:
        raise CapError("the model's weights are on the meta device: nothing can be proven")
    seeded = torch.Generator().manual_seed(0)
    return torch.randint(embedding.num_embeddings, (1, _TOKENS), generator=seeded).to(device)


def require_not_compiled(model: nn.Module) -> None:
    """Raise `CapError` where graphs of `model` may exist already: a second lock beside the marks of `attach`.

    A model that nobody compiled passes, and so does one that was compiled and not yet called, as long as no model
    whose `forward` is the same code was: the compiler keeps its graphs by code, not by model.
    """
    if "torch._dynamo" not in sys.modules:
        return
    wrappers = _wrappers(model)
    compiled = [m for m in {*model.modules(), *wrappers} if _is_compiled(m)]
    if any(_graphs_of(m) for m in compiled):
        raise CapError(
            f"{type(unwrapped(model)).__name__} ran compiled before this (or a model of its class did): graphs made "
            "then know nothing of the cap. Attach before the first compiled call, after torch.compiler.reset() "
            "if there was one"
        )


def _wrappers(model: nn.Module) -> list[nn.Module]:
    """The objects that `torch.compile` made of this model or of modules in it, which nothing else leads to."""
    from torch._dynamo.eval_frame import OptimizedModule

    inside = {id(module) for module in model.modules()}
    every: list[Any] = [o for o in gc.get_objects() if type(o) is OptimizedModule]
    return [o for o in every if any(id(module) in inside for module in o.modules())]


def is_wrapper(module: nn.Module) -> bool:
    """Whether it is what `torch.compile(module)` returns."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and type(module) is dynamo.OptimizedModule


def _is_compiled(module: nn.Module) -> bool:
    """`torch.compile(module)`, `module.compile()`, and what `generate` makes for a static cache."""
    held = vars(module)
    return is_wrapper(module) or bool(held.get("_compiled_call_impl") or held.get("_compiled_call"))


def _graphs_of(compiled: nn.Module) -> bool:
    from torch._dynamo import eval_frame

    entries = getattr(eval_frame, "_debug_get_cache_entry_list", None)
    return entries is None or any(entries(code) for code in _codes(compiled))


def _codes(compiled: nn.Module) -> Iterator[Any]:
    """Where the compiler may have begun: the entry of any module, or the module's own `forward`."""
    yield nn.Module._call_impl.__code__
    yield nn.Module._wrapped_call_impl.__code__
    for module in compiled.modules():
        code = getattr(type(module).forward, "__code__", None)
        if code is not None:
            yield code
