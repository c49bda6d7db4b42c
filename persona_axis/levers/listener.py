"""The imaginary listener: a speaker that says what tells its persona from others, without any training.

Kim, Kim and Kim, EMNLP 2020 (arXiv 2004.05816), after the Rational Speech Acts. The model reads the same reply in
several worlds, the true persona's first and those of distractors after it. In each S0 is what it would say next. The
listener L0 guesses from what was said which world it hears; the speaker S1 prefers what makes it guess the true one:

    L0(i | u)  ~  S0(u | i)^beta  p(i)              over worlds i
    S1(u)      ~  S0(u | true)  L0(true | u)^alpha  over the vocabulary

Everything is in log space and exact. alpha = 0 gives S0 back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor

from persona_axis._asked import require
from persona_axis.errors import ListenerError
from persona_axis.sampling import Sampling

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel, Generated
    from persona_axis.levers.worlds import Worlds

Prior = Literal["posterior", "uniform", "last"]
_MOST = 1e6


@dataclass(frozen=True)
class Listener:
    """How strongly the speaker heeds the listener (`alpha`), and the listener what it hears (`beta`).

    `prior` is what the listener holds before a token; before the first it is uniform. "posterior": its posterior after
    the token before, so that all of the reply counts. "uniform": nothing. "last": what the token before says by
    itself, its posterior from a uniform prior, so that a window of two tokens counts. The paper's settings are alpha 8,
    beta 1 (Dialogue NLI) and alpha 2, beta .5 (PersonaChat), with two distractors. Raises `ListenerError` for numbers
    that are negative or beyond a million, where float32 has nothing left to tell, and for another prior.
    """

    alpha: float = 2.0
    beta: float = 1.0
    prior: Prior = "posterior"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value <= _MOST):
                raise ListenerError(f"{name} must be a number from 0 to {_MOST:g}, got {value!r}")
        if self.prior not in get_args(Prior):
            raise ListenerError(f"prior must be one of {', '.join(get_args(Prior))}, got {self.prior!r}")

    def hear(self, log_s0: Tensor, prior: Tensor) -> Tensor:
        """log L0(true | u) [..., vocabulary] of every next token, from log S0 [..., worlds, vocabulary] and log p
        [..., worlds]; world 0 is true.

        A token that is impossible in every world that the listener still holds possible tells it nothing.
        """
        joint = prior[..., None] + self._evidence(log_s0)
        total = joint.logsumexp(-2)
        return torch.where(total.isneginf(), prior[..., :1], joint[..., 0, :] - total)

    def speak(self, log_s0: Tensor, prior: Tensor) -> Tensor:
        """log S1 [..., vocabulary], from log S0 [..., worlds, vocabulary] and log p [..., worlds].

        What the true world makes impossible stays so. A listener that has ruled the true world out has no say.
        """
        heard = self.hear(log_s0, prior)
        weighed = torch.where(heard.isneginf(), 0.0, self.alpha * heard)
        return (log_s0[..., 0, :] + weighed).log_softmax(-1)

    def after(self, log_said: Tensor, prior: Tensor) -> Tensor:
        """log p before the next token [..., worlds], from log S0 of the token that was chosen [..., worlds]."""
        if self.prior == "uniform":
            return undecided(prior)
        return self.posterior(log_said, undecided(prior) if self.prior == "last" else prior)

    def posterior(self, log_said: Tensor, prior: Tensor) -> Tensor:
        """log L0 [..., worlds] after a token was chosen whose log S0 are `log_said` [..., worlds]."""
        joint = prior + self._evidence(log_said)
        total = joint.logsumexp(-1, keepdim=True)
        return torch.where(total.isneginf(), prior, joint - total)

    def _evidence(self, log_s0: Tensor) -> Tensor:
        # 0 * -inf is no number, and a listener without beta hears nothing
        return self.beta * log_s0 if self.beta else torch.zeros_like(log_s0)


def undecided(like: Tensor) -> Tensor:
    """The uniform log prior, of the shape of `like` [..., worlds]."""
    return torch.full_like(like, -math.log(like.shape[-1]))


def log_s0_of(logits: Tensor) -> Tensor:
    """Log-probabilities of raw logits [..., vocabulary], in float32 at least."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


