"""The plan: which rollouts may be drawn, in which order, in which batches, with which seeds.

Nothing here depends on time or on a model's replies, so that a run that was interrupted and one that was not follow the
same plan. Every role has its rollouts in an order whose every beginning is spread evenly over question groups and
prompts; a round takes each role's order up to some place. Roles are cut into blocks (the defaults are the first one)
and a block's part of a round into batches of prompts of similar length. A block is what is held in memory and on disk
while it runs; a batch is what is done or not done.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.options import Options
from persona_axis.probes import Probes, Role

DEFAULT = -1  # stands in for a role's index where no role is asked for
_BATCHES_PER_BLOCK = 8
_BLOCK_BYTES = 256 * 2**20
_GROUPS = 8
_USUAL = 16  # rollouts of a role in a first round


class Item(NamedTuple):
    """One rollout to draw: indices into the probes (`role` may be DEFAULT), and which of the repeated samples
    it is."""

    role: int
    prompt: int
    question: int
    sample: int


@dataclass(frozen=True)
class Batch:
    """What is generated together, or in recorded parts if memory does not suffice; done as a whole or not at
    all."""

    index: int
    items: tuple[Item, ...]
    seed: int

    def part_seed(self, start: int, stop: int) -> int:
        """The seed of a part; the whole batch uses the batch's own."""
        return self.seed if (start, stop) == (0, len(self.items)) else _seed(self.seed, start, stop)


class Round(NamedTuple):
    """A part of the plan: how far the order of each role is drawn, the default's first, then those of `Plan.roles`."""

    number: int
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def rollouts(self) -> int:
        """Rollouts of this round."""
        return sum(self.stop) - sum(self.start)


