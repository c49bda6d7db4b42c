"""Damage to traits files that the checks of agreement do not see: other folds, and all that follows from them."""

from __future__ import annotations

import random

import numpy as np
from _mutants_safe import SAFE, Kind, joined, parts
from _traits_used import agreeing


def other_folds(raw: bytes, draw: random.Random) -> bytes:
    """Differences that are huge, tiny, all alike, nearly gone, or gone without one fold."""
    header, data = parts(raw)
    held = {}
    for name in ("folds", "places"):
        start, end = header[name]["data_offsets"]
        held[name] = np.frombuffer(data[start:end], "<f4").reshape(header[name]["shape"]).copy()
    folds, i = held["folds"], draw.randrange(len(held["folds"]))
    match draw.randrange(7):
        case 0:
            folds *= draw.choice((1e-45, 1e-38, 1e-20, 1e20, 1e30, 3e37))
        case 1:
            folds[i] = folds[i, :1]  # no noise at all
        case 2:
            folds[i, ::2], folds[i, 1::2] = 1, -1 + draw.choice((0.0, 1e-7, 1e-3))
        case 3:
            folds[i, 1:] = 0  # the mean without fold 0 is nothing
        case 4:
            folds[i, 0] = -folds[i, 1:].sum(axis=0)  # the mean of all is nothing, or a rounding
        case 5:
            folds[i, :, :, 1:] = 0  # all on one coordinate
        case _:
            held["places"] *= np.float32(draw.choice((0.0, 1e-30, 1e6, 1e30, -1e37)))
    with np.errstate(all="ignore"):
        made = agreeing(folds, held["places"])
    written = bytearray(data)
    for name, array in made.items():
        start, end = header[name]["data_offsets"]
        written[start:end] = array.tobytes()
    return joined(header, bytes(written))


TRAITS: dict[str, Kind] = {**SAFE, "other folds": other_folds}
