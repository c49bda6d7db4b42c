"""Modules whose compiled graphs are their own.

The compiler keeps graphs by code and not by model, and by default no guard of a graph looks at hooks (its
`skip_nnmodule_hook_guards`, which is set for each thread apart): a model with a cap would run the graph that another
model of its class left there. A `forward` that a module has of its own is what every graph that calls the module is
guarded on, whatever the configuration: none by default, and else this very object.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn


class _Mark(NamedTuple):
    times: int
    own: Any
    """The `forward` that somebody else had put on the module before, or None."""
    mine: Any


_KEPT = "_persona_axis_mark"  # on the module itself, so that it goes with it
_LOCK = threading.Lock()


def mark(modules: Sequence[nn.Module]) -> None:
    """From now on no graph made before runs in place of these modules' calls; what they compute stays."""
    with _LOCK:
        for module in modules:
            now, known = vars(module).get("forward"), vars(module).get(_KEPT)
            own = now if known is None or now is not known.mine else known.own
            # A partial and no method: of a method only the function would be looked at, which models share.
            fresh = partial(type(module).forward.__get__(module) if own is None else own)
            module.forward = fresh
            vars(module)[_KEPT] = _Mark(1 if known is None else known.times + 1, own, fresh)


def unmark(modules: Sequence[nn.Module]) -> None:
    """Undo one `mark`; after the last one the modules are as they were."""
    with _LOCK:
        for module in modules:
            times, own, mine = vars(module)[_KEPT]
            if times > 1:
                vars(module)[_KEPT] = _Mark(times - 1, own, mine)
                continue
            del vars(module)[_KEPT]
            if vars(module).get("forward") is not mine:
                continue
            if own is None:
                del module.forward
            else:
                module.forward = own
