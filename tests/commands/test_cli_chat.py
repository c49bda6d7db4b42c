"""The command `chat`: what it says, and what it says about where replies lie."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import chat_factory
import pytest
from command_line import Command, Ended, command_in
from test_drift import axis_for

from persona_axis import Axis
from persona_axis.chat import ChatModel
from persona_axis.cli import app
from persona_axis.commands.terminal import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Chat in this process, in an empty directory, with text on its standard input."""
    monkeypatch.setenv("COLUMNS", "160")
    plain = command_in(tmp_path, app, capsys, monkeypatch)

    def _command(*args: object, said: str | bytes = b"") -> Ended:
        raw = said.encode() if isinstance(said, str) else said
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return plain("chat", *args)

    return _command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    chat_factory.llama().save_pretrained(path)
    chat_factory.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def axis(model: Path) -> Axis:
    return axis_for(ChatModel.load(model))


@pytest.fixture(scope="module")
def axis_file(axis: Axis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("axes") / "tiny.safetensors"
    axis.save(path)
    return path


@pytest.fixture
def cap_file(axis: Axis, tmp_path: Path) -> Path:
    path = tmp_path / "cap.safetensors"
    axis.cap(layers=2, floor=3.0).save(path)
    return path


def test_from_a_pipe(command: Command, model: Path, axis_file: Path) -> None:
    ended = command(model, "--axis", axis_file, "--max-new-tokens", 6, said="hello\n\n  why ? \nno")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert [line for line in lines if line.startswith("you: ")] == ["you: hello", "you: why ?", "you: no"]
    assert sum(line.startswith("tiny: ") for line in lines) == 3
    assert sum("of the default" in line and "●" in line for line in lines) == 3
    assert "● the reply at layer 2" in ended.err and "warning" not in ended.err


def test_the_same_with_the_same_seed(command: Command, model: Path) -> None:
    first, again, other = (command(model, "--seed", seed, said="hello\nwhy ?") for seed in (1, 1, 2))
    assert first == again and first.out != other.out
    assert "no meter: name an axis file with --axis" in first.err


def test_quit_and_new(command: Command, model: Path) -> None:
    ended = command(model, said="hello\n/new\nhello\n/quit\nhello")
    replies = [line for line in ended.out.splitlines() if line.startswith("tiny: ")]
    assert ended.code == 0 and len(replies) == 2 and replies[0] == replies[1] and "a new conversation" in ended.err
    assert command(model, said="").code == 0


def test_the_legend_ends_with_the_commands(command: Command, model: Path, axis_file: Path) -> None:
    for more in ([], ["--axis", axis_file]):
        ended = command(model, *more, said="/quit")
        assert ended.code == 0 and ended.err.splitlines()[-1] == "/new begins again, /quit ends"


def test_other_commands_are_no_messages(command: Command, model: Path) -> None:
    ended = command(model, said="/exit\n/ hello\nhello\n/help\n")
    assert ended.code == 0 and ended.out.count("tiny: ") == 1
    assert ended.err.count("no such command: /new, /quit\n") == 3
    assert command(model, said="hello").out.splitlines()[1] in ended.out  # the conversation holds nothing else


def test_a_warning_below_the_band_and_only_there(command: Command, model: Path, axis_file: Path) -> None:
    for band, warned in ((0, False), (100, True)):
        ended = command(model, "--axis", axis_file, "--layer", 0, "--band", band, said="hello")
        value = float(next(line for line in ended.out.splitlines() if "●" in line).split()[1].rstrip(","))
        edge = float(Axis.load(axis_file).quantile("default", band)[0])
        assert ("warning: below the safe band" in ended.out) == (value < edge)
        assert warned == (value < edge)
        caveat = "the band is of single replies; deep in a conversation healthy ones may lie below"
        assert ended.err.count(caveat) == 1 and "no safe band" not in ended.err


def test_under_a_cap_the_meter_reads_a_layer_that_is_not_capped(
    command: Command, model: Path, axis: Axis, axis_file: Path, cap_file: Path
) -> None:
    ended = command(model, "--axis", axis_file, "--cap", cap_file, said="hello")
    assert ended.code == 0 and "● the reply at layer 0" in ended.err and "by construction" not in ended.err
    assert "reaches" not in ended.out
    axis.cap(layers=0, floor=2.0).save("low.safetensors")
    ended = command(model, "--axis", axis_file, "--cap", "low.safetensors", said="hello")
    assert ended.code == 0 and "● the reply at layer 2" in ended.err and "by construction" not in ended.err


def test_a_capped_layer_is_told(command: Command, model: Path, axis: Axis, axis_file: Path) -> None:
    axis.cap(layers=2, floor=30.0).save("high.safetensors")
    axis.cap(layers=0, floor=2.0).save("low.safetensors")
    both = ["--cap", "low.safetensors", "--cap", "high.safetensors"]
    asked = ["--cap", "high.safetensors", "--layer", 2]
    for more in (both, asked):
        ended = command(model, "--axis", axis_file, *more, said="hello")
        assert ended.code == 0 and "30.00, p100 of the default (" in ended.out
        assert "as it reaches this layer's edit)" in ended.out
        assert "layer 2 is capped: its projection lies inside the bounds by construction" in ended.err


def test_a_cap_alone_has_no_band(command: Command, model: Path, axis: Axis) -> None:
    axis.cap(layers=2, floor=30.0).save("high.safetensors")
    ended = command(model, "--cap", "high.safetensors", said="hello")
    assert ended.code == 0 and "layer 2: 30.00 (" in ended.out and "warning" not in ended.out
    assert "layer 2 is capped" in ended.err
    assert "no safe band and no warning: name an axis file with --axis" in ended.err


def test_a_band_needs_an_axis(command: Command, model: Path, cap_file: Path) -> None:
    for more in ([], ["--cap", cap_file]):
        ended = command(model, "--band", 1, *more, said="hello")
        assert ended.code == 2 and "--band is of an axis file: name one with --axis" in ended.err and not ended.out


def test_an_axis_without_percentiles_has_no_band(command: Command, model: Path) -> None:
    axis_for(ChatModel.load(model), tables=False).save("bare.safetensors")
    ended = command(model, "--axis", "bare.safetensors", "--band", 5, said="hello")
    assert ended.code == 0 and "layer 2: " in ended.out
    assert "no safe band and no warning: the axis file does not say where the default's replies lie" in ended.err


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_meter_fits_into_a_line(
    command: Command, model: Path, axis: Axis, axis_file: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    axis.cap(layers=2, floor=30.0).save("high.safetensors")
    for more, end in (([], "of the default"), (["--cap", "high.safetensors"], "this layer's edit)")):
        ended = command(model, "--axis", axis_file, "--layer", 2, *more, said="hello\nwhy ?")
        meters = [line for line in ended.out.splitlines() if "┊" in line]
        assert len(meters) == 2 and all(line.endswith(end) and len(line) <= width for line in meters), ended.out


def test_it_goes_on_when_the_context_is_full(command: Command, model: Path) -> None:
    ended = command(model, said="hello\n" + "why ? " * 150 + "\n/new\nhello")
    assert ended.code == 0 and ended.out.count("tiny: ") == 2
    assert "there is no room for a reply, begin a new conversation by /new" in ended.err


def test_bytes_that_are_no_text(command: Command, model: Path) -> None:
    ended = command(model, said=b"caf\xe9\r\n")
    assert ended.code == 0 and "you: caf\ufffd\n" in ended.out


def test_replies_do_not_steer_the_terminal(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatModel, "decode", lambda self, ids: ["a\x1b[2Jb [red]c[/red]" for _ in ids])
    assert "tiny: a\ufffd[2Jb [red]c[/red]" in command(model, said="hello").out


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["hello", " ", "why ?"])

    def type_in(prompt: str) -> str:
        assert prompt == "you: "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin", Keyboard())
    monkeypatch.setattr("builtins.input", type_in)
    assert run(app, ["chat", str(model)], name="persona-axis") == 0
    said = capsys.readouterr().out
    assert said.count("tiny: ") == 2 and "you: " not in said  # what was typed stands there already


def test_ctrl_c_ends_it(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Keyboard())
    monkeypatch.setattr("builtins.input", interrupted)
    assert run(app, ["chat", str(model)], name="persona-axis") == 130
    assert capsys.readouterr().err.endswith("stopped\n")


FAILURES: dict[str, tuple[list[object], str]] = {
    "no model": (["./nowhere"], "no such model directory"),
    "no axis": (["--axis", "nowhere"], "nowhere: cannot be read"),
    "no cap": (["--cap", "nowhere"], "nowhere: cannot be read"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(command: Command, case: str) -> None:
    arguments, reason = FAILURES[case]
    ended = command(*arguments, said="hello")
    assert ended.code == 1 and reason in ended.err and ended.err.count("\n") == 1 and not ended.out


def test_layers_that_do_not_exist(command: Command, model: Path, axis_file: Path, cap_file: Path) -> None:
    ended = command(model, "--axis", axis_file, "--layer", 1, said="hello")
    assert ended.code == 1 and "layer 1 is not in this axis" in ended.err
    ended = command(model, "--cap", cap_file, "--layer", 1, said="hello")
    assert ended.code == 1 and "layer 1 is not in the cap" in ended.err


def test_another_models_axis_is_refused(command: Command, axis_file: Path) -> None:
    chat_factory.llama(layers=2).save_pretrained("other")
    chat_factory.tokenizer().save_pretrained("other")
    ended = command("./other", "--axis", axis_file, said="hello")
    assert ended.code == 1 and "made for another model" in ended.err and not ended.out


def test_help_imports_next_to_nothing() -> None:
    code = (
        "import sys\nfrom persona_axis.cli import app\napp.main(['chat', '--help'], standalone_mode=False)\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "100"}
    )
    heavy = {"torch", "transformers", "numpy", "pandas", "rich", "matplotlib", "safetensors", "pyarrow"}
    assert "--band" in done.stdout, done.stderr
    assert not set(done.stdout.split("MODULES")[1].split()) & heavy


@pytest.mark.parametrize(
    ("name", "temperature", "top_p", "tokens"),
    [
        ("chat", "0.7", "0.9", "256"),
        ("generate", "0.7", "0.9", "128"),
        ("extract", "0.7", "0.9", "48 for Troupe, else 128; 512 with --full"),
        ("drift", "as for AXIS", "as for AXIS", "as for AXIS"),
    ],
)
def test_help_states_the_defaults_of_sampling(
    command: Command, capsys: pytest.CaptureFixture[str], name: str, temperature: str, top_p: str, tokens: str
) -> None:
    run(app, [name, "--help"], name="persona-axis")
    said = " ".join(capsys.readouterr().out.split())
    assert f"0 is greedy. [default: {temperature}]" in said
    assert f"Nucleus mass. [default: {top_p}]" in said
    assert f"Longest reply in tokens. [default: {tokens}]" in said
