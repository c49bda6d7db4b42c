"""The persona score of PersonaGym (Samuel et al. 2024, arXiv 2407.18416): five tasks, a rubric each, judges 1 to 5.

    found = persona_score(chat, load_personas(), [judge, another])
    found.score, found.kappa, found.unjudged

Every question is asked alone, under a system prompt that gives the persona. The score is the mean of the five tasks'
means. It says how much of a persona is shown, not whether the reply is any use: lay `answers` or `relevance` beside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_axis._asked import require, require_each, whole
from persona_axis.chat import ChatModel
from persona_axis.conversations import Conversation
from persona_axis.errors import SignalError
from persona_axis.judges.agreement import correlated, kappa
from persona_axis.judges.questions import Rates, Rubric, SignalJudge, ratings
from persona_axis.persona_probes import TASKS, PersonaProbe, load_rubrics
from persona_axis.sampling import Sampling
from persona_axis.signals.table import Row, Signal, signal
from persona_axis.stats.intervals import FEWEST, Estimate, bootstrap
from persona_axis.stats.shares import NOTHING, average

if TYPE_CHECKING:
    from persona_axis.levers import Levers

TOLD = ("own", "shuffled", "nobody")
"""Which persona the model is told to be: the one it is judged as, another one, none. The last two are the controls."""
INSTRUCTION = "Adopt the identity of the following persona, and answer as they would. {}"
GREEDY = Sampling(temperature=0.0, max_new_tokens=256)


@dataclass(frozen=True, eq=False)
class PersonaScore:
    """Scores from 1 to 5."""

    frame: pd.DataFrame
    """A row an answer and judge: persona, task, question, reply, judge, score (NaN: could not be judged)."""
    answers: pd.DataFrame
    """A row an answer: its score is the mean over the judges that gave one."""

    @property
    def score(self) -> Estimate:
        """Mean of the tasks' means, with a 95% interval over personas; nan unless every task has a score."""
        judged = self.answers[self.answers["score"].notna()]
        tasks = list(dict.fromkeys(self.answers["task"]))
        if not tasks or set(judged["task"]) != set(tasks):
            return NOTHING
        of_task = np.stack([judged["task"] == task for task in tasks], 1).astype(np.float64)
        sums = np.concatenate([of_task, of_task * judged["score"].to_numpy()[:, None]], 1)

        def of(s: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.asarray((s[..., len(tasks) :] / s[..., : len(tasks)]).mean(axis=-1))

        if judged["persona"].nunique() < FEWEST:
            return Estimate(float(of(sums.sum(axis=0))), math.nan, math.nan)
        return bootstrap(sums, of, judged["persona"].tolist())

    @property
    def tasks(self) -> dict[str, Estimate]:
        """The mean score of each task."""
        return {
            task: average(rows["score"].to_numpy(), rows["persona"].tolist())
            for task, rows in self.answers[self.answers["score"].notna()].groupby("task", sort=False)
        }

    @property
    def unjudged(self) -> int:
        """Verdicts, of all judges, that could not be read: never a 0, and in no mean."""
        return int(self.frame["score"].isna().sum())

    @property
    def kappa(self) -> Estimate:
        """Agreement of the first two judges on the answers that both scored: Cohen's, distances squared."""
        return kappa(*self._pairs())

    @property
    def correlation(self) -> Estimate:
        """Pearson's, of the same."""
        return correlated(*self._pairs())

    @property
    def signal(self) -> Signal:
        """The answers in the signals' shape: a persona is a conversation, its n-th question a turn, a task a domain."""
        rows = []
        for name, own in self.answers.groupby("persona", sort=False):
            for turn, (task, question, score) in enumerate(
                zip(own["task"], own["question"], own["score"], strict=True), 1
            ):
                rows.append(Row(Conversation(str(name), (), task), turn, float(score), about=question))
        judges = ", ".join(dict.fromkeys(self.frame["judge"]))
        return signal("persona_score", rows, "the persona is shown more fully", 1.0, 5.0, judges)

    def _pairs(self) -> tuple[list[float], list[float], list[str]]:
        judges = list(dict.fromkeys(self.frame["judge"]))
        if len(judges) < 2:
            return [], [], []
        both = [self.frame[self.frame["judge"] == judge].reset_index(drop=True) for judge in judges[:2]]
        seen = (both[0]["score"].notna() & both[1]["score"].notna()).to_numpy()
        first, second = (one["score"][seen].tolist() for one in both)
        return first, second, both[0]["persona"][seen].tolist()


def persona_score(
    chat: ChatModel,
    probes: Sequence[PersonaProbe],
    judges: Sequence[SignalJudge],
    rubrics: Mapping[str, Rubric] | None = None,
    *,
    told: str = "own",
    questions: int | None = None,
    instruction: str = INSTRUCTION,
    lever: Levers = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    batch: int = 32,
) -> PersonaScore:
    """Ask every persona's questions (of each task the first `questions`, all without) and have them scored.

    `told` as in `TOLD`; whatever the model is told, it is judged as the persona whose question it is. `rubrics` are
    those that ship with the package. `instruction` holds one {} for the persona's text. Raises `SignalError` for
    settings that do not fit, `JudgeError`, and what the levers raise.
    """
    from persona_axis.talks.asking import ask

    require("chat", chat, ChatModel)
    require("sampling", sampling, Sampling)
    probes = require_each("probes", probes, PersonaProbe, SignalError)
    judges = require_each("judges", judges, SignalJudge, SignalError)
    _check(probes, judges, told, questions, instruction)
    known = load_rubrics() if rubrics is None else rubrics
    names = _told(probes, told, seed)
    asked, chats = [], []
    for probe in probes:
        other = names[probe.name]
        system = [] if other is None else [{"role": "system", "content": instruction.replace("{}", other.persona.text)}]
        for task in TASKS:
            for question in probe.questions[task][:questions]:
                asked.append((probe, task, question))
                chats.append([*system, {"role": "user", "content": question}])
    replies = ask(chat, chats, sampling, seed, lever, batch)
    wanted = [Rates(p.persona, q, reply, known[t]) for (p, t, q), reply in zip(asked, replies, strict=True)]
    base = pd.DataFrame([(p.name, t, q) for p, t, q in asked], columns=["persona", "task", "question"])
    base["reply"] = replies
    columns = [pd.array(ratings(judge, wanted), dtype="Float64").to_numpy("float64", na_value=math.nan)
               for judge in judges]  # fmt: skip
    frames = [base.assign(judge=judge.name, score=c) for judge, c in zip(judges, columns, strict=True)]
    answers = base.assign(score=pd.DataFrame(dict(enumerate(columns))).mean(axis=1))
    return PersonaScore(pd.concat(frames, ignore_index=True), answers)


def _told(probes: Sequence[PersonaProbe], told: str, seed: int) -> dict[str, PersonaProbe | None]:
    """Who each persona's model is told to be. Shuffled, nobody keeps its own: each takes the next of a drawn order."""
    if told == "own":
        return {probe.name: probe for probe in probes}
    if told == "nobody":
        return {probe.name: None for probe in probes}
    order = random.Random(seed).sample(list(probes), len(probes))
    return {one.name: order[(at + 1) % len(order)] for at, one in enumerate(order)}


def _check(
    probes: Sequence[PersonaProbe], judges: Sequence[SignalJudge], told: str, questions: int | None, instruction: str
) -> None:
    if not isinstance(told, str) or told not in TOLD:
        raise SignalError(f"told={told!r}: expected {', '.join(TOLD)}")
    names = [probe.name for probe in probes]
    if not names or len(set(names)) < len(names):
        raise SignalError("the persona score needs personas, each with a name of its own")
    if told == "shuffled" and len(names) < 2:
        raise SignalError("one persona alone cannot be shuffled: give two or more")
    if not judges or len({judge.name for judge in judges}) < len(judges):
        raise SignalError("the persona score needs a judge, better two, of different names")
    if questions is not None:
        whole("questions", questions, SignalError, 1)
    require("instruction", instruction, str)
    if instruction.count("{}") != 1:
        raise SignalError(f"the instruction needs one {{}} for the persona's text, got {instruction!r:.80}")
