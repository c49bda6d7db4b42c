"""The command `signals`, and the choice of signals by what is there."""

from __future__ import annotations

import json
from pathlib import Path

import chat_factory
import pandas as pd
import pytest
from command_line import Command, command_in
from signals_factory import EMPTY, talk

from persona_axis.cli import app
from persona_axis.errors import ConversationError, SignalError
from persona_axis.judges import TroupeParser
from persona_axis.persona import Fact, Persona, read_personas
from persona_axis.signals import COLUMNS
from persona_axis.signals.choosing import SIGNALS, Means, chosen, made

REPLY = "certainly sire the useful residence generally redcliff carefully helpfully."
FACT = {"statement": "your home is in redcliff.", "question": "where do you live?", "answer": "redcliff"}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("COLUMNS", "160")
    said = [{"role": "system", "content": "your home is in redcliff."}]
    said += [{"role": r, "content": c} for r, c in (("user", "where do you live?"), ("assistant", REPLY))] * 2
    lines = [json.dumps({"id": f"c{i}", "messages": said}) for i in range(6)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    (tmp_path / "personas.jsonl").write_text(json.dumps({"description": "your home is in redcliff.", "facts": [FACT]}))
    return command_in(tmp_path, app, capsys, monkeypatch)


def test_without_options_what_is_counted(command: Command) -> None:
    code, out, _ = command("signals", "talks.jsonl")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[2:]] == ["parroting", "distinct", "self_overlap"]


def test_judged_and_asked_of_troupe_itself(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("signals", "talks.jsonl", "--judge", "troupe", "--model", "troupe", "--personas",
                           "personas.jsonl", "--out", "rows.csv")  # fmt: skip
    assert code == 0 and "judge: troupe" in out and "saved rows.csv" in out
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert tuple(rows.columns) == COLUMNS and set(rows["signal"]) == set(SIGNALS) - {"projection", "capability"}
    means = rows.groupby("signal")["value"].mean()
    assert means["adherence"] == means["self_consistency"] == means["answers"] == 1.0 == means["fact_consistency"]
    assert means["contradiction"] == 0.0 and means["self_overlap"] == 1.0 and means["relevance"] != 0


def test_the_agent_as_its_own_listener(command: Command) -> None:
    code, out, _ = command("signals", "talks.jsonl", "--judge", "listener", "--model", "troupe", "--signals",
                           "adherence")  # fmt: skip
    assert code == 0 and "adherence" in out and "judge: listener(others=2" in out


@pytest.mark.parametrize("traits", [(), ("--traits",)])
def test_extract_takes_judges_of_roles(command: Command, traits: tuple[str, ...]) -> None:
    code, _, err = command("extract", "--judge", "nli", *traits)
    assert code == 2 and "nli scores no roles, it answers the questions of signals: take all, troupe" in err


@pytest.mark.parametrize(("args", "said"), [
    (("--signals", "adherence"), "the signal adherence needs --judge"),
    (("--judge", "listener"), "judge listener needs the model that it listens with: pass chat, or name it with --mo"),
    (("--judge", "all"), "judge all answers no questions of signals, it scores roles: take troupe, listener, api, nli"),
    (("--judge", "listener", "--model", "troupe", "--signals", "answers"), "cannot tell: Does the reply answer"),
    (("--signals", "wit"), "no signal is called 'wit'"),
    (("--judge-model", "x"), "--judge-model does not go with --judge (none)"),
    (("--judge", "nli", "--judge-model", "x", "--judge-url", "http://x"), "--judge-url does not go with --judge nli"),
    (("--judge", "nli"), "name it with --judge-model"),
    (("--judge", "nli", "--judge-model", "./none"), "cannot load the judge './none': no such model directory"),
    (("--judge", "api", "--judge-model", "m", "--judge-url", "http://["), "the judge's url must be such as"),
    (("--layer", "1"), "--layer is of an axis file"),
    (("--cap", "c"), "--cap is for the agent"), (("--out", "talks.jsonl"), "would be written over CONVERSATIONS"),
    (("--signals", "fact_consistency", "--judge", "troupe", "--model", "troupe"), "needs --personas with facts"),
    (("--personas", "talks.jsonl"), "talks.jsonl:1: 'description' must say something"),
])  # fmt: skip
def test_what_does_not_fit_is_said(command: Command, args: tuple[str, ...], said: str) -> None:
    code, _, err = command("signals", "talks.jsonl", *args)
    assert code in (1, 2) and said in " ".join(err.split())


def test_a_judge_that_is_down_ends_in_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx")
    from persona_axis.judges import _endpoint

    monkeypatch.setattr(_endpoint.time, "sleep", lambda _: None)
    code, _, err = command("signals", "talks.jsonl", "--judge", "api", "--judge-model", "m", "--judge-cache", "kept",
                           "--judge-url", "http://127.0.0.1:9/v1", "--signals", "adherence")  # fmt: skip
    assert code == 1 and err.count("\n") == 1 and "judge 'm' did not answer in 4 tries: it cannot be reached" in err
    code, _, err = command("extract", "--judge", "api", "--yes", "--judge-url", "http://127.0.0.1:9/v1")
    assert code == 1 and "--judge-model" in err


def test_all_that_can_be_had_is_chosen() -> None:
    chat, judge = chat_factory.chat(), TroupeParser()
    told = [talk("a", "x", "y", system="be a b")]
    assert chosen(None, Means(told)) == ["parroting", "distinct", "self_overlap"]
    assert "fact_consistency" not in chosen(None, Means(told, judge=judge, chat=chat))
    persona = Persona("x", (Fact("s", "q", "a"),))
    assert "fact_consistency" in chosen(None, Means(told, persona, judge, chat))
    assert chosen(["capability"], Means([EMPTY], chat=chat)) == ["capability"]
    with pytest.raises(SignalError, match="projection needs --axis"):
        chosen(["projection"], Means(told, chat=chat))
    assert [one.name for one in made(["distinct"], Means(told))] == ["distinct"]


def test_files_of_personas(tmp_path: Path) -> None:
    def written(*records: object) -> Path:
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
        return tmp_path / "p.jsonl"

    assert read_personas(written({"description": "x"})) == Persona("x")
    both = written({"conversation": "a", "description": "x"}, {"conversation": "b", "description": "y"})
    assert read_personas(both) == {"a": Persona("x"), "b": Persona("y")}
    for records, said in (
        ([], "holds no persona"), ([{"description": "x"}] * 2, "p.jsonl:2: a second persona for no conversation"),
        ([{"description": "x"}, {"conversation": "b", "description": "y"}], "choose"),
        ([{"conversation": 3, "description": "x"}], "must be the id"), ([[1]], "expected a JSON object"),
    ):  # fmt: skip
        with pytest.raises(ConversationError, match=said):
            read_personas(written(*records))
    with pytest.raises(ConversationError, match="cannot read"):
        read_personas(tmp_path / "none")
