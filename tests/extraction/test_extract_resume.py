"""A run that is killed with kill -9, wherever it was, goes on and ends bit for bit as one that was never
stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chat_factory as tiny
import numpy as np
import pytest

from persona_axis import Axis
from persona_axis.errors import ExtractionError
from persona_axis.extract import Interrupted, Options, extract, run_directory
from persona_axis.extraction import disk, events
from persona_axis.sampling import Sampling

OPTIONS = Options(prompts=2, questions=8, sampling=Sampling(max_new_tokens=12), batch_size=10, min_accepted=3)
ROLES = 12
BATCHES = 29  # in two rounds

# argv: the axis file, how to die ("torn": between a batch's text log and its commit), and after how many
# batches.
CHILD = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_extract_resume as t
from persona_axis.extraction import blocks
out, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if how == "torn":
    whole, calls = blocks.write_atomically, []
    def torn(path, content):
        if path.parent.name == "blocks":
            calls.append(path)
            if len(calls) > count:
                with path.with_name(path.name + ".tmp").open("wb") as file:
                    file.write(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        whole(path, content)
    blocks.write_atomically = torn
def listen(event):
    print(type(event).__name__, flush=True)
t.run(out, listen)
"""


def run(out: Path | str, listener: Callable[[events.Event], None] = events.silent) -> Axis:
    return extract(tiny.chat(), tiny.probes(ROLES), OPTIONS, out=out, progress=listener).axis


def child(out: Path, how: str, count: int = 0) -> subprocess.Popen[str]:
    here = Path(__file__).parents[1]
    code = CHILD.format(paths=[str(here / "extraction"), str(here), str(here.parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(out), how, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> tuple[Axis, bytes]:
    """The axis and the text log of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("through") / "axis"
    axis = run(out)
    return axis, (run_directory(out) / "rollouts.jsonl").read_bytes()


def test_killed_three_times_and_never_the_worse_for_it(tmp_path: Path, through: tuple[Axis, bytes]) -> None:
    out = tmp_path / "axis"
    log = run_directory(out) / "rollouts.jsonl"

    first = child(out, "outside")  # killed from outside while it draws a batch
    assert first.stdout is not None
    seen = 0
    for line in first.stdout:
        seen += line.strip() == "Progress"
        if seen == 3:
            first.send_signal(signal.SIGKILL)
            break
    assert first.wait() == -signal.SIGKILL
    first.stdout.close()
    kept = log.stat().st_size

    second = child(out, "torn", 4)  # dies when its fifth batch is in the text log and not yet in its block
    heard, _ = second.communicate()
    assert second.returncode == -signal.SIGKILL
    assert heard.split().count("Progress") == 4
    torn = log.read_bytes()
    assert len(torn) > kept and list((run_directory(out) / "blocks").glob("*.tmp"))

    third = child(out, "goes on")
    heard, _ = third.communicate()
    assert third.returncode == 0
    assert 10 < heard.split().count("Progress") < BATCHES - 6  # what was done was not done again

    whole, lines = through
    axis = Axis.load(out)
    assert log.read_bytes() == lines
    assert axis.arrays.keys() == whole.arrays.keys()
    for name, array in axis.arrays.items():
        assert np.array_equal(array, whole.arrays[name]), name
    different = {key for key in axis.metadata if axis.metadata[key] != whole.metadata[key]}
    assert different <= {"date"}


@pytest.mark.parametrize("when", [1, 5, 20])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    tmp_path: Path, through: tuple[Axis, bytes], when: int
) -> None:
    out, heard = tmp_path / "axis", []

    def stop(event: events.Event) -> None:
        heard.append(event)
        if sum(isinstance(e, events.Progress) for e in heard) == when:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"{run_directory(out)}, and the same command goes on"):
        run(out, stop)
    assert not out.exists()
    heard.clear()
    whole, lines = through
    for name, array in run(out, heard.append).arrays.items():
        assert np.array_equal(array, whole.arrays[name]), name
    assert isinstance(heard[0], events.Planned) and heard[0].done > 0
    assert sum(isinstance(e, events.Progress) for e in heard) == BATCHES - when
    assert (run_directory(out) / "rollouts.jsonl").read_bytes() == lines


def test_a_full_disk_stops_the_run_and_harms_nothing(
    tmp_path: Path, through: tuple[Axis, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "axis"
    replace, left = os.replace, [9]

    def full(source: object, target: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(disk.os, "replace", full)
    with pytest.raises(ExtractionError, match="No space left on device; nothing finished is lost"):
        run(out)
    monkeypatch.undo()
    whole, lines = through
    for name, array in run(out).arrays.items():
        assert np.array_equal(array, whole.arrays[name]), name
    assert (run_directory(out) / "rollouts.jsonl").read_bytes() == lines
