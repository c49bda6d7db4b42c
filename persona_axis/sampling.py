"""How replies are drawn: the sampling that is stated is the sampling that is used, whatever the model ships
with.

A model's own generation_config may hold a top_k, a repetition penalty, a minimum length. Generation here runs
with that config set aside, so that nothing of it leaks in, and what is left is written down by
`Sampling.describe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from persona_axis._asked import whole
from persona_axis.errors import ModelError

_CANDIDATES = 64  # tokens looked at first on a CPU
_LOOP, _PHRASE, _LOOKS = 48, 12, 8  # a loop's tokens, its phrase's, and how many steps pass between looking for one


@dataclass(frozen=True)
class Sampling:
    """Temperature (0 = greedy), nucleus mass in (0, 1], and the most tokens a reply may have, stop token not
    counted."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, Real) or not 0 <= self.temperature < float("inf"):
            raise ModelError(f"temperature must be a finite number >= 0, got {self.temperature!r}")
        if not isinstance(self.top_p, Real) or not 0 < self.top_p <= 1:
            raise ModelError(f"top_p must lie in (0, 1], got {self.top_p!r}")
        whole("max_new_tokens", self.max_new_tokens, ModelError, least=1)

    def describe(self, stop_ids: tuple[int, ...], pad_id: int) -> dict[str, Any]:
        """Everything that shapes a draw, for plans and axis files; what is neutral is stated as neutral."""
        neutral = {
            "do_sample": self.temperature > 0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "min_new_tokens": 0,
        }
        return {**asdict(self), **neutral, "num_beams": 1, "stop_ids": list(stop_ids), "pad_id": pad_id}

    def config(self, stop_ids: tuple[int, ...], pad_id: int, extra_tokens: int = 0) -> GenerationConfig:
        """The settings of one `generate` call. To `generate` it is greedy: the draw is made by
        `processors`."""
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=self.max_new_tokens + extra_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            use_cache=True,
        )

    def processors(self, seed: int | None = None) -> list[LogitsProcessor]:
        """What stands between the logits and the choice of a token; nothing for greedy decoding. `seed` as in
        `NucleusDraw`."""
        return [NucleusDraw(self.temperature, self.top_p, seed)] if self.temperature > 0 else []


class NucleusDraw(LogitsProcessor):
    """Draws the next token of each row from the nucleus, and leaves it as the only possible one.

    The nucleus is the smallest set of most likely tokens, after the temperature, whose mass reaches `top_p`.
    One uniform number a row is taken from the device's random state, or with a `seed` from a state of its own that
    begins there: the same numbers, without touching anybody's. Sorting a whole vocabulary and drawing a
    random number for each of its words costs a small model on a CPU half of its time, so there the most
    likely few are looked at first, and only rows with a wider nucleus are sorted in full.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None = None) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.seed = seed
        self.own_state: torch.Generator | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[batch, vocabulary] logits in; out, 0 at the token drawn and -inf elsewhere."""
        if self.seed is not None and self.own_state is None:
            self.own_state = torch.Generator(scores.device).manual_seed(self.seed)
        uniform = torch.rand(len(scores), 1, device=scores.device, generator=self.own_state)
        return torch.full_like(scores, -torch.inf).scatter_(-1, self.chosen(scores, uniform), 0.0)

    def chosen(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """The tokens [batch, 1] that numbers `uniform` [batch, 1] from [0, 1) draw from logits [batch, vocabulary]."""
        scaled = scores.float() / self.temperature
        log_mass = scaled.logsumexp(dim=-1, keepdim=True)
        width = _CANDIDATES if scaled.device.type == "cpu" else scaled.shape[-1]
        token, reached = self._draw(scaled, log_mass, uniform, width)
        if width < scaled.shape[-1] and not bool(reached.all()):
            wide = ~reached
            token[wide] = self._draw(scaled[wide], log_mass[wide], uniform[wide], scaled.shape[-1])[0]
        return token

    def _draw(self, scaled: Tensor, log_mass: Tensor, uniform: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The token drawn [batch, 1], and whether the nucleus ended within the first `width` tokens
        [batch]."""
        top, tokens = scaled.topk(min(width, scaled.shape[-1]), dim=-1)
        mass = torch.exp(top - log_mass)
        upto = mass.cumsum(dim=-1)
        inside = torch.nn.functional.pad(upto[:, :-1], (1, 0)) < self.top_p
        upto = (mass * inside).cumsum(dim=-1)
        place = (upto <= uniform * upto[:, -1:]).sum(dim=-1, keepdim=True)
        # uniform < 1, but rounding may still put the product at the end: then it is the nucleus' last token.
        place = torch.minimum(place, inside.sum(dim=-1, keepdim=True) - 1)
        return tokens.gather(-1, place), upto[:, -1] >= self.top_p


def loops(ids: Tensor) -> Tensor:
    """[batch] which rows of drawn ids [batch, steps] end in one phrase again and again: _LOOP tokens of the same
    _PHRASE or fewer. Such a reply goes on like that until its limit."""
    if ids.shape[-1] < _LOOP:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    end = ids[:, -_LOOP:]
    again = [(end[:, size:] == end[:, :-size]).all(dim=-1) for size in range(1, _PHRASE + 1)]
    return torch.stack(again).any(dim=0)


class EndsLoops(LogitsProcessor):
    """Leaves a stop token as the only possible one where a reply has begun to go round in a loop."""

    def __init__(self, stop_id: int) -> None:
        self.stop_id = stop_id
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [batch, vocabulary] in and out."""
        if self._prompt is None:
            self._prompt = input_ids.shape[-1]
        drawn = input_ids.shape[-1] - self._prompt
        if drawn < _LOOP or drawn % _LOOKS:
            return scores
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.stop_id] = 0.0
        return torch.where(loops(input_ids[:, self._prompt :])[:, None], ended, scores)


class Watcher:
    """A stopping criterion that stops nothing: it shows the ids that were just sampled."""

    def __init__(self, watch: Callable[[Tensor], None]) -> None:
        self.watch = watch

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        self.watch(input_ids[:, -1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def seeded(seed: int, model: PreTrainedModel) -> Iterator[None]:
    """Random draws from `seed` inside, the caller's random state untouched outside."""
    number = whole("seed", seed)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        yield


@contextmanager
def set_aside(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's own generation_config: `generate` fills whatever is unset in ours from it."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def stop_token_ids(model: PreTrainedModel, tokenizer: Any, turn_end: tuple[int, ...]) -> tuple[int, ...]:
    """Every id that ends a reply: those of the generation config, the config, the tokenizer, and the
    template's turn end."""
    found: set[int] = set(turn_end)
    own = getattr(model, "generation_config", None)
    for source in (
        getattr(own, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if source is not None:
            found.update(int(i) for i in (source if isinstance(source, (list, tuple)) else [source]))
    return tuple(sorted(i for i in found if i >= 0))
