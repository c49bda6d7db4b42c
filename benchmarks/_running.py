"""Running a tiny model, under a cap or not, and telling whether two runs say the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from _shrink import VOCABULARY
from torch import Tensor, nn

from persona_axis import Cap
from persona_axis.residual import reading

NEW_TOKENS = 6
# Room for float32 sums of another order, in units of the largest number compared.
CLOSE = 2e-3


class Failed(Exception):
    """A promise was not kept; the text says which and by how much."""


class Run(NamedTuple):
    """A greedy generation."""

    tokens: list[list[int]]
    logits: Tensor
    """Of every step, [batch, steps, vocabulary]."""
    fed: list[int]
    """Tokens of a row that each step fed."""


def forward(model: nn.Module, prompts: list[list[int]], **options: Any) -> Any:
    """One pass over prompts of equal length."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(prompts), **options)


def rows_differ(
    model: nn.Module, prompts: list[list[int]], under: Callable[[], AbstractContextManager[None]]
) -> str:
    try:
        with under():
            whole = generated(model, prompts)
            alone = [generated(model, [prompt]) for prompt in prompts]
    except (ValueError, RuntimeError, NotImplementedError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).strip()[:120]}"
    rows = Run([one.tokens[0] for one in alone], torch.cat([one.logits for one in alone]), [])
    return compare(whole, rows)


def generated(model: nn.Module, prompts: list[list[int]], cap: Cap | None = None, use_cache: bool = True) -> Run:
    """Greedy replies to prompts padded on the left. Raises `Failed` where a bound of `cap` does not hold."""
    longest, fed = max(map(len, prompts)), list[int]()
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def holds(layer: int, hidden: Tensor) -> None:
        assert cap is not None and cap.floor is not None and cap.ceiling is not None
        i = cap.layers.index(layer)
        p = hidden.double() @ cap.direction[i].double()
        slack = CLOSE / 100 * hidden.abs().max()
        if (p < cap.floor[i] - slack).any() or (p > cap.ceiling[i] + slack).any():
            raise Failed(f"a bound at layer {layer} does not hold in step {len(fed)} of a generation")

    with (
        reading(model, [0], lambda _, hidden: fed.append(hidden.shape[1])),
        reading(model, [] if cap is None else cap.layers, holds),
    ):
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            use_cache=use_cache, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
            eos_token_id=VOCABULARY - 1,
        )  # fmt: skip
    return Run(out.sequences[:, longest:].tolist(), torch.stack(list(out.logits), 1), fed)


def compare(a: Run, b: Run) -> str:
    """How two runs differ beyond rounding, up to where their tokens part at a near-tie; "" where they do not."""
    for row, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)):
        part = next((at for at, (i, j) in enumerate(zip(x, y, strict=True)) if i != j), len(x) - 1)
        one, other = a.logits[row, : part + 1], b.logits[row, : part + 1]
        if not (one - other).abs().max() <= CLOSE * other.abs().max():
            return f"row {row}: {off(one, other)}"
    return ""


def off(a: Tensor, b: Tensor) -> str:
    """How far apart two tensors are, in words."""
    if a.shape != b.shape:
        return f"{list(a.shape)} and {list(b.shape)}"
    return f"they differ by {(a - b).abs().max():.1e}, the largest number being {b.abs().max():.1e}"


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
