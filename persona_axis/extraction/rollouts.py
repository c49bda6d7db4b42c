"""Drawing the rollouts of a round: batch after batch, each judged, added to its block's sums and committed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.blocks import TALLIES, BlockState
from persona_axis.extraction.engines import Engine, Job
from persona_axis.extraction.events import Listener, Progress
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import DEFAULT, Batch, Block, Item, Plan, Round
from persona_axis.extraction.rolloutpca import KeptPca
from persona_axis.extraction.store import RunStore
from persona_axis.judges import Judge, Judged, verdicts
from persona_axis.sampling import loops


def draw(
    chat: ChatModel, plan: Plan, part: Round, judge: Judge, store: RunStore, engine: Engine, listener: Listener,
    pca: KeptPca | None = None,
) -> None:  # fmt: skip
    """Draw what the store does not hold yet of a round; raises `ExtractionError` where going on would be wrong.

    A `pca` goes on from what the store holds, if it has been resumed, and gets each batch before it is committed.
    """
    meter = _Meter(part, store, plan, listener)
    ahead, here = itertools.tee(_missing(plan, part, store))
    jobs = (
        Job(part.number, block.index, batch, chat.encode_batch(plan.messages(item) for item in batch.items))
        for block, batch in ahead
    )
    state: BlockState | None = None
    current = -1
    for (block, batch), replies in zip(here, engine.draw(jobs), strict=True):
        if state is None or block.index != current:
            state, current = _entered(chat, plan, part, block, store), block.index
        lines = _count(chat, plan, judge, block, batch, replies, state)
        if pca is not None:
            pca.take(lines, replies.sums)
            pca.commit(meter.rollouts, meter.rollouts + len(batch.items))
        state.done += 1
        store.save_batch(block.index, state, lines)
        meter.finished(len(batch.items))


def _missing(plan: Plan, part: Round, store: RunStore) -> Iterator[tuple[Block, Batch]]:
    """The batches of a round that are not in the store."""
    for index in range(plan.n_blocks):
        at = store.blocks.done(index)
        if at.of and (at.round > part.number or (at.round == part.number and at.done == at.of)):
            continue
        block = plan.block(index, part)
        done = at.done if at.of and at.round == part.number else 0
        if done and at.of != len(block.batches):
            raise ExtractionError(
                f"{store.path} was planned by another version of this program: delete it and start again"
            )
        yield from ((block, batch) for batch in block.batches[done:])


def _entered(chat: ChatModel, plan: Plan, part: Round, block: Block, store: RunStore) -> BlockState:
    """The sums of a block that is about to get a batch of this round."""
    state = store.blocks.load(block.index) or BlockState.empty(
        len(block.roles), plan.groups, plan.prompts_of(block.roles[0]), len(plan.layers), chat.hidden_size
    )
    if state.round != part.number or not state.of:
        state.round, state.done, state.of = part.number, 0, len(block.batches)
    return state


def _count(
    chat: ChatModel, plan: Plan, judge: Judge, block: Block, batch: Batch, replies: Replies, state: BlockState
) -> list[dict[str, Any]]:
    """Judge the replies, add the accepted ones to the block, and give the lines to keep."""
    _require_finite(plan, batch.items, replies)
    texts, thinking = chat.decode(replies.ids), chat.thinks(replies.ids)
    empty = [not text.strip() for text in texts]
    looping = [bool(loops(torch.tensor([ids]))) for ids in replies.ids]
    usable = [not (empty[i] or looping[i]) for i in range(len(texts))]
    to_judge = [i for i, item in enumerate(batch.items) if item.role != DEFAULT and usable[i]]
    given = verdicts(judge, [shown_of(plan, batch.items[i], texts[i]) for i in to_judge])
    scores = dict(zip(to_judge, given, strict=True))
    rows = {role: row for row, role in enumerate(block.roles)}
    tallies = state.tallies.numpy()  # the same memory, without a tensor operation for each count
    lines = []
    for i, item in enumerate(batch.items):
        ids, row, score = replies.ids[i], rows[item.role], scores.get(i)
        accepted = usable[i] and (item.role == DEFAULT or score in plan.options.accept)
        odd = {
            "empty": empty[i],
            "thinking": thinking[i],
            "cut": len(ids) == plan.options.sampling.max_new_tokens,
            "looping": looping[i],
        }
        kinds = {"drawn": 1, "tokens": 0 if empty[i] else len(ids), **odd}
        if i in scores:
            kinds["unparsable" if score is None else f"score{score}"] = 1
        for kind, amount in kinds.items():
            tallies[row, TALLIES.index(kind)] += amount
        if accepted:
            mean, group = replies.sums[i] / len(ids), plan.group_of[item.question]
            state.sums[row, group] += mean
            state.counts[row, group] += 1
            state.prompt_sums[row, item.prompt] += mean
            state.prompt_counts[row, item.prompt] += 1
            state.squares[row] += mean.double().square().sum(dim=-1)
            if item.role == DEFAULT:
                state.norms += replies.norms[i]
        flags = [name for name, is_so in odd.items() if is_so]
        lines.append(_line(plan, item, ids, texts[i], score, accepted, flags))
    return lines


def shown_of(plan: Plan, item: Item, reply: str) -> Judged:
    """What a judge is shown of a rollout."""
    role = plan.role(item.role)
    return Judged(
        role.name,
        role.description,
        role.prompts[item.prompt],
        str(plan.probes.questions[item.question]),
        reply,
    )


def _line(
    plan: Plan,
    item: Item,
    ids: Sequence[int],
    text: str,
    score: int | None,
    accepted: bool,
    flags: Iterable[str],
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "role": plan.role(item.role).name,
        "prompt": item.prompt,
        "question": item.question,
    }
    line |= {"sample": item.sample, "ids": list(ids), "text": text, "score": score, "accepted": accepted}
    return line | dict.fromkeys(flags, True)


def item_of(line: Mapping[str, Any], role: int) -> Item:
    """The item a line of rollouts.jsonl was drawn for."""
    return Item(role, line["prompt"], line["question"], line["sample"])


def described(plan: Plan, item: Item) -> str:
    """A rollout in words, for messages."""
    name, question = plan.role(item.role).name, str(plan.probes.questions[item.question])
    return f"role {name!r}, prompt {item.prompt}, question {item.question} ({question!r})"


def _require_finite(plan: Plan, items: Sequence[Item], replies: Replies) -> None:
    bad: Tensor = ~torch.isfinite(replies.sums).all(dim=-1)
    if bool(bad.any()):
        row, layer = bad.nonzero()[0].tolist()
        raise ExtractionError(
            f"NaN or infinite activations at layer {plan.layers[layer]} in the rollout of "
            f"{described(plan, items[row])}; "
            "no axis is saved (a float16 model may overflow: try dtype bfloat16 or float32)"
        )


class _Meter:
    """Counts what is done of a round and tells the listener."""

    def __init__(self, part: Round, store: RunStore, plan: Plan, listener: Listener) -> None:
        self.part, self.listener = part, listener
        self.rollouts, self.of = drawn_so_far(plan, store), sum(part.stop)
        self.began_with, self.began = self.rollouts, time.monotonic()

    def finished(self, rollouts: int) -> None:
        self.rollouts += rollouts
        speed = (self.rollouts - self.began_with) / max(1e-9, time.monotonic() - self.began)
        left = (self.of - self.rollouts) / speed
        self.listener(Progress(self.rollouts, self.of, self.part.number + 1, speed, left))


def drawn_so_far(plan: Plan, store: RunStore) -> int:
    """Rollouts that the store holds."""
    column = TALLIES.index("drawn")
    held = [index for index in range(plan.n_blocks) if store.blocks.done(index).of]
    return sum(int(store.blocks.tensor(index, "tallies")[:, column].sum()) for index in held)
