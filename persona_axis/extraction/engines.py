"""Who draws the rollouts: the `Engine` seam, and the engine of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from persona_axis._outofmemory import is_out_of_memory
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.means import Replies, generate_with_means
from persona_axis.extraction.plan import Batch, Plan, even_parts
from persona_axis.extraction.store import RunStore


class Job(NamedTuple):
    """One batch to draw: its encoded prompts, and where in the plan it stands."""

    round: int
    block: int
    batch: Batch
    prompts: list[list[int]]


class Engine(Protocol):
    """Draws batches. What it gives depends on a batch alone, never on time or on other batches."""

    name: str

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """The replies of each job, in the jobs' order; jobs are taken as there is room for them."""
        ...


class MakesEngine(Protocol):
    """Makes the engine of one run; the store is where an engine records what a resumed run must repeat. An engine's
    class is one."""

    @property
    def name(self) -> str:
        """That of the engine: a run goes on with the one that it began with."""
        ...

    def __call__(self, chat: ChatModel, plan: Plan, store: RunStore, /) -> Engine: ...


NAMES = ("transformers", "continuous", "vllm")


def named(name: str, arguments: Mapping[str, Any] | None = None) -> MakesEngine:
    """The engine of that name. Raises `ExtractionError` for a name that is none, for `arguments` to an engine that
    takes none, and where what the engine runs on is not installed."""
    if name not in NAMES:
        raise ExtractionError(f"no engine is called {name!r}: {', '.join(NAMES)}")
    if name == "vllm":
        from persona_axis.extraction.vllm_engine import OnVllm

        return OnVllm(dict(arguments or {}))
    if arguments:
        raise ExtractionError(f"the engine {name} takes no arguments, got {', '.join(arguments)}: they go with vllm")
    if name == "continuous":
        from persona_axis.extraction.continuous import Continuous

        return Continuous
    return Local


AHEAD = 2
"""Batches' worth of rollouts in flight in an engine that refills: the second fills the rows that the first leaves."""


class Running(Protocol):
    """A generator that takes single rollouts, each with a random stream of its own."""

    def add(self, prompt: list[int], seed: int) -> int:
        """Begin a rollout; gives its row."""
        ...

    def finished(self, rows: Sequence[int]) -> Replies:
        """Wait for these rows, give what they hold and free them."""
        ...


def refilled(jobs: Iterable[Job], plan: Plan, running: Running) -> Iterator[Replies]:
    """The replies of each job, in order; a row that becomes free takes the next rollout, of whichever job it is."""
    waiting: deque[list[int]] = deque()
    for job in jobs:
        seeds = [plan.rollout_seed(item) for item in job.batch.items]
        waiting.append([running.add(prompt, seed) for prompt, seed in zip(job.prompts, seeds, strict=True)])
        if len(waiting) == AHEAD:
            yield running.finished(waiting.popleft())
    while waiting:
        yield running.finished(waiting.popleft())


def cut(drawn: Sequence[int], stop_ids: Sequence[int], longest: int) -> list[int]:
    """A reply's own tokens: before the first stop token, and no more than `longest`."""
    own = list(drawn[:longest])
    return own[: next((i for i, token in enumerate(own) if token in stop_ids), len(own))]


class Local:
    """Plain batched generation in this process, a batch in parts where memory asks for it.

    The parts are on record before they are drawn and hold for every later batch, so that a resumed run cuts the same
    way.
    """

    name = "transformers"

    def __init__(self, chat: ChatModel, plan: Plan, store: RunStore) -> None:
        self.chat, self.plan, self.store = chat, plan, store
        self._splits = store.read_splits()

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """One job after the other. Raises `ExtractionError` where not even one rollout fits into memory."""
        return map(self._draw, jobs)

    def _draw(self, job: Job) -> Replies:
        at = (job.round, job.block, job.batch.index)
        while True:
            most = min([n for *place, n in self._splits if tuple(place) <= at], default=self.plan.batch_size)
            parts = even_parts(len(job.prompts), most)
            try:
                return joined([self._part(job, start, stop) for start, stop in parts])
            except (RuntimeError, MemoryError) as error:
                rows = halved(max(b - a for a, b in parts), error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._splits.append((*at, rows))
            self.store.write_splits(self._splits)

    def _part(self, job: Job, start: int, stop: int) -> Replies:
        sampling, seed = self.plan.options.sampling, job.batch.part_seed(start, stop)
        return generate_with_means(self.chat, job.prompts[start:stop], sampling, seed, self.plan.layers)


def joined(parts: list[Replies]) -> Replies:
    """Replies of a batch's parts as one."""
    ids = [row for part in parts for row in part.ids]
    return Replies(ids, torch.cat([part.sums for part in parts]), torch.cat([part.norms for part in parts]))


def halved(rows: int, error: BaseException) -> int:
    """Half as many rows, rounded up, after an error for want of memory; any other error is raised again."""
    if not is_out_of_memory(error):
        raise error
    if rows == 1:
        raise ExtractionError(f"not even one rollout fits into memory: {first_line(error)}") from error
    return -(-rows // 2)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or what kind of error it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
