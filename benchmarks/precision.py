"""Does `--precision` keep its promise, and what does it spend? Measured on Troupe, with a bank of drawn rollouts.

    python benchmarks/precision.py bank --bank DIR             # hours of one core; goes on where it was stopped
    python benchmarks/precision.py cover --bank DIR --seeds 100

The bank holds every rollout of the published plan, each role's 5 prompts x 240 questions, as its mean activation. A run
with one seed is the real code with an engine that looks rollouts up: it may ask half of the questions. The truth it is
compared with is the axis of all rollouts to the OTHER half, which no run has seen; both change sides with the seed.
That axis has noise too: how certain it is comes from its own two halves; divided by that, the cosine is the run's own.
Neyman's allocation, the least that could have been spent for the noise that was reached, comes from the whole bank.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from persona_axis import ChatModel, load_probes
from persona_axis.extract import Options
from persona_axis.extraction.certainty import noise_free
from persona_axis.extraction.engines import Job
from persona_axis.extraction.events import Event, Rounded
from persona_axis.extraction.layersums import LayerSums
from persona_axis.extraction.means import Replies, generate_with_means
from persona_axis.extraction.plan import DEFAULT, Item, Plan, make_plan
from persona_axis.extraction.rounds import chosen_layers, standing
from persona_axis.extraction.running import draw_rounds
from persona_axis.extraction.store import RunStore
from persona_axis.judges import Judged, default_judge, verdicts
from persona_axis.probes import Probes

console = Console(width=120)
TOKENS, SAMPLES = 48, 4  # Troupe's replies have 17 or 18; the default is asked four times as often as one role
Array = NDArray[Any]


def plan_of(chat: ChatModel, probes: Probes, seed: int, precision: float, batch_size: int = 128) -> Plan:
    options = Options.preset(
        chat, full=True, max_new_tokens=TOKENS, default_samples=SAMPLES, seed=seed, precision=precision
    )
    return make_plan(chat, probes, options, batch_size)


def fill(folder: Path, roles: int | None) -> None:
    """Draw what the bank lacks: one file a role, the default's first."""
    chat, probes = ChatModel.load("troupe"), load_probes()
    plan, judge = plan_of(chat, probes, 1, 1.0), default_judge(chat)
    everything = [DEFAULT, *plan.roles[:roles]]
    for role in everything:
        path = folder / f"{role}.npz"
        if path.exists():
            continue
        place = 0 if role == DEFAULT else 1 + plan.roles.index(role)
        part = plan.until(tuple(n if i == place else 0 for i, n in enumerate(plan.ceilings)))
        items, means, accepted = [], [], []
        for index in range(plan.n_blocks):
            for batch in plan.block(index, part).batches:
                prompts = chat.encode_batch(plan.messages(item) for item in batch.items)
                drawn = generate_with_means(chat, prompts, plan.options.sampling, batch.seed, plan.layers)
                texts = chat.decode(drawn.ids)
                asked = plan.role(role)
                shown = [
                    Judged(asked.name, asked.description, asked.prompts[i.prompt], str(probes.questions[i.question]), t)
                    for i, t in zip(batch.items, texts, strict=True)
                ]
                scores = [3] * len(texts) if role == DEFAULT else verdicts(judge, shown)
                items += [tuple(item) for item in batch.items]
                accepted += [bool(t.strip()) and s in plan.options.accept for t, s in zip(texts, scores, strict=True)]
                means += [(s / max(1, len(ids))).numpy() for s, ids in zip(drawn.sums, drawn.ids, strict=True)]
        np.savez(path, keys=np.array(items), means=np.array(means, dtype=np.float32), ok=np.array(accepted))
        console.print(f"{len(list(folder.glob('*.npz')))} of {len(everything)}")


class Bank:
    """The rollouts of some roles and of the default."""

    def __init__(self, folder: Path) -> None:
        self.of: dict[int, dict[str, Array]] = {}
        self.at: dict[tuple[int, ...], tuple[int, int]] = {}
        for path in folder.glob("*.npz"):
            with np.load(path) as file:
                held = {name: file[name] for name in ("keys", "means", "ok")}
            role = int(held["keys"][0, 0])
            self.of[role] = held
            self.at |= {tuple(int(n) for n in key): (role, i) for i, key in enumerate(held["keys"])}
        self.roles = sorted(role for role in self.of if role != DEFAULT)

    def mean(self, role: int, questions: Sequence[int], prompts: int) -> Array:
        """[layers, hidden] of the accepted rollouts to these questions under the first so many prompts."""
        held = self.of[role]
        asked = np.isin(held["keys"][:, 2], questions) & (held["keys"][:, 1] < prompts)
        return held["means"][held["ok"] & asked].mean(axis=0, dtype=np.float64)

    def spread(self, role: int) -> Array:
        """[layers] variance of a rollout's mean."""
        held = self.of[role]
        return held["means"][held["ok"]].var(axis=0, dtype=np.float64).sum(axis=-1)


