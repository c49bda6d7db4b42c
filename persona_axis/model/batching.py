"""transformers' continuous batching on a model that carries our hooks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from persona_axis.errors import ModelError

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel

_PAGE = 64  # tokens


def manager_of(chat: ChatModel, processor: Any, *, room: int, together: int, batch_tokens: int, fixed: bool) -> Any:
    """A manager, not started, that draws with `processor` alone. Raises `ModelError` where it does not take the model.

    On a CPU, where memory is not measured, there is room for `together` requests of `room` tokens, and a batch has at
    most `batch_tokens`; elsewhere transformers finds out, but for the number of requests where that is `fixed`.
    """
    sizes: dict[str, Any] = {}
    if chat.device.type == "cpu":
        sizes = {"num_blocks": together * math.ceil(room / _PAGE), "max_batch_tokens": batch_tokens}
    if fixed or sizes:
        sizes["max_requests_per_batch"] = together
    # A CUDA graph would leave out what hooks do in Python, and an asynchronous batch overtakes its own figures.
    config = ContinuousBatchingConfig(page_size=_PAGE, use_cuda_graph=False, use_async_batching=False, **sizes)
    ends = {"eos_token_id": list(chat.stop_ids), "pad_token_id": chat.pad_id}
    how = GenerationConfig(do_sample=False, **ends)  # type: ignore[no-untyped-call]
    model: Any = chat.model
    try:
        manager = model.init_continuous_batching(how, config)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise ModelError(f"transformers' continuous batching does not take {chat.name}: {error}") from error
    manager.logit_processor = processor
    return manager
