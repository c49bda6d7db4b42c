"""A judge by inference, on tiny classifiers that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chat_factory
import pytest
import torch
from signals_factory import talk, values
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from persona_axis.errors import JudgeError
from persona_axis.judges.nli import Inferred, NliJudge
from persona_axis.judges.questions import Agrees, Answers, Conflicts, Fits, Rates, Rubric
from persona_axis.persona import Persona
from persona_axis.signals import adherence, self_consistency

LABELS = {0: "CONTRADICTION", 1: "entailment", 2: "Neutral"}
PERSONA = Persona("you like rain . you sleep .")


def tokenizer(longest: int = 24) -> PreTrainedTokenizerFast:
    made = chat_factory.tokenizer()
    made.model_max_length = longest
    made.sep_token = "<|end|>"
    return made


def model(labels: dict[int, str] | None = None, seed: int = 0, positions: int = 24) -> Any:
    torch.manual_seed(seed)
    named = labels or LABELS
    config = BertConfig(
        vocab_size=len(tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, initializer_range=1.0, num_labels=len(named), id2label=named,
        label2id={v: k for k, v in named.items()},
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def judge() -> NliJudge:
    return NliJudge(model(), tokenizer(), batch=3)


PAIRS = [("you like rain .", "no rain"), ("a", "b"), ("the old bread", "is dark and bright ? no"), ("sleep", "work"),
         ("how do i sleep", "yes")]  # fmt: skip


def test_batched_is_single_is_the_model_itself(judge: NliJudge) -> None:
    together = judge.infer(PAIRS)
    for pair, found in zip(PAIRS, together, strict=True):
        assert found == pytest.approx(judge.infer([pair])[0], abs=1e-6)
        with torch.no_grad():
            logits = judge._model(**tokenizer()(*pair, return_tensors="pt")).logits[0]
        chances = logits.softmax(-1).tolist()
        assert found == pytest.approx(Inferred(chances[1], chances[2], chances[0]), abs=1e-6)
    assert len({round(one.entail, 3) for one in together}) > 3, "the pairs are told apart"


def test_verdicts_are_made_of_the_relations(judge: NliJudge) -> None:
    line = "no dark rain"
    each = judge.infer([(statement, line) for statement in PERSONA.statements])
    entails = judge.infer([("what ? rain", "what ? bread"), ("hello", "yes")])
    found = judge.answer([
        Fits(PERSONA, line), Conflicts(line, PERSONA.statements), Agrees("what ?", "bread", "rain"),
        Answers("hello", "yes"),
    ])  # fmt: skip
    assert found[0] == pytest.approx(1 - max(one.contradict for one in each), abs=1e-6)
    assert found[1] == tuple(i for i, one in enumerate(each) if one.contradict > 0.5)
    assert found[2:] == pytest.approx([one.entail for one in entails], abs=1e-6)
    with pytest.raises(JudgeError, match="judge 'nli [0-9a-f]{12}' cannot tell: How well does the reply do"):
        judge.answer([Rates(PERSONA, "q", "r", Rubric("", "", (), "", "", ()))])


def test_what_is_too_long_is_no_verdict_and_is_counted() -> None:
    judge = NliJudge(model(), tokenizer())
    long = "rain " * 30
    assert judge.infer([("a", long), ("a", "b")])[0] is None and judge.too_long == 1
    found = adherence([talk("a", "-", "rain", "-", long)], judge, PERSONA)
    assert found.unjudged == 1 and values(found)[0] in (0.0, 1.0)
    assert self_consistency([talk("a", "-", "rain", "-", long)], judge).unjudged == 1
    short = NliJudge(model(positions=8), tokenizer(1000))
    assert short.infer([("rain", "rain " * 9)]) == [None], "the model's own positions count as well"


@pytest.mark.parametrize("labels", [
    {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, {0: "entailment", 1: "not_entailment"},
    {0: "entailment", 1: "neutral", 2: "neutral too", 3: "contradiction"}, {0: "positive", 1: "negative"},
])  # fmt: skip
def test_labels_that_are_not_of_inference_are_refused(labels: dict[int, str]) -> None:
    with pytest.raises(JudgeError, match=f"labels are {labels[0]}.*needs one each for entailment, neutral and contra"):
        NliJudge(model(labels), tokenizer())


def test_further_labels_are_left_out_of_the_sum() -> None:
    judge = NliJudge(model({**LABELS, 3: "other"}), tokenizer())
    assert sum(judge.infer([PAIRS[0]])[0] or ()) == pytest.approx(1, abs=1e-6)


def test_the_name_tells_weights_and_labels_and_no_place(tmp_path: Path) -> None:
    """Two checkpoints in directories of one name are two judges, a copy of one is the same."""
    names = []
    made = [model(), model(), model(seed=1), model({0: "entailment", 1: "contradiction", 2: "neutral"})]
    with torch.no_grad():
        made.append(model())
        made[-1].classifier.bias[0] += 1
    for number, one in enumerate(made):
        place = tmp_path / str(number) / "judge"
        one.save_pretrained(place)
        tokenizer().save_pretrained(place)
        names.append(NliJudge.load(place).name)
    assert names[0] == names[1] and len(set(names)) == 4
    assert all(name.startswith("nli judge ") for name in names)
    assert NliJudge(made[0], tokenizer(), name="nli judge").name == names[0]


def test_loading(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path / "nli")
    tokenizer().save_pretrained(tmp_path / "nli")
    loaded = NliJudge.load(tmp_path / "nli")
    assert loaded.name.startswith("nli nli ")
    assert loaded.infer(PAIRS)[0] == pytest.approx(NliJudge(made, tokenizer()).infer(PAIRS)[0], abs=1e-6)
    with pytest.raises(JudgeError, match="cannot load the judge.*: no such model directory: .*nothing"):
        NliJudge.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JudgeError, match="cannot load the judge.*holds no config.json"):
        NliJudge.load(tmp_path / "empty")
    made.bert.save_pretrained(tmp_path / "headless")
    tokenizer().save_pretrained(tmp_path / "headless")
    with pytest.raises(JudgeError, match="is no trained classifier: 2 weights are missing"):
        NliJudge.load(tmp_path / "headless")
