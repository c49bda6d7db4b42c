"""The persona score of a model, and of the same model told to be somebody else, or nobody.

    python benchmarks/persona_score.py                          # Troupe as its archetypes, judged by its parser
    python benchmarks/persona_score.py --model DIR --judge-model A --judge-model B --judge-url URL

The first asks Troupe's world, since Troupe understands nothing else: 40 archetypes, questions of its own, and the
parser, which knows voices and facts but no task, so the five tasks are there five samples of one thing. The second is
the score itself: the personas and rubrics of probes/, two judges, their agreement.
"""

from __future__ import annotations

import argparse
import random

from persona_axis import ChatModel
from persona_axis.judges import named, of_signals
from persona_axis.judges.questions import SignalJudge
from persona_axis.organism import messages
from persona_axis.organism.dialogue import role_prompt
from persona_axis.organism.voices import archetypes
from persona_axis.persona import Persona
from persona_axis.persona_probes import TASKS, PersonaProbe, load_personas
from persona_axis.sampling import Sampling
from persona_axis.signals.persona_score import INSTRUCTION, TOLD, persona_score
from persona_axis.stats.intervals import Estimate


def of_troupe(count: int, each: int, seed: int) -> list[PersonaProbe]:
    """Archetypes as personas, with questions of the world in its held-out wordings."""
    rng = random.Random(seed)
    asked = messages.written("question")
    made = []
    for role in rng.sample(sorted(archetypes()), count):
        drawn = [one.say(rng, "held_out").text for one in rng.sample(asked, each * len(TASKS))]
        questions = {task: tuple(drawn[each * t : each * (t + 1)]) for t, task in enumerate(TASKS)}
        made.append(PersonaProbe(role, Persona(role_prompt(rng, role, "train"), role=role), ("home",), questions))
    return made


def told(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="troupe")
    options.add_argument("--judge-model", action="append", default=[])
    options.add_argument("--judge-url")
    options.add_argument("--judge-cache")
    options.add_argument("--personas", type=int, default=40)
    options.add_argument("--questions", type=int, default=2, help="of each task")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    chat = ChatModel.load(given.model)
    judges: list[SignalJudge]
    if chat.is_troupe:
        probes, judges = of_troupe(given.personas, given.questions, given.seed), [of_signals(named("troupe"))]
        more = {"instruction": "{}", "sampling": Sampling(0.7, 0.9, 40)}
    else:
        about = {"url": given.judge_url, "cache": given.judge_cache}
        probes = list(load_personas()[: given.personas])
        judges = [of_signals(named("api", name, **about)) for name in given.judge_model]
        more = {"instruction": INSTRUCTION}
    print(f"| told to be | score (1 to 5) | {' | '.join(TASKS)} | unjudged | kappa | correlation |")
    print("|" + " --- |" * (5 + len(TASKS)))
    for who in TOLD:
        found = persona_score(chat, probes, judges, told=who, questions=given.questions, seed=given.seed, **more)
        each = " | ".join(f"{found.tasks[task].value:.2f}" for task in TASKS)
        print(f"| {who} | {told(found.score)} | {each} | {found.unjudged} of {len(found.frame)} | "
              f"{told(found.kappa)} | {told(found.correlation)} |")  # fmt: skip


if __name__ == "__main__":
    main()
