"""Fail closed: find out when a model ran and the hooks on its layers did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from persona_axis.errors import PersonaAxisError
from persona_axis.model.layout import find_stack, owners
from persona_axis.residual import Fires

_HINT = (
    "nothing ran through the model, or it runs a torch.compile graph made without these hooks. Enter before the "
    "first compiled call (after torch.compiler.reset() if there was one), or set "
    "torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling"
)

# Where a model can be entered so that hooks on the model itself are inside the compiled part:
# `Module.compile()` keeps its entry in the first, generate() with a static cache asks the second for one.
_COMPILED_ENTRY = "_compiled_call_impl"
_GENERATE_ENTRY = "get_compiled_call"


@contextmanager
def watching(
    model: nn.Module, fires: Fires, error: type[PersonaAxisError], what: str, stack: str | None = None
) -> Iterator[None]:
    """Raise `error` when hooks recorded in `fires` cannot be shown to have acted.

    After every run of the model that Python can see, all of `fires`' layers must have run; on leaving without
    an exception each must have run at least once, so a body in which nothing ran is an error too. An exception
    of the body is never replaced, nor is one that a hook raised told twice to the thread that got it. `what`
    names the hooks' owner in the message. One case stays unseen: a compiled wrapper made earlier, called in a
    body that also runs the plain model, and not itself passed here.
    """

    def check(layers: list[int]) -> None:
        if layers:
            raise error(f"{what} did not act at layers {layers}: {fires.error or _HINT}") from fires.error

    def before(*_: Any) -> None:
        if not torch.compiler.is_compiling():
            fires.begin_run()

    def after(*_: Any) -> None:
        if not torch.compiler.is_compiling():
            check(fires.missed())

    def checked(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before()
            out = run(*args, **kwargs)
            after()
            return out

        return call

    with ExitStack() as undo:
        for owner in owners(model, find_stack(model, stack).path):
            undo.callback(owner.register_forward_pre_hook(before).remove)
            undo.callback(owner.register_forward_hook(after).remove)
            entry = getattr(owner, _COMPILED_ENTRY, None)
            if entry is not None:
                _replace(owner, _COMPILED_ENTRY, checked(entry), undo)
            if hasattr(type(owner), _GENERATE_ENTRY):  # a compiled wrapper forwards the name: not twice
                maker = getattr(owner, _GENERATE_ENTRY)
                _replace(owner, _GENERATE_ENTRY, _checking_maker(maker, checked), undo)
        yield
    if not fires.error_was_told():
        check(fires.silent())


def _checking_maker(
    maker: Callable[..., Any], checked: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    return lambda *args, **kwargs: checked(maker(*args, **kwargs))


def _replace(module: nn.Module, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute on the instance and put back what was there, which may have been nothing."""
    own = name in module.__dict__
    old = module.__dict__.get(name)
    setattr(module, name, value)
    undo.callback(setattr, module, name, old) if own else undo.callback(delattr, module, name)
