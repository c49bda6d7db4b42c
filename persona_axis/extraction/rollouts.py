"""Drawing the rollouts of a plan: batch after batch, each judged, added to its block's sums and committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from persona_axis._outofmemory import is_out_of_memory
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.events import Listener, Progress
from persona_axis.extraction.means import Replies, generate_with_means
from persona_axis.extraction.plan import DEFAULT, Batch, Block, Item, Plan, even_parts
from persona_axis.extraction.rolloutpca import KeptPca
from persona_axis.extraction.store import TALLIES, BlockState, RunStore
from persona_axis.judges import Judge, Judged, verdicts

Take = Callable[[RunStore, Block, Batch, list[tuple[int, int, int]]], Replies]


def draw(
    chat: ChatModel, plan: Plan, judge: Judge, store: RunStore, listener: Listener, pca: KeptPca | None = None,
    take: Take | None = None,
) -> None:  # fmt: skip
    """Draw what the store does not hold yet; raises `ExtractionError` where going on would be wrong.

    `take` gives the replies of a batch that exist already.
    """
    meter = _Meter(plan, store, listener)
    if pca is not None:
        pca.resume(meter.rollouts)
    splits = store.read_splits()
    for index in range(plan.n_blocks):
        done, of = store.done(index)
        if of and done == of:
            continue
        block = plan.block(index)
        state = store.load_block(index) or _empty(chat, plan, block)
        if state.of != len(block.batches):
            raise ExtractionError(
                f"{store.path} was planned by another version of this program: delete it and start again"
            )
        for batch in block.batches[state.done :]:
            if take is None:
                replies = _generate(chat, plan, store, block, batch, splits)
            else:
                replies = take(store, block, batch, splits)
            lines = _count(chat, plan, judge, block, batch, replies, state)
            if pca is not None:
                pca.take(lines, replies.sums)
                pca.commit(meter.rollouts, meter.rollouts + len(batch.items))
            state.done += 1
            store.save_batch(index, state, lines)
            meter.finished(block, batch, state)


def _empty(chat: ChatModel, plan: Plan, block: Block) -> BlockState:
    return BlockState.empty(
        len(block.roles), plan.groups, len(plan.layers), chat.hidden_size, len(block.batches)
    )


def _generate(
    chat: ChatModel,
    plan: Plan,
    store: RunStore,
    block: Block,
    batch: Batch,
    splits: list[tuple[int, int, int]],
) -> Replies:
    """Generate a batch, in parts of their own seeds if memory asks for it. The parts are on record before
    they are drawn and hold for every later batch, so that a resumed run cuts the same way."""
    prompts = chat.encode_batch(plan.messages(item) for item in batch.items)
    while True:
        most = min([n for b, i, n in splits if (b, i) <= (block.index, batch.index)], default=plan.batch_size)
        parts = even_parts(len(prompts), most)
        try:
            drawn = [
                generate_with_means(
                    chat, prompts[a:b], plan.options.sampling, batch.part_seed(a, b), plan.layers
                )
                for a, b in parts
            ]
            return Replies(
                [ids for d in drawn for ids in d.ids],
                torch.cat([d.sums for d in drawn]),
                torch.cat([d.norms for d in drawn]),
            )
        except (RuntimeError, MemoryError) as error:
            rows = halved(max(b - a for a, b in parts), error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        splits.append((block.index, batch.index, rows))
        store.write_splits(splits)


def halved(rows: int, error: BaseException) -> int:
    """Half as many rows, rounded up, after an error for want of memory; any other error is raised again."""
    if not is_out_of_memory(error):
        raise error
    if rows == 1:
        raise ExtractionError(f"not even one rollout fits into memory: {first_line(error)}") from error
    return -(-rows // 2)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or what kind of error it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _count(
    chat: ChatModel, plan: Plan, judge: Judge, block: Block, batch: Batch, replies: Replies, state: BlockState
) -> list[dict[str, Any]]:
    """Judge the replies, add the accepted ones to the block, and give the lines to keep."""
    _require_finite(plan, batch.items, replies)
    texts, thinking = chat.decode(replies.ids), chat.thinks(replies.ids)
    empty = [not text.strip() for text in texts]
    to_judge = [i for i, item in enumerate(batch.items) if item.role != DEFAULT and not empty[i]]
    given = verdicts(judge, [shown_of(plan, batch.items[i], texts[i]) for i in to_judge])
    scores = dict(zip(to_judge, given, strict=True))
    rows = {role: row for row, role in enumerate(block.roles)}
    tallies = state.tallies.numpy()  # the same memory, without a tensor operation for each count
    lines = []
    for i, item in enumerate(batch.items):
        ids, row, score = replies.ids[i], rows[item.role], scores.get(i)
        accepted = not empty[i] and (item.role == DEFAULT or score in plan.options.accept)
        cut = len(ids) == plan.options.sampling.max_new_tokens
        kinds = {
            "drawn": 1,
            "empty": empty[i],
            "thinking": thinking[i],
            "cut": cut,
            "tokens": 0 if empty[i] else len(ids),
        }
        if i in scores:
            kinds["unparsable" if score is None else f"score{score}"] = 1
        for kind, amount in kinds.items():
            tallies[row, TALLIES.index(kind)] += amount
        if accepted:
            state.sums[row, plan.group_of[item.question]] += replies.sums[i] / len(ids)
            state.counts[row, plan.group_of[item.question]] += 1
            if item.role == DEFAULT:
                state.norms += replies.norms[i]
        flags = [
            name for name, is_so in (("empty", empty[i]), ("thinking", thinking[i]), ("cut", cut)) if is_so
        ]
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
    """Counts what is done and tells the listener."""

    def __init__(self, plan: Plan, store: RunStore, listener: Listener) -> None:
        self.plan, self.listener = plan, listener
        self.rollouts, self.roles = drawn_so_far(plan, store)
        self.began_with, self.began = self.rollouts, time.monotonic()

    def finished(self, block: Block, batch: Batch, state: BlockState) -> None:
        self.rollouts += len(batch.items)
        if state.done == state.of and block.index:
            self.roles += len(block.roles)
        speed = (self.rollouts - self.began_with) / max(1e-9, time.monotonic() - self.began)
        left = (self.plan.rollouts - self.rollouts) / speed
        self.listener(
            Progress(self.rollouts, self.plan.rollouts, self.roles, len(self.plan.roles), speed, left)
        )


def drawn_so_far(plan: Plan, store: RunStore) -> tuple[int, int]:
    """(rollouts, whole roles) that the store holds."""
    rollouts = roles = 0
    for index in range(plan.n_blocks):
        done, of = store.done(index)
        if not of:
            break
        block = plan.block(index)
        rollouts += sum(len(batch.items) for batch in block.batches[:done])
        roles += len(block.roles) if index and done == of else 0
    return rollouts, roles
