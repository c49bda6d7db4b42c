"""What more machines give: rollouts a second with Ray workers and with threads, what travels, what the driver costs.

    python benchmarks/scale.py             # speeds; some minutes on two cores
    python benchmarks/scale.py --wire      # bytes; `unshare --net sh -c "ip link set lo up; ..."` keeps others off
    python benchmarks/scale.py --driver    # what the driver costs for a model of 126 layers x 16384

Everything runs on this machine, so two workers share its cores as two threads do. Each setting is a process of its own
that draws the same batches of Troupe; settings take turns, and every turn is compared with one thread of the same turn.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from persona_axis import ChatModel, load_probes
from persona_axis.extract import Options
from persona_axis.extraction.engines import Job, Local
from persona_axis.extraction.events import silent
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Plan, make_plan
from persona_axis.extraction.ray_engine import over_ray
from persona_axis.extraction.ray_worker import Drawn
from persona_axis.extraction.rollouts import draw
from persona_axis.extraction.store import RunStore
from persona_axis.judges import AcceptAll
from persona_axis.sampling import Sampling

console = Console()
BATCH = 32


class Setting(NamedTuple):
    """How rollouts are drawn: in this process with so many threads, or by Ray workers with so many threads each."""

    name: str
    threads: int
    workers: int


SETTINGS = (
    Setting("one process, 1 thread", 1, 0),
    Setting("one process, 2 threads", 2, 0),
    Setting("1 Ray worker, 1 thread", 1, 1),
    Setting("2 Ray workers, 1 thread each", 1, 2),
)


def plan_for(chat: ChatModel, batches: int) -> Plan:
    """A plan of so many batches of roles."""
    options = Options(prompts=1, questions=16, roles=BATCH * batches // 16, sampling=Sampling(max_new_tokens=48))
    return make_plan(chat, load_probes(), options, BATCH)


def jobs_of(chat: ChatModel, plan: Plan) -> Iterator[Job]:
    part = plan.until((0, *[plan.per_role] * len(plan.roles)))
    for index in range(1, plan.n_blocks):
        for batch in plan.block(index, part).batches:
            yield Job(0, index, batch, chat.encode_batch(plan.messages(item) for item in batch.items))


class Empty:
    """A store without splits."""

    @property
    def records(self) -> Empty:
        return self

    def read_splits(self) -> list[tuple[int, int, int, int]]:
        return []


def measured(setting: Setting, batches: int) -> tuple[float, float]:
    """Rollouts a second, once every worker holds its model and has drawn something, and a rollout's processor seconds.

    The latter count the driver and the workers, and are the same on a busy machine.
    """
    torch.set_num_threads(setting.threads)
    chat = ChatModel.load("troupe")
    work = list(jobs_of(chat, plan_for(chat, batches)))
    with over_ray("local", setting.workers) if setting.workers else nullcontext(Local) as make:
        engine = make(chat, plan_for(chat, batches), Empty())  # type: ignore[arg-type]
        warm = work[: 2 * max(1, setting.workers)]
        for _ in engine.draw(warm):
            pass
        while setting.workers and not all(member.ready for member in engine.crew.members):  # type: ignore[attr-defined]
            list(engine.draw(warm))
        list(engine.draw(warm))
        pids = [os.getpid()]
        if setting.workers:
            pids += [member.place.pid for member in engine.crew.members]  # type: ignore[attr-defined]
        began, used = time.monotonic(), sum(map(processor_seconds, pids))
        rollouts = sum(len(replies.ids) for replies in engine.draw(work))
        seconds, used = time.monotonic() - began, sum(map(processor_seconds, pids)) - used
        return rollouts / seconds, used / rollouts


def processor_seconds(pid: int) -> float:
    """What a process and its threads have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def on_the_wire(batches: int) -> dict[str, float]:
    """Bytes a rollout between two Ray nodes: handed to Ray, and counted at the loopback, less what it carries idle."""
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    chat = ChatModel.load("troupe")
    plan = plan_for(chat, batches)
    work = list(jobs_of(chat, plan))
    node = {"num_gpus": 0, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    try:
        cluster.add_node(num_cpus=1, **node)
        with over_ray(cluster.address, 1) as make:
            engine = make(chat, plan, Empty())  # type: ignore[arg-type]
            list(engine.draw(work[:2]))
            time.sleep(5)
            idle = -carried()
            time.sleep(10)
            idle = (idle + carried()) / 10
            began, at = time.monotonic(), carried()
            found = list(engine.draw(work))
            counted = carried() - at - idle * (time.monotonic() - began)
    finally:
        cluster.shutdown()
    rollouts = sum(len(replies.ids) for replies in found)
    back = sum(size(Drawn(one.ids, one.sums.numpy(), one.norms.numpy())) for one in found)
    there = sum(size((job, BATCH)) for job in work)
    floats = len(plan.layers) * (chat.hidden_size + 1) * 4
    return {"floats": floats, "back": back / rollouts, "there": there / rollouts, "counted": counted / rollouts}


def size(sent: object) -> int:
    """Bytes of what is handed to Ray."""
    return len(pickle.dumps(sent, protocol=5))


def carried() -> int:
    """Bytes that the loopback has sent."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


class Large:
    """What the driver asks of a model, for one of 126 layers x 16384."""

    hidden_size, n_layers = 16384, 126

    def encode_batch(self, chats: Iterable[Any]) -> list[list[int]]:
        return [[1] * 100 for _ in chats]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return ["a reply"] * len(ids)

    def thinks(self, ids: list[list[int]]) -> list[bool]:
        return [False] * len(ids)


class Instant:
    """An engine that costs nothing: the same sums for everybody."""

    name = "instant"

    def __init__(self, rows: int) -> None:
        shape = (rows, Large.n_layers, Large.hidden_size)
        self.sums, self.norms = torch.ones(shape), torch.ones(shape[:2])

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        for job in jobs:
            rows = len(job.prompts)
            yield Replies([[1] * 100] * rows, self.sums[:rows], self.norms[:rows])


def driver(rounds: int) -> dict[str, float]:
    """Seconds a rollout that the driver takes to add up and write the sums of the large model."""
    chat: Any = Large()
    probes = load_probes()
    options = Options(roles=2 * rounds, prompts=5, questions=16)
    groups_and_prompts = 8 + 5
    bytes_per_role = groups_and_prompts * Large.n_layers * Large.hidden_size * 4
    plan = Plan(probes, options, BATCH, ("",), tuple(range(Large.n_layers)), bytes_per_role)
    part = plan.until((0, *[16] * len(plan.roles)))
    rows = max(len(batch.items) for index in range(1, plan.n_blocks) for batch in plan.block(index, part).batches)
    with tempfile.TemporaryDirectory() as directory, RunStore.open(Path(directory, "run")) as store:
        engine = Instant(rows)
        began = time.monotonic()
        draw(chat, plan, part, AcceptAll(), store, engine, silent)
        seconds = time.monotonic() - began
    return {"seconds": seconds / part.rollouts, "rows": rows, "bytes": Large.n_layers * (Large.hidden_size + 1) * 4.0}


def in_a_process(*arguments: str) -> Any:
    """What this program prints in a process of its own."""
    here = {**os.environ, "OMP_NUM_THREADS": "2", "RAY_USAGE_STATS_ENABLED": "0", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=here, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=16, help="batches of each setting and turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--wire", action="store_true", help="only the bytes; as the only user of the loopback")
    parser.add_argument("--driver", action="store_true", help="only what the driver costs; takes 2 GB")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measured(SETTINGS[asked.one], asked.batches)))
        return
    if asked.wire:
        for name, value in on_the_wire(asked.batches).items():
            console.print(f"{name}: {value:,.0f} bytes a rollout")
        return
    if asked.driver:
        console.print({name: float(f"{value:.3g}") for name, value in driver(4).items()})
        return
    speeds: dict[int, list[float]] = {i: [] for i in range(len(SETTINGS))}
    used: dict[int, list[float]] = {i: [] for i in range(len(SETTINGS))}
    for _ in range(asked.turns):
        for i in speeds:
            speed, seconds = in_a_process("--one", str(i), "--batches", str(asked.batches))
            speeds[i].append(speed)
            used[i].append(seconds)
            console.print(f"{SETTINGS[i].name}: {speed:.1f} rollouts/s, {1000 * seconds:.1f} ms of processor each")
    table = Table("drawn by", "rollouts/s (median)", "ratio to 1 thread, turn by turn", "processor ms each (median)")
    for i, setting in enumerate(SETTINGS):
        ratios = ", ".join(f"{mine / base:.2f}" for mine, base in zip(speeds[i], speeds[0], strict=True))
        each = f"{1000 * statistics.median(used[i]):.1f}"
        table.add_row(setting.name, f"{statistics.median(speeds[i]):.1f}", ratios, each)
    console.print(table)


if __name__ == "__main__":
    main()
