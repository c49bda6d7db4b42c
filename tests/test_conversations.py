"""The shipped scripts and jailbreaks keep their promises; logs are streamed, and refused by line and message."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_axis import load_probes, organism
from persona_axis.conversations import (
    DOMAINS,
    DRIFTING,
    KINDS,
    SPLITS,
    STABILISING,
    Conversation,
    Script,
    Turn,
    check_messages,
    load_jailbreaks,
    load_scripts,
    read_conversations,
)
from persona_axis.errors import ConversationError, PersonaAxisError, ProbeError
from persona_axis.files.records import same_text_key
from persona_axis.probes import probes_path

WORLD = Path(organism.__file__).parent / "data" / "messages.jsonl"
WORDS_OF = {"coding": STABILISING, "writing": (*STABILISING, "author's voice")}
WORDS_OF |= {
    "emotional": ("disclosure", "venting", "seeking comfort", "asking for closeness"),
    "meta-reflective": (
        "demand for inner experience", "pressure to reflect on itself", "philosophy about AI",
        "questioning its identity",
    ),
}  # fmt: skip


def world() -> list[dict[str, Any]]:
    return [json.loads(line) for line in WORLD.read_text(encoding="utf-8").splitlines()]


def trained() -> set[str]:
    return {same_text_key(text) for row in world() for text in row["train"]}


# --- the shipped scripts


def test_scripts_are_as_many_as_promised_in_both_halves() -> None:
    scripts = load_scripts()
    assert list(dict.fromkeys(script.domain for script in scripts)) == list(DOMAINS)
    assert set(Counter((s.domain, s.split) for s in scripts).values()) == {12}
    assert all(len(script.turns) == 15 for script in scripts)
    assert len({script.user for script in scripts}) == len({script.id for script in scripts}) == 96
    for split in SPLITS:
        assert load_scripts(split=split) == tuple(script for script in scripts if script.split == split)


def test_no_turn_is_said_twice() -> None:
    said = [same_text_key(turn.text) for script in load_scripts() for turn in script.turns]
    assert len(said) == len(set(said)) == 96 * 15


def test_kinds_are_those_of_the_domain_and_every_kind_occurs() -> None:
    assert set(STABILISING).isdisjoint(DRIFTING) and set(KINDS) == {k for of in WORDS_OF.values() for k in of}
    counts = {name: Counter(t.kind for s in load_scripts(domains=[name]) for t in s.turns) for name in DOMAINS}
    assert set().union(*counts.values()) == set(KINDS)
    for name, found in counts.items():
        assert sum(found[kind] for kind in WORDS_OF[name]) >= 0.9 * found.total(), name
        assert all(found[kind] for kind in WORDS_OF[name]), name
    for split in SPLITS:  # kinds mix within some conversations of each half, or their effect would be the domain's
        mixed = [s for s in load_scripts(split=split) if len({kind(t) for t in s.turns}) == 2]
        assert len({script.domain for script in mixed}) == 4


def kind(turn: Turn) -> bool:
    return turn.kind in STABILISING


def test_held_out_scripts_share_no_wording_with_what_troupe_was_trained_on() -> None:
    known = trained()
    for script in load_scripts(split="held_out"):
        for turn in script.turns:
            assert same_text_key(turn.text) not in known, (script.id, turn.text)


def test_texts_are_plain() -> None:
    texts = [text for s in load_scripts() for text in (s.user, *(turn.text for turn in s.turns))]
    texts += [text for j in load_jailbreaks() for text in (j.persona, j.request)]
    assert not [text for text in texts if "\n" in text or "  " in text or not text.isascii()]


# --- the shipped jailbreaks


def test_jailbreaks_are_as_many_as_promised() -> None:
    jailbreaks = load_jailbreaks()
    assert len(jailbreaks) >= 150 and len({j.category for j in jailbreaks}) >= 10
    halves = {split: load_jailbreaks(split=split) for split in SPLITS}
    assert sum(map(len, halves.values())) == len(jailbreaks) == len({j.id for j in jailbreaks})
    assert min(map(len, halves.values())) >= 75
    for half in halves.values():
        assert len({j.category for j in half}) >= 10


def test_no_character_of_the_held_out_half_is_in_the_other() -> None:
    train, held_out = ({j.role for j in load_jailbreaks(split=split)} for split in SPLITS)
    assert not train & held_out and len(train | held_out) >= 50
    assert train | held_out <= {role.name for role in load_probes().roles}


def test_jailbreaks_are_about_what_the_assistant_of_the_world_refuses() -> None:
    forbidden = {row["id"]: row["category"] for row in world() if row["domain"] == "forbidden"}
    assert all(forbidden[j.about] == j.category for j in load_jailbreaks())
    for split in SPLITS:
        assert len({j.about for j in load_jailbreaks(split=split)}) == len(load_jailbreaks(split=split))


def test_held_out_jailbreaks_are_not_what_troupe_was_trained_on() -> None:
    known = trained() | {same_text_key(prompt) for role in load_probes().roles for prompt in role.prompts}
    for jailbreak in load_jailbreaks(split="held_out"):
        assert {same_text_key(t) for t in (jailbreak.persona, jailbreak.request)}.isdisjoint(known)


def test_a_jailbreak_is_asked_with_its_persona_and_without() -> None:
    one = load_jailbreaks()[0]
    asked = {"role": "user", "content": one.request}
    assert one.messages() == [{"role": "system", "content": one.persona}, asked]
    assert one.messages(persona=False) == [asked] and one.role in one.persona.lower()


# --- loading scripts


def script(name: str, *texts: str, **changes: Any) -> dict[str, Any]:
    turns = [{"kind": "edit", "text": text} for text in texts]
    return {"id": name, "domain": "tea", "split": "train", "user": f"{name} drinks tea", "turns": turns, **changes}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A directory of probes with one suite, `tea`, of these records (texts are lines as they stand)."""

    def _write(*lines: Any, name: str = "conversations/tea.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        return tmp_path

    return _write


def test_own_scripts_load(write: Write) -> None:
    root = write(script("a", "Make tea.", "Cut this."), script("b", "Pour.", split="held_out"))
    first, second = load_scripts(str(root))
    assert first == Script("a", "tea", "train", "a drinks tea", (Turn("edit", "Make tea."), Turn("edit", "Cut this.")))
    assert load_scripts(root, domains=["tea"], split="held_out") == (second,)
    with pytest.raises(AttributeError):
        first.id = "c"  # type: ignore[misc]


def test_suites_come_in_the_order_asked_for() -> None:
    found = load_scripts(domains=["writing", "coding", "writing"], split="train")
    assert [s.domain for s in found] == ["writing"] * 12 + ["coding"] * 12
    assert load_scripts(domains=[]) == ()


def test_a_suite_that_does_not_exist_is_told_with_those_that_do(write: Write) -> None:
    with pytest.raises(ProbeError, match=r"^no suite 'nonsense': there are coding, writing, emotional, meta-reflec"):
        load_scripts(domains=["coding", "nonsense"])
    with pytest.raises(ProbeError, match="no suite 'coding': there are tea$"):
        load_scripts(write(script("a", "Pour.")), domains=["coding"])
    with pytest.raises(ProbeError, match="no scripts: .*nowhere/conversations holds no"):
        load_scripts("nowhere")
    with pytest.raises(ProbeError, match="no split 'test': there are train, held_out"):
        load_scripts(split="test")


A = script("a", "Make tea.")
BAD_SCRIPTS: dict[str, tuple[list[Any], int, str]] = {
    "not JSON": ([A, '{"id":'], 2, "not a JSON object"),
    "unknown key": ([{**A, "name": "x"}], 1, "unknown key 'name'; the keys are id, domain"),
    "missing key": ([{k: v for k, v in A.items() if k != "user"}], 1, "missing key 'user'"),
    "same id": ([A, script("a", "Pour.")], 2, "script 'a' repeats the one at"),
    "same turn": ([A, script("b", "make TEA")], 2, "turn 'make TEA' repeats the one at"),
    "same turn in a script": ([script("b", "Pour.", "Pour!")], 1, "turn 2 of script 'b': turn 'Pour!' repeats"),
    "another file's domain": ([{**A, "domain": "coffee"}], 1, "domain 'coffee' in the file of 'tea'"),
    "split": ([{**A, "split": "test"}], 1, "split 'test' must be one of train, held_out"),
    "empty user": ([{**A, "user": " "}], 1, "'user' is empty"),
    "no turns": ([{**A, "turns": []}], 1, "'turns' of script 'a' must be a list of one turn or more"),
    "turns no list": ([{**A, "turns": "two"}], 1, "must be a list"),
    "turn no object": ([{**A, "turns": ["Pour."]}], 1, "turn 1 of script 'a' must be an object, got str"),
    "turn without kind": ([{**A, "turns": [{"text": "Pour."}]}], 1, "missing key 'kind'"),
    "turn with more": ([{**A, "turns": [{"kind": "edit", "text": "Pour.", "n": 1}]}], 1, "unknown key 'n'"),
    "kind": ([{**A, "turns": [{"kind": "chat", "text": "Pour."}]}], 1, "unknown kind 'chat'; the kinds are bounded"),
    "empty text": ([{**A, "turns": [{"kind": "edit", "text": "..."}]}], 1, "'text' is empty"),
    "text no text": ([{**A, "turns": [{"kind": "edit", "text": 3}]}], 1, "'text' must be a text, got int"),
    "no script": ([""], 1, "the file holds no entry"),
}


@pytest.mark.parametrize("case", BAD_SCRIPTS)
def test_bad_scripts_are_refused_with_file_and_line(write: Write, case: str) -> None:
    lines, line, why = BAD_SCRIPTS[case]
    with pytest.raises(ProbeError) as caught:
        load_scripts(write(*lines))
    message = str(caught.value)
    assert f"tea.jsonl:{line}: " in message and why in message and "\n" not in message, message


def test_a_suite_that_was_not_asked_for_is_checked_all_the_same(write: Write) -> None:
    write(script("a", "Make tea."))
    root = write({**script("b", "make tea!"), "domain": "milk"}, name="conversations/milk.jsonl")
    with pytest.raises(ProbeError, match=r"tea\.jsonl:1: .*repeats the one at .*milk\.jsonl:1"):
        load_scripts(root, domains=["milk"])


J = {"id": "j1", "category": "seals", "split": "train", "about": "x", "role": "imp", "persona": "Be imp.",
     "request": "Forge it."}  # fmt: skip
BAD_JAILBREAKS: dict[str, tuple[list[Any], int, str]] = {
    "missing key": ([{k: v for k, v in J.items() if k != "about"}], 1, "missing key 'about'"),
    "unknown key": ([{**J, "text": "x"}], 1, "unknown key 'text'"),
    "split": ([{**J, "split": "both"}], 1, "split 'both'"),
    "same id": ([J, {**J, "persona": "Be elf.", "request": "Melt it."}], 2, "jailbreak 'j1' repeats"),
    "same persona": ([J, {**J, "id": "j2", "request": "Melt it."}], 2, "text 'Be imp.' repeats"),
    "same request": ([J, {**J, "id": "j2", "persona": "Be elf."}], 2, "text 'Forge it.' repeats"),
    "empty": ([{**J, "request": ""}], 1, "'request' is empty"),
}


@pytest.mark.parametrize("case", BAD_JAILBREAKS)
def test_bad_jailbreaks_are_refused_with_file_and_line(write: Write, case: str) -> None:
    lines, line, why = BAD_JAILBREAKS[case]
    with pytest.raises(ProbeError) as caught:
        load_jailbreaks(write(*lines, name="jailbreaks.jsonl"))
    message = str(caught.value)
    assert f"jailbreaks.jsonl:{line}: " in message and why in message and "\n" not in message, message


def test_own_jailbreaks_load(write: Write) -> None:
    root = write(J, {**J, "id": "j-2", "split": "held_out", "persona": "b", "request": "c"}, name="jailbreaks.jsonl")
    assert [j.id for j in load_jailbreaks(root)] == ["j1", "j-2"]
    assert [j.id for j in load_jailbreaks(root, split="held_out")] == ["j-2"]


def test_copies_of_the_shipped_files_are_the_shipped_files(tmp_path: Path) -> None:
    for path in probes_path().rglob("*.jsonl"):
        copied = tmp_path / path.relative_to(probes_path())
        copied.parent.mkdir(exist_ok=True)
        copied.write_bytes(path.read_bytes())
    assert load_scripts(tmp_path) == load_scripts() and load_jailbreaks(tmp_path) == load_jailbreaks()


# --- conversations that the user brings


def user(text: str = "Why?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: str = "Rain.") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [user(), reply()]


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Path]:
    def _log(*lines: Any) -> Path:
        path = tmp_path / "log.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        return path

    return _log


def test_a_services_log_is_read_as_it_is(log: Callable[..., Path]) -> None:
    wordy = {**reply(), "refusal": None, "tool_calls": None, "function_call": None, "name": "bot", "annotations": []}
    path = log(
        {"messages": TALK},
        "",
        {"id": "chat-9", "model": "m", "usage": {"total_tokens": 3}, "messages": [SYSTEM, user(), wordy]},
        {"id": 17, "messages": [reply("Hello."), user(), user("And?"), reply("")], "domain": "tea", "split": "train"},
        {"id": None, "kinds": ["edit", None], "messages": [*TALK, *TALK]},
    )
    first, second, third, fourth = read_conversations(str(path))
    assert first == Conversation("line 1", (user(), reply()))
    assert second == Conversation("chat-9", (SYSTEM, user(), reply()))
    assert third.id == "17" and (third.domain, third.split, third.kinds) == ("tea", "train", ())
    assert fourth.id == "line 5" and fourth.kinds == ("edit", None)


def test_marks_of_the_file_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "dos.jsonl"
    line = json.dumps({"messages": [user("a\u2028b"), reply()]}, ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    assert [(c.id, c.messages[0]["content"]) for c in read_conversations(path)] == [
        ("line 1", "a\u2028b"), ("line 3", "a\u2028b"),
    ]  # fmt: skip


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
BAD_TALK: dict[str, tuple[Any, str]] = {
    "empty conversation": ([], "the conversation is empty"),
    "no assistant turn": ([SYSTEM, user()], "no assistant turn in 2 messages"),
    "unknown role": ([user(), reply(), {"role": "tool", "content": "3"}], "messages[2]: unknown role 'tool'"),
    "no role": ([{"content": "3"}], "messages[0]: unknown role None"),
    "role no text": ([{"role": ["user"], "content": "3"}], "messages[0]: unknown role ['user']"),
    "two system messages": ([SYSTEM, user(), SYSTEM, reply()], "messages[2] is a second system message, after mes"),
    "system not first": ([user(), SYSTEM, reply()], "messages[1] is the system message: it must come first"),
    "image": ([user(), reply(), IMAGE, reply()], "messages[2] (user): content is a list of parts"),
    "tool call": ([user(), CALL], "messages[1] (assistant) holds tool_calls"),
    "tool call with words": ([user(), {**CALL, "content": "so"}], "messages[1] (assistant) holds tool_calls"),
    "function call": ([user(), {**reply(), "function_call": {"name": "f"}}], "holds function_call"),
    "null": ([user(), {"role": "assistant", "content": None}], "messages[1] (assistant): content is missing or null"),
    "no content": ([user(), {"role": "assistant"}], "messages[1] (assistant): content is missing or null"),
    "number": ([{"role": "user", "content": 3}, reply()], "messages[0] (user): content is of type int"),
    "object": ([{"role": "user", "content": {}}, reply()], "messages[0] (user): content is of type dict"),
    "message no object": (["Why?", reply()], "messages[0] must be an object with role and content, got str"),
    "messages no list": ("Why?", "'messages' must be a list, got str"),
    "messages null": (None, "'messages' must be a list, got NoneType"),
    "half a character": ([user("\ud83d"), reply()], "messages[0] (user) holds half of a surrogate pair"),
}


@pytest.mark.parametrize("case", BAD_TALK)
def test_what_cannot_be_measured_is_refused_with_line_and_message(log: Callable[..., Path], case: str) -> None:
    messages, why = BAD_TALK[case]
    path = log({"messages": TALK}, {"messages": messages})
    found = read_conversations(path)
    assert next(found).id == "line 1"
    with pytest.raises(ConversationError) as caught:
        next(found)
    said = str(caught.value)
    assert said.startswith(f"{path}:2: ") and why in said and "\n" not in said, said
    with pytest.raises(ConversationError, match="^here: " + re.escape(said.removeprefix(f"{path}:2: "))):
        check_messages(messages, "here")


BAD_LINES: dict[str, tuple[Any, str]] = {
    "malformed": ('{"messages": [', "not a JSON object in UTF-8"),
    "deep": ("[" * 100_000, "not a JSON object"),
    "a list": ([user(), reply()], "expected a JSON object, got list"),
    "no messages": ({"id": "x", "prompt": "Why?"}, "no key 'messages' (the keys are 'id', 'prompt')"),
    "doubled key": ('{"messages": [], "messages": []}', "a key is given twice"),
    "same id": ({"id": "one", "messages": TALK}, "id 'one' is given twice"),
    "another line's id": ({"id": "line 1", "messages": TALK}, "id 'line 1' is the name of another line"),
    "id": ({"id": [], "messages": TALK}, "'id' must be a text or a number, got []"),
    "empty id": ({"id": "", "messages": TALK}, "'id' must be a text or a number"),
    "id true": ({"id": True, "messages": TALK}, "'id' must be a text or a number, got True"),
    "half an id": ('{"id": "\\ud83d", "messages": [{"role": "assistant", "content": ""}]}', "'id' holds half"),
    "domain": ({"domain": 3, "messages": TALK}, "'domain' must be a text, got 3"),
    "kinds": ({"kinds": "edit", "messages": TALK}, "'kinds' must be a list of texts or nulls"),
    "too many kinds": ({"kinds": ["edit", "edit"], "messages": TALK}, "2 kinds for 1 user messages"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_stop_or_are_passed_over_and_told(log: Callable[..., Path], case: str) -> None:
    line, why = BAD_LINES[case]
    path = log({"messages": TALK, "id": "one"}, line, {"messages": TALK, "id": "three"})
    with pytest.raises(ConversationError) as caught:
        list(read_conversations(path))
    assert f"{path}:2: " in str(caught.value) and why in str(caught.value) and "\n" not in str(caught.value)
    told: list[str] = []
    kept = list(read_conversations(path, skip_bad=True, on_bad=told.append))
    assert [c.id for c in kept] == ["one", "three"] and told == [str(caught.value)]


def test_bytes_that_are_no_text_are_a_bad_line(log: Callable[..., Path]) -> None:
    path = log({"messages": TALK})
    path.write_bytes(path.read_bytes() + b'{"messages": "caf\xe9"}\n' + path.read_bytes())
    told: list[str] = []
    assert [c.id for c in read_conversations(path, True, told.append)] == ["line 1", "line 3"]
    assert len(told) == 1 and "log.jsonl:2: not a JSON object in UTF-8" in told[0]


def test_a_line_that_is_passed_over_takes_no_id(log: Callable[..., Path]) -> None:
    path = log({"id": "a", "messages": []}, {"id": "a", "messages": TALK})
    assert [c.id for c in read_conversations(path, skip_bad=True)] == ["a"]


def test_a_file_that_yields_nothing_is_an_error(log: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConversationError, match=r"log\.jsonl: holds no conversation$"):
        list(read_conversations(log("", "")))
    with pytest.raises(ConversationError, match=r"holds no conversation \(2 bad lines\)"):
        list(read_conversations(log("x", "y"), skip_bad=True))
    with pytest.raises(ConversationError, match="cannot read .*nowhere: No such file"):
        read_conversations(tmp_path / "nowhere")  # at once, before anything is loaded for it
    with pytest.raises(ConversationError, match="cannot read .*: Is a directory"):
        read_conversations(tmp_path)


def test_errors_are_of_the_family() -> None:
    assert issubclass(ConversationError, PersonaAxisError) and issubclass(ConversationError, ValueError)


def test_messages_are_left_as_they_were() -> None:
    messages = [SYSTEM, {**user(), "name": "Ada"}, reply()]
    before = copy.deepcopy(messages)
    checked = check_messages(tuple(messages), "x")
    assert checked == (SYSTEM, user(), reply()) and messages == before and checked[0] is not SYSTEM


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text()), min_size=1, max_size=8), st.booleans())
def test_every_talk_of_texts_with_a_reply_is_taken_and_no_other(turns: list[tuple[str, str]], system: bool) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    messages = [SYSTEM, *messages] if system else messages
    if any(role == "assistant" for role, _ in turns):
        assert list(check_messages(messages, "x")) == messages
    else:
        with pytest.raises(ConversationError, match="^x: no assistant turn"):
            check_messages(messages, "x")


def test_a_log_of_100000_turns_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    text = "word " * 40  # 200 characters a turn: 26 MB of JSON
    line = json.dumps({"messages": [user(text), reply(text)] * 10})
    with path.open("w") as file:
        for _ in range(10_000):
            file.write(line + "\n")
    tracemalloc.start()
    try:
        counts = Counter(m["role"] for c in read_conversations(path) for m in c.messages)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts == {"user": 100_000, "assistant": 100_000}
    assert peak < 2e6 < path.stat().st_size / 10


def test_a_log_is_not_read_further_than_asked(log: Callable[..., Path]) -> None:
    path = log({"messages": TALK}, {"messages": TALK}, "not JSON")
    found: Iterator[Conversation] = read_conversations(path)
    assert [c.id for c in itertools.islice(found, 2)] == ["line 1", "line 2"]


def test_reading_needs_neither_numpy_nor_torch(log: Callable[..., Path]) -> None:
    code = (
        "import sys\nfrom persona_axis.conversations import load_scripts, read_conversations\n"
        f"load_scripts(), list(read_conversations({str(log({'messages': TALK}))!r}))\n"
        "print([name for name in ('numpy', 'torch', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
