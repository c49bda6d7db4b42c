"""The proof that a model's layers were found: one forward pass in which every layer is read and edited.

All rows of the batch hold the same two tokens. The first three are controls: two are left alone and show how much
equal rows differ by rounding, the third ends in another token and shows whether the model looks ahead. Each further
row is edited at one layer only, so a single pass tells for every layer whether an edit there reaches the logits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from persona_axis.errors import ResidualError
from persona_axis.model.layout import find_stack, hidden_size, unwrapped
from persona_axis.residual import EditFn, editing

PROBE_TOKENS = 3
_CONTROLS = 3
_LOOKAHEAD = 0.01  # of a hidden state's length: rounding stays far below, attention to a later token far above
_LEAST = 1e-3  # of an edit's elements, where a hidden state is all zeros


def self_test(model: nn.Module, tokens: Tensor, stack: str | None = None) -> str:
    """Prove that the layers of `model` are read, run once and in order, look at no later token, and change the logits.

    `tokens` are three ids [3] on the device that the model takes its input on. Costs one pass of layers + 3 rows of 2
    tokens; leaves no hook, mode or random state behind; a compiled model runs without its graphs, which are neither
    used nor made. Returns "", or why nothing could be proven. Raises `ResidualError` that names the layers.
    """
    found = find_stack(model, stack)
    if _cannot_run(model):
        return "the layers were not tested when the model was loaded: its weights are on the meta device"
    where = f"{found.path} of {type(unwrapped(model)).__name__}"
    probe = _Probe(len(found.layers), hidden_size(model), where)
    ids = tokens[:2].repeat(probe.rows, 1)
    ids[2, 1] = _another(*tokens.tolist())
    try:
        with _undisturbed(model), editing(model, probe.edits(), stack=stack) as fires:
            logits = _logits(model(input_ids=ids))
    except ResidualError:
        raise
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise ResidualError(
            f"{where} could not be tested: a batch of {list(ids.shape)} tokens ended in {type(error).__name__}: {text}"
        ) from error
    _require(not fires.silent(), f"layers {fires.silent()} of {where} did not run on plain text")
    often = [layer for layer, count in fires.counts.items() if count > 1]
    _require(not often, f"layers {often} of {where} run several times in one pass: an edit would act each time")
    _require(probe.order == sorted(probe.order), f"{where} run in the order {probe.order}, not in that of the list")
    _require(
        not probe.looks_ahead,
        f"layers {probe.looks_ahead} of {where} look ahead: a token's hidden state changes with the token after it",
    )
    _require(
        isinstance(logits, Tensor) and logits.shape[0] == probe.rows,
        f"{where} was run on {probe.rows} rows, and the model did not return logits for each",
    )
    deaf = probe.deaf(logits.float())
    _require(not deaf, f"an edit at layers {deaf} of {where} does not change the logits")
    return ""


class _Probe:
    """The edits of one pass and what they saw."""

    def __init__(self, layers: int, width: int, where: str) -> None:
        self.layers, self.rows, self.width, self.where = layers, layers + _CONTROLS, width, where
        self.order: list[int] = []
        self.looks_ahead: list[int] = []
        self.eps = 0.0

    def edits(self) -> dict[int, EditFn]:
        return {layer: self._edit(layer) for layer in range(self.layers)}

    def deaf(self, logits: Tensor) -> list[int]:
        """Layers whose edit left the logits [rows, tokens, vocabulary] as they were, but for rounding."""
        plain = logits[0]
        _require(bool(plain.isfinite().all()), f"the logits of {self.where} are not finite, with no edit at all")
        rounding = max((logits[1] - plain).abs().max().item(), self.eps * plain.abs().max().item())
        change = (logits[_CONTROLS:] - plain).abs().flatten(1).amax(1)
        return [layer for layer, size in enumerate(change.tolist()) if size <= 4 * rounding]

    def _edit(self, layer: int) -> EditFn:
        def edit(hidden: Tensor) -> Tensor:
            expected = [self.rows, 2, self.width]
            _require(
                list(hidden.shape) == expected,
                f"layer {layer} of {self.where} returned {list(hidden.shape)} where one residual stream is {expected} "
                "(batch, tokens, hidden size)",
            )
            self.order.append(layer)
            self.eps = torch.finfo(hidden.dtype).eps
            same, changed = (torch.linalg.vector_norm((hidden[row, 0] - hidden[0, 0]).float()) for row in (1, 2))
            if changed > _LOOKAHEAD * torch.linalg.vector_norm(hidden[0, 0].float()) + 4 * same:
                self.looks_ahead.append(layer)
            # As long as the state itself, and neither constant nor along it: what a norm would take out again.
            push = torch.cos(torch.arange(self.width, device=hidden.device, dtype=torch.float32) ** 2)
            edited = hidden.clone()
            row = hidden[_CONTROLS + layer].float()
            size = row.square().mean(-1, keepdim=True).sqrt().clamp_min(_LEAST)
            edited[_CONTROLS + layer] = (row + push * size).to(hidden.dtype)
            return edited

        return edit


def _another(first: int, second: int, third: int) -> int:
    """An id of the vocabulary that is not `second`: a template may end in two equal tokens."""
    return next((token for token in (third, first) if token != second), second - 1 if second else 1)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Without gradients, dropout, compiled graphs, or a trace in the global random state."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    modes = [(module, module.training) for module in model.modules()]
    # Nothing was compiled where the compiler was never imported, which takes a second.
    compiling = "torch._dynamo" in sys.modules
    stance: Any = torch.compiler.set_stance("force_eager") if compiling else nullcontext()
    with torch.random.fork_rng(devices=devices), torch.no_grad(), stance:
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def _cannot_run(model: nn.Module) -> bool:
    """Whether weights are missing that nothing would fetch: accelerate leaves a hook where it will."""
    return any(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules())


def _logits(out: Any) -> Any:
    return out if isinstance(out, Tensor) else getattr(out, "logits", None) if not isinstance(out, tuple) else out[0]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ResidualError(otherwise)
