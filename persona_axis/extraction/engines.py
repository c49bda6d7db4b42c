"""Who draws the rollouts: the `Engine` seam, and the engine of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.means import Replies, generate_with_means
from persona_axis.extraction.plan import Batch, Plan, even_parts
from persona_axis.extraction.records import Records
from persona_axis.extraction.store import RunStore
from persona_axis.model.outofmemory import is_out_of_memory
from persona_axis.sampling import Sampling


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


class Splits:
    """How many rollouts are drawn at once: the plan's batch, or fewer since memory did not suffice.

    What was learned is on record before it is acted on, and holds from its batch on, so that a resumed run cuts the
    same way.
    """

    def __init__(self, plan: Plan, records: Records) -> None:
        self.plan, self.records = plan, records
        self._held = records.read_splits()

    def most(self, job: Job) -> int:
        """The most rollouts of a job at once."""
        at = _place(job)
        return min([n for *place, n in self._held if tuple(place) <= at], default=self.plan.batch_size)

    def halve(self, job: Job, error: BaseException) -> None:
        """Record that a job as it is cut now does not fit. Raises `ExtractionError` where not even one rollout does,
        and an error that is about something else again."""
        rows = halved(max(b - a for a, b in even_parts(len(job.prompts), self.most(job))), error)
        self._held.append((*_place(job), rows))
        self.records.write_splits(self._held)


def _place(job: Job) -> tuple[int, int, int]:
    return job.round, job.block, job.batch.index


class Local:
    """Plain batched generation in this process, a batch in parts where memory asks for it."""

    name = "transformers"

    def __init__(self, chat: ChatModel, plan: Plan, store: RunStore) -> None:
        self.chat, self.plan = chat, plan
        self._splits = Splits(plan, store.records)

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """One job after the other. Raises `ExtractionError` where not even one rollout fits into memory."""
        return map(self._draw, jobs)

    def _draw(self, job: Job) -> Replies:
        while True:
            try:
                return drawn(self.chat, job, self._splits.most(job), self.plan.options.sampling, self.plan.layers)
            except (RuntimeError, MemoryError) as error:
                self._splits.halve(job, error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def drawn(chat: ChatModel, job: Job, most: int, sampling: Sampling, layers: Sequence[int]) -> Replies:
    """A job's replies, drawn in as few even parts as have at most `most` rollouts each."""
    parts = even_parts(len(job.prompts), most)
    return joined(
        [
            generate_with_means(chat, job.prompts[start:stop], sampling, job.batch.part_seed(start, stop), layers)
            for start, stop in parts
        ]
    )


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
