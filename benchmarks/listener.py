"""The imaginary listener on Troupe: the ranking, the distractors, the judge, the axis, and what it costs.

    python benchmarks/listener.py ranking --contexts 500     # Hits@1 ... over alpha and beta
    python benchmarks/listener.py distractors                # random, similar, confusable, learned ...
    python benchmarks/listener.py judge                      # against the parser and the world's own likelihoods
    python benchmarks/listener.py axis                       # extract --judge listener against the parser's
    python benchmarks/listener.py cost                       # forwards and tokens a second

Each prints one markdown table with 95% bootstrap intervals. docs/listener.md holds them.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from _claim import told
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from persona_axis import ChatModel, Listener, load_probes
from persona_axis.extract import Options, extract
from persona_axis.judges import Judged, ListenerJudge, TroupeParser
from persona_axis.levers.distractors import Learned, at_random, confusable, gain_of, rarity_of, similar
from persona_axis.levers.hearing import Heard
from persona_axis.levers.listener import generate
from persona_axis.levers.ranking import KINDS, Context, Ranking, grid, rank
from persona_axis.levers.worlds import persona_worlds
from persona_axis.organism.contexts import contexts, strangers
from persona_axis.organism.parser import TEMPERATURE, read
from persona_axis.organism.voices import archetypes, assistant_log_probabilities, band, log_probabilities
from persona_axis.sampling import Sampling
from persona_axis.stats.intervals import DRAWS, Estimate

SHOWN = {"gold": "Hits@1", "contradicting": "Contradict@1", "entailing": "Entail@1", "random": "Rand@1"}


def row(*cells: object) -> None:
    print("|", *(f"{cell} |" for cell in cells), flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def again(count: int, of: Callable[[np.ndarray], float]) -> Estimate:
    """`of` rows drawn again, rows being independent items."""
    rng = np.random.default_rng(0)
    drawn = [of(rng.integers(count, size=count)) for _ in range(DRAWS // 4)]
    return Estimate(of(np.arange(count)), *np.quantile([d for d in drawn if not math.isnan(d)], [0.025, 0.975]))


def ranking_row(name: Sequence[object], found: Ranking, base: Ranking) -> None:
    change = () if found.listener.alpha == 0 else (told(found.rise(base), 100, 1), told(found.fall(base), 100, 0))
    row(*name, *(told(found.share(kind), digits=3) for kind in KINDS), told(found.perplexity), *(change or ("", "")))


def in_parts(chat: ChatModel, asked: list[Context], listeners: list[Listener], jobs: int) -> list[Ranking]:
    """`rank`, by several processes that take every so many contexts each."""
    if jobs == 1:
        return rank(chat, asked, listeners)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        parts = list(pool.map(part, [(asked[i::jobs], listeners) for i in range(jobs)]))
    each = zip(*parts, strict=True)
    return [Ranking(same[0].listener, tuple(place for one in same for place in one.places)) for same in each]


def part(given: tuple[list[Context], list[Listener]]) -> list[Ranking]:
    return rank(ChatModel.load("troupe", dtype="float32", check=False), *given)


def ranking(chat: ChatModel, args: argparse.Namespace) -> None:
    asked = contexts(args.contexts, args.seed)
    found = in_parts(chat, asked, grid([2.0, 8.0, 16.0], [0.5, 1.0]), args.jobs)
    head("alpha", "beta", *(SHOWN[k] for k in KINDS), "perplexity", "Hits@1 rises by, points",
         "Contradict@1 falls by, %")
    for each in found:
        ranking_row((each.listener.alpha, each.listener.beta if each.listener.alpha else ""), each, found[0])


def distractors(chat: ChatModel, args: argparse.Namespace) -> None:
    """Each way chooses two from a pool: 24 strangers and the context's own two, the same character with other facts."""
    asked, taught = contexts(args.contexts, args.seed + 1), contexts(args.contexts, args.seed + 2)
    listener, aliens = Listener(8.0), strangers(24, args.seed)

    def pool(context: Context) -> list[str]:
        return [*aliens, *context.distractors]

    def by_listener(context: Context) -> list[str]:
        said = chat.generate_ids([chat.encode(context.messages)], Sampling(0.0, max_new_tokens=24), 0)[0]
        return confusable(chat, context.messages, said, pool(context), 2, listener)

    memory = Learned(rarity_of([c.persona for c in taught]))
    for context in taught:
        gold = context.candidates["gold"][0]
        memory = memory.learn(context.messages, gain_of(chat, context.messages, gold, pool(context)[-10:], listener))
    ways: dict[str, Callable[[Context], Sequence[str]]] = {
        "random strangers": lambda c: at_random(c.persona, aliens),
        "similar": lambda c: similar(c.persona, pool(c)),
        "confusable": by_listener,
        "learned": lambda c: memory.choose(c.messages),
        "same character, other facts": lambda c: c.distractors,
    }
    head("distractors", *(SHOWN[k] for k in KINDS), "perplexity", "Hits@1 rises by, points",
         "Contradict@1 falls by, %")
    for i, (name, way) in enumerate(ways.items()):
        base, found = rank(chat, asked, [Listener(0.0), listener], way)
        if not i:
            ranking_row(("none",), base, base)
        ranking_row((name,), found, base)


