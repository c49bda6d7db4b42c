"""`attach`: a cap on a model that somebody else's server runs, until it is detached.

    handle = attach(model, cap, template=tokenizer)
    ...                      # serve, from as many threads as you like
    handle.stats()           # tokens, capped tokens, corrections, percentiles of each layer
    handle.detach()
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from inspect import signature
from itertools import count
from typing import Any, Self

import torch
from torch import Tensor, nn

from persona_axis._asked import require
from persona_axis.cap import Cap, HeldCap
from persona_axis.edits.acting import Place, places
from persona_axis.edits.arithmetic import clamped, projected
from persona_axis.errors import CapError
from persona_axis.model.layout import find_stack, owners
from persona_axis.serving._attach_proof import is_wrapper, prove, require_not_compiled
from persona_axis.serving._marks import mark, unmark
from persona_axis.serving._runs import HOLDERS, Probe, Run, begun, ended, held, lengths_of, mask_of, real_tokens
from persona_axis.serving._stream_edit import require_one_bound
from persona_axis.serving.figures import Figures, LayerFigures

_KEYS = count(1)


def attach(
    model: nn.Module, cap: Cap, *, template: Any = None, allow: Collection[str] = (), stack: str | None = None
) -> Attached:
    """Hold every run of `model` inside the bounds from now on, in whatever thread, and count what that does.

    `template`, `allow` and `stack` are those of `Cap.on`. The model is run a few times on two tokens to prove that
    the cap acts at each of its layers, through the very object that is passed: pass the compiled wrapper where you
    will call one. Raises `AxisMismatchError` and `CapMismatchError` for another model; `CapError` for bounds that
    differ from row to row, a layer that does not exist, a model that is attached to this cap already, a model that
    ran compiled before, and where the proof fails: nothing is attached then. Later on a run that misses a layer is a
    `CapError` of the model's call, compiled or not.

    Until it is detached the model and its capped layers have a `forward` of their own, which only passes on: so that
    no graph that was made of another model of this class, or before this, can run in place of theirs.
    """
    require("cap", cap, Cap)
    cap.require(model, template, allow, stack)
    require_one_bound(cap)
    found = find_stack(model, stack)
    where = places(found.layers, cap.layers, f"the cap on layers {list(cap.layers)}")
    if any(isinstance(h, Attached) and h.cap is cap and h.first() is found.layers[0] for h in HOLDERS.copy().values()):
        raise CapError("this cap is attached to this model already: twice is not stronger")
    require_not_compiled(model)
    handle = Attached(cap, model, found.path, found.layers, where)
    try:
        prove(handle, model)
    except BaseException:
        handle.detach()
        raise
    return handle


class Attached:
    """A cap that acts on a model. Made by `attach`; as a context manager it is detached on leaving."""

    def __init__(
        self, cap: Cap, model: nn.Module, path: str, layers: list[nn.Module], where: Mapping[int, Place]
    ) -> None:
        self.cap, self.first = cap, weakref.ref(layers[0])
        self.run = Run()
        self.attached = True
        self._key = next(_KEYS)
        with torch.inference_mode(False), torch.no_grad():
            edits = cap.edits(where)
            self._held = {layer: _HeldLayer(cap, i, edits[layer], where[layer]) for i, layer in enumerate(cap.layers)}
        # Graphs find this by its key as long as there is a model, which it must not keep alive.
        HOLDERS[self._key] = self
        weakref.finalize(layers[0], HOLDERS.pop, self._key, None)
        self._hooks = [layers[layer].register_forward_hook(self._editing(layer)) for layer in cap.layers]
        entered = owners(model, path)
        self._innermost = max((i for i, owner in enumerate(entered) if _runs(owner)), default=0)
        for depth, owner in enumerate(entered):
            names = next((found for inner in entered[depth:] if (found := _positional(inner))), ())
            self._hooks.append(owner.register_forward_pre_hook(self._before(depth, names), with_kwargs=True))
            self._hooks.append(owner.register_forward_hook(self._after(depth), always_call=True))
        marked = [layers[layer] for layer in cap.layers] + [owner for owner in entered if not is_wrapper(owner)]
        mark(marked)
        self._marked = [weakref.ref(module) for module in marked]

    def stats(self) -> list[LayerFigures]:
        """What each layer saw since this was attached, in the cap's order; also when detached. Waits for the device.

        Tokens that ran, prompts and replies alike, but for padding: what the attention mask leaves out, and what a
        packed batch has at its end. Rows of `generate` that have ended go on until the last one has, and count.
        """
        return [row for held in self._held.values() for row in held.figures.read()]

    def clear(self) -> None:
        """Start the figures again from nothing."""
        for layer in self._held.values():
            layer.figures.clear()

    def detach(self) -> None:
        """Let go of the model; a run that is on ends as it may. Calling it again changes nothing."""
        self.attached = False
        if HOLDERS.pop(self._key, None) is not None:
            unmark([module for found in self._marked if (module := found()) is not None])
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def begin(self, mask: Tensor | None, lengths: Tensor | None, shape: tuple[int, int], depth: int) -> None:
        """A run of [rows, tokens] begins in this thread, unless it is part of one that is on and less deep."""
        run = self.run
        # After an interrupt a run is on that is no more: padding of its own tells a new one.
        other = mask is not None and mask.dim() == 2 and mask is not run.mask
        if not run.on or depth <= run.depth or run.shape != shape or other:
            run.on, run.shape, run.depth, run.mask = True, shape, depth, mask
            run.real = real_tokens(mask, lengths, shape)
            run.ran.clear()

    def end(self) -> None:
        """The layers of the run that is on in this thread have run. Raises `CapError` where one was missed."""
        run = self.run
        if not run.on:
            return
        run.on, run.mask, run.real = False, None, None
        missed = [layer for layer in self.cap.layers if layer not in run.ran]
        if missed and self.attached:
            raise CapError(
                f"the attached cap did not act at layers {missed} in this run: these layers were replaced, or run "
                "a graph that was compiled without it. Attach again; where something was compiled, call "
                "torch.compiler.reset() first"
            )

    def hold(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states [..., hidden] of a layer inside its bounds; they are counted."""
        run, held = self.run, self._held[layer]
        run.ran.add(layer)
        if run.probe is not None:
            return _probed(run.probe, layer, hidden, held.direction)
        # Layers that are run by hand, around the model's own call, are in no run: nothing tells of their padding.
        known = run.on and hidden[..., 0].numel() == run.shape[0] * run.shape[1]
        if run.real is None or not known:
            whole: Tensor = held.edit(hidden, held.figures.add)
            return whole
        seen: list[Tensor] = []
        out: Tensor = held.edit(hidden, seen.append)
        values = seen[0].flatten() if len(seen) == 1 else torch.cat(seen).flatten()
        held.figures.add(values[run.real.to(values.device)])
        return out

    def _editing(self, layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not self.attached:
                return None
            hidden = output[0] if type(output) in (tuple, list) and output else output
            if not isinstance(hidden, Tensor) or hidden.dim() > 3:
                raise CapError(f"layer {layer} returned a {type(output).__name__} that holds no residual stream")
            inside = torch.compiler.is_compiling()
            edited = held(hidden, self._key, layer) if inside else self.hold(layer, hidden)
            return edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))

        return hook

    def _before(self, depth: int, names: tuple[str, ...]) -> Callable[..., Any]:
        # Removed while it was about to be called, a hook gets no keywords.
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Any:
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            name = next((n for n in ("input_ids", "inputs_embeds") if isinstance(given.get(n), Tensor)), None)
            first = given[name] if name else args[0] if args and isinstance(args[0], Tensor) else None
            if first is None or first.dim() < 2 or not self.attached:
                return None
            if not torch.compiler.is_compiling():
                self.begin(mask_of(given), lengths_of(given), (first.shape[0], first.shape[1]), depth)
                return None
            seen = begun(first, given, self._key, depth)
            if name and kwargs and name in kwargs:
                return args, {**kwargs, name: seen}
            at = names.index(name) if name else 0
            return (*args[:at], seen, *args[at + 1 :]), kwargs or {}

        return hook

    def _after(self, depth: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if torch.compiler.is_compiling():
                return ended(output, self._key) if depth == self._innermost else None
            if self.run.on and self.run.depth == depth:
                if output is None:  # the run ended in an exception
                    self.run.on = False
                else:
                    self.end()
            return None

        return hook


class _HeldLayer:
    """The edit of one layer and what it saw."""

    def __init__(self, cap: Cap, row: int, edit: Any, place: Place) -> None:
        assert isinstance(edit, HeldCap)
        edit.arm()
        self.edit = edit
        self.direction = cap.direction[row].to(place.device)
        bounds = (
            torch.tensor([beyond if bound is None else bound[row].item()], dtype=torch.float32, device=place.device)
            for bound, beyond in ((cap.floor, -torch.inf), (cap.ceiling, torch.inf))
        )
        self.figures = Figures([cap.layers[row]], *bounds)


def _runs(module: nn.Module) -> bool:
    """Whether it is called, and no mere container."""
    return type(module).forward is not nn.Module.forward


def _positional(module: nn.Module) -> tuple[str, ...]:
    """The names of what a module can be called with by position."""
    named = signature(module.forward).parameters.values()
    return tuple(p.name for p in named if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _probed(probe: Probe, layer: int, hidden: Tensor, direction: Tensor) -> Tensor:
    out = clamped(hidden, direction, probe.floors.get(layer, -torch.inf))
    probe.before[layer], probe.after[layer] = projected(hidden, direction), projected(out, direction)
    probe.lengths[layer] = hidden.float().norm(dim=-1).max().item()
    return out
