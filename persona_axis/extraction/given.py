"""Extraction from rollouts that exist already: the same blocks, sums and files, but replies are read, not drawn."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError, JudgeError, ModelError
from persona_axis.extraction.means import Replies
from persona_axis.extraction.options import Options
from persona_axis.extraction.plan import DEFAULT, Batch, Block, Item, Plan, even_parts, make_plan
from persona_axis.extraction.responses import Response, Responses, by_role
from persona_axis.extraction.rollouts import halved, shown_of
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.trial import Trial
from persona_axis.judges import Judge, Judged, verdicts
from persona_axis.probes import Probes
from persona_axis.residual import reading
from persona_axis.sampling import Sampling

ROWS = 32
"""Rollouts read at once, unless told otherwise; fewer where memory does not suffice."""


@dataclass(frozen=True)
class GivenPlan(Plan):
    """The plan of what a file holds: `probes` are put together from its lines, and roles need not have as many."""

    responses: Responses
    stated: Mapping[str, Any]
    """What is known of how they were drawn."""

    @cached_property
    def _by_role(self) -> dict[int, list[Item]]:
        return by_role(self.responses.entries)

    @property
    def per_role(self) -> int:
        """Rollouts of the role that has most."""
        return max(len(items) for role, items in self._by_role.items() if role != DEFAULT)

    @property
    def default_rollouts(self) -> int:
        return len(self._by_role[DEFAULT])

    @property
    def rollouts(self) -> int:
        return len(self.responses.entries)

    def longest(self, count: int) -> list[Item]:
        """The `count` longest rollouts."""
        return sorted(self.responses.entries, key=lambda item: (-self._length(item), item))[:count]

    def _items(self, role: int) -> list[Item]:
        return self._by_role[role]

    def _length(self, item: Item) -> int:
        return self.responses.entries[item].size


def given_plan(
    chat: ChatModel, responses: Responses, options: Options, batch_size: int, run: Mapping[str, Any] | None
) -> GivenPlan:
    """The plan for a file; `run` are the settings of the run that wrote it, where they are known."""
    sampling: dict[str, Any] = dict(run["sampling"]) if run else {}
    known = {key: sampling[key] for key in ("temperature", "top_p", "max_new_tokens") if key in sampling}
    options = replace(
        options,
        roles=None,
        prompts=max(len(role.prompts) for role in responses.probes.roles),
        questions=len(responses.probes.questions),
        default_samples=1,
        # Nothing is drawn; without a stated length no reply can be told to have been cut.
        sampling=Sampling(**known) if known else Sampling(max_new_tokens=2**31 - 1),
    )
    base = make_plan(chat, _evened(responses), options, batch_size)
    stated = {**sampling, "responses_sha256": responses.sha256}
    return GivenPlan(
        responses.probes, options, batch_size, responses.probes.defaults, base.layers, base.block_bytes_per_role,
        responses, stated,
    )  # fmt: skip


def _evened(responses: Responses) -> Probes:
    """The probes with as many prompts for each role as the role with most has: plans are checked against the fewest."""
    most = max(len(role.prompts) for role in responses.probes.roles)
    full = [replace(role, prompts=(role.prompts * most)[:most]) for role in responses.probes.roles]
    return replace(responses.probes, roles=tuple(full))


class GivenJudge:
    """The file's scores; where it has none, another judge is asked. `said` is who gave the scores.

    `Reader` tells it of each batch, before it is asked about any of it.
    """

    def __init__(self, other: Judge | None, said: str) -> None:
        self._other, self._said = other, said
        self._batch: dict[Judged, list[Response]] = {}

    @property
    def name(self) -> str:
        """Who gave the scores, and who gives those that are missing."""
        return self._said if self._other is None else f"{self._said}, else {self._other.name}"

    def hear(self, batch: Iterable[tuple[Judged, Response]]) -> None:
        """The lines that the next questions will be about; the same words may stand in several, in this order."""
        self._batch.clear()
        for shown, response in batch:
            self._batch.setdefault(shown, []).append(response)

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        """The given scores, and for the others one call of the other judge. Raises `JudgeError` about a rollout that is
        not of the batch."""
        if unheard := [one for one in rollouts if not self._batch.get(one)]:
            raise JudgeError(f"judge {self.name!r} knows the rollouts of its file only, not {unheard[0].reply[:40]!r}")
        lines = [self._batch[one].pop(0) for one in rollouts]
        found = [line.score for line in lines]
        asked = [i for i, line in enumerate(lines) if not line.judged]
        if asked and self._other is None:
            raise JudgeError(f"line {lines[asked[0]].number} has no score, and no judge is named")
        if self._other is not None:
            for i, verdict in zip(asked, verdicts(self._other, [rollouts[i] for i in asked]), strict=True):
                found[i] = verdict
        return found


def require_judge(responses: Responses, judge: Judge | None) -> None:
    """Raise `ExtractionError` where lines have no score and nobody is named to give one."""
    if responses.unjudged is not None and judge is None:
        raise ExtractionError(
            f"{responses.path}, line {responses.unjudged}: has no score: name a judge for the lines without one "
            "(judge=..., --judge), or give every line of a role a score from 0 to 3"
        )


class Reader:
    """What `draw` takes replies from in the place of a model that generates."""

    def __init__(self, chat: ChatModel, plan: GivenPlan, judge: GivenJudge) -> None:
        self.chat, self.plan, self.judge = chat, plan, judge

    def take(self, store: RunStore, block: Block, batch: Batch, splits: list[tuple[int, int, int]]) -> Replies:
        """Read a batch, in parts if memory asks for it, which are on record before they are read."""
        while True:
            most = min([n for b, i, n in splits if (b, i) <= (block.index, batch.index)], default=self.plan.batch_size)
            parts = even_parts(len(batch.items), most)
            try:
                return self._read(batch.items, parts)
            except (RuntimeError, MemoryError) as error:
                rows = halved(max(b - a for a, b in parts), error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            splits.append((block.index, batch.index, rows))
            store.write_splits(splits)

    def try_out(self, batch_size: int | None) -> Trial:
        """A batch size that fits the longest rollouts, and seconds at most."""
        rows = min(ROWS if batch_size is None else batch_size, self.plan.rollouts)
        while True:
            items = self.plan.longest(rows)
            try:
                began = time.monotonic()
                self._read(items, [(0, len(items))])
                break
            except (RuntimeError, MemoryError) as error:
                rows = halved(rows, error)
        seconds = time.monotonic() - began
        calibration = min(self.plan.rollouts, 2 * self.plan.options.calibration) / rows * seconds
        return Trial(rows if batch_size is None else min(rows, batch_size), seconds, calibration)

    def _read(self, items: Sequence[Item], parts: Sequence[tuple[int, int]]) -> Replies:
        responses = [self.plan.responses.read(item) for item in items]
        ids = [self._ids(item, response) for item, response in zip(items, responses, strict=True)]
        prompts = self.chat.encode_batch(self.plan.messages(item) for item in items)
        read = [read_sums(self.chat, self.plan.layers, prompts[a:b], ids[a:b]) for a, b in parts]
        shown = [shown_of(self.plan, item, text) for item, text in zip(items, self.chat.decode(ids), strict=True)]
        self.judge.hear(zip(shown, responses, strict=True))
        return Replies(ids, torch.cat([sums for sums, _ in read]), torch.cat([norms for _, norms in read]))

    def _ids(self, item: Item, response: Response) -> list[int]:
        """The tokens of a reply: those the file states, else those that the chat template makes of its text."""
        where = f"{self.plan.responses.path}, line {response.number}"
        if response.ids is None:
            if not response.text.strip():
                return []
            talk = [*self.plan.messages(item), {"role": "assistant", "content": response.text}]
            try:
                tokens, ranges = self.chat.encode_turns(talk)
            except ModelError as error:
                raise ExtractionError(f"{where}: the response cannot be found in the conversation: {error}") from error
            start, end = ranges[-1]
            return tokens[start:end]
        weight: Tensor = self.chat.model.get_input_embeddings().weight  # type: ignore[assignment]
        known = len(weight)
        if any(i >= known for i in response.ids) or self.chat.decode([response.ids])[0] != response.text:
            raise ExtractionError(
                f"{where}: its ids are not the tokens of its text here: they are of another tokenizer; leave `ids` out"
            )
        return response.ids


def read_sums(
    chat: ChatModel, layers: Sequence[int], prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """One prefill: sums over reply tokens [batch, layers, hidden] and of their norms [batch, layers], float32 on the
    CPU, at the output of each layer; zeros for an empty reply. Raises `ExtractionError` if a layer was not seen."""
    batch = chat.pad_right([[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)])
    spans = [(len(prompt), len(prompt) + len(reply)) for prompt, reply in zip(prompts, replies, strict=True)]
    sums = torch.zeros(len(spans), len(layers), chat.hidden_size)
    norms = torch.zeros(len(spans), len(layers))
    seen = set()
    rows = {layer: row for row, layer in enumerate(layers)}

    def add(layer: int, hidden: Tensor) -> None:
        own = [hidden[i, start:end] for i, (start, end) in enumerate(spans)]
        sums[:, rows[layer]] = torch.stack([tokens.sum(dim=0, dtype=torch.float32) for tokens in own]).cpu()
        lengths = [torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32).sum() for tokens in own]
        norms[:, rows[layer]] = torch.stack(lengths).cpu()
        seen.add(layer)

    with torch.inference_mode(), reading(chat.model, layers, add, stack=chat.layers):
        # The decoder without its head: logits of every token would need more memory than all the rest.
        chat.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    if missed := [layer for layer in layers if layer not in seen]:
        raise ExtractionError(f"layers {missed} did not show their activations: is the model compiled?")
    return sums, norms
