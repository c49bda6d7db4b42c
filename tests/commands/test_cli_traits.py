"""`extract --traits`, `show --traits`: what they print, draw and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import chat_factory
import pytest
from click.testing import CliRunner
from command_line import Command, Ended, command_in
from traits_factory import RECORDS, extracted, folds_of, traits_of

from persona_axis.cli import app
from persona_axis.errors import AxisFileError
from persona_axis.traits import Traits

SMALL = "--questions 8 --max-new-tokens 6 --min-accepted 3 --batch-size 32".split()
AXIS = "--roles 6 --prompts 2 --calibration 20".split()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    plain = command_in(tmp_path, app, capsys, monkeypatch)

    def _command(*args: object) -> Ended:
        code, *texts = plain(*args)
        return Ended(code, *(" ".join(text.split()) for text in texts))

    return _command


class Made(NamedTuple):
    """A model, its probes, an axis and a traits file, and what `extract --traits` said."""

    model: Path
    probes: Path
    axis: Path
    traits: Path
    said: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("traits")
    model, probes = path / "tiny", path / "probes"
    chat_factory.llama(layers=4).save_pretrained(model)
    chat_factory.tokenizer().save_pretrained(model)
    probes.mkdir()
    asked = chat_factory.probes(roles=6, questions=8)
    records: dict[str, list[dict[str, object]]] = {
        "roles": [{"name": r.name, "description": r.description, "prompts": r.prompts} for r in asked.roles],
        "defaults": [{"prompt": text} for text in asked.defaults],
        "questions": [{"text": q.text, "category": q.category} for q in asked.questions],
        "traits": RECORDS,
    }
    for name, lines in records.items():
        (probes / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = ""
    for name, options in (("axis", AXIS), ("traits", ["--traits"])):
        arguments = ["extract", str(model), "--out", str(path / name), "--probes", str(probes), *SMALL, *options]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        said = " ".join((done.stderr + done.stdout).split())
    return Made(model, probes, path / "axis", path / "traits", said)


def test_extract_says_its_plan_and_lists_what_it_found(made: Made) -> None:
    assert "12 instructions x 1 prompts x 8 questions + 40 of the default = 136 rollouts" in made.said
    assert f"saved {made.traits}" in made.said and "split-half" in made.said and "wordings" in made.said
    assert all(name in made.said for name in ("bright mood", "new mood", "friendly manner"))
    assert Traits.load(made.traits).names == ("bright", "new", "friendly")


def test_only_these_and_the_default_name_of_the_file(made: Made, command: Command) -> None:
    ended = command("extract", made.model, "--probes", made.probes, "--traits", "--only", "new,bright", *SMALL)
    assert ended.code == 0
    assert Traits.load("tiny-traits.safetensors").names == ("bright", "new")
    again = command("extract", made.model, "--probes", made.probes, "--traits", "--only", "new,bright", *SMALL)
    assert again.code == 0 and "going on: 104 rollouts are there already" in again.err


def test_show_lists_a_traits_file_by_itself(made: Made, command: Command) -> None:
    ended = command("show", made.traits)
    assert ended.code == 0 and "At layer 2, surest first." in ended.out
    assert "for 3 traits" not in ended.out and "of 3 traits" in ended.out
    assert "At layer 1," in command("show", made.traits, "--layer", 1).out
    ended = command("show", made.traits, "--plot", "here")
    assert ended.code == 2 and f"show AXIS --traits {made.traits} --plot" in ended.err


def test_show_lays_traits_beside_an_axis_and_draws_them(made: Made, command: Command, tmp_path: Path) -> None:
    ended = command("show", made.axis, "--traits", made.traits, "--layer", 3, "--plot", "pictures")
    assert ended.code == 0 and "saved pictures/traits.png" in ended.out
    assert (tmp_path / "pictures" / "traits.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["traits.png"]
    for text in ("At layer 3, + toward the Assistant", "cosine with", "a random direction reaches 0.34", "mixture of"):
        assert text in ended.out
    from persona_axis import Axis

    first = Traits.load(made.traits).cosines(Axis.load(made.axis), 3)[0]
    assert f"{first.trait} * {first.cosine:+.2f}" in ended.out or f"{first.trait} {first.cosine:+.2f}" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "new"], "--only names traits: it goes with --traits"),
        (["--traits", "--roles", "4"], "--roles goes with an axis; traits are named with --only"),
        (["--traits", "--calibration", "4"], "--calibration goes with an axis"),
        (["--traits", "--judge", "troupe"], "--judge troupe scores roles, no traits"),
        (["--traits", "--judge", "listener"], "--judge listener scores roles, no traits"),
    ],
)
def test_what_goes_with_an_axis_only_is_refused(command: Command, arguments: list[str], said: str) -> None:
    ended = command("extract", *arguments)
    assert ended.code == 2 and said in ended.err


def test_errors_are_sentences(made: Made, command: Command, tmp_path: Path) -> None:
    extract = ("extract", made.model, "--probes", made.probes, "--traits", *SMALL)
    ended = command(*extract, "--only", "warm")
    assert ended.code == 1 and "no trait is called 'warm': there are bright, new, friendly" in ended.err
    ended = command(*extract, "--prompts", 3)
    assert ended.code == 1 and "3 pairs of instructions asked for, trait 'bright' has 2" in ended.err
    other = tmp_path / "other"
    traits_of(folds_of(hidden=32), weights_sha256="d" * 64).save(other)
    ended = command("show", made.axis, "--traits", other)
    assert ended.code == 1 and "are of different models: " in ended.err
    assert "weights fingerprint is dddddddd" in ended.err
    ended = command("show", made.axis, "--traits", made.axis)
    assert ended.code == 1 and "this is an axis file: AXIS of `persona-axis show`" in ended.err
    assert "`extract --traits` makes a traits file" in ended.err
    for name, *options in (
        ("cap", "--floor", 1, "--out", "out"), ("export", "--format", "npy", "--out", "out"), ("drift",),
        ("show", "--traits", made.traits),
    ):  # fmt: skip
        ended = command(name, made.traits, *options)
        assert ended.code == 1 and "this is a traits file: `persona-axis show FILE`, or beside an axis" in ended.err
    assert command("show", made.axis, "--traits", other, "--allow", "weights", "--allow", "chat_template").code == 0


def test_a_file_of_another_kind_is_not_replaced(made: Made, command: Command, tmp_path: Path) -> None:
    extract = ("extract", made.model, "--probes", made.probes, *SMALL)
    before = made.axis.read_bytes(), made.traits.read_bytes()
    ended = command(*extract, "--traits", "--out", made.axis)
    assert ended.code == 1 and f"{made.axis}: is an axis file, and a traits file would replace it" in ended.err
    ended = command(*extract, *AXIS, "--out", made.traits)
    assert ended.code == 1 and f"{made.traits}: is a traits file, and an axis file would replace it" in ended.err
    assert (made.axis.read_bytes(), made.traits.read_bytes()) == before
    (tmp_path / "notes").write_text("mine")
    ended = command(*extract, "--traits", "--out", "notes")
    assert ended.code == 1 and "notes: is there already, and a traits file would replace it" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]  # no run was begun
    assert command(*extract, "--traits", "--out", made.traits).code == 0
    assert Traits.load(made.traits).names == ("bright", "new", "friendly")


def test_a_function_replaces_no_file_of_another_kind_either(made: Made) -> None:
    with pytest.raises(AxisFileError, match="is an axis file, and a traits file would replace it"):
        extracted(made.axis)


def test_showing_traits_needs_no_torch(made: Made) -> None:
    code = (
        "import sys; from persona_axis.commands.terminal import run; from persona_axis.cli import app\n"
        f"assert not run(app, ['show', {str(made.axis)!r}, '--traits', {str(made.traits)!r}], name='p')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr
