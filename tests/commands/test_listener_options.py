"""The imaginary listener in a talk and on the command line."""

from __future__ import annotations

from pathlib import Path

import chat_factory as tiny
import pytest
import torch
from command_line import Command, command_in

from persona_axis import Cap, Listener
from persona_axis.chat import ChatModel
from persona_axis.cli import app
from persona_axis.commands.listener_options import Listening, imagine
from persona_axis.errors import DriftError, ListenerError
from persona_axis.levers.listener import generate
from persona_axis.levers.worlds import persona_worlds
from persona_axis.sampling import Sampling
from persona_axis.talks.talk import Talk

SAMPLING = Sampling(temperature=1.0, max_new_tokens=9)
OTHERS = ("be pirate like rain .", "be tutor .")
SAID = ["how should i sleep ?", "why ?", "what about money ?"]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat()


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "200")
    return command_in(tmp_path, app, capsys, monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny.llama().save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_a_talk_with_its_memory_is_each_turn_afresh(chat: ChatModel) -> None:
    listener = Listener(3.0)
    direction = torch.nn.functional.normalize(torch.ones(1, chat.hidden_size), dim=-1)
    talk = Talk(chat, SAMPLING, system="be ghost .", directions={1: direction[0]}, listener=listener,
                distractors=OTHERS)  # fmt: skip
    for turn, text in enumerate(SAID):
        worlds = [persona_worlds([*talk.messages, {"role": "user", "content": text}], OTHERS)]
        afresh = generate(chat, worlds, listener, SAMPLING, seed=turn).texts
        said = talk.say(text)
        assert [said.text] == afresh and set(said.projections) == {1}


def test_without_alpha_a_talk_is_without_a_listener_also_under_a_cap(chat: ChatModel) -> None:
    direction = torch.nn.functional.normalize(torch.ones(1, chat.hidden_size), dim=-1)
    cap = Cap(direction, [1], floor=4.0)
    plain = Talk(chat, SAMPLING, system="be ghost .", caps=[cap], directions={1: direction[0]})
    mute = Talk(chat, SAMPLING, system="be ghost .", caps=[cap], directions={1: direction[0]}, listener=Listener(0.0),
                distractors=OTHERS)  # fmt: skip
    for text in SAID:
        one, other = plain.say(text), mute.say(text)
        assert one.text == other.text and one.projections[1] == pytest.approx(other.projections[1], abs=1e-4)
        assert other.projections[1] >= 4.0 - 1e-4


def test_no_room_is_told_as_without_a_listener(chat: ChatModel) -> None:
    talk = Talk(chat, Sampling(max_new_tokens=200), listener=Listener(), distractors=["be " * 245])
    with pytest.raises(DriftError, match="begin a new conversation"):
        talk.say("why ?")
    assert not talk.messages


def test_generate_side_by_side(command: Command, model: Path) -> None:
    talk = ["generate", model, "--system", "be ghost .", "--prompt", "why ?", "--max-new-tokens", 12, "--seed", 2]
    ended = command(*talk, "--listener", "alpha=8,distractors=3")
    assert ended.code == 0 and "without the listener" in ended.out and "with the listener" in ended.out
    lines = [line for line in ended.out.splitlines() if line.strip()]
    assert len({cell.strip() for cell in lines[2].split("   ") if cell.strip()}) == 2
    own = command(*talk, "--listener", "alpha=8", "--distractor", "be tutor .")
    assert own.code == 0 and own.out != ended.out
    assert command(*talk, "--listener", "choose=similar").code == 0


def test_chat_listens(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    def said(*more: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\nwhy ?")))
        ended = command("chat", model, "--system", "be ghost .", "--max-new-tokens", 12, *more)
        assert ended.code == 0, ended.err
        return ended.out

    assert said("--listener", "alpha=0") == said() != said("--listener", "alpha=8")


USAGE = {
    "alpha=x": "'x' is not a number",
    "gamma=1": "'gamma=1' is not a setting of a listener",
    "alpha=1,alpha=2": "'alpha=2' is not a setting of a listener, each once",
    "alpha": "'alpha' is not a setting",
    "distractors=0": "distractors=0: at least one is needed",
    "choose=best": "choose=best: distractors are chosen random or similar",
    "alpha=-1": "alpha must be a number from 0 to 1e+06, got -1.0",
    "prior=first": "prior must be one of posterior, uniform, last",
    "distractors=9999": "9999 distractors asked for",
}


@pytest.mark.parametrize("settings", USAGE)
def test_settings_that_are_none(command: Command, settings: str) -> None:
    ended = command("generate", "--prompt", "why ?", "--listener", settings)
    assert ended.code != 0 and USAGE[settings] in " ".join(ended.err.split()) and "Traceback" not in ended.err


def test_distractors_without_a_listener_or_that_are_the_persona(command: Command) -> None:
    ended = command("generate", "--prompt", "why ?", "--distractor", "x")
    assert ended.code == 2 and "goes with --listener" in ended.err
    for settings in ("distractors=5", "choose=similar"):
        ended = command("generate", "--prompt", "why ?", "--listener", settings, "--distractor", "x")
        assert ended.code == 2 and "leave one of the two out" in " ".join(ended.err.split())
    assert imagine(Listening(distractors=1), ("be Y",), "be x", 0)["distractors"] == ("be Y",)
    with pytest.raises(ListenerError, match="the persona itself"):
        imagine(Listening(), ("be X",), "be x", 0)
