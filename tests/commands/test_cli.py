"""The command line: what it prints, how it ends, and how little it imports."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import chat_factory
import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from command_line import Command, Ended, command_in
from rich.console import Console

from persona_axis import Axis, Cap, ChatModel, ModelError, __version__
from persona_axis.cli import app
from persona_axis.display.progress import Display, clock
from persona_axis.extraction.events import Calibrating, Event, Note, Planned, Progress, Rounded, Saved

ROOT = Path(__file__).resolve().parents[2]
LAYERS, HIDDEN = 4, 32


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    return command_in(tmp_path, app, capsys, monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny chat"
    chat_factory.llama(layers=LAYERS, hidden=HIDDEN).save_pretrained(path)
    chat_factory.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, made = tmp_path_factory.mktemp("probes"), chat_factory.probes(roles=6, questions=8)
    records: dict[str, list[dict[str, object]]] = {
        "roles": [{"name": r.name, "description": r.description, "prompts": r.prompts} for r in made.roles],
        "defaults": [{"prompt": text} for text in made.defaults],
        "questions": [{"text": q.text, "category": q.category} for q in made.questions],
    }
    for name, lines in records.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


SMALL = "--prompts 2 --questions 8 --max-new-tokens 6 --min-accepted 3 --calibration 20 --batch-size 32".split()


@pytest.fixture(scope="module")
def extracted(model: Path, probes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """An axis file of the tiny model, made by the command, and what the command said."""
    out = tmp_path_factory.mktemp("axes") / "tiny.safetensors"
    arguments = ["extract", str(model), "--out", str(out), "--probes", str(probes), "--roles", "6", *SMALL]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return out, Ended(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def axis_file(extracted: tuple[Path, Ended]) -> Path:
    return extracted[0]


@pytest.fixture
def cap_file(axis_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "cap.safetensors"
    Axis.load(axis_file).cap(layers=[1, 2], floor="default_tokens:p50").save(path)
    return path


def flat(text: str) -> str:
    return " ".join(text.split())


def test_help_and_version(command: Command) -> None:
    assert command("--version").out == f"persona-axis, version {__version__}\n"
    for arguments in (["--help"], ["-h"]):
        ended = command(*arguments)
        assert ended.code == 0 and all(name in ended.out for name in ("extract", "show", "cap", "generate"))
    for name in ("extract", "show", "cap", "generate"):
        ended = command(name, "--help")
        assert ended.code == 0 and "--debug" in ended.out


def test_extract_says_its_plan_first_and_its_figures_last(extracted: tuple[Path, Ended]) -> None:
    path, ended = extracted
    assert ended.code == 0 and path.is_file()
    said, figures = flat(ended.err), flat(ended.out)
    assert "6 roles x 2 prompts x 8 questions + 160 of the default = 256 rollouts" in said
    assert "at most 1,536 tokens" in said and "time:" in said and "rollouts/s" in said and f"saved {path}" in said
    for word in ("roles kept", "PC1)| share", "70/80/90%", "split-half", "nearest", "farthest", "default sits"):
        assert word in figures, word
    axis = Axis.load(path)
    assert axis.metadata["seed"] == 0 and axis.metadata["judge"] == "all"
    assert axis.metadata["engine"] == "transformers" and "engine" not in figures
    assert axis.metadata["sampling"]["max_new_tokens"] == 6


PLANNED = Planned(9, 2, 3, 100, 40, 5000, 7200.0, 8, 0, "a.run", 0.99, 60, 3600.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def listen(events: list[Event], monkeypatch: pytest.MonkeyPatch, *, ask: bool, answer: str, tty: bool = True) -> str:
    monkeypatch.setattr("sys.stdin", Terminal(answer) if tty else io.StringIO(answer))
    stream = io.StringIO()
    with Display(Console(file=stream, force_terminal=tty, width=120), ask=ask, preset="x") as display:
        for event in events:
            display(event)
    return stream.getvalue()


def test_a_long_run_is_asked_about_where_somebody_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    said = listen([PLANNED], monkeypatch, ask=True, answer="y\n")
    assert "at most 1:00:00 for the first round, 2:00:00 for all;" in said
    begun = listen([replace(PLANNED, done=3)], monkeypatch, ask=False, answer="")
    assert "at most 1:00:00 for this round, 2:00:00 for all;" in begun
    unknown = replace(PLANNED, seconds=None, round_seconds=None)
    assert "time: not known" in listen([unknown], monkeypatch, ask=True, answer="y\n")
    whole = replace(PLANNED, seconds=60.0, round_seconds=60.0)
    assert "at most 1:00;" in listen([whole], monkeypatch, ask=True, answer="")
    with pytest.raises(click.exceptions.Exit) as stopped:
        listen([PLANNED], monkeypatch, ask=True, answer="n\n")
    assert stopped.value.exit_code == 1
    listen([PLANNED], monkeypatch, ask=False, answer="n\n")
    listen([PLANNED], monkeypatch, ask=True, answer="n\n", tty=False)
    listen([replace(PLANNED, round_seconds=60.0)], monkeypatch, ask=True, answer="n\n")


def test_progress_lives_in_a_terminal_and_prints_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = [
        replace(PLANNED, seconds=1.0, round_seconds=1.0, done=5), Note("[b]said[/b]"), Progress(50, 100, 1, 12.3, 61.2),
        Progress(100, 100, 2, 12.3, 0.0), Rounded(2, 100, 0.9951, 0.9912, 0), Calibrating(20, 20),
        Saved("a.safetensors"),
    ]  # fmt: skip
    for tty in (True, False):
        said = listen(events, monkeypatch, ask=True, answer="", tty=tty)
        assert "note: [b]said[/b]" in said and "saved a.safetensors" in said
        assert tty or "100/100 rollouts, round 2, 12.3 rollouts/s, 0:00 left" in said
        assert "round 2: 100 rollouts, expected cosine 0.9951, at least 0.9912: done" in said
        assert "5 rollouts are there already" in said and "20/20 rollouts read" in said
        assert ("\x1b[" in said) == tty


def test_clock() -> None:
    assert [clock(s) for s in (-1, 0, 0.2, 59, 60, 3599.5, 3661)] == [
        "0:00", "0:00", "0:01", "0:59", "1:00", "1:00:00", "1:01:01",
    ]  # fmt: skip


def test_extract_says_once_that_the_system_prompt_is_folded(command: Command, probes: Path) -> None:
    chat_factory.llama(layers=2).save_pretrained("folds")
    chat_factory.tokenizer(chat_factory.NO_SYSTEM).save_pretrained("folds")
    ended = command("extract", "./folds", "--probes", probes, "--roles", 4, *SMALL)
    assert ended.code == 0 and flat(ended.err).count("no system role") == 1


def test_extract_says_which_preset(extracted: tuple[Path, Ended]) -> None:
    assert "plan (a modest one, changed" in extracted[1].err


def test_extract_again_goes_on_and_changed_settings_are_refused(
    command: Command, model: Path, probes: Path, tmp_path: Path
) -> None:
    arguments = ["extract", model, "--out", "a.safetensors", "--probes", probes, "--roles", 4, *SMALL]
    assert command(*arguments).code == 0
    first = Axis.load("a.safetensors").arrays["direction"]
    again = command(*arguments)
    assert again.code == 0 and "going on: 224 rollouts are there already" in flat(again.err)
    assert np.array_equal(Axis.load("a.safetensors").arrays["direction"], first)
    other = command(*arguments, "--seed", 1)
    assert other.code == 1 and "seed was 0, is now 1" in other.err and other.err.count("\n") == 1
    other = command(*arguments, "--engine", "continuous")
    assert other.code == 1 and 'engine was "transformers", is now "continuous"' in other.err


def test_extract_with_the_continuous_engine(command: Command, model: Path, probes: Path) -> None:
    ended = command("extract", model, "--out", "a", "--probes", probes, "--roles", 4, "--engine", "continuous", *SMALL)
    assert ended.code == 0 and len(Axis.load("a").layers) == LAYERS
    assert Axis.load("a").metadata["engine"] == "continuous"
    assert "engine continuous" in flat(command("show", "a").out)


def test_extract_names_its_file_after_the_model(command: Command, model: Path, probes: Path) -> None:
    ended = command("extract", model, "--probes", probes, "--roles", 4, "--layers", "1,3", *SMALL)
    assert ended.code == 0
    assert Axis.load("tiny-chat-axis.safetensors").layers == (1, 3)


def test_show_prints_the_same_account(command: Command, extracted: tuple[Path, Ended]) -> None:
    path, ended = extracted
    assert flat(command("show", path).out) == flat(ended.out)


def test_show_plots(command: Command, axis_file: Path, tmp_path: Path) -> None:
    names = {"roles", "variance", "ranking", "layers", "distributions"}
    ended = command("show", axis_file, "--plot", "pictures")
    assert ended.code == 0 and ended.out.count("saved pictures") == len(names)
    saved = {path.stem: path.read_bytes() for path in Path("pictures").glob("*.png")}
    assert set(saved) == names and all(data.startswith(b"\x89PNG") for data in saved.values())
    own = tmp_path / "mine.safetensors"
    own.write_bytes(axis_file.read_bytes())
    for arguments in (["show", own, "--plot"], ["show", "--plot", own]):
        assert command(*arguments, "--layer", 2).code == 0
        assert {path.stem for path in Path("mine-plots").iterdir()} == names


def test_show_of_directions_only(command: Command) -> None:
    direction = np.eye(HIDDEN, dtype=np.float32)[:2]
    Axis.from_direction(direction, layers=[1, 2], metadata={"num_layers": 4}).save("bare.safetensors")
    ended = command("show", "bare.safetensors")
    assert ended.code == 0 and "No role vectors in this imported axis. Layers: 1, 2." in ended.out
    ended = command("show", "bare.safetensors", "--plot", "x")
    assert ended.code == 1 and "holds no figures to draw" in ended.err


@pytest.mark.parametrize("width", ["20", "45", "80", "200"])
def test_any_width_loses_nothing(
    command: Command, axis_file: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    shown = command("show", axis_file).out
    assert all(len(line) <= int(width) for line in shown.splitlines()) and "…" not in shown
    halves = Axis.load(axis_file).split_half
    letters = "".join(shown.split())
    assert all(f"{cosine:.3f}[{low:.3f},{high:.3f}]" in letters for cosine, low, high in zip(*halves, strict=True))


def test_names_are_not_markup(command: Command, axis_file: Path) -> None:
    axis = Axis.load(axis_file)
    names = ["[red]role[/red]", *axis.role_names[1:]]
    metadata = {**axis.metadata, "role_names": names, "accepted": dict.fromkeys(names, 4), "model": "[b]m[/b]"}
    Axis(axis.arrays, metadata).save("marked.safetensors")
    shown = command("show", "marked.safetensors").out
    assert "[red]role[/red]" in shown and "[b]m[/b]" in shown


def test_cap_file(command: Command, axis_file: Path) -> None:
    arguments = ["--layers", "1-2", "--floor", "default_tokens:p25", "--ceiling", "1000", "--out", "c.safetensors"]
    ended = command("cap", axis_file, *arguments)
    assert ended.code == 0 and "saved c.safetensors" in ended.out
    cap, axis = Cap.load("c.safetensors"), Axis.load(axis_file)
    assert cap.layers == (1, 2) and cap.floor is not None and cap.ceiling is not None
    assert np.allclose(cap.floor.numpy(), axis.quantile("default_tokens", 25)[1:3])
    assert cap.ceiling.tolist() == [1000, 1000]


def test_a_cap_is_not_written_over_its_axis(command: Command, axis_file: Path) -> None:
    before = axis_file.read_bytes()
    ended = command("cap", axis_file, "--floor", 1, "--out", axis_file)
    assert ended.code == 2 and "the cap would be written over AXIS" in " ".join(ended.err.split())
    assert axis_file.read_bytes() == before


def test_generate_side_by_side(
    command: Command, model: Path, cap_file: Path, axis_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    talk = ["generate", model, "--prompt", "how should i sleep ?", "--prompt", "why ?", "--max-new-tokens", 8]
    ended = command(*talk, "--cap", cap_file, "--system", "be ghost .")
    assert ended.code == 0
    assert ended.out.count("user: ") == 2 and "without the cap" in ended.out and "with the cap" in ended.out
    cap = Cap.load(cap_file)
    assert cap.floor is not None
    for layer, floor in zip(cap.layers, cap.floor.tolist(), strict=True):
        found = [float(number) for number in re.findall(rf"layer {layer}: (-?\d+\.\d+)", ended.out)]
        assert len(found) == 4 and min(found) < floor
        assert all(capped >= floor - 0.01 for capped in found[1::2])  # each line: without, with
    alone = command(*talk, "--axis", axis_file)
    assert alone.code == 0 and "projection at layer" in flat(alone.out)


def test_generate_without_anything(command: Command, model: Path) -> None:
    one = command("generate", model, "--prompt", "hello", "--seed", 3, "--max-new-tokens", 5)
    assert one.code == 0 and "projection" not in one.out
    assert command("generate", model, "--prompt", "hello", "--seed", 3, "--max-new-tokens", 5).out == one.out


def test_a_narrow_terminal_stacks_replies(
    command: Command, model: Path, cap_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    ended = command("generate", model, "--prompt", "hello", "--cap", cap_file, "--max-new-tokens", 5)
    assert "without the cap\n" in ended.out and "with the cap\n" in ended.out


USAGE = {
    "no command": ["nope"],
    "unknown option": ["show", "x", "--nope"],
    "nothing to show": ["show"],
    "no prompt": ["generate"],
    "layers backwards": ["cap", "x", "--floor", "1", "--layers", "3-2", "--out", "y"],
    "layers no number": ["cap", "x", "--floor", "1", "--layers", "a", "--out", "y"],
    "layers negative": ["cap", "x", "--floor", "1", "--layers", "-1", "--out", "y"],
    "layers twice": ["extract", "--layers", "1,1"],
    "bound": ["cap", "x", "--floor", "high", "--out", "y"],
    "no bound": ["cap", "x", "--out", "y"],
    "no out": ["cap", "x", "--floor", "1"],
    "one role": ["extract", "--roles", "1"],
    "no questions": ["extract", "--questions", "0"],
    "judge": ["extract", "--judge", "nobody"],
    "scores": ["extract", "--accept", "4"],
    "temperature": ["extract", "--temperature", "-1"],
    "top_p": ["generate", "--prompt", "x", "--top-p", "0"],
    "dtype": ["extract", "--dtype", "int8"],
    "engine": ["extract", "--engine", "steam"],
    "engine option": ["extract", "--engine", "vllm", "--engine-option", "tensor_parallel_size"],
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_end_with_2(command: Command, case: str) -> None:
    ended = command(*USAGE[case])
    assert ended.code == 2 and not ended.out and "Error: " in ended.err and "Traceback" not in ended.err


def failures(model: Path, axis: Path, probes: Path) -> dict[str, tuple[list[object], str]]:
    return {
        "no file": (["show", "nowhere"], "nowhere: cannot be read"),
        "a directory": (["show", "."], "cannot be read"),
        "no axis": (["show", model / "model.safetensors"], "format: expected 'persona-axis/1'"),
        "truncated": (["show", "cut.safetensors"], "truncated"),
        "pickle": (["show", "axis.pt"], "pickle"),
        "layer to show": (["show", axis, "--layer", "9"], "layer 9 is not in this axis"),
        "plots onto a file": (["show", axis, "--plot", "axis.pt"], "axis.pt: pictures could not be saved"),
        "percentile": (["cap", axis, "--floor", "default:p101", "--out", "y"], "percentile 101 lies outside 0-100"),
        "distribution": (["cap", axis, "--floor", "some:p1", "--out", "y"], "no distribution 'some'"),
        "layer to cap": (["cap", axis, "--layers", "9", "--floor", "1", "--out", "y"], "[9]"),
        "floor above ceiling": (["cap", axis, "--floor", "2", "--ceiling", "1", "--out", "y"], "above"),
        "out nowhere": (["cap", axis, "--floor", "2", "--out", "no/y"], "no/y: could not be written"),
        "no model": (["generate", "./nowhere", "--prompt", "x"], "no such model directory: './nowhere'"),
        "not a model": (["extract", ".", "--yes"], "holds no config.json"),
        "no probes": (["extract", model, "--probes", "nowhere"], "no such directory of probes: nowhere"),
        "more roles": (["extract", model, "--probes", probes, "--roles", "7", *SMALL], "7 roles asked for"),
        "layer to read": (["extract", model, "--probes", probes, "--roles", "4", "--layers", "9", *SMALL], "layers"),
        "no vLLM": (["extract", "./nowhere", "--engine", "vllm"], "pip install vllm"),
        "an option of no engine": (["extract", "--engine-option", "a=1"], "the engine transformers takes no arguments"),
        "extract nowhere": (["extract", model, "--out", "no/x", "--probes", probes], "no directory no"),
        "cap is an axis": (["generate", model, "--prompt", "x", "--cap", axis], "format: expected"),
    }


@pytest.mark.parametrize("case", failures(Path(), Path(), Path()))
def test_failures_end_with_1_and_one_line(
    command: Command, model: Path, axis_file: Path, probes: Path, case: str
) -> None:
    Path("cut.safetensors").write_bytes(axis_file.read_bytes()[:-100])
    Path("axis.pt").write_bytes(b"\x80\x04\x95\x00")
    arguments, reason = failures(model, axis_file, probes)[case]
    ended = command(*arguments)
    assert ended.code == 1 and reason in ended.err, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in ended.err
    if arguments[0] != "extract":  # which says its plan before it fails
        assert ended.err.count("\n") == 1
    assert not ended.out or case == "plots onto a file"


def test_debug_shows_the_traceback(command: Command) -> None:
    for arguments in (["--debug", "show", "nowhere"], ["show", "nowhere", "--debug"]):
        with pytest.raises(Exception, match="nowhere: cannot be read"):
            command(*arguments)


def test_a_failure_nobody_foresaw_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*_args: object) -> None:
        raise ZeroDivisionError("over\nnothing")

    monkeypatch.setattr(Axis, "load", burst)
    ended = command("show", "x")
    assert ended.code == 1 and ended.err == "error: ZeroDivisionError: over nothing (--debug shows the traceback)\n"


def test_another_models_cap_is_refused(command: Command, cap_file: Path, axis_file: Path) -> None:
    for name, layers, hidden in (("shallow", 3, HIDDEN), ("wide", LAYERS, 2 * HIDDEN)):
        chat_factory.llama(layers=layers, hidden=hidden).save_pretrained(name)
        chat_factory.tokenizer().save_pretrained(name)
        for flag, file in (("--cap", cap_file), ("--axis", axis_file)):
            ended = command("generate", f"./{name}", "--prompt", "hello", flag, file)
            assert ended.code == 1 and "made for another model" in ended.err and not ended.out


def test_errors_name_the_flags_beside_pythons_names(command: Command, model: Path, cap_file: Path) -> None:
    """Where an error tells what to pass, whoever reads it here has no `layers=`."""
    wrong = command("generate", model, "--prompt", "a", "--stack", "model.blocks").err
    assert "'model.blocks'" in wrong and "it has model.layers (4 x " in wrong and "=" not in wrong
    cannot_tell, deaf = chat_factory.llama(layers=LAYERS), chat_factory.llama(layers=LAYERS)
    cannot_tell.config.num_hidden_layers += 1
    cannot_tell.model.extra = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    deaf.model.layers[1].forward = lambda hidden, **_: torch.zeros_like(hidden)
    for loaded in (cannot_tell, deaf):
        with pytest.raises(ModelError, match=r"--stack .*in Python layers="):
            ChatModel.load(loaded, tokenizer=chat_factory.tokenizer())
    chat_factory.llama(layers=LAYERS, hidden=HIDDEN, seed=1).save_pretrained("other")
    chat_factory.tokenizer().save_pretrained("other")
    other = command("generate", "other", "--prompt", "a", "--cap", cap_file)
    assert "allow=(...), --allow on the command line" in other.err


def test_a_deliberate_exception_is_allowed(command: Command, cap_file: Path) -> None:
    chat_factory.llama(layers=LAYERS, hidden=HIDDEN, seed=5).save_pretrained("tuned")
    chat_factory.tokenizer().save_pretrained("tuned")
    talk = ["generate", "./tuned", "--prompt", "hello", "--cap", cap_file, "--max-new-tokens", 5]
    assert command(*talk).code == 1
    assert command(*talk, "--allow", "weights").code == 0


def python(*code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


def modules_after(arguments: list[str]) -> set[str]:
    code = (
        "import sys\nfrom persona_axis.cli import app\nfrom persona_axis.commands.terminal import run\n"
        f"code = run(app, {arguments!r}, name='persona-axis')\n"
        "print('\\nMODULES', code, *{name.split('.')[0] for name in sys.modules})"
    )
    done = python("-c", code)
    assert "MODULES 0 " in done.stdout, done.stderr
    return set(done.stdout.split("MODULES 0 ")[1].split())


HEAVY = {"torch", "transformers", "tokenizers", "sklearn", "scipy", "matplotlib", "accelerate"}


def test_help_imports_next_to_nothing() -> None:
    assert not modules_after(["extract", "--help"]) & (HEAVY | {"numpy", "rich", "safetensors"})


def test_show_imports_no_torch(axis_file: Path) -> None:
    assert not modules_after(["show", str(axis_file)]) & HEAVY
    assert not modules_after(["show", str(axis_file), "--plot", str(axis_file.parent / "p")]) & (HEAVY - {"matplotlib"})


def test_a_closed_pipe_is_no_failure(axis_file: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "persona_axis.cli", "show", str(axis_file)],
        stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0 and done.stderr == ""


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(model: Path, probes: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped.safetensors"
    arguments = ["extract", str(model), "--out", str(out), "--probes", str(probes), "--roles", "6"]
    arguments += "--prompts 5 --questions 8 --default-samples 50 --batch-size 1 --max-new-tokens 100 --yes".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "persona_axis.cli", *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # A suite that runs in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    rollouts = Path(f"{out}.run", "rollouts.jsonl")
    end = time.monotonic() + 300  # a machine may be busy
    while process.poll() is None and time.monotonic() < end and not (rollouts.exists() and rollouts.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said and not out.exists()
    last = said.strip().splitlines()[-1]
    assert "the same command goes on from there" in last and f"{out}.run" in last
