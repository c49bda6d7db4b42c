"""A real Ray: the same bytes as in one process, with workers, nodes and the driver killed on the way.

What needs Ray's processes takes minutes where few cores are: `slow`. A worker by itself is a plain object.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest

from persona_axis import Axis, ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extract import Options, extract, run_directory
from persona_axis.extraction import events, ray_worker
from persona_axis.extraction.engines import Job, MakesEngine, drawn
from persona_axis.extraction.plan import make_plan
from persona_axis.extraction.ray_engine import over_ray
from persona_axis.extraction.ray_worker import Asked, Worker, alike
from persona_axis.extraction.window import Full
from persona_axis.sampling import Sampling

OPTIONS = Options(
    prompts=2, questions=8, sampling=Sampling(max_new_tokens=12), batch_size=10, min_accepted=3, precision=1
)
ROLES = 12
_STORE = 100 * 2**20

# argv: the model, the axis file, the cluster's address.
DRIVER = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_extract_ray as t
with t.over_ray(sys.argv[3], 2) as engine:
    t.run(t.ChatModel.load(sys.argv[1]), sys.argv[2], engine, lambda event: print(type(event).__name__, flush=True))
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "one")


def saved(path: Path, **config: Any) -> Path:
    tiny.llama(**config).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def run(chat: ChatModel, out: Path | str, engine: MakesEngine | None, listener: Any = events.silent) -> Axis:
    using = {} if engine is None else {"engine": engine}
    return extract(chat, tiny.probes(ROLES), OPTIONS, out=out, progress=listener, **using).axis  # type: ignore[arg-type]


class TestWorker:
    """A worker's own doings, in this process."""

    def asked(self, path: Path, chat: ChatModel) -> Asked:
        return Asked({"name_or_path_or_model": str(path)}, alike(chat), 1, OPTIONS.sampling, (0, 2))

    def job(self, chat: ChatModel) -> Job:
        plan = make_plan(chat, tiny.probes(ROLES), OPTIONS, 10)
        batch = plan.block(0, plan.until(plan.ceilings)).batches[0]
        return Job(0, 0, batch, chat.encode_batch(plan.messages(item) for item in batch.items))

    def test_draws_what_the_driver_would(self, model: Path) -> None:
        chat = ChatModel.load(model)
        worker, job = Worker(self.asked(model, chat)), self.job(chat)
        for most in (10, 3):
            found, wanted = worker.draw(job, most), drawn(chat, job, most, OPTIONS.sampling, (0, 2))
            assert not isinstance(found, Full) and found.ids == wanted.ids
            assert np.array_equal(found.sums, wanted.sums.numpy()) and np.array_equal(found.norms, wanted.norms.numpy())

    def test_refuses_other_weights(self, model: Path, tmp_path: Path) -> None:
        other = saved(tmp_path / "other", seed=1)
        worker = Worker(self.asked(other, ChatModel.load(model)))
        with pytest.raises(ExtractionError, match="its model is not the driver's: weights_sha256 is"):
            worker.draw(self.job(ChatModel.load(model)), 10)

    def test_tells_a_want_of_memory_from_other_errors(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = ChatModel.load(model)
        worker, job = Worker(self.asked(model, chat)), self.job(chat)
        monkeypatch.setattr(ray_worker, "drawn", raising(RuntimeError("CUDA out of memory. Tried 2 GiB\nmore")))
        assert worker.draw(job, 10) == Full("CUDA out of memory. Tried 2 GiB")
        monkeypatch.setattr(ray_worker, "drawn", raising(RuntimeError("shapes differ")))
        with pytest.raises(RuntimeError, match="shapes differ"):
            worker.draw(job, 10)


def raising(error: Exception) -> Callable[..., None]:
    def raises(*_: object) -> None:
        raise error

    return raises


class Two:
    """A head that draws nothing, and two nodes for one worker each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        health = {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 5}
        quick = {f"health_check_{name}": value for name, value in health.items()}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "num_gpus": 0, "object_store_memory": _STORE, "_system_config": quick},
        )
        self.nodes: dict[str, Any] = {}
        self.both()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def both(self) -> None:
        """Start what is missing of the two."""
        for name in {"a", "b"} - self.nodes.keys():
            self.nodes[name] = self.cluster.add_node(
                num_cpus=1, num_gpus=0, object_store_memory=_STORE, node_name=name, wait=True
            )

    def kill(self, node_id: str) -> None:
        """Kill the processes of a node, as when its power goes."""
        import ray

        (name,) = (node["NodeName"] for node in ray.nodes() if node["NodeID"] == node_id)
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    pytest.importorskip("ray")
    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    made = Two()
    yield made
    made.cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


class Crew:
    """What `extract` takes as its engine, and a look at its workers."""

    def __init__(self, make: MakesEngine) -> None:
        self.make, self.name = make, make.name
        self.seen: set[ray_worker.Place] = set()

    def __call__(self, *what: Any) -> Any:
        self.engine: Any = self.make(*what)
        return self.engine

    def places(self) -> list[ray_worker.Place]:
        found = [m.place for m in self.engine.crew.members if m.place]
        self.seen.update(found)
        return found


@contextmanager
def crew(two: Two, workers: int, **how: Any) -> Iterator[Crew]:
    two.both()
    with over_ray(two.address, workers, **how) as make:
        yield Crew(make)


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "axis"
    run(ChatModel.load(model), out, None)
    return out


def require_same(out: Path, alone: Path) -> None:
    found, wanted = Axis.load(out), Axis.load(alone)
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        assert np.array_equal(found.arrays[name], array), name
    assert {key for key in wanted.metadata if found.metadata[key] != wanted.metadata[key]} <= {"date"}
    log = [(run_directory(path) / "rollouts.jsonl").read_bytes() for path in (out, alone)]
    assert log[0] == log[1]


def after(batches: int, act: Callable[[], None]) -> Callable[[events.Event], None]:
    """A listener that acts once, when so many batches are done."""
    done = iter(range(1, 10**6))

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Progress) and next(done) == batches:
            act()

    return listen


@pytest.mark.slow
class TestRay:
    def test_two_workers_give_the_same_bytes(self, two: Two, model: Path, alone: Path, tmp_path: Path) -> None:
        with crew(two, 2) as engine:
            run(ChatModel.load(model), tmp_path / "axis", engine, after(20, engine.places))
        assert len({place.node for place in engine.seen}) == 2
        require_same(tmp_path / "axis", alone)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_killed_worker(self, two: Two, model: Path, alone: Path, tmp_path: Path, workers: int) -> None:
        with crew(two, workers) as engine:
            kill = after(4, lambda: os.kill(engine.places()[0].pid, signal.SIGKILL))
            run(ChatModel.load(model), tmp_path / "axis", engine, kill)
            if workers == 1:  # nobody else could have drawn the rest
                engine.places()
                assert len(engine.seen) == 2
        require_same(tmp_path / "axis", alone)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_killed_node(self, two: Two, model: Path, alone: Path, tmp_path: Path, workers: int) -> None:
        with crew(two, workers) as engine:
            run(ChatModel.load(model), tmp_path / "axis", engine, after(4, lambda: two.kill(engine.places()[0].node)))
            assert len(two.nodes) == 1
            if workers == 1:
                engine.places()
                assert len({place.node for place in engine.seen}) == 2
        require_same(tmp_path / "axis", alone)

    def test_a_killed_driver(self, two: Two, model: Path, alone: Path, tmp_path: Path) -> None:
        two.both()
        out, here = tmp_path / "axis", Path(__file__).parents[1]
        command = [sys.executable, "-c", DRIVER.format(paths=[str(here / "extraction"), str(here), str(here.parent)])]
        driver = subprocess.Popen(
            [*command, str(model), str(out), two.address], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert driver.stdout is not None
        seen = 0
        for line in driver.stdout:
            seen += line.strip() == "Progress"
            if seen == 5:
                driver.send_signal(signal.SIGKILL)
                break
        assert driver.wait() == -signal.SIGKILL
        driver.stdout.close()
        assert not out.exists()
        heard: list[events.Event] = []
        with crew(two, 1) as engine:
            run(ChatModel.load(model), out, engine, heard.append)
        assert isinstance(heard[0], events.Planned) and heard[0].done >= 5 * 7  # at most 10 rollouts are in a batch
        require_same(out, alone)

    def test_nobody_comes(self, two: Two, model: Path, tmp_path: Path) -> None:
        began = time.monotonic()
        with (
            crew(two, 1, gpus=1, patience=3) as engine,
            pytest.raises(ExtractionError, match=r"no Ray worker came up within 3 s: each asks for 1 CPUs and 1 GPUs"),
        ):
            run(ChatModel.load(model), tmp_path / "axis", engine)
        assert time.monotonic() - began < 60

    def test_a_worker_with_other_weights(self, two: Two, model: Path, tmp_path: Path) -> None:
        other = saved(tmp_path / "other", seed=1)
        with (
            crew(two, 1, load={"name_or_path_or_model": str(other)}) as engine,
            pytest.raises(ExtractionError, match=r"a Ray worker failed \(.*node .*\): its model is not the driver's"),
        ):
            run(ChatModel.load(model), tmp_path / "axis", engine)

    def test_the_command_line_starts_ray_and_ends_it(self, tmp_path: Path) -> None:
        pytest.importorskip("ray")
        plan = "--roles 3 --prompts 2 --questions 8 --min-accepted 4 --max-new-tokens 12 --judge all --yes"
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
        for name, more in (("alone", ""), ("ray", "--ray local --workers 2")):
            command = [sys.executable, "-m", "persona_axis.cli", "extract", "--out", name, *plan.split(), *more.split()]
            subprocess.run(command, check=True, cwd=tmp_path, env=quiet, timeout=600)
        require_same(tmp_path / "ray", tmp_path / "alone")
