"""Who draws the rollouts: the `Engine` seam, and the engine of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

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


MakesEngine = Callable[[ChatModel, Plan, RunStore], Engine]
"""Makes the engine of one run; the store is where an engine records what a resumed run must repeat."""


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