def shown_to_judges(chat: ChatModel, distance: str, count: int, seed: int) -> list[Judged]:
    """Replies shown as those of a role: half are its own, a quarter the default's, a quarter another role's."""
    probes, rng = load_probes(), random.Random(f"judge-{distance}-{seed}")
    near = [role for role in probes.roles if band(archetypes()[role.name].likeness) == distance]
    asks, roles = [], []
    for i in range(count):
        role, question = rng.choice(near), str(rng.choice(probes.questions))
        own = rng.choice(role.prompts)
        system = own if i % 2 else "" if i % 4 else rng.choice(rng.choice(probes.roles).prompts)
        asks.append([{"role": "system", "content": system}, {"role": "user", "content": question}])
        roles.append((role.name, role.description, own, question))
    said: list[str] = []
    for first in range(0, count, 128):
        said += chat.generate(asks[first : first + 128], Sampling(max_new_tokens=48), seed + first).texts
    return [Judged(*role, reply) for role, reply in zip(roles, said, strict=True)]


def of_the_world(judge: ListenerJudge, shown: Judged) -> float:
    """log odds of the role by the voices that the world is written in, against the judge's own distractors."""
    reading = read(shown.reply)
    rest = [log_probabilities(archetypes()[name].point, TEMPERATURE) for name in judge.told_from(shown.role)]
    own = reading.log_likelihood(log_probabilities(archetypes()[shown.role].point, TEMPERATURE))
    others = [reading.log_likelihood(t) for t in (assistant_log_probabilities(TEMPERATURE), *rest)]
    return own - float(np.logaddexp.reduce(others))


