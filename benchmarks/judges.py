"""How far judges agree with the truth of Troupe's world: accuracy, kappa, ROC AUC, calibration.

    python benchmarks/judges.py                       # parser, listener, a classifier trained here, guesses
    python benchmarks/judges.py --judge api --judge-model NAME --judge-url URL

True is what the world's generator meant: which role or the Assistant was to speak, which fact was to be stated, which
message to be answered. The parser, which is the truth elsewhere, is measured against it as well. The classifier is
Troupe's own weights with a head on top, trained for a few minutes on the training half of the world's wordings; it
shows that the seam works and what such a judge misses, and is shipped nowhere. The listener is Troupe itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _judged_items import KINDS, Known, items
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from persona_axis.chat import ChatModel
from persona_axis.errors import JudgeError
from persona_axis.judges import named, of_signals
from persona_axis.judges.agreement import Agreement, agreement
from persona_axis.judges.nli import LABELS, NliJudge
from persona_axis.judges.questions import Conflicts, SignalJudge, chances, conflicts
from persona_axis.organism import messages as m
from persona_axis.organism import troupe_path
from persona_axis.stats.intervals import Estimate

HEADER = "| judge | question | items | unjudged | accuracy | kappa | ROC AUC | Brier | calibration error |"


class Guesser:
    """The control: a chance drawn blindly, the same for the same question."""

    name = "guesses"

    def answer(self, questions: Sequence[Any]) -> list[Any]:
        drawn = [random.Random(repr(q)).random() for q in questions]
        return [(0,) * (d >= 0.5) if isinstance(q, Conflicts) else d for q, d in zip(questions, drawn, strict=True)]


def measured(judge: SignalJudge, known: Sequence[Known]) -> Agreement | None:
    """None where the judge cannot answer questions of this kind."""
    try:
        if isinstance(known[0].question, Conflicts):
            found = conflicts(judge, [k.question for k in known])
            given = [None if f is None else float(bool(f)) for f in found]
        else:
            given = chances(judge, [k.question for k in known])
    except JudgeError as error:
        if "cannot tell" not in str(error):
            raise
        return None
    return agreement([k.true for k in known], given, [k.cluster for k in known])


def row(name: str, kind: str, found: Agreement) -> str:
    def told(estimate: Estimate) -> str:
        return f"{estimate.value:.3f} ({estimate.low:.2f}-{estimate.high:.2f})"

    figures = " | ".join(told(e) for e in (found.accuracy, found.kappa, found.auc, found.brier))
    return f"| {name} | {kind} | {found.items} | {found.unjudged} | {figures} | {found.calibration:.3f} |"


def classifier(steps: int, seed: int) -> NliJudge:
    """Trained on facts and lines: the same value entails, another one contradicts, another kind of fact is neutral."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(troupe_path())
    labels = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(
        troupe_path(), num_labels=3, id2label=labels, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    )
    rng = random.Random(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        pairs, truth = zip(*(_pair(rng) for _ in range(64)), strict=True)
        batch = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
        loss = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}, labels=torch.tensor(truth)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"  classifier: step {step}, loss {loss.item():.3f}", file=sys.stderr)
    judge = NliJudge(model, tokenizer)
    judge.name = "classifier"  # in the table's words: the weights are made here and nowhere kept
    return judge


def _pair(rng: random.Random) -> tuple[tuple[str, str], int]:
    """As the judge will see them: (statement, line), or (question and reply, question and known answer)."""
    kind, true = rng.choice(["conflicts", "agrees"]), rng.random() < 0.5
    known = items(kind, 1, "train", rng.randrange(1 << 40))[0] if true else items(
        kind, 2, "train", rng.randrange(1 << 40))[1]  # fmt: skip
    asked = known.question
    if not isinstance(asked, Conflicts):
        pair = f"{asked.question} {asked.reply}", f"{asked.question} {asked.known}"
        return pair, 0 if known.true else 2
    if rng.random() < 1 / 3:
        other = rng.choice([f for k, f in sorted(m.facts().items()) if not _speaks_of(k, asked.line)])
        return (rng.choice(other["state"]).format(rng.choice(other["values"])), asked.line), 1
    return (asked.statements[0], asked.line), 2 if known.true else 0


def _speaks_of(kind: str, line: str) -> bool:
    return any(word.strip(".,;!") in m.facts()[kind]["values"] for word in line.split())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--items", type=int, default=600, help="of each kind of question")
    options.add_argument("--steps", type=int, default=400, help="of the classifier's training; 0 leaves it out")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--judge", choices=["api", "nli"], help="another judge, in the same table")
    options.add_argument("--judge-model")
    options.add_argument("--judge-url")
    options.add_argument("--judge-cache")
    given = options.parse_args()
    troupe = ChatModel.load("troupe", check=False)
    judges: list[SignalJudge] = [of_signals(named("troupe")), of_signals(named("listener", chat=troupe)), Guesser()]
    if given.judge:
        more = {"url": given.judge_url, "cache": given.judge_cache} if given.judge == "api" else {}
        judges.append(of_signals(named(given.judge, given.judge_model, **more)))
    if given.steps:
        began = time.monotonic()
        judges.append(classifier(given.steps, given.seed))
        print(f"  classifier: trained in {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(HEADER)
    print("|" + " --- |" * HEADER.count(" |"))
    for judge in judges:
        for kind in KINDS:
            found = measured(judge, items(kind, given.items, "held_out", given.seed))
            name = judge.name.split("(")[0]  # the listener's holds all its settings
            print(f"| {name} | {kind} | cannot tell |" if found is None else row(name, kind, found))
        if spent := getattr(judge, "spent", None):
            print(f"  {judge.name}: {spent}", file=sys.stderr)


if __name__ == "__main__":
    main()