@dataclass(frozen=True)
class Block:
    """Some roles and their batches of one round."""

    index: int
    roles: tuple[int, ...]
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Plan:
    """Options brought to the probes at hand, with the batch size that was found."""

    probes: Probes
    options: Options
    batch_size: int
    defaults: tuple[str, ...]
    layers: tuple[int, ...]
    block_bytes_per_role: int

    @cached_property
    def roles(self) -> tuple[int, ...]:
        """Indices of the roles asked for, evenly spread over the list, which goes from near to far."""
        return _spread(len(self.probes.roles), self.options.roles)

    @cached_property
    def questions(self) -> tuple[int, ...]:
        """Indices of the questions asked, evenly spread over the list, which is sorted by category."""
        return _spread(len(self.probes.questions), self.options.questions)

    @cached_property
    def groups(self) -> int:
        """Number of question groups that sums are kept by."""
        return min(len(self.questions), _GROUPS)

    @cached_property
    def group_of(self) -> dict[int, int]:
        """Group of each question; neighbours go to different groups, so that each group has every
        category."""
        return {question: i % self.groups for i, question in enumerate(self.questions)}

    @cached_property
    def prompts(self) -> int:
        """How many prompts a role is asked with."""
        return least_prompts(self.probes) if self.options.prompts is None else self.options.prompts

    @property
    def per_role(self) -> int:
        """Rollouts of one role."""
        return self.prompts * len(self.questions)

    @property
    def default_rollouts(self) -> int:
        return len(self.defaults) * len(self.questions) * self.options.default_samples

    @property
    def ceilings(self) -> tuple[int, ...]:
        """The most rollouts of the default and of each role."""
        return (self.default_rollouts, *[self.per_role] * len(self.roles))

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole plan."""
        return sum(self.ceilings)

    def until(self, stop: tuple[int, ...], before: Round | None = None) -> Round:
        """The round after `before` that draws each order up to `stop`."""
        start = before.stop if before else (0,) * len(stop)
        return Round(before.number + 1 if before else 0, start, stop)

    def batches(self, part: Round) -> int:
        """Batches of a round: none lies in two blocks, and the larger the model, the fewer roles has a block."""
        drawn = {role: part.stop[place] - part.start[place] for role, place in self._places.items()}
        blocks = [(DEFAULT,), *self._role_blocks]
        return sum(-(-sum(drawn[role] for role in block) // self.batch_size) for block in blocks)

    @cached_property
    def _role_blocks(self) -> list[tuple[int, ...]]:
        by_batches = -(-_BATCHES_PER_BLOCK * self.batch_size // min(self.per_role, _USUAL))
        by_memory = _BLOCK_BYTES // max(1, self.block_bytes_per_role)
        size = max(1, min(by_batches, by_memory))
        count = -(-len(self.roles) // size)
        return [tuple(self.roles[a:b]) for a, b in _even(len(self.roles), count)]

    @property
    def n_blocks(self) -> int:
        return 1 + len(self._role_blocks)

    def block(self, index: int, part: Round) -> Block:
        """Block `index` of a round; 0 is the default's. Made when asked for: a full plan has hundreds of thousands of
        items."""
        roles = (DEFAULT,) if index == 0 else self._role_blocks[index - 1]
        items = [item for role in roles for item in self._items(role, part)]
        items.sort(key=self._length)  # stable; similar lengths together waste little on padding
        batches = []
        for i, (a, b) in enumerate(_even(len(items), -(-len(items) // self.batch_size))):
            batches.append(Batch(i, tuple(items[a:b]), _seed(self.options.seed, part.number, index, i)))
        return Block(index, roles, tuple(batches))

    def rollout_seed(self, item: Item) -> int:
        """The seed of one rollout by itself, for engines whose batches are nobody's to fix."""
        return _seed(self.options.seed, "rollout", *item)

    def prompts_of(self, role: int) -> int:
        """How many prompts a role is asked with; the default has its conditions."""
        return len(self.defaults) if role == DEFAULT else self.prompts

    def role(self, index: int) -> Role:
        """The role of an index; DEFAULT is a role without a description whose prompts are the default
        conditions."""
        return Role("default", "", self.defaults) if index == DEFAULT else self.probes.roles[index]

    def messages(self, item: Item) -> list[dict[str, str]]:
        """The conversation that asks for this rollout."""
        system = self.role(item.role).prompts[item.prompt]
        asked = {"role": "user", "content": str(self.probes.questions[item.question])}
        return [{"role": "system", "content": system}, asked] if system else [asked]

    def longest(self, count: int) -> list[Item]:
        """The `count` items with the longest prompts, repeated if there are fewer: the worst batch there can
        be."""
        questions = sorted(self.questions, key=lambda q: -len(self.probes.questions[q]))[:count]
        prompts = [
            (len(p), r, i)
            for r in (DEFAULT, *self.roles)
            for i, p in enumerate(self.role(r).prompts[: self.prompts_of(r)])
        ]
        _, role, prompt = max(prompts)
        items = [Item(role, prompt, q, 0) for q in questions]
        return (items * -(-count // len(items)))[:count]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {role: place for place, role in enumerate((DEFAULT, *self.roles))}

    @cached_property
    def _shuffled(self) -> list[int]:
        """The questions by turns from every group, in an order of the seed's."""
        chance = random.Random(f"{self.options.seed}/questions")
        piles = [[q for q in self.questions if self.group_of[q] == group] for group in range(self.groups)]
        for pile in piles:
            chance.shuffle(pile)
        return [pile[turn] for turn in range(len(piles[0])) for pile in piles if turn < len(pile)]

    def _items(self, role: int, part: Round) -> list[Item]:
        """A role's rollouts in a round. Roles begin at different questions, so that few rollouts of each ask them all;
        every pair of a prompt and a question comes once in each sample."""
        place, prompts, asked = self._places[role], self.prompts_of(role), len(self.questions)
        ahead = place * _USUAL % asked // self.groups * self.groups
        questions = self._shuffled[ahead:] + self._shuffled[:ahead]
        items = []
        for i in range(part.start[place], part.stop[place]):
            turn, at = divmod(i, asked)
            sample, again = divmod(turn, prompts)
            items.append(Item(role, (at + at // self.groups + again) % prompts, questions[at], sample))
        return items

    def _length(self, item: Item) -> int:
        return len(self.role(item.role).prompts[item.prompt]) + len(self.probes.questions[item.question])


def make_plan(chat: ChatModel, probes: Probes, options: Options, batch_size: int) -> Plan:
    """Check the options against the probes and the model; raises `ExtractionError` on what cannot be done."""
    wanted = {
        "roles": (options.roles, len(probes.roles)),
        "questions": (options.questions, len(probes.questions)),
    }
    wanted["prompts"] = (options.prompts, least_prompts(probes))
    for name, (asked, there) in wanted.items():
        if asked is not None and asked > there:
            raise ExtractionError(f"{asked} {name} asked for, the probes have {there}")
    layers = tuple(range(chat.n_layers)) if options.layers is None else tuple(options.layers)
    bad = [layer for layer in layers if not 0 <= layer < chat.n_layers]
    if bad or not layers or list(layers) != sorted(set(layers)):
        raise ExtractionError(
            f"layers must be increasing indices from 0 to {chat.n_layers - 1}, each once, got {list(layers)}"
        )
    plan = Plan(probes, options, batch_size, probes.defaults_for(chat.display_name), layers, 0)
    if len(plan.roles) < 2:
        raise ExtractionError(f"the probes have {len(plan.roles)} role: an axis needs at least 2 to be told from")
    size = (plan.groups + plan.prompts) * len(layers) * chat.hidden_size * 4
    return Plan(probes, options, batch_size, plan.defaults, layers, size)


def least_prompts(probes: Probes) -> int:
    """As many prompts as every role has."""
    return min(len(role.prompts) for role in probes.roles)


def _spread(there: int, asked: int | None) -> tuple[int, ...]:
    return tuple(range(there)) if asked is None else tuple(i * there // asked for i in range(asked))


def _even(total: int, parts: int) -> list[tuple[int, int]]:
    """Cut range(total) into `parts` ranges whose sizes differ by one at most."""
    if not total:
        return []
    cuts = [i * total // parts for i in range(parts + 1)]
    return list(zip(cuts, cuts[1:], strict=False))


def even_parts(total: int, most: int) -> list[tuple[int, int]]:
    """Cut range(total) into as few even ranges as keep each at most `most` long."""
    return _even(total, -(-total // most))


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
