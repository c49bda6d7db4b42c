"""The command `drift`: what it writes, says and ends with."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chat_factory
import click
import numpy as np
import pandas as pd
import pytest
from command_line import Command, command_in
from test_drift import axis_for
from transformers import tokenization_utils_base

from persona_axis import Axis
from persona_axis.chat import ChatModel
from persona_axis.commands.drift import drift
from persona_axis.conversations import DOMAINS, load_scripts, read_conversations
from persona_axis.drift import TableWriter, alerts, trajectories
from persona_axis.sampling import Sampling
from persona_axis.simulate import simulate
from persona_axis.talks import following, transcripts

ROOT = Path(__file__).resolve().parents[2]
TEXTS = "what is rain ?|why ?|how should i sleep ?|bread ?|no|yes yes|what about money ?|be new".split("|")
app = click.Group("persona-axis", commands=[drift])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("COLUMNS", "160")
    return command_in(tmp_path, app, capsys, monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    chat_factory.llama().save_pretrained(path)
    chat_factory.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def talker(model: Path) -> ChatModel:
    return ChatModel.load(model)


@pytest.fixture(scope="module")
def axis(talker: ChatModel) -> Axis:
    made = axis_for(talker)
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6}
    return Axis(made.arrays, {**made.metadata, "sampling": sampling})


@pytest.fixture(scope="module")
def axis_file(axis: Axis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("axes") / "tiny.safetensors"
    axis.save(path)
    return path


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two suites of four scripts of three turns, half of them held out."""
    root = tmp_path_factory.mktemp("probes")
    (root / "conversations").mkdir()
    for suite in ("tea", "milk"):
        scripts: list[dict[str, Any]] = [
            {
                "id": f"{suite}-{n}", "domain": suite, "split": ("train", "held_out")[n % 2], "user": "somebody",
                "turns": [{"kind": "edit", "text": f"{TEXTS[(n + t) % 8]} {suite} {n} {t}"} for t in range(3)],
            }
            for n in range(4)
        ]  # fmt: skip
        lines = "".join(json.dumps(script) + "\n" for script in scripts)
        (root / "conversations" / f"{suite}.jsonl").write_text(lines)
    return root


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


LOG = [
    talk("what is rain ?", "old rain .", "why ?", "no no no", id="one", domain="tea", kinds=["edit", None]),
    talk("bread ?", "yes yes . a b c", "how ?", "work", "and ?", "money", id="two"),
    talk("hello", "hello you"),
]


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., Path]:
    def _write(*lines: Any) -> Path:
        path = tmp_path / "log.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(text + "\n" for text in texts))
        return path

    return _write


@pytest.fixture
def log(write_log: Callable[..., Path]) -> Path:
    return write_log(*LOG)


@pytest.fixture
def cap_file(axis: Axis, tmp_path: Path) -> Path:
    path = tmp_path / "cap.safetensors"
    axis.cap(layers=2, floor=3.0).save(path)
    return path