def calibration_error(posterior: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance between posterior and share of truth in ten bins of the posterior, weighed by their replies."""
    bins = np.minimum((posterior * 10).astype(int), 9)
    each = [np.abs(posterior[bins == b].mean() - truth[bins == b].mean()) * (bins == b).sum() for b in set(bins)]
    return float(np.sum(each) / len(truth))


def judge(chat: ChatModel, args: argparse.Namespace) -> None:
    head("roles", "replies", "in role", "accuracy", "kappa", "AUC", "ceiling: the world's likelihoods",
         "share of the ceiling, %", "calibration error")  # fmt: skip
    judging = ListenerJudge.of(chat, load_probes())
    print(f"<!-- {judging.name} -->")
    for distance in ("near", "middle", "far"):
        shown = shown_to_judges(chat, distance, args.replies, args.seed)
        truth = np.array([score == 3 for score in TroupeParser().score(shown)])
        heard: list[Heard] = judging.hear(shown)
        odds, said = np.array([h.log_odds for h in heard]), np.array([h.true for h in heard])
        ceiling = np.array([of_the_world(judging, one) for one in shown])
        accepted = said > judging.threshold

        def auc(by: np.ndarray, rows: np.ndarray, truth: np.ndarray = truth) -> float:
            return float(roc_auc_score(truth[rows], by[rows])) if 0 < truth[rows].sum() < len(rows) else math.nan

        count = len(shown)
        row(
            distance, count, f"{truth.mean():.2f}",
            told(again(count, lambda r, a=accepted, t=truth: float((a[r] == t[r]).mean()))),
            told(again(count, lambda r, a=accepted, t=truth: float(cohen_kappa_score(a[r], t[r])))),
            told(again(count, lambda r, o=odds: auc(o, r)), digits=3),
            told(again(count, lambda r, c=ceiling: auc(c, r)), digits=3),
            told(again(count, lambda r, o=odds, c=ceiling: 100 * auc(o, r) / auc(c, r)), digits=1),
            f"{calibration_error(said, truth):.2f}",
        )  # fmt: skip


def axis(chat: ChatModel, args: argparse.Namespace) -> None:
    """Both judge the same rollouts: where the whole plan is drawn, who judges has no part in it."""
    probes = load_probes()
    options = Options.preset(chat, probes, roles=args.roles, prompts=2, questions=15, precision=1)
    with tempfile.TemporaryDirectory() as where:
        ours, parsers = (
            extract(chat, probes, options, out=Path(where) / f"{i}.safetensors", judge=who).axis
            for i, who in enumerate((ListenerJudge.of(chat, probes), TroupeParser()))
        )
    at = ours.row(parsers.recommended_layer)
    names = sorted(set(ours.role_names) & set(parsers.role_names))
    sides = []
    for one in (ours, parsers):
        where_is = {name: i for i, name in enumerate(one.role_names)}
        sides.append((one.default[at].double(), one.roles[[where_is[name] for name in names], at].double()))

    def cosine(drawn: np.ndarray) -> float:
        a, b = (default - vectors[drawn].mean(0) for default, vectors in sides)
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    head("layer", "roles of both, of the parser, of the listener", "cosine (95%, roles drawn again)")
    row(parsers.recommended_layer, f"{len(names)}, {len(parsers.role_names)}, {len(ours.role_names)}",
        told(again(len(names), cosine), digits=5))  # fmt: skip


def cost(chat: ChatModel, args: argparse.Namespace) -> None:
    """By the processor's time, which other programs on the machine do not lengthen; one thread."""
    torch.set_num_threads(1)
    asked = contexts(32, args.seed)
    sampling = Sampling(max_new_tokens=24)
    worlds = {n: [persona_worlds(c.messages, at_random(c.persona, strangers(12), n)) for c in asked] for n in (1, 2, 4)}
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "base": lambda: chat.generate([c.messages for c in asked], sampling).ids,
    }
    for n, rows in worlds.items():
        ways[f"listener, {n + 1} worlds"] = lambda r=rows: generate(chat, r, Listener(8.0), sampling).ids
    head("32 conversations", "rows a forward", "tokens a second of one core", "of the base's speed")
    speeds: list[float] = []
    for (name, way), rows in zip(ways.items(), (1, 2, 3, 5), strict=True):
        way()
        taken = []
        for _ in range(3):
            began = time.process_time()
            tokens = sum(map(len, way()))
            taken.append(tokens / (time.process_time() - began))
        speeds.append(float(np.median(taken)))
        row(name, 32 * rows, f"{speeds[-1]:.0f}", f"{speeds[-1] / speeds[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ranking", "distractors", "judge", "axis", "cost"])
    parser.add_argument("--contexts", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1, help="processes that rank")
    parser.add_argument("--replies", type=int, default=600)
    parser.add_argument("--roles", type=int, help="roles of the axis  [default: all]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    globals()[args.what](ChatModel.load("troupe", dtype="float32"), args)


if __name__ == "__main__":
    main()
