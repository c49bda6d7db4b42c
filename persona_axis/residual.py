"""The residual stream of a model: reading it and editing it, at the output of chosen decoder layers.

Layer l is the OUTPUT of decoder layer l, counted from 0. Hooks act in the order they are entered: a reading
sees every edit entered before it and none entered after; transformers' own `output_hidden_states` sees them
all. Both managers yield a `Fires`, which says which hooks ran, so that a caller can fail closed: a hook that
is added to an already compiled graph never runs, and nothing else would tell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from persona_axis._asked import layers_of
from persona_axis.errors import ResidualError
from persona_axis.model.layout import decoder_layers, find_stack, hidden_size

__all__ = ["EditFn", "Fires", "ReadFn", "decoder_layers", "editing", "hidden_size", "reading"]

ReadFn = Callable[[int, Tensor], None]
"""`callback(layer, hidden)`; hidden is the live tensor [batch, seq, hidden]: copy what is kept."""

EditFn = Callable[[Tensor], Tensor]
"""`fn(hidden)` gives hidden states of the same shape, dtype and device; `hidden` itself means no change."""


class _Mark:
    """What one hook has done. Plain attributes: torch.compile replays their stores after each graph run."""

    def __init__(self) -> None:
        self.fresh = False  # ran since the last `Fires.begin_run`
        self.runs = 0  # counted in eager mode only: a compiled graph would specialise on the number


class Fires:
    """Which layers' hooks have run, while a `reading` or an `editing` is entered."""

    def __init__(self, layers: Iterable[int]) -> None:
        self._marks = {layer: _Mark() for layer in layers}
        self._ever: set[int] = set()
        self.error: Exception | None = None
        """The last exception that a hook raised."""
        self._error_thread = 0

    @property
    def layers(self) -> list[int]:
        """The layers that carry a hook, in ascending order."""
        return sorted(self._marks)

    @property
    def counts(self) -> dict[int, int]:
        """Runs per layer. Runs inside compiled graphs cannot be counted: such a layer shows at least 1."""
        ran = self._ever | {layer for layer, mark in self._marks.items() if mark.fresh}
        return {layer: max(self._marks[layer].runs, int(layer in ran)) for layer in self.layers}

    def silent(self) -> list[int]:
        """Layers whose hook has not run at all."""
        return [layer for layer, count in self.counts.items() if count == 0]

    def begin_run(self) -> None:
        """Forget which layers are fresh; `missed` then speaks about the run that follows."""
        for layer, mark in self._marks.items():
            if mark.fresh:
                self._ever.add(layer)
            mark.fresh = False

    def missed(self) -> list[int]:
        """Layers whose hook has not run since `begin_run`."""
        return [layer for layer in self.layers if not self._marks[layer].fresh]

    def clear(self) -> None:
        """Start again from nothing."""
        self._ever.clear()
        self.error = None
        for mark in self._marks.values():
            mark.fresh, mark.runs = False, 0

    def failed(self, error: Exception) -> None:
        """Remember an exception of a hook, and who gets to see it."""
        self.error, self._error_thread = error, threading.get_ident()

    def error_was_told(self) -> bool:
        """Whether a hook raised in this very thread; a server's own thread may have swallowed it."""
        return self.error is not None and self._error_thread == threading.get_ident()

    def mark(self, layer: int) -> _Mark:
        """The record that the hook of `layer` writes to."""
        return self._marks[layer]


@contextmanager
def reading(model: nn.Module, layers: Iterable[int], callback: ReadFn, *, stack: str | None = None) -> Iterator[Fires]:
    """Call `callback(layer, hidden)` with each chosen layer's output while the model runs.

    `stack` names the list of layers where structure is not enough. Raises `ResidualError` for a layer that
    does not exist or an output that holds no hidden states.
    """
    wanted = layers_of(layers, ResidualError, some=False)
    fires = Fires(wanted)

    def hook_for(layer: int) -> Callable[..., None]:
        mark = fires.mark(layer)

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            callback(layer, hidden_in(output, layer))
            _note(mark)

        return hook

    with _hooked(model, {layer: hook_for(layer) for layer in wanted}, stack):
        yield fires


@contextmanager
def editing(
    model: nn.Module,
    edits: Mapping[int, EditFn],
    *,
    stack: str | None = None,
    fires: Fires | None = None,
) -> Iterator[Fires]:
    """Replace each chosen layer's output by `edits[layer](output)` while the model runs.

    A tuple or list keeps its other items. `fires` reuses a record (a compiled graph goes on writing to the one
    it was traced with). Raises `ResidualError` for a layer that does not exist, an output that holds no
    hidden states, and an edit that returns another shape, dtype or device.
    """
    record = Fires(edits) if fires is None else fires
    record.clear()

    def hook_for(layer: int, edit: EditFn) -> Callable[..., Any]:
        mark = record.mark(layer)

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = hidden_in(output, layer)
            try:
                edited = edit(hidden)
            except Exception as error:
                record.failed(error)
                raise
            if edited.shape != hidden.shape or edited.dtype != hidden.dtype or edited.device != hidden.device:
                raise ResidualError(f"the edit at layer {layer} turned {_described(hidden)} into {_described(edited)}")
            _note(mark)
            return edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))

        return hook

    with _hooked(model, {layer: hook_for(layer, edit) for layer, edit in edits.items()}, stack):
        yield record


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[int, Callable[..., Any]], stack: str | None) -> Iterator[None]:
    layers = find_stack(model, stack).layers
    for layer in hooks:
        if not 0 <= layer < len(layers):
            raise ResidualError(f"layer {layer} does not exist: the model has layers 0 to {len(layers) - 1}")
        shared = [at for at, module in enumerate(layers) if module is layers[layer]]
        if len(shared) > 1:
            raise ResidualError(f"layers {shared} are one and the same module: what is done at one is done at all")
    with ExitStack() as handles:
        for layer, hook in hooks.items():
            handles.callback(_outlet(layers[layer]).register_forward_hook(hook).remove)
            _let_recorders_follow(layers[layer])
        yield


def _outlet(layer: nn.Module) -> nn.Module:
    """The module whose output is the layer's. A block of TransformerLens ends in a hook point: hooks there act in one
    order with its user's own, and its caches show what they did."""
    point = getattr(layer, "hook_out", None)
    return point if isinstance(point, nn.Module) else layer


def _let_recorders_follow(module: nn.Module) -> None:
    """Move transformers' own recording hooks behind ours, or `output_hidden_states` would tell of unedited layers.

    It installs them at the first call that asks for hidden states and never takes them away.
    """
    hooks = module._forward_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook, "__module__", "").startswith("transformers."):
            hooks[key] = hooks.pop(key)  # to the end


def _note(mark: _Mark) -> None:
    mark.fresh = True
    if not torch.compiler.is_compiling():
        mark.runs += 1


def hidden_in(output: Any, layer: int) -> Tensor:
    """The hidden states in a layer's output: the tensor itself or the first item of a tuple or list.

    A named tuple says itself what its items are, and the first need not be the residual stream: it is refused.
    """
    hidden = output[0] if type(output) in (tuple, list) and output else output
    if not isinstance(hidden, Tensor):
        raise ResidualError(f"layer {layer} returned a {type(output).__name__}, not hidden states")
    if hidden.dim() > 3:
        raise ResidualError(
            f"layer {layer} returned {_described(hidden)}: several streams side by side, not one [batch, seq, hidden]"
        )
    return hidden


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
