"""The proof that a cap acts inside a vLLM worker, taken after its graphs are made and before its first request.

A dummy batch is run through the engine's own path, plainly and as it will serve. At each layer the bounds are set, in
the buffers that serve later, to where the batch must move. It must move: to the bound, in the sum of the stream's two
parts, and so that the model's output and its logits change; and the compiled graph must do what the plain layers do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.errors import CapError
from persona_axis.serving._stream_edit import Bounds, StreamEdit, bounds_at
from persona_axis.serving._vllm_layers import EDIT
from persona_axis.serving._vllm_look import Look, looking

_BITE = 0.5  # how far past its own projection the probe is moved, in lengths of its residual stream
_AGREE = 0.1  # how much of a change may be missing in the compiled graph, whose kernels round differently
_HALF = 0.05  # how much of a shift of one part may be left when the other part is shifted back
_NOTHING = 4.0  # a change must be so many times what two equal runs differ by


class _Run(NamedTuple):
    out: Tensor
    """What the model gave for the dummy tokens [tokens, hidden], before the head."""
    logits: Tensor | None
    """None on a worker that has no head or does not gather the logits."""


def prove(worker: Any, model: nn.Module, edits: Mapping[int, StreamEdit], cap: Cap | None) -> str:
    """Raise `CapError` unless every edit of this worker acts, plainly and in its graphs; else say what was shown.

    Leaves the edits unbounded.
    """
    if not edits:
        return "it holds none of the capped layers"
    probe = _Probe(worker, model)
    width = len(next(iter(edits.values())).direction)
    for layer, edit in edits.items():
        edit.hold(bounds_at(cap, layer, width)._replace(floor=-torch.inf, ceiling=torch.inf))
    with _plainly(model) as compiled:
        plain = {layer: _plain_change(probe, layer, edit, model) for layer, edit in edits.items()}
    if not compiled:
        return "the probe moved to the bound and changed the output (nothing is compiled)"
    for layer, edit in edits.items():
        _require_same_change(probe, layer, edit, *plain[layer])
    return "the probe moved to the bound and changed the output, plainly and as compiled"


class _Probe:
    """Runs the worker's dummy batch and keeps what the model returns."""

    def __init__(self, worker: Any, model: nn.Module) -> None:
        self.worker, self.model = worker, model
        self.run()  # which makes the buffers that `_filled` fills

    def run(self) -> _Run:
        """The same batch each time: random tokens of one seed, or on a later stage of a pipeline random streams."""
        runner = self.worker.model_runner
        kept: list[Any] = []
        dummy_run = runner._dummy_run
        # Without attention a dummy batch carries on with memory that nobody wrote; without random tokens it is token
        # 0, which pads some vocabularies and then is all zeros.
        wanted = {"force_attention": True, "randomize_inputs": True}
        told = {name: value for name, value in wanted.items() if name in signature(dummy_run).parameters}

        def keeping(*args: Any, **kwargs: Any) -> Any:
            out = dummy_run(*args, **{**kwargs, **told})
            kept.append(out)
            return out

        runner._dummy_run = keeping
        try:
            with torch.inference_mode(), _seeded(self.model), _filled(runner):
                self.worker.execute_dummy_batch()
        finally:
            del runner._dummy_run  # the class has its own
        if not kept:
            raise CapError("vLLM ran no dummy batch in which the cap could be proven")
        out = _first(kept[-1])
        if out is None:
            raise CapError("vLLM's dummy batch returned no hidden states in which the cap could be proven")
        head = getattr(self.model, "compute_logits", None)
        with torch.inference_mode():
            logits = head(out) if head is not None and isinstance(kept[-1][0], Tensor) else None
        return _Run(out.float().clone(), logits.float().clone() if isinstance(logits, Tensor) else None)


