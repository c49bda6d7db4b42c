"""Entering edits on a model so that they provably act, and leaving so that nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from persona_axis.edits.watch import watching
from persona_axis.errors import CapError
from persona_axis.model.layout import find_stack
from persona_axis.residual import Fires, editing


class Edit(Protocol):
    """What happens at one layer. Its strength is held in tensors, so that compiled graphs follow a change."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Edited hidden states."""
        ...

    def arm(self) -> None:
        """Take effect."""
        ...

    def disarm(self) -> None:
        """Have no effect, also inside a compiled graph that goes on calling."""
        ...


class Place(NamedTuple):
    """Where an edit's tensors belong."""

    device: torch.device
    dtype: torch.dtype
    """Of the layer's parameters; hidden states share it."""


class _Session:
    """One owner's edits on one model, kept while both live: graphs traced with them go on using them."""

    def __init__(self, edits: Mapping[int, Edit]) -> None:
        self.edits = edits
        self.fires = Fires(edits)
        self.entered = False


# By model (its first decoder layer, which wrappers share), then by owner.
_SESSIONS: WeakKeyDictionary[nn.Module, WeakKeyDictionary[object, _Session]] = WeakKeyDictionary()


@contextmanager
def acting(
    owner: object,
    model: nn.Module,
    make: Callable[[Mapping[int, Place]], Mapping[int, Edit]],
    at: tuple[int, ...],
    what: str,
    stack: str | None,
) -> Iterator[None]:
    """Apply `owner`'s edits at layers `at` of `model`, and fail closed (see `watching`).

    `make` builds the edits the first time, told where each layer's tensors live. Raises `CapError` when
    `owner` is already entered on this model, when a layer does not exist, and when an edit cannot be shown to
    act. The model may not be used by another thread meanwhile: edits belong to the model, not to the thread.
    """
    layers = find_stack(model, stack).layers
    where = places(layers, at, what)
    sessions = _SESSIONS.setdefault(layers[0], WeakKeyDictionary())
    session = sessions.get(owner)
    if session is None:
        # Tensors born in inference mode could never be changed outside of it.
        with torch.inference_mode(False), torch.no_grad():
            session = sessions[owner] = _Session(make(where))
    if session.entered:
        raise CapError(f"{what} is already entered on this model: twice is not stronger")
    session.entered = True
    try:
        for edit in session.edits.values():
            edit.arm()
        with (
            editing(model, session.edits, stack=stack, fires=session.fires) as fires,
            watching(model, fires, CapError, what, stack),
        ):
            yield
    finally:
        for edit in session.edits.values():
            edit.disarm()
        session.entered = False


def places(layers: Sequence[nn.Module], at: Iterable[int], what: str) -> dict[int, Place]:
    """Where the edits at layers `at` belong. Raises `CapError` for layers that do not exist."""
    beyond = [layer for layer in at if layer >= len(layers)]
    if beyond:
        raise CapError(f"{what}: layers {beyond} do not exist: the model has layers 0 to {len(layers) - 1}")
    return {layer: place_of(layers[layer]) for layer in at}


def place_of(layer: nn.Module) -> Place:
    """Where an edit of `layer` belongs."""
    parameter = next((p for p in layer.parameters() if p.is_floating_point()), torch.empty(0))
    hook = getattr(layer, "_hf_hook", None)  # accelerate keeps offloaded weights on "meta" and knows better
    device = getattr(hook, "execution_device", None) if parameter.is_meta else parameter.device
    return Place(torch.device("cpu" if device is None else device), parameter.dtype)