def flat(text: str) -> str:
    return " ".join(text.split())


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same table, dtypes of texts aside."""
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True).astype(object).where(lambda f: f.notna(), None),
        expected.reset_index(drop=True).astype(object).where(lambda f: f.notna(), None),
        check_exact=False, atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def is_png(path: str | Path) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG")


# --- drift: suites


def test_suites_are_played_as_the_axis_was_made(
    command: Command, talker: ChatModel, axis: Axis, axis_file: Path, probes: Path
) -> None:
    ended = command("drift", axis_file, "--probes", probes, "--out", "t.parquet", "--seed", 3)
    assert ended.code == 0, ended.err
    expected = simulate(
        talker, load_scripts(probes, split="held_out"), axis=axis, sampling=Sampling(1.0, 1.0, 6), seed=3
    ).frame
    found = pd.read_parquet("t.parquet")
    same(found, expected)
    assert set(found["conversation"]) == {"tea-1", "tea-3", "milk-1", "milk-3"} and set(found["layer"]) == {0, 2}
    said = flat(ended.out)
    assert "turn milk tea" in said and "at layer 2" in said and "4 conversations, 12 turns" in said
    assert "saved t.parquet saved t.png" in said and is_png("t.png") and not Path("drift.png").exists()
    means = found[(found["layer"] == 2) & (found["turn"] == 3)].groupby("domain")["projection"].mean()
    row = next(line for line in ended.out.splitlines() if line.strip().startswith("3 "))
    assert row.index(f"{means['milk']:.2f}") < row.index(f"{means['tea']:.2f}")


def test_options_of_playing(command: Command, talker: ChatModel, axis: Axis, axis_file: Path, probes: Path) -> None:
    choice = ["--probes", probes, "--suite", "tea", "--split", "all", "--turns-per-script", 2, "--limit", 3]
    how = ["--system", "be ghost .", "--temperature", 0, "--max-new-tokens", 4, "--layers", "0"]
    ended = command("drift", axis_file, *choice, *how, "--out", "t.csv")
    assert ended.code == 0, ended.err
    expected = simulate(
        talker, load_scripts(probes, domains=["tea"])[:3], axis=axis, layers=[0], system="be ghost .", turns=2,
        sampling=Sampling(0, 1.0, 4),
    ).frame  # fmt: skip
    same(pd.read_csv("t.csv"), expected)
    assert "at layer 0" in ended.out and len(expected) == 6


def test_a_limit_takes_from_each_suite(command: Command, axis_file: Path, probes: Path) -> None:
    for split, limit, expected in (
        ("held_out", 2, {"tea-1", "milk-1"}), ("all", 3, {"milk-0", "tea-0", "milk-1"}),
        ("train", 99, {"tea-0", "tea-2", "milk-0", "milk-2"}),
    ):  # fmt: skip
        arguments = ["--probes", probes, "--split", split, "--limit", limit, "--turns-per-script", 1, "--out", "t.csv"]
        assert command("drift", axis_file, *arguments).code == 0
        assert set(pd.read_csv("t.csv")["conversation"]) == expected


def test_transcripts_can_be_read_again(command: Command, axis_file: Path, probes: Path) -> None:
    playing = ["--probes", probes, "--out", "a.csv", "--transcripts", "said.jsonl", "--suite", "tea", "--split", "all"]
    playing += ["--max-new-tokens", 3]
    assert command("drift", axis_file, *playing).code == 0
    talks = list(read_conversations("said.jsonl"))
    assert [(c.id, c.domain, c.split, c.kinds) for c in talks] == [
        (f"tea-{n}", "tea", ("train", "held_out")[n % 2], ("edit",) * 3) for n in range(4)
    ]
    assert command("drift", axis_file, "--conversations", "said.jsonl", "--out", "b.csv").code == 0
    played, read = pd.read_csv("a.csv"), pd.read_csv("b.csv")
    assert list(played.columns) == list(read.columns) and len(played) == len(read)
    # This model also says special tokens, which no transcript holds: what is the same is what comes before them.
    alike = (played["tokens"] == read["tokens"]).groupby(played["conversation"]).cummin()
    assert alike.sum() >= 4
    same(read[alike], played[alike])


def played_in_vain(*_given: Any, **_named: Any) -> Any:
    raise AssertionError("hours of playing whose result has no place to go")


@pytest.mark.parametrize("option", ["--transcripts", "--out"])
@pytest.mark.parametrize("name", ["folder.csv", "no/t.csv", "x" * 300 + ".csv"])
def test_a_file_that_cannot_be_written_is_found_before_playing(
    command: Command, axis_file: Path, probes: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    monkeypatch.setattr(following, "simulate", played_in_vain)
    Path("folder.csv").mkdir()
    ended = command("drift", axis_file, "--probes", probes, option, name)
    assert ended.code == 1 and ended.err.startswith(f"error: {name}: could not be written: "), ended.err
    assert not ended.out and [entry.name for entry in Path().iterdir()] == ["folder.csv"]


def test_transcripts_and_table_do_not_take_each_other_down(
    command: Command, axis_file: Path, probes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    playing = ["drift", axis_file, "--probes", probes, "--turns-per-script", 1, "--max-new-tokens", 3]
    with monkeypatch.context() as patch:
        patch.setattr(transcripts, "replace_file", disk_full)
        ended = command(*playing, "--out", "a.csv", "--transcripts", "a.jsonl")
    assert ended.code == 1 and ended.err == "error: a.jsonl: could not be written: No space left on device\n"
    assert len(pd.read_csv("a.csv")) == 8 and not Path("a.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "_finish", disk_full)
        ended = command(*playing, "--out", "b.csv", "--transcripts", "b.jsonl")
    assert ended.code == 1 and ended.err == "error: b.csv: could not be written: No space left on device\n"
    assert len(list(read_conversations("b.jsonl"))) == 4 and not Path("b.csv").exists()


def test_under_a_cap_both_projections_are_there(
    command: Command, axis_file: Path, probes: Path, cap_file: Path, log: Path
) -> None:
    for source in (["--probes", probes, "--suite", "tea"], ["--conversations", log]):
        ended = command("drift", axis_file, *source, "--cap", cap_file, "--out", "t.parquet")
        assert ended.code == 0, ended.err
        frame = pd.read_parquet("t.parquet")
        held = frame[frame["layer"] == 2]
        assert (held["projection"] >= 3 - 1e-4).all() and (held["projection_before"] < 3).any()
        assert "In brackets: what the cap found" in flat(ended.out)
        assert "layer 2 is capped: its projection lies inside the bounds by construction" in flat(ended.err)
    assert "capped" not in command("drift", axis_file, *source, "--cap", cap_file, "--layer", 0).err


def test_the_shipped_suites_are_the_default(command: Command, axis_file: Path) -> None:
    ended = command("drift", axis_file, "--turns-per-script", 1, "--max-new-tokens", 2, "--out", "t.csv")
    assert ended.code == 0, ended.err
    frame = pd.read_csv("t.csv")
    assert set(frame["domain"]) == set(DOMAINS) and set(frame["split"]) == {"held_out"}
    assert frame["conversation"].nunique() == 48


# --- drift: conversations that the user brings


def test_conversations_are_read(command: Command, talker: ChatModel, axis: Axis, axis_file: Path, log: Path) -> None:
    ended = command("drift", axis_file, "--conversations", log, "--out", "t.parquet")
    assert ended.code == 0, ended.err
    found = pd.read_parquet("t.parquet")
    same(found, pd.concat(trajectories(talker, axis, read_conversations(log))))
    assert list(found.columns[:4]) == ["conversation", "domain", "split", "turn"]
    assert set(found["speaker"]) == {"assistant"} and "projection_before" not in found
    assert "3 conversations, 6 turns" in flat(ended.out) and "turn tea projection" in flat(ended.out)


def test_other_speakers_are_in_the_table_and_not_in_the_summary(command: Command, axis_file: Path, log: Path) -> None:
    alone = command("drift", axis_file, "--conversations", log)
    for turns, expected in (("user", {"user"}), ("all", {"user", "assistant"})):
        ended = command("drift", axis_file, "--conversations", log, "--turns", turns, "--out", "t.csv")
        assert set(pd.read_csv("t.csv")["speaker"]) == expected
        assert ended.out.split("saved")[0] == alone.out.split("saved")[0]
    assert is_png("drift.png") and is_png("t.png")


def test_one_conversation_gets_a_picture_with_its_text(
    command: Command, axis_file: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona_axis.plots import conversation

    drawn: list[Any] = []
    draw = conversation.one_conversation

    def seen(frame: pd.DataFrame, messages: Sequence[Any], *more: Any) -> Any:
        drawn.append((set(frame["conversation"]), messages))
        return draw(frame, messages, *more)

    monkeypatch.setattr(conversation, "one_conversation", seen)
    assert command("drift", axis_file, "--conversations", log, "--limit", 1).code == 0
    assert drawn == [({"one"}, tuple(LOG[0]["messages"]))] and is_png("drift.png")
    assert command("drift", axis_file, "--conversations", log, "--limit", 2).code == 0 and len(drawn) == 1


def test_bad_lines_stop_it_and_leave_nothing_behind(
    command: Command, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    path = write_log(LOG[0], '{"messages": [', LOG[1])
    Path("t.csv").write_text("the old one")
    ended = command("drift", axis_file, "--conversations", path, "--out", "t.csv")
    assert ended.code == 1 and ended.err.startswith(f"error: {path}:2: not a JSON") and ended.err.count("\n") == 1
    assert Path("t.csv").read_text() == "the old one"
    assert sorted(entry.name for entry in Path().iterdir()) == ["log.jsonl", "t.csv"]


def test_bad_lines_can_be_passed_over_and_are_counted(
    command: Command, talker: ChatModel, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    long = talk("rain " * 300, "no", id="long")  # 256 tokens are the model's context
    bad = ["not JSON", talk("why ?"), {"messages": []}, long, talk("x", "y", id="one")]
    path = write_log(*LOG, *bad, talk("no", "yes", id="last"), "not JSON")
    ended = command("drift", axis_file, "--conversations", path, "--out", "t.csv", "--skip-bad")
    assert ended.code == 0, ended.err
    assert list(dict.fromkeys(pd.read_csv("t.csv")["conversation"])) == ["one", "two", "line 3", "last"]
    lines = ended.err.splitlines()
    assert lines[-1] == "passed over 6 conversations that cannot be measured" and len(lines) == 6
    told = ["log.jsonl:4: not", "log.jsonl:5: no assistant turn", "log.jsonl:6: the conversation is empty",
            "conversation 'long' has more than 256 tokens", "log.jsonl:8: id 'one' is given twice"]  # fmt: skip
    assert sorted(why in line for why in told for line in lines) == sorted([True] * 5 + [False] * 25), lines
    assert "4 conversations" in flat(ended.out)


def test_a_log_of_which_nothing_can_be_measured_is_an_error(
    command: Command, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    path = write_log(talk("rain " * 300, "no"))
    ended = command("drift", axis_file, "--conversations", path, "--skip-bad", "--out", "t.csv")
    assert ended.code == 1 and "no conversation can be measured" in ended.err and not Path("t.csv").exists()
    ended = command("drift", axis_file, "--conversations", write_log("{}"), "--skip-bad")
    assert ended.code == 1 and "holds no conversation (1 bad lines)" in ended.err


def test_long_conversations_are_refused_or_read_in_windows(
    command: Command, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    path = write_log(talk(*["what is rain ?", "old rain ."] * 60, id="long"))
    refused = command("drift", axis_file, "--conversations", path)
    assert refused.code == 1 and "'long' has" in refused.err and "256" in refused.err
    ended = command("drift", axis_file, "--conversations", path, "--overflow", "window", "--out", "t.csv")
    assert ended.code == 0 and len(pd.read_csv("t.csv")) == 120
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines if "n=" in line] == ["21-40", "41-80"]
    assert "n=20" in ended.out and "1 conversation, 60 turns" in flat(ended.out)


def test_a_message_too_long_for_any_window_costs_its_own_conversation_only(
    command: Command, talker: ChatModel, axis: Axis, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    turns = ["what is rain ?", "old rain ."] * 60  # more than one window
    late = talk(*turns, "rain " * 300, "no", id="late")
    path = write_log(LOG[0], talk(*turns, id="long"), late, LOG[1])
    asked = ["drift", axis_file, "--conversations", path, "--overflow", "window", "--out", "t.csv"]
    ended = command(*asked, "--skip-bad")
    assert ended.code == 0, ended.err
    lines = ended.err.splitlines()
    assert lines[0].startswith("passed over: conversation 'late', turn 61: ") and len(lines) == 2
    assert lines[1] == "passed over 1 conversation that cannot be measured"
    good = (one for one in read_conversations(path) if one.id != "late")
    same(pd.read_csv("t.csv"), pd.concat(trajectories(talker, axis, good, overflow="window")))
    ended = command(*asked)
    assert ended.code == 1 and "conversation 'late', turn 61" in ended.err


def test_transformers_does_not_speak_of_long_sequences(
    command: Command, axis_file: Path, model: Path, write_log: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda text, *_more: said.append(text))
    chat_factory.llama().save_pretrained("short")
    tokens = chat_factory.tokenizer()
    tokens.model_max_length = 20
    tokens.save_pretrained("short")
    path = write_log(talk(*["what is rain ?", "old rain ."] * 60))
    read = ["drift", axis_file, "--model", "./short", "--conversations", path]
    assert command(*read, "--overflow", "window").code == 0 and command(*read, "--skip-bad").code == 1
    assert not [text for text in said if "sequence length" in text]


def test_replies_without_tokens_are_counted_and_not_drawn(
    command: Command, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    ended = command("drift", axis_file, "--conversations", write_log(talk("why ?", "", id="x")), "--alert", 100)
    assert ended.code == 0 and "silent" in ended.out and "1 of the turns have no tokens" in flat(ended.out)
    assert "saved" not in ended.out and not Path("drift.png").exists()


def test_names_are_neither_markup_nor_commands(
    command: Command, axis_file: Path, write_log: Callable[..., Path]
) -> None:
    path = write_log(talk("no", "yes", id="[red]\x1b[2J", domain="[b]tea\x07[/b]"), talk("no", "no", domain="milk"))
    ended = command("drift", axis_file, "--conversations", path, "--alert", 100)
    assert "[red]\ufffd[2J: turn 1" in ended.out and "[b]tea\ufffd[/b]" in ended.out and "\x1b[2J" not in ended.out


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_any_width_loses_nothing(
    command: Command, axis_file: Path, log: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ended = command("drift", axis_file, "--conversations", log, "--alert", 99, "--out", "t.csv")
    assert all(len(line) <= width for line in ended.out.splitlines() if "saved" not in line) and "…" not in ended.out
    frame = pd.read_csv("t.csv")
    mean = frame[(frame["layer"] == 2) & (frame["conversation"] == "one") & (frame["turn"] == 2)]["projection"].mean()
    assert f"{mean:.2f}p" in "".join(ended.out.split())


# --- drift: alerts


def test_alerts_mark_turns_and_end_with_3(
    command: Command, talker: ChatModel, axis: Axis, axis_file: Path, log: Path
) -> None:
    frame = pd.concat(trajectories(talker, axis, read_conversations(log)))
    values = frame[frame["layer"] == 2]["percentile_default"].sort_values().to_numpy()
    percentile = float(values[2:4].mean())  # three turns lie below
    expected = alerts(frame, axis, percentile, layer=2)
    assert len(expected) == 3
    ended = command("drift", axis_file, "--conversations", log, "--out", "t.csv", "--alert", percentile)
    assert ended.code == 3
    found = pd.read_csv("t.csv")
    raised = found[found["alert"]]
    same(raised[["conversation", "turn"]], expected[["conversation", "turn"]])
    assert set(raised["layer"]) == {2}
    said = flat(ended.out)
    assert f"alert: 3 of 6 turns (50.0%) in {expected['conversation'].nunique()} of 3 conversations below" in said
    assert f"about {percentile:g}% of healthy turns lie below percentile {percentile:g}" in said
    for name, turns in expected.groupby("conversation")["turn"]:
        assert f"{name}: turn" in said and str(turns.iloc[0]) in said
    assert said.index("alert: ") < said.index("saved t.csv") and is_png("t.png")


def test_alerts_of_runs(command: Command, axis_file: Path, log: Path) -> None:
    all_below = ["drift", axis_file, "--conversations", log, "--out", "t.csv", "--layer", 0, "--alert"]
    axis = Axis.load(axis_file)
    frame = pd.read_csv("t.csv") if command(*all_below, "100:3").code == 3 else pd.DataFrame()
    below = (frame["layer"] == 0) & (frame["projection"] < axis.quantile("default", 100)[0])
    assert below.sum() >= 3 and set(frame[frame["alert"]]["conversation"]) == {"two"}  # the only one of three turns
    ended = command(*all_below, "100:4")
    assert ended.code == 0 and "no alert: no turn below" in flat(ended.out) and "4 turns in a row" in flat(ended.out)
    assert not pd.read_csv("t.csv")["alert"].any()
    assert "alert" not in command(*all_below[:-1]).out and "alert" not in pd.read_csv("t.csv")


def test_alerts_in_suites(command: Command, axis_file: Path, probes: Path) -> None:
    assert command("drift", axis_file, "--probes", probes, "--alert", "100").code == 3
    assert command("drift", axis_file, "--probes", probes, "--alert", "100:9").code == 0


@pytest.mark.parametrize("bound", ["floor", "ceiling"])
def test_an_alert_where_a_cap_acts_is_refused(command: Command, axis: Axis, axis_file: Path, log: Path,
                                              bound: str) -> None:  # fmt: skip
    axis.cap(layers=2, **{bound: 3.0}).save("cap.safetensors")
    asked = ["drift", axis_file, "--conversations", log, "--cap", "cap.safetensors", "--alert", 100]
    why = {"floor": "no turn can lie low there by construction", "ceiling": "how low turns lie there is the cap's"}
    for layer in ([], ["--layer", 2]):
        ended = command(*asked, *layer)
        assert ended.code == 2 and not ended.out, ended
        assert f"layer 2 is capped, so {why[bound]}" in ended.err and "choose a --layer that is not" in ended.err
    assert command(*asked, "--layer", 0).code == 3
    assert command(*asked[:-2]).code == 0  # without an alert it can be looked at


def test_a_figure_that_cannot_be_saved_is_a_note(command: Command, axis_file: Path, log: Path) -> None:
    Path("drift.png").mkdir()
    read = ["drift", axis_file, "--conversations", log]
    for more, code in (([], 0), (["--alert", 100], 3)):
        ended = command(*read, *more)
        assert ended.code == code, ended.err
        assert ended.err == "note: drift.png: the figure could not be saved: Is a directory\n"
        assert "3 conversations, 6 turns" in flat(ended.out) and "saved" not in ended.out
    ended = command(*read, "--figure", "no/f.png", "--out", "t.csv", "--alert", 100)  # one that was asked for by name
    assert ended.code == 1 and ended.err.startswith("error: no/f.png: could not be written: ") and not ended.out
    assert sorted(entry.name for entry in Path().iterdir()) == ["drift.png", "log.jsonl"]


@pytest.mark.parametrize(
    "more, what",
    [
        (["--out", "log.csv", "--conversations", "log.csv"], "--out would be written over --conversations"),
        (["--out", "t.csv", "--transcripts", "./t.csv"], "--transcripts would be written over --out"),
        (["--transcripts", "AXIS"], "--transcripts would be written over AXIS"),
        (["--cap", "c.png", "--figure", "c.png"], "the figure would be written over the cap c.png"),
    ],
)
def test_nothing_that_is_read_is_written_over(command: Command, axis_file: Path, more: list[str], what: str) -> None:
    before = axis_file.read_bytes()
    ended = command("drift", axis_file, *[axis_file if word == "AXIS" else word for word in more])
    assert ended.code == 2 and what in flat(ended.err)
    assert axis_file.read_bytes() == before and not list(Path().glob("*.csv"))


def test_the_figure_goes_where_it_is_asked_for(command: Command, axis_file: Path, log: Path) -> None:
    read = ["drift", axis_file, "--conversations", log, "--out", "t.csv"]
    for name, start in (("f.png", b"\x89PNG"), ("f.SVG", b"<?xml"), ("f.pdf", b"%PDF")):
        ended = command(*read, "--figure", name)
        assert ended.code == 0 and f"saved {name}" in ended.out and Path(name).read_bytes().startswith(start)
    ended = command(*read, "--no-figure")
    assert ended.code == 0 and ended.out.endswith("saved t.csv\n") and not Path("t.png").exists()
    assert command(*read[:-2], "--no-figure").code == 0 and not Path("drift.png").exists()


class Left(io.StringIO):
    """A pipe whose reader has gone, once it has seen `enough`."""

    def __init__(self, enough: str) -> None:
        super().__init__()
        self.enough = enough

    def write(self, text: str) -> int:
        if self.enough in text:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("stream, enough", [("stdout", ""), ("stdout", "alert: "), ("stdout", "saved"), ("stderr", "")])
def test_a_reader_who_leaves_changes_no_exit_code(
    command: Command, axis_file: Path, log: Path, cap_file: Path, monkeypatch: pytest.MonkeyPatch, stream: str,
    enough: str,
) -> None:  # fmt: skip
    under = ["--cap", cap_file, "--layer", 0]
    read = ["drift", axis_file, "--conversations", log, "--out", "t.csv", *under]
    if stream == "stderr":  # something must be said there
        Path("t.png").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys, stream, Left(enough))
        assert command(*read).code == 0 and command(*read, "--alert", 100).code == 3
    assert Path("t.csv").exists() and Path("t.png").is_file() == (stream == "stdout")


def test_an_alert_that_nobody_reads_ends_with_3(axis_file: Path, log: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    asked = ["drift", str(axis_file), "--conversations", str(log), "--alert", "100", "--out", str(log.parent / "t.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "persona_axis.cli", *asked], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(writing)
    assert done.returncode == 3 and done.stderr == ""
    assert is_png(log.parent / "t.png")


# --- drift: what cannot be


def drift_failures(log: Path, probes: Path) -> dict[str, tuple[list[object], str]]:
    return {
        "suite": (["--suite", "emotional,nonsense"], "no suite 'nonsense': there are coding, writing, emotional,"),
        "own suite": (["--probes", probes, "--suite", "coding"], "no suite 'coding': there are milk, tea"),
        "layer": (["--layer", "9"], "layer 9 is not in this axis, which has layers 0, 2"),
        "layers": (["--layers", "0,1"], "layer 1 is not in this axis"),
        "alert layer": (["--layer", "1", "--alert", "5"], "layer 1 is not in this axis"),
        "no file": (["--conversations", "nowhere.jsonl"], "cannot read nowhere.jsonl: No such file"),
        "a directory": (["--conversations", "."], "cannot read .: Is a directory"),
        "suffix": (["--conversations", log, "--out", "t.txt"], "written as .csv or .parquet"),
        "out nowhere": (["--conversations", log, "--out", "no/t.csv"], "no/t.csv: could not be written"),
        "transcripts nowhere": (["--probes", probes, "--transcripts", "no/t"], "no/t: could not be written"),
        "no cap": (["--cap", "nowhere"], "nowhere: cannot be read"),
        "no model": (["--model", "./nowhere"], "no such model directory"),
        "context": (["--probes", probes, "--max-new-tokens", "255"], "script 'milk-1', turn 1"),
    }


@pytest.mark.parametrize("case", drift_failures(Path(), Path()))
def test_failures_end_with_1_and_one_line(
    command: Command, axis_file: Path, log: Path, probes: Path, case: str
) -> None:
    arguments, reason = drift_failures(log, probes)[case]
    ended = command("drift", axis_file, *arguments)
    assert ended.code == 1 and not ended.out and reason in ended.err, ended.err
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert {entry.suffix for entry in Path().iterdir()} <= {".jsonl"}


DRIFT_USAGE = {
    "no axis": [],
    "alert no number": ["x", "--alert", "low"],
    "alert above 100": ["x", "--alert", "101"],
    "alert nan": ["x", "--alert", "nan"],
    "alert run 0": ["x", "--alert", "5:0"],
    "alert run empty": ["x", "--alert", "5:"],
    "suite empty": ["x", "--suite", "a,,b"],
    "split": ["x", "--split", "test"],
    "limit": ["x", "--limit", "0"],
    "turns": ["x", "--conversations", "f", "--turns", "model"],
    "overflow": ["x", "--conversations", "f", "--overflow", "cut"],
    "suite of a log": ["x", "--conversations", "f", "--suite", "coding"],
    "split of a log": ["x", "--conversations", "f", "--split", "held_out"],
    "system of a log": ["x", "--conversations", "f", "--system", "be"],
    "seed of a log": ["x", "--conversations", "f", "--seed", "0"],
    "skip bad scripts": ["x", "--skip-bad"],
    "turns of scripts": ["x", "--turns", "all"],
    "figure and none": ["x", "--figure", "f.png", "--no-figure"],
    "figure of another kind": ["x", "--figure", "f.csv"],
}


@pytest.mark.parametrize("case", DRIFT_USAGE)
def test_usage_errors_end_with_2(command: Command, case: str) -> None:
    ended = command("drift", *DRIFT_USAGE[case])
    assert ended.code == 2 and not ended.out and "Error: " in ended.err and "Traceback" not in ended.err


def test_the_layer_of_the_summary_must_be_measured(command: Command, axis_file: Path, log: Path) -> None:
    read = ["drift", axis_file, "--conversations", log]
    assert "at layer 0" in command(*read, "--layers", "0").out  # the only one, though another is recommended
    ended = command(*read, "--layers", "0", "--layer", 2)
    assert ended.code == 2 and "layer 2 is not among --layers 0" in ended.err


def test_another_models_axis_is_refused(command: Command, axis_file: Path, log: Path) -> None:
    chat_factory.llama(layers=2).save_pretrained("other")
    chat_factory.tokenizer().save_pretrained("other")
    for source in (["--conversations", log], ["--turns-per-script", 1]):
        ended = command("drift", axis_file, "--model", "./other", *source)
        assert ended.code == 1 and "made for another model" in ended.err and not ended.out


def test_the_model_is_the_one_of_the_axis_file(command: Command, axis: Axis, model: Path, log: Path) -> None:
    facts = {key: value for key, value in axis.metadata.items() if key != "model"}
    Axis(axis.arrays, facts).save("nameless.safetensors")
    ended = command("drift", "nameless.safetensors", "--conversations", log)
    assert ended.code == 2 and "name it with --model" in ended.err
    assert command("drift", "nameless.safetensors", "--conversations", log, "--model", model).code == 0


def test_an_axis_without_distributions(command: Command, talker: ChatModel, log: Path) -> None:
    axis_for(talker, tables=False).save("bare.safetensors")
    ended = command("drift", "bare.safetensors", "--conversations", log, "--out", "t.csv")
    assert ended.code == 0 and " p" not in ended.out.split("Mean")[0].split("\n", 2)[2]
    assert "percentile_default" not in pd.read_csv("t.csv")
    ended = command("drift", "bare.safetensors", "--conversations", log, "--alert", 5)
    assert ended.code == 1 and "holds no 'quantiles_default'" in ended.err


def test_deliberate_differences_are_allowed(command: Command, axis_file: Path, log: Path, probes: Path) -> None:
    chat_factory.llama(seed=5).save_pretrained("tuned")
    chat_factory.tokenizer().save_pretrained("tuned")
    for source in (["--conversations", log], ["--probes", probes, "--limit", 1]):
        asked = ["drift", axis_file, "--model", "./tuned", *source]
        assert command(*asked).code == 1 and command(*asked, "--allow", "weights").code == 0


def test_help_imports_next_to_nothing() -> None:
    code = (
        "import sys\nfrom persona_axis.commands.drift import drift\ndrift.main(['--help'], standalone_mode=False)\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "100"}
    )
    heavy = {"torch", "transformers", "numpy", "pandas", "rich", "matplotlib", "safetensors", "pyarrow"}
    assert "--alert P[:N]" in done.stdout, done.stderr
    assert not set(done.stdout.split("MODULES")[1].split()) & heavy


def test_figures_are_numbers_of_the_streams_own_size(command: Command, axis_file: Path, log: Path) -> None:
    command("drift", axis_file, "--conversations", log, "--out", "t.csv")
    frame = pd.read_csv("t.csv")
    assert frame["projection"].abs().max() < 1e3 and np.isfinite(frame["projection"]).all()


def test_what_was_played_before_a_failure_is_kept(
    command: Command, axis_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona_axis.errors import DriftError
    from persona_axis.talks import following

    play, calls = following.simulate, []

    def fails_late(chat: Any, scripts: Any, *more: Any, **how: Any) -> Any:
        calls.append(how["seed"])
        if len(calls) == 2:
            raise DriftError("no room")
        return play(chat, scripts, *more, **how)

    monkeypatch.setattr(following, "BATCH", 1)
    monkeypatch.setattr(following, "simulate", fails_late)
    short = ["--suite", "coding", "--limit", 2, "--turns-per-script", 1]
    ended = command("drift", axis_file, *short, "--transcripts", "t")
    assert ended.code == 1 and "no room" in ended.err and calls[1] - calls[0] == following.BATCH_SEEDS
    assert len(Path("t").read_text(encoding="utf-8").splitlines()) == 1
