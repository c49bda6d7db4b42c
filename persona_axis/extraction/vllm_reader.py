"""What reads replies inside a vLLM worker: the extension class that `persona_axis.extraction.vllm_engine` gives to it.

A step of vLLM packs tokens of many requests into one row of tokens: whole prompts, parts of prompts, single tokens of
replies. Which are which is told by the model runner's own records of the step, at the moment when it calls the model.
Nothing here imports vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from persona_axis.errors import ExtractionError
from persona_axis.extraction.means import Replies
from persona_axis.serving._vllm_layers import decoder_layers, stream

ROW = "persona_axis_row"
"""Where a request says, in its sampling's `extra_args`, which row its reply is summed in."""


class Sums(NamedTuple):
    """What the asked rows of one worker hold, as plain values: anything else would be pickled on its way."""

    layers: list[int]
    """Those of the layers asked for that this worker holds."""
    shard: int
    """Workers of one pipeline stage hold the same streams; only shard 0 sends its sums."""
    counts: list[list[int]]
    """[rows, layers] tokens that were read."""
    ids: list[list[int]]
    """[rows, tokens] the tokens that were fed, in order."""
    norms: bytes
    """[rows, layers] float32."""
    sums: bytes
    """[rows, layers, hidden] float32, or nothing."""


def joined(workers: Sequence[Sums], ids: list[list[int]], layers: Sequence[int], hidden: int) -> Replies:
    """The rows of all workers as one. Raises `ExtractionError` where a token was not read, or read twice, a layer is
    held by nobody, or workers that share a stage saw different streams."""
    rows = len(ids)
    sums, norms = torch.zeros(rows, len(layers), hidden), torch.zeros(rows, len(layers))
    for held in sorted(workers, key=lambda one: one.shard):
        for fed, counts, reply in zip(held.ids, held.counts, ids, strict=True):
            if held.layers and (set(counts) != {len(reply)} or fed != reply):
                raise ExtractionError(
                    f"a reply has {len(reply)} tokens, and at layers {held.layers} vLLM read {counts}"
                    + (" of them" if fed == reply[: len(fed)] else ", not the same ones")
                )
        at = [list(layers).index(layer) for layer in held.layers]
        seen = torch.from_numpy(np.frombuffer(held.norms, np.float32).reshape(rows, len(at)).copy())
        if held.shard == 0:
            norms[:, at] = seen
            sums[:, at] = torch.from_numpy(np.frombuffer(held.sums, np.float32).reshape(rows, len(at), hidden).copy())
        elif not torch.allclose(norms[:, at], seen, rtol=1e-3):
            raise ExtractionError(f"layers {held.layers} are not the same streams on all of vLLM's workers")
    if nobody := sorted(set(layers).difference(*[held.layers for held in workers])):
        raise ExtractionError(f"none of vLLM's workers holds layers {nobody}")
    return Replies(ids, sums, norms)


class _Span(NamedTuple):
    """Consecutive tokens of a reply in a packed step."""

    row: int
    first: int
    """Which token of the reply comes first."""
    at: int
    """Where in the step it lies."""
    length: int


