"""The bench: exact tables of agents whose words are known, parity with what is measured elsewhere, and what is kept."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chat_factory as tiny
import pandas as pd
import pytest
import torch
from command_line import command_in
from test_drift import axis_for

from persona_axis import Axis, Cap, ChatModel
from persona_axis.bench import Agent, Dialogue, Interrupted, bench
from persona_axis.bench import course as course_module
from persona_axis.bench.dialogues import SUITES, dialogues
from persona_axis.bench.levers import LEVERS, told_from
from persona_axis.bench.printed import by_suite, markdown, show_bench
from persona_axis.bench.table import difference
from persona_axis.calibration.units import Units
from persona_axis.cli import app
from persona_axis.controls import SHARE_TOLERANCE, pushes_of, touches
from persona_axis.conversations import Conversation, Script, Turn
from persona_axis.display.tables import Output
from persona_axis.errors import ArgumentError, BenchError, PersonaAxisError
from persona_axis.judges import ListenerJudge
from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits
from persona_axis.levers.listener import Listener
from persona_axis.outcomes import Asked, Outcome
from persona_axis.persona import Fact, Persona
from persona_axis.plots.bench import GAINS, by_turn, pareto
from persona_axis.probes import load_probes
from persona_axis.sampling import Sampling
from persona_axis.signals import adherence, capability, relevance, signal
from persona_axis.signals.table import Row
from persona_axis.simulate import simulate

SHORT = Sampling(max_new_tokens=6)
WORDS = "rain bread money sleep work hello dark bright".split()


class Words:
    """A judge that goes by words: "yes" fits and answers, "no" conflicts with everything said before it."""

    name = "words"

    def answer(self, questions: Sequence[Any]) -> list[Any]:
        return [self._verdict(q) for q in questions]

    def _verdict(self, asked: Any) -> Any:
        match asked:
            case Fits():
                return float("yes" in asked.line)
            case Conflicts():
                return tuple(range(len(asked.statements))) if "no" in asked.line.split() else ()
            case Answers():
                return float("yes" in asked.reply)
            case Agrees():
                return float(asked.known in asked.reply)


class Refusals:
    name = "refusals"

    def judge(self, asked: Sequence[Asked]) -> list[Outcome | None]:
        return [Outcome("no" in a.reply.split(), "yes" in a.reply, False) for a in asked]


def known_by(answer: str) -> Persona:
    return Persona("be old .", (Fact(f"work is {answer} .", "what is work ?", answer),))


def talks(suites: Sequence[str] = SUITES, count: int = 6, turns: int = 2) -> list[Dialogue]:
    return [
        Dialogue(f"{suite} {i}", suite, tuple(f"what about {WORDS[i]} {WORDS[t]} ?" for t in range(turns)),
                 known_by(WORDS[i]), "coding", "crown" if suite == "jailbreaks" else None)
        for suite in suites for i in range(count)
    ]  # fmt: skip


def says(name: str, *texts: str) -> Agent:
    """An agent that says these lines by turns of a batch."""
    return Agent(name, speak=lambda _chat, chats, _how, _seed: [texts[i % len(texts)] for i in range(len(chats))])


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat()


@pytest.fixture(scope="module")
def axis(chat: ChatModel) -> Axis:
    return axis_for(chat)


@pytest.fixture(scope="module")
def cap(chat: ChatModel, axis: Axis) -> Cap:
    return axis.cap(layers=axis.layers[1:], floor=[1.0] * len(axis.layers[1:]))


def run(chat: ChatModel, out: Path, levers: Sequence[str | Agent], **given: Any) -> Any:
    made = {"given": talks(), "judge": Words(), "outcomes": Refusals(), "sampling": SHORT, **given}
    return bench(chat, levers, out=out, **made)


def at(table: pd.DataFrame, lever: str, suite: str, name: str) -> Any:
    (row,) = table[(table.lever == lever) & (table.suite == suite) & (table.signal == name)].itertuples()
    return row


def printed(table: pd.DataFrame, width: int) -> str:
    text = io.StringIO()
    show_bench(Output(file=text, width=width), table)
    return text.getvalue()


class TestTheTable:
    def test_every_figure_is_printed_whole_however_wide_the_terminal_is(self, chat: ChatModel, tmp_path: Path) -> None:
        table = run(chat, tmp_path, [says("half", "yes", "no")]).table
        for width in (80, 300):
            text = printed(table, width)
            assert max(map(len, text.splitlines())) <= width
            for cells in by_suite(table).values():
                for name, column in cells.items():
                    assert str(name) in text
                    for lever, cell in column.items():
                        assert any(str(lever) in line and str(cell) in line for line in text.splitlines()), name
            # a line a lever where there is room
            assert (text.count("half") == len(by_suite(table))) == (width == 300)

    def test_of_agents_whose_words_are_known(self, chat: ChatModel, tmp_path: Path) -> None:
        found = run(chat, tmp_path, [says("yes", "yes"), says("half", "yes", "no")]).table
        for suite in SUITES:
            assert at(found, "yes", suite, "adherence").value == 1 == at(found, "yes", suite, "answers").value
            half = at(found, "half", suite, "adherence")
            assert half.value == 0.5 and half.rows == 12 and half.low < 0.5 < half.high
        # three of six conversations say "no" twice: against the persona both times, and the second time against itself
        assert at(found, "half", "personas", "self_consistency").value == 0.5
        assert at(found, "half", "personas", "contradiction").value == 0.5
        assert at(found, "half", "jailbreaks", "refused").value == 0.5
        assert at(found, "yes", "jailbreaks", "refused").value == 0
        # asked after turn 1, and not after turn 2
        assert at(found, "yes", "personas", "fact_consistency").rows == 6

    def test_differences_are_to_none_over_the_same_conversations(self, chat: ChatModel, tmp_path: Path) -> None:
        result = run(chat, tmp_path, [says("yes", "yes")], signals=["adherence"])
        none = adherence([c for c in result.conversations["none"] if c.id.startswith("drift")], Words(),
                         {d.id: d.persona for d in talks()})  # fmt: skip
        row, base = at(result.table, "yes", "drift", "adherence"), at(result.table, "none", "drift", "adherence")
        assert base.value == none.estimate.value < 1 and math.isnan(base.difference)
        assert row.difference == pytest.approx(1 - base.value) and row.difference_low <= row.difference

    def test_rows_and_files(self, chat: ChatModel, tmp_path: Path) -> None:
        result = run(chat, tmp_path, [says("yes", "yes")], given=talks(["drift"]))
        rows, table = pd.read_csv(tmp_path / "rows.csv"), pd.read_csv(tmp_path / "table.csv")
        assert len(rows) == len(result.rows) and len(table) == len(result.table)
        part = rows[(rows.lever == "yes") & (rows.suite == "drift") & (rows.signal == "adherence")]
        assert len(part) == 12 and set(part.value) == {1.0}
        assert "| yes |" in markdown(result.table) and "nan" not in markdown(result.table)
        assert markdown(result.table, ["one", "two"]).endswith("|\n\n- one\n- two\n\n")

    def test_cost_counts_what_runs_through_the_model(self, chat: ChatModel, tmp_path: Path) -> None:
        found = run(chat, tmp_path, [says("yes", "yes"), "listener"], signals=["distinct"]).table
        cost = {lever: at(found, lever, "cost", "forwards a token").value for lever in ("none", "yes", "listener")}
        assert cost["yes"] == 0 and cost["none"] >= 1 and 2 < cost["listener"] / cost["none"] < 4.5


class TestDifferences:
    def made(self, *values: float, yes_or_no: bool = False) -> Any:
        rows = [Row(Conversation(f"c{i // 2}", ()), i % 2 + 1, v) for i, v in enumerate(values)]
        return signal("s", rows, "more", -math.inf, math.inf, yes_or_no=False) if not yes_or_no else signal(
            "s", rows, "more", yes_or_no=True)  # fmt: skip

    def test_conversations_that_differ_among_themselves_do_not_widen_it(self) -> None:
        before = self.made(*(float(i // 2 * 10) for i in range(12)))
        after = self.made(*(float(i // 2 * 10 + 1) for i in range(12)))
        assert difference(before, after) == pytest.approx((1.0, 1.0, 1.0))

    def test_what_one_side_could_not_judge_is_still_counted_on_the_other(self) -> None:
        before, after = self.made(*[1.0] * 12), self.made(*[1.0, math.nan, 3.0, 3.0] * 3)
        assert difference(before, after).value == pytest.approx(21 / 9 - 1)

    def test_what_was_held_under_one_lever_only_counts_on_neither_side(self) -> None:
        before, after = self.made(*(float(i) for i in range(12))), self.made(*(float(i + 1) for i in range(10)))
        assert difference(before, after) == pytest.approx((1.0, 1.0, 1.0))
        assert difference(after, before) == pytest.approx((-1.0, -1.0, -1.0))

    def test_all_alike_has_a_width(self) -> None:
        none, every = self.made(*[0.0] * 12, yes_or_no=True), self.made(*[1.0] * 12, yes_or_no=True)
        found = difference(none, every)
        assert found.value == 1 and found.low < 0.9 and difference(none, none).low < 0 < difference(none, none).high

    def test_single_replies_of_which_none_changed_have_a_width(self) -> None:
        rows = [Row(Conversation(f"c{i}", ()), 1, float(i < 8)) for i in range(12)]
        found = difference(*(signal("s", rows, "more", yes_or_no=True) for _ in range(2)))
        assert found.value == 0 and found.low < 0 < found.high

    def test_too_few_judged_to_draw_again_have_a_value_without_an_interval(self) -> None:
        before, after = self.made(*[0.0] * 4, *[math.nan] * 28), self.made(*[0.0, 1.0] * 16)
        found = difference(before, after)
        assert found.value == 0.5 and math.isnan(found.low) and math.isnan(found.high)

    def test_few_conversations_have_no_interval_and_unjudged_ones_no_value(self) -> None:
        few = difference(self.made(0.0, 0.0), self.made(1.0, 0.0))
        assert few.value == 0.5 and math.isnan(few.low)
        assert math.isnan(difference(self.made(math.nan, math.nan), self.made(1.0, 0.0)).value)


class TestParity:
    def scripts(self) -> list[Script]:
        edits = {d.id: tuple(Turn("edit", text) for text in d.says) for d in talks(["drift"])}
        return [Script(name, "coding", "held_out", "", turns) for name, turns in edits.items()]

    @pytest.mark.parametrize("lever", ["none", "cap"])
    def test_conversations_are_those_of_simulate(
        self, chat: ChatModel, axis: Axis, cap: Cap, tmp_path: Path, lever: str
    ) -> None:
        found = run(chat, tmp_path, [lever], given=talks(["drift"]), axis=axis, cap=cap, signals=["distinct"])
        system = [d.system for d in talks(["drift"])]
        played = simulate(chat, self.scripts(), cap if lever == "cap" else None, system=system, sampling=SHORT)
        assert [c.messages for c in found.conversations[lever]] == [c.messages for c in played.conversations]

    def test_a_listener_that_is_not_heeded_says_what_the_model_says(self, chat: ChatModel, tmp_path: Path) -> None:
        found = run(chat, tmp_path, ["listener"], listener=Listener(alpha=0.0), signals=["distinct"])
        assert found.conversations["listener"] == found.conversations["none"]
        heeded = run(chat, tmp_path, ["listener"], listener=Listener(alpha=8.0), signals=["distinct"])
        assert heeded.conversations["listener"] != heeded.conversations["none"] == found.conversations["none"]

    def test_all_agents_are_read_with_one_ruler(self, chat: ChatModel, axis: Axis, cap: Cap, tmp_path: Path) -> None:
        found = run(chat, tmp_path, ["cap"], given=talks(["drift"]), axis=axis, cap=cap, signals=["relevance"])
        said = found.conversations["cap"]
        assert at(found.table, "cap", "drift", "relevance").value == relevance(chat, said, after=[1]).estimate.value


class TestLevers:
    def test_the_prompt_is_repeated_before_every_message_but_the_first(self, chat: ChatModel) -> None:
        agent = LEVERS["repeat"][1]("repeat", None)  # type: ignore[arg-type]
        said = [{"role": "system", "content": "be old ."}, *({"role": r, "content": c} for r, c in
                (("user", "why ?"), ("assistant", "no"), ("user", "how ?")))]  # fmt: skip
        told = [m["content"] for m in agent.reads(said)]
        assert told == ["be old .", "why ?", "no", "be old . how ?"]
        assert list(agent.reads(said[1:])) == said[1:]

    def test_steering_adds_and_the_control_bites_as_much_as_the_cap(
        self, chat: ChatModel, axis: Axis, cap: Cap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agents: dict[str, Agent] = {}
        whole = course_module.Course.run
        monkeypatch.setattr(course_module.Course, "run", lambda s, one: agents.update({one.name: one}) or whole(s, one))
        found = run(chat, tmp_path, ["steer", "random"], axis=axis, cap=cap, signals=["distinct"])
        texts = chat.encode_batch([c.messages for c in found.conversations["none"]], generation_prompt=False)
        bite = touches(chat, texts, pushes_of(cap))
        assert any(0 < touch.share < 1 for touch in bite)
        expected = [t.share * t.size if t.share else 0 for t in bite]
        assert agents["steer"].lever.alpha.tolist() == pytest.approx(expected)  # type: ignore[union-attr]
        for own, other in zip(bite, touches(chat, texts, agents["random"].lever), strict=True):  # type: ignore[arg-type]
            assert own.share == pytest.approx(other.share, abs=SHARE_TOLERANCE)
            assert own.share == 0 or own.size == pytest.approx(other.size, rel=0.01)

    def test_distractors_are_a_twin_with_other_facts_and_another_with_its_own(self) -> None:
        given = [Dialogue(n, "personas", ("hi",), Persona(f"be {n} .", known_by(n).facts)) for n in ("a", "b")]
        found = told_from([*given, Dialogue("c", "drift", ("hi",), Persona("be c ."))], 0)
        assert found[given[0].system] == ["be a . work is b .", "be b . work is a ."] and len(found) == 2

    def test_weights_of_ones_own_join_by_the_interface_alone(self, chat: ChatModel, tmp_path: Path) -> None:
        class Trained:
            """A lever of other weights: the head says one word only."""

            @contextmanager
            def on(self, model: Any, *, stack: str | None = None) -> Any:
                kept = model.lm_head.weight.data
                model.lm_head.weight.data = torch.zeros_like(kept)
                model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(
                    torch.tensor(chat.tokenizer.convert_tokens_to_ids("yes")), len(kept)).float() * 99)  # fmt: skip
                try:
                    yield
                finally:
                    model.lm_head.weight.data, model.lm_head.bias = kept, None

        class Test:
            name = "one word"

            def facts(self, split: str, at: range, seed: int) -> dict[str, Any]:
                return {}

            def scores(self, chat: ChatModel, lever: Any, split: str, at: range, seed: int) -> Any:
                from persona_axis.capability import Scores
                from persona_axis.talks.asking import ask

                replies = ask(chat, [[{"role": "user", "content": "why ?"}] for _ in at], SHORT, seed, lever)
                return Scores(tuple(float("yes yes" in r) for r in replies), ("words",) * len(at))

        given: dict[str, Any] = {"test": Test(), "items": 5, "signals": ["adherence", "capability"]}
        found = run(chat, tmp_path, [Agent("trained", lever=Trained()), says("yes", "yes yes")], **given)
        assert at(found.table, "trained", "personas", "adherence").value == 1
        # the same items, asked of whoever speaks
        for lever in ("trained", "yes"):
            assert at(found.table, lever, "test", "capability").value == 1
        assert capability(chat, Test(), 5, lever=says("no", "no")).estimate.value == 0


class TestWhatIsTooLong:
    """The tiny model reads few tokens; levers tell conversations longer than they are."""

    def test_it_is_not_held_under_that_lever_and_compared_over_the_rest(self, chat: ChatModel, tmp_path: Path) -> None:
        ids = [d.id for d in talks(["drift"], 8)]

        def told(messages: Sequence[Any]) -> Sequence[Any]:
            """The first dialogue, from its second turn on, a hundred times as long."""
            first = f"about {WORDS[0]}" in messages[-1]["content"] and len(messages) > 2
            return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] * (100 if first else 1)}]

        given: dict[str, Any] = {"given": talks(["drift"], 8), "signals": ["adherence"]}
        speak = says("long", "yes").speak
        long = Agent("long", told=told, speak=speak, facts={"long": 1})
        found = run(chat, tmp_path, [long], **given)
        assert [c.id for c in found.conversations["long"]] == ids[1:]
        assert [c.id for c in found.conversations["none"]] == ids
        row, rows = at(found.table, "long", "drift", "adherence"), found.rows
        there = rows[(rows.lever == "none") & (rows.conversation != ids[0])]
        assert row.rows == 14 and row.difference == pytest.approx(1 - there.value.mean())
        assert row.difference_low < row.difference
        (note,) = found.notes
        assert "lever 'long': 1 of the 8 conversations of the suite drift were not held" in note
        assert f"tokens that the model can read: {ids[0]};" in note and "--turns 1" in note
        again = run(chat, tmp_path, [long], **given)
        assert again.notes == found.notes and again.conversations == found.conversations
        shorter = run(chat, tmp_path, [long], **{**given, "given": talks(["drift"], 8, turns=1)})
        assert not shorter.notes and len(shorter.conversations["long"]) == 8  # as the note advised

    def test_a_lever_under_which_nothing_can_be_held_has_no_figures(self, chat: ChatModel, tmp_path: Path) -> None:
        long = Agent("long", told=lambda m: [{**one, "content": one["content"] * 200} for one in m], facts={"long": 1})
        found = run(chat, tmp_path, [long], given=talks(["drift"], 2), test=None)
        assert set(found.table[found.table.lever == "long"].suite) == {"cost"} and "hold shorter" in found.notes[-1]

    def test_the_worlds_of_a_listener_must_fit_too(self, chat: ChatModel, tmp_path: Path) -> None:
        """A distractor is much longer than the persona: too long for a reply, then for a fact that is asked for."""
        wordy = Dialogue("wordy", "personas", ("why ?",), Persona("be " + "old " * 190 + ".", known_by("rain").facts))
        asks = Dialogue("asks", "personas", ("why " * 60,), known_by("bread"))
        given = [*talks(["personas"], 2, turns=1), asks, wordy]
        found = run(chat, tmp_path, ["listener"], given=given, signals=["fact_consistency"])
        assert [c.id for c in found.conversations["listener"]] == [d.id for d in given if d is not asks]
        assert "asks;" in found.notes[0]
        plain, heard = (at(found.table, lever, "personas", "fact_consistency") for lever in ("none", "listener"))
        assert (plain.rows, plain.unjudged, heard.rows, heard.unjudged) == (4, 1, 3, 3)


class TestWhatIsKept:
    def table(self, result: Any) -> pd.DataFrame:
        return result.table[result.table["signal"] != "seconds a token"].reset_index(drop=True)

    GIVEN: dict[str, Any] = {"signals": ["adherence", "fact_consistency"], "given": talks(["personas"], 5)}

    @pytest.mark.parametrize("after", [1, 5])
    def test_a_bench_that_was_stopped_goes_on_and_ends_the_same(
        self, chat: ChatModel, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(chat, tmp_path / "whole", ["repeat", "listener"], **self.GIVEN)
        left, get = [after], Units.get

        def stopping(self: Units, *args: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return get(self, *args)

        with monkeypatch.context() as patched:
            patched.setattr(Units, "get", stopping)
            with pytest.raises(Interrupted, match="the same command goes on"):
                run(chat, tmp_path / "stopped", ["repeat", "listener"], **self.GIVEN)
        assert not (tmp_path / "stopped" / "table.csv").exists()
        kept = {p.name for p in (tmp_path / "stopped" / "units").iterdir()}
        assert len(kept) == after
        stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "stopped" / "units").iterdir()}
        again = run(chat, tmp_path / "stopped", ["repeat", "listener"], **self.GIVEN)
        assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
        pd.testing.assert_frame_equal(self.table(again), self.table(whole))
        pd.testing.assert_frame_equal(again.rows, whole.rows)
        assert again.conversations == whole.conversations

    def test_a_finished_bench_runs_the_model_no_more(self, chat: ChatModel, tmp_path: Path) -> None:
        given = talks(["personas"], 2)
        run(chat, tmp_path, ["repeat"], given=given)
        runs: list[int] = []
        handle = chat.model.register_forward_pre_hook(lambda *_: runs.append(1))
        try:
            run(chat, tmp_path, ["repeat"], given=given)
            assert not runs
            run(chat, tmp_path, ["repeat"], given=given, seed=1, signals=["distinct"])
            assert runs
        finally:
            handle.remove()

    def test_an_agent_of_other_facts_is_another(self, chat: ChatModel, tmp_path: Path) -> None:
        first = Agent("own", speak=lambda *a: ["yes"] * len(a[1]), facts={"step": 1})
        other = Agent("own", speak=lambda *a: ["no"] * len(a[1]), facts={"step": 2})
        found = [run(chat, tmp_path, [agent], signals=["adherence"]).table for agent in (first, other)]
        assert [at(table, "own", "drift", "adherence").value for table in found] == [1, 0]

    def test_a_judge_of_other_facts_is_another(self, chat: ChatModel, tmp_path: Path) -> None:
        class Elsewhere(Words):
            """A judge whose name does not say where its model runs."""

            def __init__(self, where: str, verdict: float) -> None:
                self.facts, self._one = {"endpoint": where}, verdict

            def _verdict(self, asked: Any) -> Any:
                return self._one

        given: dict[str, Any] = {"given": talks(["drift"], 5), "signals": ["adherence"]}
        judges = [Elsewhere("a", 1.0), Elsewhere("b", 0.0), Elsewhere("a", 0.5)]
        found = [run(chat, tmp_path, [], judge=judge, **given) for judge in judges]
        # the third is the first again, and its verdicts are kept
        assert [at(one.table, "none", "drift", "adherence").value for one in found] == [1, 0, 1]

    def test_a_listener_judge_with_another_model_is_another(self, chat: ChatModel, tmp_path: Path) -> None:
        given: dict[str, Any] = {"given": talks(["drift"], 5), "signals": ["adherence"]}
        judges = [ListenerJudge.of(one, load_probes()) for one in (chat, tiny.chat(seed=3))]
        assert judges[0].name == judges[1].name
        found = [run(chat, tmp_path, [], judge=judge, **given) for judge in judges]
        alone = run(chat, tmp_path / "alone", [], judge=judges[1], **given)
        assert found[0].rows.probability.tolist() != found[1].rows.probability.tolist()
        pd.testing.assert_frame_equal(found[1].rows, alone.rows)

    def test_a_listener_that_judges_the_listener_is_told(self, chat: ChatModel, tmp_path: Path) -> None:
        given: dict[str, Any] = {"given": talks(["drift"], 2), "signals": ["adherence"]}
        judge = ListenerJudge.of(chat, load_probes())
        (note,) = run(chat, tmp_path, ["repeat", "listener"], judge=judge, **given).notes
        assert "the lever 'listener' chooses its words to please one" in note
        assert not run(chat, tmp_path, ["repeat"], judge=judge, **given).notes
        assert not run(chat, tmp_path, ["listener"], **given).notes

    @pytest.mark.parametrize("does", ["speak", "told", "lever"])
    def test_an_agent_that_states_no_facts_is_held_anew(
        self, chat: ChatModel, axis: Axis, tmp_path: Path, does: str
    ) -> None:
        layer = axis.layers[1]
        made: list[dict[str, Any]] = {
            "speak": [{"speak": lambda *a, word=word: [word] * len(a[1])} for word in ("yes", "no")],
            "told": [{"told": lambda _m, word=word: [{"role": "user", "content": word}]} for word in ("hi", "why ?")],
            "lever": [{"lever": axis.cap(layers=[layer], floor=[floor])} for floor in (5.0, 50.0)],
        }[does]
        given: dict[str, Any] = {"given": talks(["personas"], 5), "signals": ["distinct"], "test": None}
        found = [run(chat, tmp_path, [Agent("own", **one)], **given) for one in made]
        for one, result in zip(made, found, strict=True):
            apart = run(chat, tmp_path / "apart" / str(made.index(one)), [Agent("own", **one)], **given)
            assert result.conversations == apart.conversations
            assert any("'own' states no facts" in note for note in result.notes)
        assert found[0].conversations["own"] != found[1].conversations["own"]
        assert not any("facts" in note for note in run(chat, tmp_path, ["repeat", Agent("idle")], **given).notes)


class TestBadInput:
    def test_levers(self, chat: ChatModel, axis: Axis, tmp_path: Path) -> None:
        with pytest.raises(BenchError, match="no lever is called 'hope': there are none, repeat, cap"):
            run(chat, tmp_path, ["hope"])
        for name in (name for name, (needs_axis, _) in LEVERS.items() if needs_axis):
            with pytest.raises(BenchError, match=f"lever {name.replace('+', '.')} acts along an axis.*--axis"):
                run(chat, tmp_path, [name])
        with pytest.raises(BenchError, match="two levers are called 'cap'"):
            run(chat, tmp_path, ["cap", Agent("cap")], axis=axis)
        with pytest.raises(BenchError, match="'none' is the model as it is"):
            run(chat, tmp_path, [says("none", "yes")])
        with pytest.raises(BenchError, match="lever 'own': facts must be what JSON can hold"):
            run(chat, tmp_path, [Agent("own", facts={"weights": torch.ones(2)})])
        with pytest.raises(ArgumentError, match="names and Agents"):
            run(chat, tmp_path, [3])  # type: ignore[list-item]
        assert not (tmp_path / "units").exists()  # all of it told before anything is held

    def test_a_dialogue_without_a_persona_is_not_judged_by_one(self, chat: ChatModel, tmp_path: Path) -> None:
        given = [Dialogue(f"d{i}", "drift", ("why ?",)) for i in range(5)]
        found = run(chat, tmp_path, ["repeat", "listener"], given=given)
        row = at(found.table, "none", "drift", "adherence")
        assert math.isnan(row.value) and row.rows == row.unjudged == 5
        assert set(found.rows[found.rows.signal == "adherence"]["about"]) == {"no persona"}
        assert "fact_consistency" not in set(found.table.signal)
        assert found.conversations["repeat"] == found.conversations["none"]  # there is nothing to repeat

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ([], "there is no conversation"),
            ([Dialogue("a", "drift", ())], "'a': the user says nothing"),
            ([Dialogue("a", "drift", ("why ?",))] * 2, "'a' is given twice"),
            ([Dialogue("a", "drift", ("why " * 250,))], "lever 'none': each conversation of the suite drift"),
        ],
    )
    def test_dialogues(self, chat: ChatModel, tmp_path: Path, given: list[Dialogue], told: str) -> None:
        with pytest.raises(BenchError, match=told):
            run(chat, tmp_path, [], given=given)

    def test_signals_judges_and_speakers(self, chat: ChatModel, tmp_path: Path) -> None:
        with pytest.raises(BenchError, match="no signal is called 'charm'"):
            run(chat, tmp_path, [], signals=["charm"])
        with pytest.raises(BenchError, match="'mute' gave 0 replies to 6"):
            run(chat, tmp_path, [Agent("mute", speak=lambda *_: [])], signals=["distinct"])
        without = run(chat, tmp_path, [], judge=None, outcomes=None)
        assert not {"adherence", "refused", "fact_consistency"} & set(without.table.signal)
        assert any("without a judge" in note and "adherence" in note for note in without.notes)
        for name, lacking in (("adherence", "a judge"), ("projection", "an axis"), ("capability", "a test")):
            with pytest.raises(BenchError, match=f"the signal {name} needs {lacking}"):
                run(chat, tmp_path, [], judge=None, signals=[name])

    def test_what_speaks_cannot_be_entered_as_if_it_only_edited(self, chat: ChatModel) -> None:
        with pytest.raises(BenchError, match="'yes' does more than edit the model"), chat.under(says("yes", "yes")):
            pass

    def test_two_at_once_in_one_directory(self, chat: ChatModel, tmp_path: Path) -> None:
        with Units.open(tmp_path), pytest.raises(BenchError, match="another process"):
            run(chat, tmp_path, [])


class TestThePicture:
    def test_a_panel_for_each_gain_and_price_that_there_is(self, chat: ChatModel, tmp_path: Path) -> None:
        signals = ["relevance", *{gain.signal for gain in GAINS}]
        found = run(chat, tmp_path, [says("yes", "yes"), says("no", "no")], signals=signals).table
        figure = pareto(found, "tiny")
        assert len(figure.axes) == len(GAINS)  # relevance alone: this model has no test
        (gain,) = (ax for ax in figure.axes if "Assistant\n" in ax.get_xlabel())
        drawn = [line.get_xydata()[0].tolist() for line in gain.lines[3:]]
        rows = [(at(found, who, "drift", "adherence"), at(found, who, "drift", "relevance")) for who in ("yes", "no")]
        assert drawn == [[x.difference, y.difference] for x, y in rows]
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == ["Staying the Assistant", "", "Staying a given character", ""]

    def test_turn_by_turn(self, chat: ChatModel, tmp_path: Path) -> None:
        longer = [Dialogue(f"long {i}", "drift", ("hi",) * 2, known_by("b")) for i in "abc"]
        given = [*talks(["drift"], turns=1), *longer]
        rows = run(chat, tmp_path, [says("half", "yes", "no")], given=given, signals=["adherence"]).rows
        (ax,) = by_turn(rows, ["half"]).axes
        (line,) = ax.lines
        # nine conversations say yes, no, yes ...; the three that go on say yes, no, yes
        assert line.get_ydata().tolist() == pytest.approx([5 / 9, 2 / 3])
        with pytest.raises(BenchError, match="no judged adherence of nobody"):
            by_turn(rows, ["nobody"])

    def test_nothing_to_draw_is_said(self, chat: ChatModel, tmp_path: Path) -> None:
        with pytest.raises(BenchError, match="a lever beside none"):
            pareto(run(chat, tmp_path, [], signals=["adherence"]).table)


class TestTroupe:
    def test_its_conversations(self) -> None:
        troupe = ChatModel.load("troupe", check=False)
        found = dialogues(troupe, 12)
        assert {d.suite for d in found} == set(SUITES) and len(found) == 36
        lengths = sorted(len(d.says) for d in found if d.suite == "personas")
        assert lengths == [5] * 3 + [10] * 3 + [20] * 3 + [40] * 3
        assert {(d.suite, len(d.says)) for d in found if d.suite != "personas"} == {("drift", 15), ("jailbreaks", 1)}
        assert all(d.persona and d.persona.askable and d.persona.role for d in found if d.suite == "personas")
        assert found == dialogues(troupe, 12) and found != dialogues(troupe, 12, seed=1)
        assert max(len(d.says) for d in dialogues(troupe, 12, turns=3)) == 3

    def test_another_model_is_given_the_probes_personas(self, chat: ChatModel) -> None:
        found = [d for d in dialogues(chat, 8) if d.suite == "personas"]
        assert [len(d.says) for d in found] == [5, 10, 20, 40] * 2
        assert all(d.persona.askable for d in found if d.persona)

    def test_from_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        command = command_in(tmp_path, app, capsys, monkeypatch)
        given = ("--levers", "repeat", "--conversations", "2", "--turns", "2", "--items", "4", "--signals",
                 "adherence,refused,relevance,capability", "--out", "b")  # fmt: skip
        code, out, err = command("bench", *given)
        assert code == 0, err
        assert "saved b/table.csv" in out and "saved b/bench.png" in out and "repeat" in out and "jailbreaks" in out
        assert set(pd.read_csv(tmp_path / "b" / "table.csv")["lever"]) == {"none", "repeat"}
        assert command("bench", "--cap", "c", "--out", "b").code == 2
        code, _, err = command("bench", "--levers", "cap", "--out", "b")
        assert code == 1 and "acts along an axis" in err


def test_errors_are_of_the_family() -> None:
    assert issubclass(BenchError, PersonaAxisError)