class Speaker(LogitsProcessor):
    """S1 as a logits processor, for one call of `generate` on a batch of `rows` times `worlds` prompts.

    The worlds of a row stand next to each other, the true one first. They all get the same log S1, so that greedy
    choice feeds each of them the same token; whatever draws must stand in `then` (`Sampling.processors()`), which sees
    one line for each row, and not in `generate` (`do_sample=False`). It must be the first processor, and cannot see
    whether it is: a penalty in `generate`'s arguments or in the model's generation config would run before it. Raises
    `ListenerError` where the batch is another (beam search), where the worlds of a row were fed different tokens, and
    when it is used for a second call.
    """

    def __init__(self, listener: Listener, rows: int, worlds: int, then: Sequence[LogitsProcessor] = ()) -> None:
        self.listener, self.rows, self.worlds, self.then = listener, rows, worlds, tuple(then)
        self._before: Tensor | None = None  # log S0 of the step before
        self._prior: Tensor | None = None
        self._said: Tensor | None = None  # ids [rows * worlds, length] of the step before

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """log S1 [rows * worlds, vocabulary] from raw logits of that shape, `input_ids` [rows * worlds, length]."""
        if len(scores) != self.rows * self.worlds:
            raise ListenerError(
                f"a listener of {self.rows} rows in {self.worlds} worlds got {len(scores)} lines of logits: it cannot "
                "work under beam search or other decoding that keeps several texts a row; use num_beams=1"
            )
        log_s0 = log_s0_of(scores).view(self.rows, self.worlds, -1)
        self._prior = self._heard(input_ids, log_s0)
        self._before, self._said = log_s0, input_ids
        spoken = self.listener.speak(log_s0, self._prior)
        for processor in self.then:
            spoken = processor(input_ids[:: self.worlds], spoken)
        return spoken.repeat_interleave(self.worlds, dim=0)

    def _heard(self, input_ids: Tensor, log_s0: Tensor) -> Tensor:
        """The prior before this step's token [rows, worlds]."""
        if self._before is None or self._prior is None or self._said is None:
            return undecided(log_s0[..., 0])
        if not torch.equal(input_ids[:, :-1], self._said):
            raise ListenerError(
                f"a listener's speaker goes with one `generate`, a token a step: it had heard {self._said.shape[1]} "
                f"tokens, and the {input_ids.shape[1]} now are not those and one more; make a new one for each call, "
                "and use no assistant model"
            )
        said = input_ids[:, -1].view(self.rows, self.worlds)
        if bool((said != said[:, :1]).any()):
            raise ListenerError(
                "the worlds of a conversation were fed different tokens: pass do_sample=False, and what draws in `then`"
            )
        chosen = self._before.gather(-1, said[..., None].to(self._before.device))[..., 0]
        return self.listener.after(chosen, self._prior)


def generate(
    chat: ChatModel,
    worlds: Sequence[Worlds],
    listener: Listener | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Generated:
    """One reply to each conversation, which is given in as many worlds as every other, the true one first.

    All worlds of all conversations run in one batch, each with its keys and values. The same seed and batch give the
    same replies; with alpha = 0 they are those of `chat.generate`. Works under levers: `with chat.under(cap)` caps
    every world, a bound of a row all of its worlds. Raises `ListenerError` as `encode_worlds` does.
    """
    from persona_axis.chat import Generated
    from persona_axis.levers.worlds import encode_worlds

    sampling = Sampling() if sampling is None else sampling
    listener = Listener() if listener is None else listener
    require("sampling", sampling, Sampling)
    require("listener", listener, Listener)
    rows = encode_worlds(chat, worlds, room=sampling.max_new_tokens)
    speaker = Speaker(listener, len(rows), len(rows[0]), sampling.processors())
    ids = chat.generate_ids([p for row in rows for p in row], sampling, seed, processors=[speaker])[:: len(rows[0])]
    return Generated(chat.decode(ids), ids)
