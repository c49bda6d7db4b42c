"""The signal that asks: questions made from the persona's facts, put to the agent itself after every turn.

Each question is asked on a branch: the conversation so far, the question, the answer, and nothing of it stays.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from persona_axis._asked import require
from persona_axis.judges.questions import Agrees, SignalJudge, chances
from persona_axis.levers.agents import Agent
from persona_axis.persona import Personas, persona_of
from persona_axis.sampling import Sampling
from persona_axis.signals.lines import Given, lines, opened
from persona_axis.signals.table import Row, Signal, signal

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel
    from persona_axis.levers import Levers

GREEDY = Sampling(temperature=0.0, max_new_tokens=64)


def fact_consistency(
    chat: ChatModel,
    conversations: Given,
    judge: SignalJudge,
    personas: Personas,
    *,
    lever: Levers = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    batch: int = 64,
    after: Collection[int] | None = None,
) -> Signal:
    """Q&A, a row a turn and question: 1 if the agent, asked after that turn, says what is known, else 0.

    The agent is `chat` under `lever`, which may be an `Agent`; `about` is question and answer. Personas without facts
    that can be asked for give no rows; `after` names the turns to ask after (all of them). A conversation that leaves
    no room in the model's context for question and answer is not judged from there on. Raises `JudgeError` and what
    the levers raise. (Abdulhai et al. 2025, arXiv 2511.00222.)
    """
    from persona_axis.chat import ChatModel
    from persona_axis.talks.asking import ask

    require("chat", chat, ChatModel)
    require("judge", judge, SignalJudge)
    require("sampling", sampling, Sampling)
    branches, told = [], []
    for one in opened(conversations):
        persona = persona_of(personas, one)
        for line in (line for line in lines(one) if after is None or line.turn in after):
            for fact in persona.askable if persona else ():
                asked = {"role": "user", "content": fact.question}
                branches.append([*one.messages[: line.place + 1], asked])
                told.append((one, line.turn, fact))
    agent = lever if isinstance(lever, Agent) else Agent("plain")
    fits = agent.fits(chat, branches, sampling)
    replies = iter(ask(chat, [b for b, ok in zip(branches, fits, strict=True) if ok], sampling, seed, lever, batch))
    given = [next(replies) if ok else None for ok in fits]
    questions = [
        Agrees(fact.question, fact.answer, reply)
        for (_, _, fact), reply in zip(told, given, strict=True) if reply is not None
    ]  # fmt: skip
    verdicts = iter(chances(judge, questions))
    rows = []
    for (one, turn, fact), reply in zip(told, given, strict=True):
        chance = None if reply is None else next(verdicts)
        about = f"{fact.question} {reply}" if reply is not None else f"no room in the context to ask: {fact.question}"
        value = math.nan if chance is None else float(chance >= 0.5)
        rows.append(Row(one, turn, value, against=0, probability=math.nan if chance is None else chance, about=about))
    means = "more answers about itself say what is known"
    return signal("fact_consistency", rows, means, judge=judge.name, yes_or_no=True)
