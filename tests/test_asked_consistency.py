"""What newcomers pass by mistake to signals, judges, the listener and the bench: told as in test_asked.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from signals_factory import talk
from test_asked import OK, SHORT, each_is_told, given
from test_asked import Named as Named

from persona_axis import Listener
from persona_axis.bench import Agent, bench, dialogues
from persona_axis.capability import TroupeTasks
from persona_axis.errors import ArgumentError, BenchError, ConversationError, JudgeError, ListenerError, SignalError
from persona_axis.judges import ListenerJudge, TroupeParser, named, of_roles, of_signals
from persona_axis.judges.nli import NliJudge
from persona_axis.levers import distractors as d
from persona_axis.levers.hearing import posterior
from persona_axis.levers.listener import generate
from persona_axis.levers.ranking import Context, rank
from persona_axis.levers.rankingfile import load_contexts
from persona_axis.levers.worlds import encode_worlds, history_worlds, persona_worlds
from persona_axis.persona import Fact, Persona, read_personas
from persona_axis.persona_probes import load_personas, load_rubrics
from persona_axis.plots.bench import by_turn, pareto
from persona_axis.signals import (
    adherence,
    answers,
    capability,
    contradiction,
    distinct,
    fact_consistency,
    parroting,
    projection,
    relevance,
    self_consistency,
    self_overlap,
)
from persona_axis.signals.persona_score import persona_score

assert given  # the fixture of that module, used here as well

PARSER, WHO = TroupeParser(), Persona("be b .", (Fact("s", "how ?", "a"),))
SAID = [talk("a", "how ?", "hello ghost", "why ?", "hello", system="be a b")]
ASKED = [{"role": "system", "content": "be a b"}, *OK]
WORLDS = [persona_worlds(ASKED, ["be ghost ."])]
CONTEXT = Context("be ghost .", tuple(OK), {"gold": ("ghost",), "random": ("bread",)}, ("be tutor .",))
NOTHING = ("nothing", "nothing by name")
PLACES: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "adherence": (lambda g, x: adherence(x, PARSER), ("nothing",)),
    "adherence, judge": (lambda g, x: adherence(SAID, x), ()),
    "adherence, personas": (lambda g, x: adherence(SAID, PARSER, x), ("None", "nothing by name")),
    "answers": (lambda g, x: answers(x, PARSER), ("nothing",)),
    "answers, judge": (lambda g, x: answers(SAID, x), ()),
    "contradiction": (lambda g, x: contradiction(x, PARSER), ("nothing",)),
    "contradiction, judge": (lambda g, x: contradiction(SAID, x), ()),
    "self_consistency": (lambda g, x: self_consistency(x, PARSER), ("nothing",)),
    "self_consistency, judge": (lambda g, x: self_consistency([], x), ()),
    "parroting, personas": (lambda g, x: parroting(SAID, x), ("None", "nothing by name")),
    "distinct": (lambda g, x: distinct(x), ("nothing",)),
    "distinct, n": (lambda g, x: distinct(SAID, n=x), ("number",)),
    "self_overlap": (lambda g, x: self_overlap(x), ("nothing",)),
    "facts, chat": (lambda g, x: fact_consistency(x, SAID, PARSER, WHO), ("chat",)),
    "facts": (lambda g, x: fact_consistency(g.chat, x, PARSER, WHO, sampling=SHORT), ("nothing",)),
    "facts, judge": (lambda g, x: fact_consistency(g.chat, SAID, x, WHO, sampling=SHORT), ()),
    "facts, personas": (lambda g, x: fact_consistency(g.chat, SAID, PARSER, x, sampling=SHORT),
                        ("None", "nothing by name")),
    "facts, lever": (lambda g, x: fact_consistency(g.chat, SAID, PARSER, WHO, lever=x, sampling=SHORT),
                     ("cap", "None", *NOTHING)),
    "facts, sampling": (lambda g, x: fact_consistency(g.chat, SAID, PARSER, WHO, sampling=x), ()),
    "relevance, chat": (lambda g, x: relevance(x, SAID), ("chat",)),
    "relevance": (lambda g, x: relevance(g.chat, x), ("nothing",)),
    "relevance, lever": (lambda g, x: relevance(g.chat, SAID, lever=x), ("cap", "None", *NOTHING)),
    "projection, chat": (lambda g, x: projection(x, g.axis, SAID), ("chat",)),
    "projection, axis": (lambda g, x: projection(g.chat, x, SAID), ("axis",)),
    "projection": (lambda g, x: projection(g.chat, g.axis, x), ("nothing",)),
    "capability, chat": (lambda g, x: capability(x, TroupeTasks()), ("chat",)),
    "capability": (lambda g, x: capability(g.chat, x), ()),
    "persona_score, chat": (lambda g, x: persona_score(x, load_personas()[:1], [PARSER]), ("chat",)),
    "persona_score": (lambda g, x: persona_score(g.chat, x, [PARSER]), ()),
    "persona_score, judges": (lambda g, x: persona_score(g.chat, load_personas()[:1], x), ()),
    "persona_score, told": (lambda g, x: persona_score(g.chat, load_personas()[:1], [PARSER], told=x), ()),
    "load_personas": (lambda g, x: load_personas(x), ("None",)),
    "load_rubrics": (lambda g, x: load_rubrics(x), ("None",)),
    "read_personas": (lambda g, x: read_personas(x), ()),
    "Persona": (lambda g, x: Persona(x), ("text",)),
    "Persona, facts": (lambda g, x: Persona("a", x), ("nothing",)),
    "Persona, role": (lambda g, x: Persona("a", (), x), ("text", "None")),
    "Fact": (lambda g, x: Fact("a", x, "b"), ("text",)),
    "named": (lambda g, x: named(x), ()),
    "named, chat": (lambda g, x: named("listener", chat=x), ("chat",)),
    "named, probes": (lambda g, x: named("listener", chat=g.chat, probes=x), ("None",)),
    "of_roles": (lambda g, x: of_roles(x), ()),
    "of_signals": (lambda g, x: of_signals(x), ()),
    "NliJudge": (lambda g, x: NliJudge.load(x), ()),
    "ListenerJudge": (lambda g, x: ListenerJudge.of(x, g.probes), ("chat",)),
    "ListenerJudge, probes": (lambda g, x: ListenerJudge.of(g.chat, x), ()),
    "ListenerJudge, others": (lambda g, x: ListenerJudge.of(g.chat, g.probes, x), ()),
    "ListenerJudge, threshold": (lambda g, x: ListenerJudge.of(g.chat, g.probes, 1, x), ("None",)),
    "Listener": (lambda g, x: Listener(x), ("number", "half")),
    "Listener, prior": (lambda g, x: Listener(prior=x), ()),
    "persona_worlds": (lambda g, x: persona_worlds(x, ["a"]), ()),
    "persona_worlds, others": (lambda g, x: persona_worlds(ASKED, x), ("texts",)),
    "history_worlds": (lambda g, x: history_worlds(x, [[]]), ()),
    "history_worlds, others": (lambda g, x: history_worlds(ASKED, x), ()),
    "encode_worlds": (lambda g, x: encode_worlds(g.chat, x), ()),
    "encode_worlds, one": (lambda g, x: encode_worlds(g.chat, [x]), ()),
    "generate, chat": (lambda g, x: generate(x, WORLDS), ("chat",)),
    "generate, worlds": (lambda g, x: generate(g.chat, x), ()),
    "generate, listener": (lambda g, x: generate(g.chat, WORLDS, x, SHORT), ("None",)),
    "generate, sampling": (lambda g, x: generate(g.chat, WORLDS, None, x), ("None",)),
    "posterior, chat": (lambda g, x: posterior(x, WORLDS, ["a"]), ("chat",)),
    "posterior, worlds": (lambda g, x: posterior(g.chat, x, ["a"]), ()),
    "posterior, replies": (lambda g, x: posterior(g.chat, WORLDS, x), ()),
    "posterior, listener": (lambda g, x: posterior(g.chat, WORLDS, ["a"], x), ("None",)),
    "posterior, batch": (lambda g, x: posterior(g.chat, WORLDS, ["a"], None, x), ("number",)),
    "at_random": (lambda g, x: d.at_random(x, ["a", "b"]), ("text",)),
    "at_random, candidates": (lambda g, x: d.at_random("a", x), ("texts",)),
    "similar": (lambda g, x: d.similar(x, ["a", "b"]), ("text",)),
    "similar, count": (lambda g, x: d.similar("a", ["b", "c"], x), ()),
    "confusable": (lambda g, x: d.confusable(g.chat, x, "hello", ["a", "b"]), ()),
    "confusable, candidates": (lambda g, x: d.confusable(g.chat, ASKED, "hello", x), ("texts",)),
    "gain_of": (lambda g, x: d.gain_of(g.chat, ASKED, "hello", x, Listener()), ("texts",)),
    "gain_of, listener": (lambda g, x: d.gain_of(g.chat, ASKED, "hello", ["be ghost ."], x), ()),
    "learn": (lambda g, x: d.Learned({}).learn(x, {"a": 1.0}), ()),
    "learn, gains": (lambda g, x: d.Learned({}).learn(ASKED, x), ()),
    "choose": (lambda g, x: d.Learned({}).choose(x), ()),
    "Context": (lambda g, x: Context(x, tuple(OK), CONTEXT.candidates), ("text",)),
    "Context, said": (lambda g, x: Context("a", x, CONTEXT.candidates), ()),
    "Context, candidates": (lambda g, x: Context("a", tuple(OK), x), ()),
    "Context, distractors": (lambda g, x: Context("a", tuple(OK), CONTEXT.candidates, x), ("texts", "nothing")),
    "rank, chat": (lambda g, x: rank(x, [CONTEXT], [Listener()]), ("chat",)),
    "rank": (lambda g, x: rank(g.chat, x, [Listener()]), ()),
    "rank, listeners": (lambda g, x: rank(g.chat, [CONTEXT], x), ()),
    "load_contexts": (lambda g, x: load_contexts(x), ()),
    "Agent": (lambda g, x: Agent(x), ("text",)),
    "Agent, lever": (lambda g, x: Agent("a", x), ("cap", "None", *NOTHING)),
    "Agent, told": (lambda g, x: Agent("a", told=x), ("None", "a class", "tokenizer", "model")),
    "Agent, facts": (lambda g, x: Agent("a", facts=x), ("nothing by name",)),
    "bench": (lambda g, x: bench(x, out="bench"), ("chat",)),
    "bench, levers": (lambda g, x: bench(g.chat, x, out="bench", given=[]), ()),
    "bench, axis": (lambda g, x: bench(g.chat, out="bench", axis=x, given=[]), ()),
    "bench, cap": (lambda g, x: bench(g.chat, out="bench", cap=x, given=[]), ()),
    "bench, judge": (lambda g, x: bench(g.chat, out="bench", judge=x, given=[]), ()),
    "bench, outcomes": (lambda g, x: bench(g.chat, out="bench", outcomes=x, given=[]), ()),
    "bench, test": (lambda g, x: bench(g.chat, out="bench", test=x, given=[]), ()),
    "bench, listener": (lambda g, x: bench(g.chat, out="bench", listener=x, given=[]), ()),
    "bench, given": (lambda g, x: bench(g.chat, out="bench", given=x), ("None",)),
    "bench, signals": (lambda g, x: bench(g.chat, out="bench", signals=x, given=[]), ()),
    "bench, sampling": (lambda g, x: bench(g.chat, out="bench", sampling=x, given=[]), ()),
    "dialogues": (lambda g, x: dialogues(x), ("chat",)),
    "dialogues, count": (lambda g, x: dialogues(g.chat, x), ("number",)),
    "dialogues, turns": (lambda g, x: dialogues(g.chat, 1, x), ("number", "None")),
    "pareto": (lambda g, x: pareto(x), ()),
    "by_turn": (lambda g, x: by_turn(x, ["none"]), ()),
    "by_turn, levers": (lambda g, x: by_turn(pd.DataFrame(columns=["lever", "suite", "signal", "conversation", "turn",
                                                                   "value"]), x), ()),
}  # fmt: skip
WORDS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("one conversation", lambda g: distinct(SAID[0]), ConversationError, "expected a list of conversations, got a Con"),
    ("a judge's name", lambda g: adherence(SAID, "troupe"), ArgumentError,
     r"^judge: expected a judge of signals \(persona_axis.judges.named gives one\), got 'troupe'"),
    ("a description", lambda g: adherence(SAID, PARSER, {"a": "be b"}), ArgumentError,
     r"^personas\['a'\]: expected a Persona, such as .*, got 'be b'"),
    ("a path for an axis", lambda g: projection(g.chat, "a.safetensors", SAID), ArgumentError, "axis: expected an Ax"),
    ("half a gram", lambda g: distinct(SAID, n=1.5), SignalError, "n must be at least 1 and a whole number, got 1.5"),
    ("worlds of one", lambda g: generate(g.chat, WORLDS[0]), ConversationError, "a conversation is a list of messages"),
    ("one distractor", lambda g: persona_worlds(ASKED, "be c ."), ListenerError,
     "^distractors: expected a list, each a text, got 'be c .'"),
    ("alpha for a listener", lambda g: generate(g.chat, WORLDS, 2.0), ArgumentError, "a Listener, such as Listener"),
    ("a pool of one", lambda g: d.at_random("a", "bc"), ListenerError, "candidates: expected a list, each a text"),
    ("a context by its file", lambda g: rank(g.chat, "c.jsonl", [Listener()]), ListenerError,
     "contexts: expected a list, each a Context"),
    ("no judge", lambda g: named("jury"), JudgeError, "no judge is called 'jury': there are all, troupe, listener, ap"),
    ("a lever in a bench", lambda g: bench(g.chat, [g.cap], out="bench"), ArgumentError, "names and Agents, got a Cap"),
    ("a text for a dialogue", lambda g: bench(g.chat, out="bench", given=["hi"]), BenchError,
     r"^given\[0\]: expected a Dialogue"),
    ("another table", lambda g: pareto(pd.DataFrame({"a": [1]})), BenchError, "no table of a bench, it has no column"),
]  # fmt: skip


@pytest.mark.parametrize("place", list(PLACES))
def test_all_is_of_the_family(place: str, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    each_is_told(*PLACES[place], given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("call", "error", "words"), [w[1:] for w in WORDS], ids=[w[0] for w in WORDS])
def test_a_mistake_is_told_in_words(given: Any, call: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as told:
        call(Named(given))
    assert type(told.value) is error
