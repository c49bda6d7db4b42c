"""Jobs sent out to workers that are slow, die and run out of memory: the replies are those of one process, in order."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_axis.cli import app
from persona_axis.errors import ExtractionError
from persona_axis.extraction import engines, ray_engine, ray_worker
from persona_axis.extraction.engines import Job, Splits, even_parts
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Batch, Item
from persona_axis.extraction.window import Full, Lost, in_order


class Held:
    """A store that holds splits, and a plan that has a batch size."""

    batch_size = 8

    def __init__(self) -> None:
        self.splits: list[tuple[int, int, int, int]] = []

    @property
    def records(self) -> Held:
        return self

    def read_splits(self) -> list[tuple[int, int, int, int]]:
        return list(self.splits)

    def write_splits(self, splits: list[tuple[int, int, int, int]]) -> None:
        self.splits = list(splits)


def splits() -> Splits:
    held = Held()
    return Splits(held, held)  # type: ignore[arg-type]


def jobs(count: int, rows: int = 8) -> list[Job]:
    return [
        Job(i // 7, i % 7 // 3, Batch(i % 7 % 3, (Item(i, 0, 0, 0),) * rows, i), [[i, row] for row in range(rows)])
        for i in range(count)
    ]


def replies(job: Job, most: int) -> Replies:
    """What one can see the cut in."""
    parts = even_parts(len(job.prompts), most)
    cut = [[*job.prompts[at], stop - start] for start, stop in parts for at in range(start, stop)]
    return Replies(cut, torch.tensor(cut, dtype=torch.float32), torch.zeros(len(cut)))


def fits(job: Job, room: dict[int, int], most: int) -> bool:
    """Whether the parts of a job are small enough for the memory there is while it is drawn."""
    largest = max(stop - start for start, stop in even_parts(len(job.prompts), most))
    return largest <= room.get(job.batch.seed, 8)


def one_after_the_other(work: list[Job], room: dict[int, int], cut: Splits) -> list[Replies]:
    done = []
    for job in work:
        while not fits(job, room, most := cut.most(job)):
            cut.halve(job, MemoryError("full"))
        done.append(replies(job, most))
    return done


class Chance:
    """A crew that gives back any job that is out, and loses some."""

    def __init__(self, seed: int, room: dict[int, int], losses: int = 0, workers: int = 3) -> None:
        self.chance, self.memory, self.losses, self.room = random.Random(seed), room, losses, 2 * workers
        self.out: dict[int, tuple[Job, int]] = {}
        self.most_out = 0

    def send(self, ticket: int, job: Job, most: int) -> None:
        assert ticket not in self.out
        self.out[ticket] = (job, most)
        self.most_out = max(self.most_out, len(self.out))

    def next(self) -> tuple[int, Replies | Full | Lost]:
        ticket = self.chance.choice(sorted(self.out))
        job, most = self.out.pop(ticket)
        if self.losses and self.chance.random() < 0.5:
            self.losses -= 1
            return ticket, Lost("node 7", "the power went")
        return ticket, replies(job, most) if fits(job, self.memory, most) else Full("out of memory")

    def forget(self) -> None:
        self.out.clear()


@given(
    seed=st.integers(0, 2**32), count=st.integers(0, 25), losses=st.integers(0, 3), workers=st.integers(1, 4),
    room=st.dictionaries(st.integers(0, 24), st.integers(1, 8), max_size=4),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_replies_and_splits_are_those_of_one_process(
    seed: int, count: int, losses: int, workers: int, room: dict[int, int]
) -> None:
    alone, together = splits(), splits()
    wanted = one_after_the_other(jobs(count), room, alone)
    crew = Chance(seed, room, losses, workers)
    found = list(in_order(jobs(count), crew, together))
    assert [one.ids for one in found] == [one.ids for one in wanted]
    assert together.records.read_splits() == alone.records.read_splits()
    assert crew.most_out <= 2 * workers
    counted = Counter((ids[0], ids[1]) for one in found for ids in one.ids)
    assert set(counted.values()) <= {1} and len(counted) == 8 * count


def test_jobs_are_taken_as_there_is_room() -> None:
    taken = []

    def counted() -> Iterator[Job]:
        for job in jobs(20):
            taken.append(job)
            yield job

    drawing = in_order(counted(), Chance(0, {}, workers=2), splits())
    next(drawing)
    assert len(taken) == 4
    next(drawing)
    assert len(taken) == 5


def test_who_stops_early_leaves_nothing_out() -> None:
    crew = Chance(0, {})
    drawing = in_order(jobs(20), crew, splits())
    next(drawing)
    assert crew.out
    drawing.close()  # type: ignore[attr-defined]
    assert not crew.out


def test_a_job_that_takes_its_workers_down_is_given_up() -> None:
    class Deadly(Chance):
        def next(self) -> tuple[int, Replies | Full | Lost]:
            ticket, back = super().next()
            return ticket, Lost("node 7", "the power went") if ticket == 2 else back

    drawing = in_order(jobs(9), Deadly(0, {}), splits(), retries=3)
    with pytest.raises(ExtractionError, match=r"batch 2 of block 0 in round 1 was lost 4 times .* 7: the power went"):
        list(drawing)


def test_not_even_one_rollout_fits() -> None:
    with pytest.raises(ExtractionError, match="not even one rollout fits into memory: out of memory"):
        list(in_order(jobs(3), Chance(0, {1: 0}), splits()))


def test_local_draws_by_the_same_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    room = {2: 3, 5: 1}

    def drawn(_chat: object, job: Job, most: int, *_how: object) -> Replies:
        if not fits(job, room, most):
            raise MemoryError
        return replies(job, most)

    class Planned(Held):
        class options:
            sampling = None

        layers = ()

    monkeypatch.setattr(engines, "drawn", drawn)
    held = Planned()
    found = list(engines.Local(None, held, held).draw(jobs(9)))  # type: ignore[arg-type]
    alone = splits()
    assert [one.ids for one in found] == [one.ids for one in one_after_the_other(jobs(9), room, alone)]
    assert held.splits == alone.records.read_splits() and len(held.splits) == 3


class TestAsking:
    def test_a_worker_must_hold_the_drivers_model(self) -> None:
        here = {"weights_sha256": "a", "threads": 1, "torch": "2"}
        ray_worker.require_alike(here, dict(here))
        with pytest.raises(ExtractionError, match=r"not the driver's: weights_sha256 is b there, a here; threads is 4"):
            ray_worker.require_alike(here, {**here, "weights_sha256": "b", "threads": 4})

    @pytest.mark.parametrize("wrong", [{"workers": 0}, {"gpus": -1}])
    def test_wrong_numbers(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ExtractionError, match=next(iter(wrong))), ray_engine.over_ray(**wrong):  # type: ignore[arg-type]
            pass

    def test_without_ray(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        found = CliRunner().invoke(app, ["extract", "--ray", "local", "--out", str(tmp_path / "a")])
        assert str(found.exception) == 'more machines are reached through Ray: pip install "persona-axis[ray]"'
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("alone", [["--workers", "2"], ["--worker-gpus", "0"]])
    def test_options_that_go_with_ray(self, alone: list[str], tmp_path: Path) -> None:
        found = CliRunner().invoke(app, ["extract", *alone, "--out", str(tmp_path / "a")])
        assert found.exit_code == 2 and "go with --ray ADDRESS" in found.output

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("ray://head:10001", "give the command on a machine of the cluster"),
            ("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9': "),
            ("127.0.0.1:99999", "no Ray cluster at '127.0.0.1:99999': "),
            ("head", "'head' is no address of a Ray cluster: expected local, auto or HOST:PORT"),
        ],
    )
    def test_addresses_where_nobody_is(self, address: str, said: str) -> None:
        class Ray:
            @staticmethod
            def is_initialized() -> bool:
                return False

        with pytest.raises(ExtractionError, match=said):
            ray_engine._connect(Ray(), address, 1, {"num_cpus": 1, "num_gpus": 0}, 0)
