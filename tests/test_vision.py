"""Vision-language models: found, proven and held in their text decoder, with an image in the prompt or without."""

from __future__ import annotations

from typing import Any

import chat_factory as tiny
import pytest
import torch
import transformers as t

from persona_axis import Cap, ChatModel
from persona_axis.model.layout import find_stack
from persona_axis.residual import reading

LAYERS, HIDDEN, IMAGE = 3, 32, 8  # the towers have as many layers, of the same width
TEXT: dict[str, Any] = {
    "vocab_size": len(tiny.tokenizer()), "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def llava() -> t.PreTrainedModel:
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(**TEXT), vision_config=t.CLIPVisionConfig(**VISION), image_token_index=IMAGE
    )
    return t.LlavaForConditionalGeneration(config)


def qwen() -> t.PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    tower = {"depth": LAYERS, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN}
    config = t.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config={**tower, "fullatt_block_indexes": [1]},
        image_token_id=IMAGE, video_token_id=7, vision_start_token_id=6, vision_end_token_id=5,
    )  # fmt: skip
    return t.Qwen2_5_VLForConditionalGeneration(config)


def idefics() -> t.PreTrainedModel:
    config = t.Idefics3Config(text_config=t.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE)
    return t.Idefics3ForConditionalGeneration(config)


PATHS = {llava: "model.language_model.layers", qwen: "model.language_model.layers", idefics: "model.text_model.layers"}


@pytest.mark.parametrize("make", PATHS)
def test_the_text_decoder_is_found_and_proven(make: Any) -> None:
    torch.manual_seed(0)
    chat = ChatModel.load(make().eval(), tokenizer=tiny.tokenizer())
    assert find_stack(chat.model).path == PATHS[make] and not chat.notes
    assert chat.n_layers == LAYERS and chat.hidden_size == HIDDEN
    assert chat.generate([[{"role": "user", "content": "hello"}]]).texts[0]


def test_an_image_s_tokens_are_held_as_well() -> None:
    torch.manual_seed(0)
    model = llava().eval()
    ids = torch.tensor([[1, 10, IMAGE, IMAGE, IMAGE, IMAGE, 11, 12]])
    image = torch.randn(1, 3, 28, 28)
    direction = torch.nn.functional.normalize(torch.randn(1, HIDDEN), dim=1)
    seen: list[torch.Tensor] = []

    def keep(_layer: int, hidden: torch.Tensor) -> None:
        seen.append(hidden.double() @ direction[0].double())

    def run() -> torch.Tensor:
        with torch.no_grad(), reading(model, [1], keep):
            logits: torch.Tensor = model(input_ids=ids, pixel_values=image).logits
        return logits

    plain = run()
    floor = float(seen[0].max()) + 0.5
    with Cap(direction, [1], floor).on(model):
        moved = run()
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], floor), atol=1e-5, rtol=0)
    assert seen[1].shape == (1, 8) and not torch.equal(plain, moved)
    assert not torch.equal(model(input_ids=ids, pixel_values=2 * image).logits, plain)  # the image is looked at
