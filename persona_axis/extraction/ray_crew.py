"""The workers of a run on Ray: who is there, who has which batch, and what to do about those that are lost.

A worker first finds a place, then loads its model; only then is it given batches, two at a time, so that it need not
wait for the driver. One that dies begins again where Ray restarts it, also on another node; Ray tells when a node is
gone.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from persona_axis.errors import ExtractionError, PersonaAxisError
from persona_axis.extraction.engines import Job, first_line
from persona_axis.extraction.means import Replies
from persona_axis.extraction.ray_worker import Asked, Place, Worker
from persona_axis.extraction.window import Full, Lost

_EACH = 2  # batches a worker has at most: one that it draws and one that waits
_RESTARTS = 5  # of a worker, by Ray
_LOOK = 1.0  # seconds between looks at the clock


class _Member:
    """A worker: `where` and `loaded` are on their way until they are None; `jobs` are tickets by Ray's reference."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.place: Place | None = None
        self.gone = ""
        self.jobs: dict[Any, int] = {}
        self.begin()

    def begin(self) -> None:
        """Ask where it is, and to load."""
        self.where, self.loaded = self.actor.where.remote(), self.actor.load.remote()

    @property
    def ready(self) -> bool:
        return self.loaded is None and not self.gone

    def __str__(self) -> str:
        return str(self.place) if self.place else "a node not known yet"


class RayCrew:
    """A `window.Crew` of Ray actors."""

    def __init__(self, ray: Any, workers: int, needs: dict[str, Any], asked: Asked, patience: float) -> None:
        self.ray, self.needs, self.patience = ray, needs, patience
        how = {**needs, "max_restarts": _RESTARTS, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        made = ray.remote(Worker).options(**how)
        self.members = [_Member(made.remote(asked)) for _ in range(workers)]
        self._waiting: dict[int, tuple[Job, int]] = {}
        self._alone_since = time.monotonic()

    @property
    def room(self) -> int:
        """Two batches for every worker that may still come up."""
        return _EACH * max(1, sum(not member.gone for member in self.members))

    def send(self, ticket: int, job: Job, most: int) -> None:
        """Give a job to whoever has the least to do, or keep it until somebody has room."""
        self._waiting[ticket] = (job, most)
        self._place()

    def next(self) -> tuple[int, Replies | Full | Lost]:
        """The next job that is back. Raises `ExtractionError` where no worker is left or has been there for too long,
        or where one holds another model."""
        while True:
            self._place()
            self._require_somebody()
            coming = [ref for m in self.members if not m.gone for ref in (m.where, m.loaded) if ref is not None]
            refs = [ref for m in self.members for ref in m.jobs] + coming
            done, _ = self.ray.wait(refs, num_returns=1, timeout=_LOOK)
            for ref in done:
                back = self._came(ref)
                if back is not None:
                    return back

    def forget(self) -> None:
        """What is still out will be thrown away when it comes."""
        self._waiting.clear()
        for member in self.members:
            member.jobs.clear()

    def close(self) -> None:
        """End the workers."""
        for member in self.members:
            self.ray.kill(member.actor, no_restart=True)
        self.members = []

    def _place(self) -> None:
        for ticket in sorted(self._waiting):
            free = [m for m in self.members if m.ready and len(m.jobs) < _EACH]
            if not free:
                return
            member = min(free, key=lambda m: len(m.jobs))
            job, most = self._waiting.pop(ticket)
            member.jobs[member.actor.draw.remote(job, most)] = ticket

    def _came(self, ref: Any) -> tuple[int, Replies | Full | Lost] | None:
        """Take what is behind a reference: a step of a worker that is coming up, or a job."""
        member = next(m for m in self.members if ref in m.jobs or ref in (m.where, m.loaded))
        ticket = member.jobs.pop(ref, None)
        errors = self.ray.exceptions
        try:
            got = self.ray.get(ref)
        except errors.RayTaskError as error:
            raise self._failed(member, error) from error
        except errors.RayActorError as error:
            return self._lost(member, ticket, error)
        except errors.RayError as error:  # the worker lives, and what it gave was lost on the way
            if ticket is None:
                return self._lost(member, ticket, error)
            return ticket, Lost(str(member), first_line(error))
        if ref == member.where:
            member.where, member.place = None, got
        elif ref == member.loaded:
            member.loaded = None
        if ticket is None:
            return None
        if isinstance(got, Full):
            return ticket, got
        # Ray's arrays are views of memory that it lends: a copy gives it back at once.
        return ticket, Replies(got.ids, torch.tensor(got.sums), torch.tensor(got.norms))

    def _lost(self, member: _Member, ticket: int | None, error: Exception) -> tuple[int, Lost] | None:
        """A worker died, or cannot be reached. Its other jobs tell so as well, so it begins again once only."""
        where, cause = str(member), first_line(error)
        if ticket is None and isinstance(error, self.ray.exceptions.ActorDiedError):  # Ray restarts it no more
            member.gone = f"{where}: {cause}"
        elif ticket is None or member.ready:
            member.place = None
            member.begin()
            if ticket is None:
                time.sleep(_LOOK / 10)  # it may be out of reach for a while, and say so at once
        return None if ticket is None else (ticket, Lost(where, cause))

    def _failed(self, member: _Member, error: Any) -> ExtractionError:
        cause = error.cause
        said = str(cause) if isinstance(cause, PersonaAxisError) else f"{type(cause).__name__}: {first_line(cause)}"
        return ExtractionError(f"a Ray worker failed ({member}): {said}")

    def _require_somebody(self) -> None:
        if all(member.gone for member in self.members):
            raise ExtractionError(f"no Ray worker is left, the last was on {self.members[-1].gone}")
        if any(member.place for member in self.members):
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > self.patience:
            held = {name: n for name, n in self.ray.cluster_resources().items() if name in ("CPU", "GPU")}
            asked = " and ".join(f"{n:g} {name[4:-1].upper()}s" for name, n in self.needs.items())
            raise ExtractionError(
                f"no Ray worker came up within {self.patience:g} s: each asks for {asked} that are free on one node, "
                f"and the whole cluster has {held or 'none'}"
            )