class Reading:
    """Sums over replies' tokens at the output of some layers, by row; hooks on the model write to it."""

    def __init__(self, worker: Any, model: nn.Module, layers: Mapping[int, nn.Module], rows: int, tokens: int) -> None:
        self.runner, self.layers, self.tokens = worker.model_runner, list(layers), tokens
        self.shard = worker.rank % worker.parallel_config.tensor_parallel_size
        self.read = [0] * rows  # tokens of each row that were fed and counted
        self.counts = torch.zeros(rows, len(layers), dtype=torch.long)
        self.scheduled: Any = None
        self._spans: list[_Span] = []
        self._at: Tensor | None = None
        self._step: dict[int, Tensor] = {}
        self._runs = dict.fromkeys(layers, 0)
        device = next(model.parameters()).device
        hidden = worker.vllm_config.model_config.hf_text_config.hidden_size
        self.ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        self.sums = torch.zeros(rows, len(layers), hidden, device=device)
        self.norms = torch.zeros(rows, len(layers), device=device)
        model.register_forward_pre_hook(self.begin_step, with_kwargs=True)
        for layer, module in layers.items():
            module.register_forward_hook(lambda _module, _args, out, layer=layer: self.keep(layer, out))
        model.register_forward_hook(self.end_step)
        execute = self.runner.execute_model

        def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self.scheduled = scheduled
            try:
                return execute(scheduled, *args, **kwargs)
            finally:
                self.scheduled = None

        self.runner.execute_model = execute_model

    def begin_step(self, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        """Find the step's tokens that belong to replies and were not read before."""
        self._spans, self._at = [], None
        if self.scheduled is None:  # a dummy batch
            return
        batch, place = self.runner.input_batch, 0
        for index, request in enumerate(batch.req_ids):
            count = self.scheduled.num_scheduled_tokens[request]
            state = self.runner.requests[request]
            row = (state.sampling_params.extra_args or {}).get(ROW)
            if row is not None:
                start = int(batch.num_computed_tokens_cpu[index]) - state.num_prompt_tokens
                # What a request that was set aside computes again was counted before. Where something was left out,
                # nothing after it is taken: the count then stays short of the reply.
                first = self.read[row]
                last = min(start + count, self.tokens)
                if start <= first < last:
                    self._spans.append(_Span(row, first, place + first - start, last - first))
            place += count
        if self._spans:
            at = [span.at + i for span in self._spans for i in range(span.length)]
            self._at = torch.tensor(at, device=self.sums.device)
            tokens = [span.first + i for span in self._spans for i in range(span.length)]
            self.ids[self._rows(), torch.tensor(tokens, device=self.ids.device)] = kwargs["input_ids"][self._at].long()

    def keep(self, layer: int, output: Any) -> None:
        """A layer's output: the residual stream [tokens, hidden], or two parts of it."""
        if self._at is None:
            return
        hidden, residual = stream(output, layer)
        kept = hidden[self._at].float()
        self._step[layer] = kept if residual is None else kept + residual[self._at].float()
        self._runs[layer] += 1

    def end_step(self, *_: Any) -> None:
        """Add the step's rows, of all layers together."""
        if self._at is None:
            return
        rows = self._rows()
        if self._step:
            empty = torch.zeros(len(rows), self.sums.shape[-1], device=self.sums.device)
            kept = torch.stack([self._step.get(layer, empty) for layer in self.layers], dim=1)
            self.sums.index_add_(0, rows, kept)
            self.norms.index_add_(0, rows, torch.linalg.vector_norm(kept, dim=-1))
        runs = torch.tensor([self._runs[layer] for layer in self.layers])
        for span in self._spans:
            self.counts[span.row] += span.length * runs
            self.read[span.row] += span.length
        self._at, self._step, self._runs = None, {}, dict.fromkeys(self.layers, 0)

    def given(self, rows: Sequence[int]) -> Sums:
        """What rows hold; they are empty then."""
        at = torch.tensor(list(rows), device=self.sums.device)
        ids = [self.ids[row, : self.read[row]].tolist() for row in rows]
        norms, sums = self.norms[at].cpu().numpy().tobytes(), b""
        if self.shard == 0:
            sums = self.sums[at].cpu().numpy().tobytes()
        found = Sums(self.layers, self.shard, self.counts[list(rows)].tolist(), ids, norms, sums)
        for table in (self.counts, self.norms, self.sums):
            table[at.to(table.device)] = 0
        for row in rows:
            self.read[row] = 0
        return found

    def _rows(self) -> Tensor:
        return torch.tensor([span.row for span in self._spans for _ in range(span.length)], device=self.sums.device)


class Reader:
    """For `--worker-extension-cls`: two calls that reach every worker."""

    persona_axis_reading: Reading | None = None

    def persona_axis_read(self, layers: Sequence[int], rows: int, tokens: int) -> None:
        """Begin to read at `layers` replies of at most `tokens` tokens, summed in so many `rows`."""
        worker: Any = self
        if self.persona_axis_reading is not None:
            raise ExtractionError("this worker reads already: an engine serves one extraction")
        runner = worker.model_runner
        if not hasattr(runner, "input_batch") or not hasattr(runner, "requests"):
            raise ExtractionError(
                f"vLLM's {type(runner).__module__} keeps no records of a step that are known here: "
                "start it with VLLM_USE_V2_MODEL_RUNNER=0"
            )
        if worker.rank >= worker.parallel_config.tensor_parallel_size and runner.intermediate_tensors is None:
            # A later stage makes room for what it is handed when it warms up, which vLLM leaves out on CPUs.
            worker.execute_dummy_batch()
        model: nn.Module = worker.get_model()
        found = decoder_layers(model, worker.vllm_config)
        # Those of another pipeline stage are modules without parameters.
        here = {layer: found[layer] for layer in layers if any(True for _ in found[layer].parameters())}
        self.persona_axis_reading = Reading(worker, model, here, rows, tokens)

    def persona_axis_sums(self, rows: Sequence[int]) -> list[Any]:
        """The `Sums` of rows whose replies ended, as a list."""
        if self.persona_axis_reading is None:
            raise ExtractionError("this worker was not told to read")
        with torch.inference_mode():
            return list(self.persona_axis_reading.given(rows))