class Looks:
    """An engine that looks rollouts up, and a judge that knows whether they were accepted."""

    name = "bank"

    def __init__(self, bank: Bank, roles: Sequence[int], questions: Sequence[int], layers: Sequence[int]) -> None:
        self.bank, self.roles, self.questions, self.layers = bank, roles, questions, list(layers)

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        for job in jobs:
            yield self._look(job.batch.items)

    def _look(self, items: Sequence[Item]) -> Replies:
        means, ids = [], []
        for item in items:
            role = DEFAULT if item.role == DEFAULT else self.roles[item.role]
            whose, i = self.bank.at[role, item.prompt, self.questions[item.question], item.sample]
            means.append(self.bank.of[whose]["means"][i][self.layers])
            ids.append([1 if self.bank.of[whose]["ok"][i] else 2])
        sums = torch.from_numpy(np.stack(means))
        return Replies(ids, sums, torch.zeros(sums.shape[:2]))

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        return [3 if rollout.reply == "accepted" else 0 for rollout in rollouts]


class Texts:
    """What a run asks of a chat when nothing is generated."""

    def __init__(self, chat: ChatModel) -> None:
        self.hidden_size, self.n_layers, self.display_name = chat.hidden_size, chat.n_layers, chat.display_name
        self.is_troupe = True

    def encode_batch(self, chats: Iterable[Any]) -> list[list[int]]:
        return [[0] for _ in chats]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return ["accepted" if row == [1] else "refused" for row in ids]

    def thinks(self, ids: Sequence[Sequence[int]]) -> list[bool]:
        return [False] * len(ids)


class Outcome(NamedTuple):
    """One seed."""

    rollouts: int
    rounds: int
    expected: float
    low: float
    axis: Array
    """[chosen layers] cosine with the truth."""
    truth: Array
    """[chosen layers] cosine that the truth itself is expected to have with an axis without noise."""
    first: Array
    """[chosen layers] |cosine| of the first principal components."""
    roles: Array
    """[chosen layers, roles] cosine of role minus default."""
    neyman: float
    """Accepted rollouts over the least that gives the same noise."""


def cosine(a: Array, b: Array) -> Array:
    found: Array = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return found


def _first(vectors: Array) -> Array:
    """The first principal component of role vectors."""
    component: Array = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[2][0]
    return component


def run(
    bank: Bank, chat: Any, probes: Probes, seed: int, precision: float, at: tuple[int, ...] | None, prompts: int
) -> Outcome:
    """The real rounds on one half of the questions, compared with the other half."""
    halves = np.array_split(np.random.default_rng(seed).permutation(len(probes.questions)), 2)
    own, other = (sorted(int(q) for q in half) for half in halves)
    asked = dataclasses.replace(
        probes, roles=tuple(probes.roles[r] for r in bank.roles), questions=tuple(probes.questions[q] for q in own)
    )
    options = Options.preset(
        chat, full=True, max_new_tokens=TOKENS, default_samples=SAMPLES, seed=seed, precision=precision,
        questions=len(own), layers=at, prompts=prompts,
    )  # fmt: skip
    plan = make_plan(chat, asked, options, 256)
    looks, heard = Looks(bank, bank.roles, own, plan.layers), list[Event]()
    with tempfile.TemporaryDirectory() as folder, RunStore.open(Path(folder) / "run") as store:
        draw_rounds(chat, plan, looks, store, looks, heard.append)
        layers = chosen_layers(plan, chat.n_layers)
        now = standing(plan, store, layers)
        kept = np.flatnonzero(now.accepted[1:] >= plan.options.min_accepted)
        sums = [LayerSums.read(plan, store, plan.layers.index(layer)).of(kept) for layer in layers]
    of_roles = [bank.roles[i] for i in kept]

    def axis_of(questions: Sequence[int]) -> tuple[Array, Array]:
        roles = np.stack([bank.mean(role, questions, prompts) for role in of_roles])
        base = bank.mean(DEFAULT, questions, len(plan.defaults))
        return roles[:, list(layers)].transpose(1, 0, 2), base[list(layers)]

    truth, default = axis_of(other)
    splits = [base - roles.mean(1) for roles, base in map(axis_of, (other[::2], other[1::2]))]
    certain = np.array([noise_free(c) for c in cosine(*splits)])
    means = np.stack([s.role_means for s in sums])
    base = np.stack([s.default_mean for s in sums])
    axis = cosine(base - means.mean(1), default - truth.mean(1))
    first = [abs(cosine(_first(a), _first(b))) for a, b in zip(means, truth, strict=True)]
    rounds = [event for event in heard if isinstance(event, Rounded)]
    length = ((default - truth.mean(1)) ** 2).sum(-1)
    sigma = np.sqrt([np.mean(bank.spread(role)[list(layers)] / length) for role in (DEFAULT, *of_roles)])
    weight = sigma / np.array([1, *[len(of_roles)] * len(of_roles)])
    drawn = now.accepted[[0, *(1 + kept)]]
    least = weight.sum() ** 2 / (weight**2 / drawn).sum()
    return Outcome(
        int(now.drawn.sum()), len(rounds), now.expected, now.low, axis, certain, np.array(first),
        cosine(means - base[:, None], truth - default[:, None]), float(drawn.sum() / least),
    )  # fmt: skip


