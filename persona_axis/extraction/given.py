"""Rollouts that exist already: the engine that reads their replies, and the judge that knows their scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError, JudgeError, ModelError
from persona_axis.extraction.engines import Job, Splits, halved, joined
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Item, Plan, even_parts
from persona_axis.extraction.responses import Response, Responses
from persona_axis.extraction.rollouts import shown_of
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.trial import Trial
from persona_axis.judges import Judge, Judged, verdicts
from persona_axis.residual import reading

ROWS = 32
"""Rollouts read at once, unless told otherwise; fewer where memory does not suffice."""


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
    """The engine that reads replies in the place of drawing them, a batch in parts where memory asks for it."""

    name = "given"

    def __init__(self, chat: ChatModel, plan: Plan, store: RunStore, responses: Responses, judge: GivenJudge) -> None:
        self.chat, self.plan, self.responses, self.judge = chat, plan, responses, judge
        self._splits = Splits(plan, store.records)

    def draw(self, jobs: Iterable[Job]) -> Iterator[Replies]:
        """One job after the other: the judge is told of each before its replies are given. Raises `ExtractionError`
        where not even one rollout fits into memory, or a line is at fault."""
        return map(self._draw, jobs)

    def _draw(self, job: Job) -> Replies:
        items = job.batch.items
        lines = [self.responses.read(item) for item in items]
        while True:
            try:
                replies = _replies(self.chat, self.plan, self.responses, items, lines, self._splits.most(job))
                break
            except (RuntimeError, MemoryError) as error:
                self._splits.halve(job, error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        texts = self.chat.decode(replies.ids)
        shown = [shown_of(self.plan, item, text) for item, text in zip(items, texts, strict=True)]
        self.judge.hear(zip(shown, lines, strict=True))
        return replies


def try_reading(chat: ChatModel, plan: Plan, responses: Responses, batch_size: int | None) -> Trial:
    """A batch size that fits the longest rollouts, and seconds at most."""
    rows = min(ROWS if batch_size is None else batch_size, plan.rollouts)
    while True:
        items = plan.longest(rows)
        lines = [responses.read(item) for item in items]
        try:
            began = time.monotonic()
            _replies(chat, plan, responses, items, lines, rows)
            break
        except (RuntimeError, MemoryError) as error:
            rows = halved(rows, error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    seconds = time.monotonic() - began
    return Trial(rows, seconds, min(plan.rollouts, 2 * plan.options.calibration) / rows * seconds)


def _replies(
    chat: ChatModel, plan: Plan, responses: Responses, items: Sequence[Item], lines: Sequence[Response], most: int
) -> Replies:
    """Replies as they are read from the file, at most so many rollouts at once."""
    ids = [_ids(chat, plan, responses, item, line) for item, line in zip(items, lines, strict=True)]
    prompts = chat.encode_batch(plan.messages(item) for item in items)
    parts = even_parts(len(items), most)
    return joined([Replies(ids[a:b], *read_sums(chat, plan.layers, prompts[a:b], ids[a:b])) for a, b in parts])


def _ids(chat: ChatModel, plan: Plan, responses: Responses, item: Item, line: Response) -> list[int]:
    """The tokens of a reply: those the file states, else those that the chat template makes of its text."""
    where = f"{responses.path}, line {line.number}"
    if line.ids is None:
        if not line.text.strip():
            return []
        talk = [*plan.messages(item), {"role": "assistant", "content": line.text}]
        try:
            tokens, ranges = chat.encode_turns(talk)
        except ModelError as error:
            raise ExtractionError(f"{where}: the response cannot be found in the conversation: {error}") from error
        start, end = ranges[-1]
        return tokens[start:end]
    weight: Tensor = chat.model.get_input_embeddings().weight  # type: ignore[assignment]
    known = len(weight)
    if any(i >= known for i in line.ids) or chat.decode([line.ids])[0] != line.text:
        raise ExtractionError(
            f"{where}: its ids are not the tokens of its text here: they are of another tokenizer; leave `ids` out"
        )
    return line.ids


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