@contextmanager
def _seeded(model: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


@contextmanager
def _filled(runner: Any) -> Iterator[None]:
    """What a later stage of a pipeline takes as its input is zeros in a dummy batch: give it something to carry."""
    handed: dict[str, Tensor] = getattr(getattr(runner, "intermediate_tensors", None), "tensors", {})
    for tensor in handed.values():
        tensor.normal_()
    try:
        yield
    finally:
        for tensor in handed.values():
            tensor.zero_()


def _first(out: Any) -> Tensor | None:
    """Hidden states in what a dummy run returned: of a stage that is not the last, the stream that it hands on."""
    first = out[0] if isinstance(out, tuple) else out
    if isinstance(first, Tensor):
        return first
    parts = list(getattr(first, "tensors", {}).values())
    return sum(parts[1:], parts[0]) if parts else None


def _plain_change(probe: _Probe, layer: int, edit: StreamEdit, model: nn.Module) -> tuple[float, Tensor]:
    """The floor that must bite at `layer`, and the change of the output that it made without any graph."""
    module = next(m for m in model.modules() if getattr(m, EDIT, None) is edit)
    with looking(module, layer) as look:
        before, again = probe.run(), probe.run()
        length = look.stream().norm(dim=-1)[0].item()
        if not 0 < length < torch.inf:
            raise CapError(f"layer {layer}: the probe's residual stream has length {length}, so nothing can be proven")
        start = look.projection(edit)
        floor = start + _BITE * length
        with _bounded(edit, floor):
            moved = probe.run()
        landed = look.projection(edit)
        eps = torch.finfo(look.dtype).eps
        if abs(landed - floor) > 4 * eps * max(length, abs(floor)):
            raise CapError(
                f"layer {layer}: the cap does not act on the sum of the stream's parts: with a floor of {floor:.4g} "
                f"the probe's projection is {landed:.4g} (it was {start:.4g} without)"
            )
        noise = (before.out - again.out).norm().item()
        _require_changed(layer, before, moved, noise)
        if look.residual is not None:
            _require_sum(probe, look, layer, before, length, noise)
    return floor, moved.out - before.out


def _require_changed(layer: int, before: _Run, moved: _Run, noise: float) -> None:
    for what, a, b in (("output", before.out, moved.out), ("logits", before.logits, moved.logits)):
        if a is None or b is None:
            continue
        if not bool(b.isfinite().all()):
            raise CapError(f"layer {layer}: the model's {what} are not finite when the probe is moved")
        change = (a - b).norm().item()
        if change <= _NOTHING * noise + 1e-6 * a.norm().item():
            raise CapError(f"layer {layer}: moving the probe does not change the model's {what}")


def _require_sum(probe: _Probe, look: Look, layer: int, before: _Run, length: float, noise: float) -> None:
    """What is taken from one part and given to the other must not matter, or the sum is not the stream."""
    look.shift = (length, 0.0)
    one = (probe.run().out - before.out).norm().item()
    look.shift = (length, -length)
    both = (probe.run().out - before.out).norm().item()
    look.shift = None
    if both > _HALF * one + _NOTHING * noise:
        raise CapError(
            f"layer {layer}: the two tensors that this model's layer returns do not add up to its residual stream "
            f"(a shift of one, taken back from the other, left {both / max(one, 1e-9):.0%} of its effect)"
        )


def _require_same_change(probe: _Probe, layer: int, edit: StreamEdit, floor: float, plain: Tensor) -> None:
    before = probe.run()
    with _bounded(edit, floor):
        moved = probe.run()
    missing = (moved.out - before.out - plain).norm().item()
    if missing > _AGREE * plain.norm().item():
        raise CapError(
            f"layer {layer}: the cap acts on the plain layers, and the compiled graph does without "
            f"{min(missing / plain.norm().item(), 1):.0%} of it. A graph traced without the cap was reused, or the cap "
            "came after the tracing; delete vLLM's compile cache (VLLM_CACHE_ROOT) if it was written by another version"
        )
    if before.logits is not None and moved.logits is not None and torch.equal(before.logits, moved.logits):
        raise CapError(f"layer {layer}: moving the probe does not change the logits of the compiled graph")


@contextmanager
def _bounded(edit: StreamEdit, floor: float) -> Iterator[None]:
    direction = edit.direction.clone()
    edit.hold(Bounds(direction, floor, torch.inf))
    try:
        yield
    finally:
        edit.hold(Bounds(direction, -torch.inf, torch.inf))


@contextmanager
def _plainly(model: nn.Module) -> Iterator[bool]:
    """Run the layers themselves and no graph of them; yields whether there is one."""
    compiled = [module for module in model.modules() if getattr(module, "do_not_compile", True) is False]
    for module in compiled:
        module.do_not_compile = True  # type: ignore[assignment]
    try:
        yield bool(compiled)
    finally:
        for module in compiled:
            module.do_not_compile = False  # type: ignore[assignment]
