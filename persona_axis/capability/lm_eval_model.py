"""lm-evaluation-harness' own Hugging Face model around one that is loaded already. Importing this needs lm-eval."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from persona_axis.chat import ChatModel
    from persona_axis.levers import Levers


class HeldModel(HFLM):  # type: ignore[misc]  # the harness has no types
    """`chat`'s model, its requests answered under a lever: `loglikelihood`, `loglikelihood_rolling` and
    `generate_until` are all that the harness can ask of a model.

    Conversations are rendered by `chat`'s template, and a reply ends where `chat` ends it; everything else, the
    model's own generation_config included, is the harness' way, so that scores compare with published ones.
    """

    def __init__(self, chat: ChatModel, lever: Levers, *, batch: int | str, chat_template: bool) -> None:
        super().__init__(
            chat.model,
            backend="causal",
            tokenizer=_own_tokenizer(chat),
            batch_size=batch,
            # A rendered conversation begins with whatever its template begins with, and with nothing else.
            add_bos_token=False if chat_template else None,
            chat_template_args=dict(chat.template.variables),
        )
        self._device = chat.device  # the harness takes the first parameter's
        self._chat = chat
        self._lever = lever

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._held(requests):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        with self._held(requests):
            answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        with self._held(requests):
            answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as `ChatModel` would show it to the model; unlike the harness', this drops no system
        prompt. Without the header of the next reply, the last message is the begun reply itself."""
        if add_generation_prompt:
            return self._chat.template.render(chat_history, generation_prompt=True)
        folded = self._chat.template.fold(chat_history)
        begun: str = super().apply_chat_template(folded, add_generation_prompt=False)
        return begun

    def get_model_info(self) -> dict[str, Any]:
        """Facts that are known already: the harness' own would ask the hub."""
        return dict(self._chat.facts)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **how: Any) -> Tensor:
        # The harness knows one token that ends a reply; a template's end of turn may be another.
        how.setdefault("eos_token_id", list(self._chat.stop_ids))
        out: Tensor = super()._model_generate(context, max_length, stop, **how)
        return out

    def _held(self, requests: Sequence[Any]) -> AbstractContextManager[None]:
        # A lever under which nothing runs is an error, and rightly so.
        return self._chat.under(self._lever) if requests else nullcontext()


def _own_tokenizer(chat: ChatModel) -> PreTrainedTokenizerBase:
    """A copy: the harness gives a tokenizer a padding token, and turns its padding side."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chat.pad_id)
    return tokenizer
