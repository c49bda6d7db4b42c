"""Jobs drawn out of order by workers that may be lost, and their replies given in order, each once.

A few jobs are out at a time. What comes back early waits; what is lost is sent again; what did not fit into memory
is cut when its turn comes, and whatever came back for later jobs as they were cut before is drawn again: the cuts, and
with them every number, are those of one process that draws the jobs one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from persona_axis.errors import ExtractionError
from persona_axis.extraction.engines import Job, Splits
from persona_axis.extraction.means import Replies


class Full(NamedTuple):
    """Memory did not suffice for a job as it was cut; what the device said."""

    said: str


class Lost(NamedTuple):
    """A job went down with its worker: on which node, and why."""

    node: str
    cause: str


class Crew(Protocol):
    """Workers that draw jobs. A job is known by its ticket, which is out at most once at a time."""

    @property
    def room(self) -> int:
        """How many jobs may be out now, at least one."""
        ...

    def send(self, ticket: int, job: Job, most: int) -> None:
        """Have a job drawn by somebody, at most `most` rollouts at once; lower tickets first."""
        ...

    def next(self) -> tuple[int, Replies | Full | Lost]:
        """Wait until one of the jobs is back. Raises `ExtractionError` where none can be expected any more."""
        ...

    def forget(self) -> None:
        """Jobs that are out are not wanted any more."""
        ...


class _Out:
    """A job that was sent, as it was cut, and what came back."""

    def __init__(self, job: Job, ticket: int) -> None:
        self.job, self.ticket = job, ticket
        self.most, self.losses = 0, 0
        self.back: Replies | Full | None = None

    def send(self, crew: Crew, most: int) -> None:
        self.most, self.back = most, None
        crew.send(self.ticket, self.job, most)


def in_order(jobs: Iterable[Job], crew: Crew, splits: Splits, retries: int = 3) -> Iterator[Replies]:
    """The replies of each job, in the jobs' order.

    A job that is lost more than `retries` times is an `ExtractionError` that names the last node and the cause.
    """
    left = iter(jobs)
    out: deque[_Out] = deque()
    by_ticket: dict[int, _Out] = {}
    sent = 0
    try:
        while True:
            while len(out) < crew.room and (job := next(left, None)) is not None:
                by_ticket[sent] = _Out(job, sent)
                out.append(by_ticket[sent])
                out[-1].send(crew, splits.most(job))
                sent += 1
            if not out:
                return
            first = out[0]
            if first.back is None:
                ticket, back = crew.next()
                if isinstance(back, Lost):
                    _again(by_ticket[ticket], back, crew, retries)
                else:
                    by_ticket[ticket].back = back
            elif first.most != (most := splits.most(first.job)):
                first.send(crew, most)
            elif isinstance(first.back, Full):
                splits.halve(first.job, MemoryError(first.back.said))
                first.send(crew, splits.most(first.job))
            else:
                del by_ticket[out.popleft().ticket]
                yield first.back
    finally:
        crew.forget()


def _again(lost: _Out, how: Lost, crew: Crew, retries: int) -> None:
    lost.losses += 1
    if lost.losses > retries:
        job = lost.job
        raise ExtractionError(
            f"batch {job.batch.index} of block {job.block} in round {job.round + 1} was lost {lost.losses} times with "
            f"its worker, last on {how.node}: {how.cause}; nothing finished is lost, the same command goes on"
        )
    lost.send(crew, lost.most)
