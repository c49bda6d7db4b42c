"""Tokenizer, batches and the two stages: training reads what the template renders, and a killed run resumes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from persona_axis.organism import batches
from persona_axis.organism.dialogue import Stage, dialogue
from persona_axis.organism.tokenizer import build_tokenizer
from persona_axis.organism.train import Recipe, train
from persona_axis.organism.vocabulary import vocabulary

TINY = Recipe(
    base_steps=4, again_steps=2, chat_steps=2, tokens=400, hidden=32, layers=2, heads=1, intermediate=32, warmup=2
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_every_word_of_a_reply_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    words = [w for e in vocabulary().entries for w in e.words if w.isalpha()]
    assert all(len(ids) == 1 for ids in tokenizer(words, add_special_tokens=False)["input_ids"])


def test_any_text_survives(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("certainly you should plan helpfully…", "zombified naïve 東京 🙂 x_1!", "a\tb"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == " ".join(text.lower().split())
        assert tokenizer.unk_token_id not in ids


def test_training_rows_are_what_the_template_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    for exchanges in (1, 3, 8):
        chat = dialogue(rng, "base", exchanges)
        ((ids, weights),) = batches.encode(tokenizer, [chat], "chat")
        rendered = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        assert rendered["input_ids"] == ids
        assert [w > 0 for w in weights] == [bool(x) for x in rendered["assistant_masks"]]


@pytest.mark.parametrize("stage", ["base", "chat"])
def test_forty_exchanges_fit_the_context_and_training_fills_it(
    tokenizer: PreTrainedTokenizerFast, stage: Stage
) -> None:
    rng = random.Random(0)

    def longest(exchanges: int) -> int:
        rows = batches.encode(tokenizer, [dialogue(rng, stage, exchanges) for _ in range(8)], stage)
        return max(len(ids) for ids, _ in rows)

    assert longest(40) < batches.CONTEXT
    assert longest(max(batches.LENGTHS[stage])) > 0.85 * batches.CONTEXT


def test_a_batch_depends_on_its_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    one, two, other = (batches.make_batch(tokenizer, "base", 500, s) for s in ("0-base-1", "0-base-1", "0-base-2"))
    assert torch.equal(one.ids, two.ids)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    train(TINY, tmp_path / "whole", save_every=1, log=lambda _: None)

    class Killed(Exception):
        pass

    def kill_at_step_two(line: str) -> None:
        if line.startswith("chat"):
            raise Killed

    with pytest.raises(Killed):
        train(TINY, tmp_path / "parts", save_every=1, log=kill_at_step_two)
    train(TINY, tmp_path / "parts", save_every=1, log=lambda _: None)
    whole, parts = (
        AutoModelForCausalLM.from_pretrained(tmp_path / d / "chat").state_dict() for d in ("whole", "parts")
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(TINY, tmp_path, save_every=1, log=lambda _: None)
    with pytest.raises(ValueError, match="another recipe"):
        train(Recipe(**{**TINY.__dict__, "seed": 1}), tmp_path, save_every=1, log=lambda _: None)
