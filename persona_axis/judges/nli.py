"""A model of natural language inference as the judge: any sequence classifier that tells entailment, neutrality and
contradiction apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from persona_axis._asked import path_of
from persona_axis.errors import JudgeError, ModelError
from persona_axis.fingerprint import fingerprint_of
from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits, Question, cannot
from persona_axis.model.loading import FAILURES, check_directory

LABELS = ("entail", "neutral", "contradict")


class Inferred(NamedTuple):
    """Chances of the three relations between a premise and a hypothesis; they sum to 1."""

    entail: float
    neutral: float
    contradict: float


class NliJudge:
    """Answers by inference from what is known to what is said.

    `Fits`: 1 - the highest chance that a statement of the persona contradicts the line. `Conflicts`: the statements
    that more probably contradict the line than not. `Agrees`: the chance that the reply entails the known answer,
    question and answer read as one. `Answers`: the chance that the message entails the reply. Ratings it cannot give.

    Nothing is ever truncated: a pair that is longer than the model can read is no verdict, and `too_long` counts it.
    """

    kinds = (Fits, Conflicts, Agrees, Answers)

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "nli", batch: int = 32) -> None:
        """`model` maps a pair of texts to logits; which of its labels is which is read from `config.id2label`.

        The judge's `name` is the one given and a hash of the weights and of what their labels mean. Raises `JudgeError`
        where the three relations are not found there.
        """
        self.too_long = 0
        self._model, self._tokenizer, self._batch = model.eval(), tokenizer, batch
        self._places = _places(model.config)
        self._longest = _longest(model.config, tokenizer)
        # All of it is one layer: what tells a classifier from another is its head.
        weights = fingerprint_of(model.config, None, [model])
        self.name = f"{name} {hashlib.sha256(f'{weights} {self._places}'.encode()).hexdigest()[:12]}"

    @classmethod
    def load(cls, path: str | Path, *, batch: int = 32) -> NliJudge:
        """By local directory or hub name. Raises `JudgeError`."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path_of("path", path)
        path = os.path.expanduser(path)  # a Path would take "./" away, and leave a hub's name
        try:
            check_directory(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
            model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
        except (*FAILURES, ModelError) as error:
            reason = str(error).strip().split("\n")[0]
            raise JudgeError(f"cannot load the judge {str(path)!r}: {reason}") from error
        if missing := sorted(info["missing_keys"]):
            raise JudgeError(
                f"{str(path)!r} is no trained classifier: {len(missing)} weights are missing ({missing[0]}, ...)"
            )
        return cls(model, tokenizer, name=f"nli {Path(path).name}", batch=batch)

    def answer(self, questions: Sequence[Question]) -> list[float | tuple[int, ...] | None]:
        """Verdicts as `SignalJudge` says."""
        pairs: list[tuple[str, str]] = []
        owned: list[int] = []
        for question in questions:
            own = self._pairs(question)
            pairs += own
            owned.append(len(own))
        found = iter(self.infer(pairs))
        taken = [[next(found) for _ in range(count)] for count in owned]
        return [_verdict(question, own) for question, own in zip(questions, taken, strict=True)]

    def infer(self, pairs: Sequence[tuple[str, str]]) -> list[Inferred | None]:
        """Chances for each (premise, hypothesis), in order; None where they are too long to be read together."""
        encoded = [self._tokenizer(a, b, truncation=False, verbose=False) for a, b in pairs]
        sizes = [len(one["input_ids"]) for one in encoded]
        fit = sorted((i for i, size in enumerate(sizes) if size <= self._longest), key=lambda i: sizes[i])
        self.too_long += len(pairs) - len(fit)
        found: list[Inferred | None] = [None] * len(pairs)
        for first in range(0, len(fit), self._batch):
            at = fit[first : first + self._batch]
            rows = self._chances([encoded[i] for i in at])
            for i, row in zip(at, rows.tolist(), strict=True):
                found[i] = Inferred(*row)
        return found

    def _chances(self, encoded: Sequence[Any]) -> Tensor:
        """[batch, 3] in the order of `LABELS`; labels beside these three are left out of the sum."""
        padded = self._tokenizer.pad([dict(one) for one in encoded], return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**{k: v.to(self._model.device) for k, v in padded.items()}).logits
        chances: Tensor = logits[:, self._places].float().softmax(-1).cpu()
        return chances

    def _pairs(self, question: Question) -> list[tuple[str, str]]:
        match question:
            case Fits():
                return [(statement, question.line) for statement in question.persona.statements]
            case Conflicts():
                return [(statement, question.line) for statement in question.statements]
            case Agrees():
                asked = question.question
                return [(f"{asked} {question.reply}", f"{asked} {question.known}")]
            case Answers():
                return [(question.message, question.reply)]
            case _:
                raise cannot(self, type(question))


def _verdict(question: Question, found: Sequence[Inferred | None]) -> float | tuple[int, ...] | None:
    known = [one for one in found if one is not None]
    if len(known) < len(found) or not known:
        return None
    if isinstance(question, Fits):
        return 1 - max(one.contradict for one in known)
    if isinstance(question, Conflicts):
        return tuple(i for i, one in enumerate(known) if one.contradict > 0.5)
    return known[0].entail


def _places(config: Any) -> list[int]:
    """Where the three labels stand among the model's."""
    labels = {int(place): str(label) for place, label in (getattr(config, "id2label", None) or {}).items()}
    found = [[place for place, label in labels.items() if wanted in label.lower()] for wanted in LABELS]
    # "not_entailment" of two-way models holds the word and means its opposite.
    if any(len(places) != 1 for places in found) or any("not" in labels[p[0]].lower() for p in found):
        told = ", ".join(labels.values()) or "none"
        raise JudgeError(
            f"this classifier's labels are {told}: a judge needs one each for entailment, neutral and contradiction in "
            "config.id2label"
        )
    return [places[0] for places in found]


def _longest(config: Any, tokenizer: Any) -> int:
    """Tokens that the model can read at once."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in str(config.model_type):
        positions -= (config.pad_token_id or 0) + 1  # its positions begin after that of padding
    return int(min(tokenizer.model_max_length, positions or tokenizer.model_max_length))
