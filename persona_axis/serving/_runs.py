"""What is known of the run of a model that is on in this thread, and the operators that compiled graphs call back.

A graph replays tensor operations and leaves Python out. What has to happen in every run (the edit follows a change,
tokens are counted, a missed layer is noticed) is therefore inside operators that the compiler cannot look into: it
calls them each time, in the thread that runs the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor

from persona_axis.errors import CapError


class Holder(Protocol):
    """What acts behind an operator's key."""

    def begin(self, mask: Tensor | None, lengths: Tensor | None, shape: tuple[int, int], depth: int) -> None:
        """A run of [rows, tokens] begins in this thread, unless it is part of one that is on and less deep."""
        ...

    def hold(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states of a layer, held."""
        ...

    def end(self) -> None:
        """The layers of the run that is on in this thread have run. Raises `CapError` where one was missed."""
        ...


class Run(threading.local):
    """The run of one holder that is on in this thread; a new thread has none.

    It begins where the model is entered. What is entered inside of it (the decoder of a larger model) is part of it:
    only the outermost call has the mask as the caller gave it.
    """

    on = False
    shape = (0, 0)
    depth = 0
    """Where it was entered: 0 is the model, 1 what lies in it on the way to the layers, and so on."""
    mask: Tensor | None = None
    """As it was entered with."""
    real: Tensor | None = None
    """Indices of the tokens that are no padding, in the flattened [rows * tokens]; None when all are."""
    probe: Probe | None = None

    def __init__(self) -> None:
        self.ran: set[int] = set()


class Probe:
    """A run that proves something: other bounds, in this thread only, and what came of them."""

    def __init__(self, floors: Mapping[int, float]) -> None:
        self.floors = floors
        self.before: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}
        self.lengths: dict[int, float] = {}


def real_tokens(mask: Tensor | None, lengths: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Indices of the tokens of a call [rows, tokens] that are no padding, flattened; None when all are.

    `lengths` are the cumulative lengths of a packed batch, whose padding stands at its end. `mask` is what the model
    was called with: [rows, all tokens so far], or [rows, 1, tokens, cache], where the last query says which keys are
    real. Waits for the device where there is something to look at.
    """
    rows, tokens = shape
    if lengths is not None:
        used = int(lengths[-1])
        return None if used >= rows * tokens else torch.arange(used, device=lengths.device)
    if mask is None or tokens == 1 and mask.dim() == 4:
        return None
    if mask.dim() == 4:
        last = mask[:, 0, -1]
        seen = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        end = int(seen.any(0).nonzero().max()) + 1
        mask = seen[:, max(end - tokens, 0) : end]
    now = mask[:, -tokens:].bool()
    if now.shape != (rows, tokens) or bool(now.all()):
        return None
    return now.flatten().nonzero().flatten()


HOLDERS: dict[int, Holder] = {}
"""By the key that graphs were made with; none once its holder let go."""

# CUDA graphs would replay an operator's kernels and leave the rest of it out.
_TAGS = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)
torch.library.define("persona_axis::held", "(Tensor hidden, int key, int layer) -> Tensor", tags=_TAGS)
torch.library.define(
    "persona_axis::begins", "(Tensor first, Tensor? mask, Tensor? lengths, int key, int depth) -> Tensor", tags=_TAGS
)
torch.library.define("persona_axis::ends", "(Tensor last, int key) -> Tensor", tags=_TAGS)


@torch.library.impl("persona_axis::held", "CompositeExplicitAutograd")
def _held(hidden: Tensor, key: int, layer: int) -> Tensor:
    holder = HOLDERS.get(key)
    out = hidden if holder is None else holder.hold(layer, hidden)
    return out.clone() if out is hidden else out  # an operator's result is not its argument


@torch.library.impl("persona_axis::begins", "CompositeExplicitAutograd")
def _begins(first: Tensor, mask: Tensor | None, lengths: Tensor | None, key: int, depth: int) -> Tensor:
    if (holder := HOLDERS.get(key)) is not None:
        holder.begin(mask, lengths, (first.shape[0], first.shape[1]), depth)
    return first.clone()


@torch.library.impl("persona_axis::ends", "CompositeExplicitAutograd")
def _ends(last: Tensor, key: int) -> Tensor:
    if (holder := HOLDERS.get(key)) is not None:
        holder.end()
    return last.clone()


@torch.library.register_fake("persona_axis::held")  # type: ignore[untyped-decorator]
def _held_shape(hidden: Tensor, key: int, layer: int) -> Tensor:
    return torch.empty_like(hidden)


@torch.library.register_fake("persona_axis::begins")  # type: ignore[untyped-decorator]
def _begins_shape(first: Tensor, mask: Tensor | None, lengths: Tensor | None, key: int, depth: int) -> Tensor:
    return torch.empty_like(first)


@torch.library.register_fake("persona_axis::ends")  # type: ignore[untyped-decorator]
def _ends_shape(last: Tensor, key: int) -> Tensor:
    return torch.empty_like(last)


def held(hidden: Tensor, key: int, layer: int) -> Tensor:
    """`Holder.hold` of `key` inside a graph."""
    out: Tensor = torch.ops.persona_axis.held(hidden, key, layer)
    return out


def begun(first: Tensor, kwargs: Mapping[str, Any], key: int, depth: int) -> Tensor:
    """`Holder.begin` of `key` inside a graph; the model goes on with the tensor that is returned."""
    out: Tensor = torch.ops.persona_axis.begins(first, mask_of(kwargs), lengths_of(kwargs), key, depth)
    return out


def ended(output: Any, key: int) -> Any:
    """`Holder.end` of `key` inside a graph; the model goes on with the output that is returned."""
    if isinstance(output, Tensor):
        return torch.ops.persona_axis.ends(output, key)
    keyed = isinstance(output, MutableMapping)
    found = [at for at, value in (output.items() if keyed else enumerate(output)) if isinstance(value, Tensor)]
    if not found:
        raise CapError(f"the model returned a {type(output).__name__} that holds no tensor: nothing tells of its end")
    last = torch.ops.persona_axis.ends(output[found[0]], key)
    if keyed:
        output[found[0]] = last
        return output
    return type(output)((*output[: found[0]], last, *output[found[0] + 1 :]))


def mask_of(kwargs: Mapping[str, Any]) -> Tensor | None:
    """The attention mask in a model call's keywords; of several, that of full attention."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    return mask if isinstance(mask, Tensor) and mask.dim() in (2, 4) else None


def lengths_of(kwargs: Mapping[str, Any]) -> Tensor | None:
    """The cumulative lengths of a packed batch in a model call's keywords."""
    lengths = kwargs.get("cu_seq_lens_q")
    return lengths if isinstance(lengths, Tensor) else None
