"""Telling a want of memory from any other error."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Any device's way of saying that memory did not suffice."""
    said = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in said
        or "can't allocate memory" in said
    )
