"""What a model keeps of a batch of conversations from turn to turn: keys and values of the tokens it has read.

What is kept is only ever the beginning of what the next prompt says, token by token, so that a conversation which
the template writes otherwise than it was said (thinking stripped, a reply tokenised in another way) is read again
from there on. The kept columns end where the fed ones begin, without a gap in any row: a batch then lies exactly as
if it had been padded on the left and read in one go, which every attention mask and position rule can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from persona_axis.model.layout import text_config

_SHIFTING = {"dynamic", "longrope"}  # rotary encodings that change for all tokens once a text grows long


class Memory:
    """The cache of one batch between calls of `ChatModel.generate_ids`; rows keep their places, see `select`."""

    def __init__(self, model: nn.Module) -> None:
        self.unfit = _unfit_positions(text_config(model))
        """Why this model's cache cannot be kept, or ""; known after the first turn at the latest."""
        self.rewritten = 0
        """Prompts so far that did not begin with what had been read."""
        self._cache: DynamicCache | None = None
        self._read: list[list[int]] = []  # of each row, the tokens that the cache holds
        self._starts: list[int] = []  # the column of each row's first token

    def recall(self, prompts: Sequence[Sequence[int]]) -> DynamicCache | None:
        """The cache for these prompts, padded on the left: their first columns, as many as no row has to feed.

        None where nothing can be kept. The cache is handed over: until `remember` nothing is held.
        """
        cache, self._cache = self._cache, None
        if cache is None:
            return None
        shared = [_shared(read, prompt) for read, prompt in zip(self._read, prompts, strict=True)]
        self.rewritten += sum(same < len(read) for same, read in zip(shared, self._read, strict=True))
        longest = max(map(len, prompts))
        fed = max(len(prompt) - min(same, len(prompt) - 1) for prompt, same in zip(prompts, shared, strict=True))
        if fed >= longest:
            return None
        # Column c of the batch is token c - (longest - length) of its row; before a row's first token lies padding,
        # whose columns the attention mask hides whatever they hold.
        offsets = [start - longest + len(prompt) for start, prompt in zip(self._starts, prompts, strict=True)]
        columns = torch.arange(longest - fed) + torch.tensor(offsets)[:, None]
        _replace(cache, lambda states: _taken(states, columns))
        return cache

    def remember(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], cache: Any) -> None:
        """Keep what a generation left behind, if it is plain full attention, with the replies as far as fed."""
        self.unfit = self.unfit or unfit_cache(cache)
        if self.unfit:
            return
        longest = max(map(len, prompts))
        fed = cache.get_seq_length() - longest
        self._cache = cache
        self._starts = [longest - len(prompt) for prompt in prompts]
        self._read = [[*prompt, *reply[:fed]] for prompt, reply in zip(prompts, replies, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        if self._cache is None:
            return
        chosen = list(rows)
        _replace(self._cache, lambda states: states[chosen])
        self._read, self._starts = [self._read[row] for row in rows], [self._starts[row] for row in rows]


def _shared(read: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(read, prompt, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(read), len(prompt)))


def _replace(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> None:
    """Every layer's keys and values by what `change` makes of them."""
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        layer.keys, layer.values = change(layer.keys), change(layer.values)


def _taken(states: Tensor, columns: Tensor) -> Tensor:
    """The chosen columns [batch, kept] of keys or values [batch, heads, columns, width]."""
    rows = columns.clamp(min=0).to(states.device)[:, None, :, None]
    return states.gather(2, rows.expand(-1, states.shape[1], -1, states.shape[3]))


def unfit_cache(cache: Any) -> str:
    """Why a cache is not plain keys and values of every token, or ""."""
    if type(cache) is not DynamicCache:
        kind = "no cache" if cache is None else f"a {type(cache).__name__}"
        return f"the model makes {kind}, not a plain cache of keys and values"
    kinds = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    return f"not all its layers hold every token ({', '.join(kinds)})" if kinds else ""


def _unfit_positions(config: Any) -> str:
    stated = getattr(config, "rope_parameters", None) or {}
    each = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    kinds = sorted(_SHIFTING & {str(one.get("rope_type")) for one in each})
    return f"its position encoding ({', '.join(kinds)}) changes as a text grows" if kinds else ""
