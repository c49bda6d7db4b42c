"""Tiny random models of several families, built from their configs: no download, no weights on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, LAYERS, VOCAB = 32, 4, 101

# A wide init spreads the logits, so that greedy choices of a random model are not all near-ties.
_WIDE = {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": VOCAB, "max_position_embeddings": 128, **_WIDE,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}


def _llama(t: Any) -> Any:
    return t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED))


def _qwen3(t: Any) -> Any:
    return t.Qwen3ForCausalLM(t.Qwen3Config(**_GROUPED))


def _gemma2(t: Any) -> Any:
    return t.Gemma2ForCausalLM(t.Gemma2Config(**_GROUPED, sliding_window=8, query_pre_attn_scalar=8))


def _gpt_neox(t: Any) -> Any:
    return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_COMMON))


def _gpt2(t: Any) -> Any:
    sizes = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "n_positions": 128}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **_WIDE))


def _gemma3(t: Any) -> Any:
    """A text model inside a larger one; the vision tower has just as many layers, of the same width."""
    tower = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    vision = {**tower, "image_size": 28, "patch_size": 14}
    text = {**_GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 8}
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return t.Gemma3ForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[Any], Any]] = {
    "llama": _llama, "qwen3": _qwen3, "gemma2": _gemma2, "gpt_neox": _gpt_neox, "gpt2": _gpt2, "gemma3": _gemma3,
}  # fmt: skip


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A new float32 model of `family` with `LAYERS` layers and width `HIDDEN`, in eval mode."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](transformers)
    model.eval()
    return model


@pytest.fixture(scope="session")
def new_model() -> Callable[..., PreTrainedModel]:
    """`new_model(family, seed=0)`: a model of one's own, free to be changed."""
    return build


@pytest.fixture(scope="session")
def shared_models() -> dict[str, PreTrainedModel]:
    return {family: build(family) for family in FAMILIES}


@pytest.fixture
def llama(shared_models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    """A shared Llama: not to be changed."""
    return shared_models["llama"]


@pytest.fixture(params=list(FAMILIES))
def any_model(request: pytest.FixtureRequest, shared_models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    """Each family in turn: not to be changed."""
    return shared_models[request.param]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As in child processes: how a sum is cut among threads changes its last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
