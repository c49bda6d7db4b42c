"""transformers' continuous batching packs the tokens of all requests in one row: the cap and its figures there."""

from __future__ import annotations

from typing import Any

import chat_factory
import pytest
import torch
from test_drift import axis_for
from transformers import ContinuousBatchingConfig, GenerationConfig

from persona_axis import Cap, attach
from persona_axis.chat import ChatModel
from persona_axis.residual import reading
from persona_axis.sampling import Sampling
from persona_axis.serving._draws import Draws, Slot

TEXTS = ["what is rain ?", "no", "how do you sleep ? the old bread is dark", "why ?", "hello tutor , be old", "a b c d"]
TOKENS = 8


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return chat_factory.chat()


@pytest.fixture(scope="module")
def cap(chat: ChatModel) -> Cap:
    return axis_for(chat).cap(layers=[0, 2], floor=[1.0, 2.0])


def prompts(chat: ChatModel) -> list[list[int]]:
    return [chat.encode([{"role": "user", "content": text}]) for text in TEXTS]


def packed(chat: ChatModel, ids: list[list[int]], **config: Any) -> list[list[int]]:
    """Replies of `generate_batch`, the stop token included."""
    ends = {"eos_token_id": list(chat.stop_ids), "pad_token_id": chat.pad_id}
    how = GenerationConfig(do_sample=False, max_new_tokens=TOKENS, **ends)
    sizes = ContinuousBatchingConfig(**{"num_blocks": 16, "max_batch_tokens": 64, "page_size": 32, **config})
    found = chat.model.generate_batch(ids, how, sizes, progress_bar=False)
    return [list(found[name].generated_tokens) for name in sorted(found, key=lambda n: int(n.rsplit("_")[-1]))]


def without_stop(chat: ChatModel, ids: list[list[int]]) -> list[list[int]]:
    return [[token for token in reply if token not in chat.stop_ids] for reply in ids]


@pytest.mark.parametrize("config", [{}, {"max_batch_tokens": 9}], ids=["whole prompts", "prompts in pieces"])
def test_tokens_and_figures_are_those_of_plain_generation(chat: ChatModel, cap: Cap, config: dict[str, int]) -> None:
    ids = prompts(chat)
    plain = chat.generate_ids(ids, Sampling(0.0, 1.0, TOKENS), 0)
    with cap.on(chat.model):
        wanted = [chat.generate_ids([one], Sampling(0.0, 1.0, TOKENS), 0)[0] for one in ids]
    shapes: list[torch.Size] = []
    with attach(chat.model, cap) as handle, reading(chat.model, [0], lambda _, h: shapes.append(h.shape)):
        found = packed(chat, ids, **config)
    assert without_stop(chat, found) == wanted and wanted != plain
    assert {shape[0] for shape in shapes} == {1} and max(shape[1] for shape in shapes) > 8  # one row, several requests
    fed = sum(len(prompt) + len(reply) - 1 for prompt, reply in zip(ids, found, strict=True))
    assert [row.tokens for row in handle.stats()] == [fed, fed]
    # The same tokens, read one conversation at a time: as many outside the bounds, moved as far.
    with attach(chat.model, cap) as alone, torch.no_grad():
        for prompt, reply in zip(ids, found, strict=True):
            chat.model(torch.tensor([prompt + reply[:-1]]))
    for one, other in zip(alone.stats(), handle.stats(), strict=True):
        assert (one.tokens, one.capped) == (other.tokens, other.capped) and 0 < one.capped < one.tokens
        assert one.mean_correction == pytest.approx(other.mean_correction, rel=1e-4)


def test_cap_on_holds_there_too(chat: ChatModel, cap: Cap) -> None:
    ids = prompts(chat)
    with cap.on(chat.model):
        wanted = [chat.generate_ids([one], Sampling(0.0, 1.0, TOKENS), 0)[0] for one in ids]
        assert without_stop(chat, packed(chat, ids)) == wanted


def test_a_packed_batch_s_padding_is_not_counted(chat: ChatModel, cap: Cap) -> None:
    """A batch that is padded for graphs says how much of it is real; the rest is in the same row."""
    ids = torch.arange(9, 21)[None]
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 0, 0]])
    mask = torch.full((1, 1, 12, 12), torch.finfo(torch.float32).min)
    for start, end in ((0, 5), (5, 8), (8, 12)):
        mask[..., start:end, start:end] = torch.zeros(end - start, end - start).masked_fill(
            ~torch.ones(end - start, end - start).tril().bool(), torch.finfo(torch.float32).min
        )
    lengths = torch.tensor([0, 5, 8, 8, 8], dtype=torch.int32)
    with attach(chat.model, cap) as handle, torch.no_grad():
        chat.model(ids, attention_mask=mask, position_ids=places, cu_seq_lens_q=lengths)
    with attach(chat.model, cap) as alone, torch.no_grad():
        chat.model(ids[:, :5])
        chat.model(ids[:, 5:8])
    assert [row.tokens for row in handle.stats()] == [8, 8]
    assert [row.capped for row in handle.stats()] == [row.capped for row in alone.stats()]


def test_rows_behind_the_batch_are_nobody_s() -> None:
    """The storage keeps an earlier, wider batch's slots: a row that is not this batch's must not draw for them."""

    class Request:
        def __init__(self, slot: int) -> None:
            self.state = type("State", (), {"logit_processor_kwargs": {"slot": slot}})()

    draws, storage = Draws(), torch.zeros(1, 8, dtype=torch.int32)
    draws.slots = {number: Slot(None, top_logprobs=1) for number in (1, 2, 3)}
    for slots in ([1, 2, 3], [2]):
        told = draws.prepare_tensor_args([Request(slot) for slot in slots])
        storage[0, : len(told)] = told
        draws(torch.randn(3, 11), storage[0])
    assert [len(draws.slots[number].likely) for number in (1, 2, 3)] == [1, 2, 1]
