"""One mutant read under watch, and many of them in a process of its own that may hang, grow or die."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from _forms import Form
from _mutants import Mutant
from _mutants_headers import CANARY

from persona_axis.errors import PersonaAxisError

CONSTANT, TIMES = 48 * 2**20, 24
"""A mutant of n bytes may take `CONSTANT` + `TIMES` * n bytes of memory more than there was before."""
SECONDS = 10
"""Of processor time for one mutant, so that a busy machine makes no failures."""
SILENCE = 12
"""How many times that long, by the clock, a child may say nothing."""
ROOM = 2**30
"""Address space beyond what the process has at its start."""
LONGEST = 4000
"""Characters of an error's text beside the file's name."""
VALID, REFUSED, FAILED = "valid", "refused", "failed"
RUNS = frozenset({
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn",
    "shutil.rmtree", "ctypes.dlopen", "webbrowser.open",
})  # fmt: skip


class Outcome(NamedTuple):
    """What became of one mutant."""

    number: int
    kind: str
    result: str
    why: str = ""
    """The error's class or, of a failure, what was wrong."""
    memory: int = 0
    """Bytes at the peak, over what there was before."""
    seconds: float = 0.0
    """Of processor time."""
    size: int = 0


class Late(BaseException):
    """A mutant took too long; no `except Exception` stops it."""


def outcome(form: Form, mutant: Mutant, folder: Path, seen: list[str]) -> Outcome:
    """Read one mutant in `folder`, which is cleared and filled first. `seen` is what the audit hook has noted."""
    path = laid(form, mutant.content, folder)
    before, began = reset_peak(), time.process_time()
    del seen[:]
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        result, why = judged(form, path, folder)
    took, memory = time.process_time() - began, peak() - before
    if noise:
        result, why = FAILED, f"warned: {noise[0].category.__name__}: {str(noise[0].message)[:200]}"
    if seen or os.path.exists(CANARY) or (folder / CANARY).exists():
        result, why = FAILED, f"ran something: {seen[:3] or CANARY}"
    if memory > CONSTANT + TIMES * len(mutant.content):
        result, why = FAILED, f"took {memory / 2**20:.0f} MiB for a file of {len(mutant.content)} bytes ({why})"
    return Outcome(mutant.number, mutant.kind, result, why, memory, took, len(mutant.content))


def judged(form: Form, path: Path, folder: Path) -> tuple[str, str]:
    try:
        form.read(path)
    except PersonaAxisError as error:
        text = str(error)
        about = text.replace(str(path), "").replace(str(folder), "")
        if len(about) == len(text):
            return FAILED, f"does not name the file: {type(error).__name__}: {text[:200]}"
        if len(about) > LONGEST or not text.isprintable():
            return FAILED, f"an error of {len(about)} characters or with control characters: {text[:80]!r}"
        return REFUSED, type(error).__name__
    except AssertionError as error:
        place = traced(error)
        return FAILED, f"not a valid value: {place}"
    except Late:
        return FAILED, f"took more than {SECONDS} s"
    # What no reader should let out is what is looked for.
    except Exception as error:
        return FAILED, f"{type(error).__name__}: {str(error)[:200]} ({traced(error)})"
    return VALID, ""


def traced(error: BaseException) -> str:
    """File and line where it was raised, of this project if it passed through."""
    at, found = error.__traceback__, ""
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if "persona_axis" in name or os.path.dirname(__file__) in name:
            found = f"{os.path.basename(name)}:{at.tb_lineno}"
        at = at.tb_next
    return found


def laid(form: Form, content: bytes, folder: Path) -> Path:
    """The mutant's place, and the valid files beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / form.name
    for name, other in {**form.others, form.name: content}.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(other)
    return path


def reset_peak() -> int:
    """Memory now [bytes]; the peak is counted from here on."""
    gc.collect(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()


def peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def batch(form: Form, made: list[Mutant]) -> list[Outcome]:
    """The outcomes of some mutants, read by a child process. One that ends it is a failure, and a new child goes on."""
    found: list[Outcome] = []
    context = multiprocessing.get_context("fork")
    while len(found) < len(made):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(form, made[len(found) :], theirs), daemon=True)
        process.start()
        theirs.close()
        ended = ""
        while len(found) < len(made):
            if not ours.poll(SILENCE * SECONDS):
                ended = f"hung for more than {SILENCE * SECONDS} s where no signal reaches"
                break
            try:
                found.append(Outcome(*ours.recv()))
            except EOFError:
                process.join()
                ended = f"ended its process with code {process.exitcode}"
                break
        if process.is_alive() and ended:
            process.kill()
        process.join()
        if ended:
            mutant = made[len(found)]
            found.append(Outcome(mutant.number, mutant.kind, FAILED, ended, size=len(mutant.content)))
    return found


def _child(form: Form, made: list[Mutant], answer: Connection) -> None:
    with tempfile.TemporaryDirectory() as root, _quiet(Path(root) / "said") as said:
        os.chdir(root)
        folder = Path(root) / "files"
        seen: list[str] = []
        signal.signal(signal.SIGPROF, _late)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with contextlib.suppress(BaseException):
            laid(form, form.content, folder)
            form.read(folder / form.name)  # what is imported lazily is imported here
        os.ftruncate(said, 0)
        watch(Path(root), seen)
        with open("/proc/self/status") as file:
            size = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        for mutant in made:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            told = outcome(form, mutant, folder, seen)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if os.fstat(said).st_size and told.result != FAILED:
                text = (Path(root) / "said").read_text(errors="replace")[:200]
                told = told._replace(result=FAILED, why=f"printed: {text!r}")
            os.ftruncate(said, 0)
            answer.send(tuple(told))


def watch(root: Path, seen: list[str]) -> None:
    """Note in `seen` whatever runs a program, opens a connection, or writes outside `root`."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in RUNS:
            seen.append(f"{event} {str(args)[:80]}")
        elif event == "open" and isinstance(args[0], str | bytes) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            target = os.path.realpath(os.fsdecode(args[0]))
            if not target.startswith((str(root), "/proc", "/dev/null")):
                seen.append(f"wrote {target[:80]}")

    sys.addaudithook(hook)


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[int]:
    """Standard output and error go to a file, whose descriptor is given."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    yield handle


def _late(*_: object) -> None:
    raise Late