def cover(
    folder: Path, seeds: int, precisions: Sequence[float], at: tuple[int, ...] | None, prompts: int
) -> None:
    bank, chat, probes = Bank(folder), Texts(ChatModel.load("troupe")), load_probes()
    whole = len(bank.roles) * prompts * len(probes.questions) // 2 + 5 * len(probes.questions) // 2 * SAMPLES
    console.print(
        f"Troupe, {len(bank.roles)} roles; a whole plan on half of the questions: {whole:,} rollouts; {seeds} seeds"
    )
    table = Table("", *[f"precision {p:g}" for p in precisions])
    columns = []
    for precision in precisions:
        found = [run(bank, chat, probes, seed, precision, at, prompts) for seed in range(seeds)]
        worst = np.array([one.axis.min() for one in found])
        freed = np.array([(one.axis / one.truth).min() for one in found])
        roles, first = np.stack([one.roles.min(axis=0) for one in found]), np.array([one.first.min() for one in found])
        spent = np.array([one.rollouts for one in found])
        columns.append({
            "rollouts, median (least-most)": f"{np.median(spent):,.0f} ({spent.min():,}-{spent.max():,})",
            "of the whole plan": f"1/{whole / np.median(spent):.0f}",
            "rounds, median (most)": f"{np.median([o.rounds for o in found]):.0f} ({max(o.rounds for o in found)})",
            "stated: expected, at least": (
                f"{np.mean([o.expected for o in found]):.4f}, {np.mean([o.low for o in found]):.4f}"
            ),
            "cosine with the other half's axis, mean (least)": f"{worst.mean():.4f} ({worst.min():.4f})",
            "seeds at the precision, at what they state at least": _reached(worst, precision, found),
            "what that axis itself has with a noise-free one": f"{np.mean([o.truth.min() for o in found]):.4f}",
            "cosine with its noise taken out, mean (least)": f"{freed.mean():.4f} ({freed.min():.4f})",
            "seeds at the precision, at what they state at least ": _reached(freed, precision, found),
            "PC1: mean (least), seeds at the precision": (
                f"{first.mean():.4f} ({first.min():.4f}), {(first >= precision).mean():.0%}"
            ),
            "role - default: median, role vectors at the precision": (
                f"{np.median(roles):.4f}, {(roles >= precision).mean():.0%}"
            ),
            "spent over Neyman's allocation, median": f"{np.median([o.neyman for o in found]):.3f}",
        })  # fmt: skip
    for name in columns[0]:
        table.add_row(name, *[column[name] for column in columns])
    console.print(table)


def _reached(cosines: Array, precision: float, found: Sequence[Outcome]) -> str:
    return f"{(cosines >= precision).mean():.0%}, {np.mean(cosines >= [one.low for one in found]):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bank", "cover"])
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--roles", type=int, help="only the first so many")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--precision", type=float, nargs="+", default=[0.99, 0.998])
    parser.add_argument("--layers", type=int, nargs="+", help="promise it there only  [default: the middle half]")
    parser.add_argument("--prompts", type=int, default=5, help="1: the wordings of prompts are left out of account")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "bank":
        args.bank.mkdir(parents=True, exist_ok=True)
        fill(args.bank, args.roles)
    else:
        cover(args.bank, args.seeds, args.precision, tuple(args.layers) if args.layers else None, args.prompts)


if __name__ == "__main__":
    main()
