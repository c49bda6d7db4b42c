"""Levers: whatever can be entered on a model to hold a persona, a cap being one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import nn

from persona_axis._asked import require
from persona_axis.cap import Cap

__all__ = ["Lever", "Levers", "entered", "listed"]


@runtime_checkable
class Lever(Protocol):
    """Anything that acts on every run of a model while its context is entered: `Cap`, `Addition`, controls."""

    def on(self, model: nn.Module, /, *, stack: str | None = None) -> AbstractContextManager[Any]:
        """Act on `model` until the block is left; `stack` names its layers where structure is not enough."""
        ...


Levers: TypeAlias = Lever | Iterable[Lever] | None
"""None, one lever, or several, of which the last acts last."""


def listed(levers: Levers) -> tuple[Lever, ...]:
    """The levers one by one."""
    if levers is None:
        return ()
    found = (levers,) if isinstance(levers, (Lever, str)) or not isinstance(levers, Iterable) else tuple(levers)
    for lever in found:
        require("lever", lever, Lever)
    return found


@contextmanager
def entered(
    levers: Levers, model: nn.Module, template: str | None, allow: Collection[str], stack: str | None
) -> Iterator[None]:
    """All levers on `model`; a cap is also told the chat template and which differences to its file are allowed."""
    with ExitStack() as held:
        for lever in listed(levers):
            if isinstance(lever, Cap):
                held.enter_context(lever.on(model, template, allow, stack))
            else:
                held.enter_context(lever.on(model, stack=stack))
        yield
