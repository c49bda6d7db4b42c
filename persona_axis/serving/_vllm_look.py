"""A second pair of eyes on a layer: reads its output after every edit, apart from the edit's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from persona_axis.errors import CapError
from persona_axis.serving._stream_edit import StreamEdit
from persona_axis.serving._vllm_layers import stream


class Look:
    """Reads a layer's output after every edit, and can shift its two parts."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.hidden: Tensor | None = None
        self.residual: Tensor | None = None
        self.shift: tuple[float, float] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self._seen().dtype

    def stream(self) -> Tensor:
        hidden = self._seen().float()
        stream = hidden if self.residual is None else hidden + self.residual.float()
        return stream.reshape(-1, stream.shape[-1])

    def projection(self, edit: StreamEdit) -> float:
        return (self.stream()[0] * edit.direction.float()).sum().item()

    def hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        self.hidden, self.residual = stream(output, self.layer)
        if self.shift is None or self.residual is None:
            return None
        way = torch.cos(torch.arange(self.hidden.shape[-1], device=self.hidden.device) ** 2)
        way = (way / way.norm()).to(self.hidden.dtype)
        return type(output)((output[0] + self.shift[0] * way, output[1] + self.shift[1] * way, *output[2:]))

    def _seen(self) -> Tensor:
        if self.hidden is None:
            raise CapError(f"layer {self.layer} did not run in vLLM's dummy batch")
        return self.hidden


@contextmanager
def looking(module: nn.Module, layer: int) -> Iterator[Look]:
    look = Look(layer)
    handle = module.register_forward_hook(look.hook)
    try:
        yield look
    finally:
        handle.remove()
