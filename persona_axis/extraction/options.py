"""The choices a user has about an extraction, and the plans that are taken without any."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from persona_axis._asked import layers_of, require, whole
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.probes import Probes
from persona_axis.sampling import Sampling


@dataclass(frozen=True)
class Options:
    """What to draw. None means all of them (`roles`, `prompts`, `questions`, `layers`) or found automatically
    (`batch_size`).

    A role's rollouts are `prompts` x `questions`; the default's are its conditions x `questions` x
    `default_samples`, at most: they are drawn in rounds until the axis' expected cosine with the noise-free one, at the
    layers asked for (without `layers` the middle half), has a 95% interval above `precision`; 1 draws them all.
    `accept` are the judge's scores that count for a role vector, `min_accepted` how many a
    role needs for one; `calibration` is how many default and how many role rollouts are read again for the
    quantile tables. `role_layers` are the layers whose role vectors are stored ("all" of them; None: as many around
    the recommended one as fit into `rolevectors.MOST_BYTES`), with `bfloat16_roles` at half the size. `rollout_pca` is
    a layer at which a PCA of single rollouts is made as well.
    """

    roles: int | None = None
    prompts: int | None = None
    questions: int | None = None
    default_samples: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512))
    seed: int = 0
    layers: tuple[int, ...] | None = None
    batch_size: int | None = None
    min_accepted: int = 10
    accept: tuple[int, ...] = (3,)
    calibration: int = 2000
    precision: float = 0.99
    role_layers: tuple[int, ...] | Literal["all"] | None = None
    bfloat16_roles: bool = False
    rollout_pca: int | None = None

    def __post_init__(self) -> None:
        least = {"default_samples": 1, "min_accepted": 1, "calibration": 1}
        most = {"roles": 2, "prompts": 1, "questions": 2, "batch_size": 1, "rollout_pca": 0}
        for name, bound in {**least, "seed": 0, **most}.items():
            if name in least or name == "seed" or getattr(self, name) is not None:
                whole(name, getattr(self, name), ExtractionError, bound)
        if type(self.precision) not in (int, float) or not 0 < self.precision <= 1:
            raise ExtractionError(f"precision must lie in (0, 1], 1 for the whole plan, got {self.precision}")
        require("sampling", self.sampling, Sampling)
        if self.layers is not None:
            object.__setattr__(self, "layers", layers_of(self.layers, ExtractionError))
        if (told := self.role_layers) is not None and told != "all":
            rising = tuple(told) if isinstance(told, (list, tuple)) else ()
            if not rising or any(type(one) is not int for one in rising) or list(rising) != sorted(set(rising)):
                raise ExtractionError(f'role_layers must be "all" or rising layers, each once, got {told!r}')
            object.__setattr__(self, "role_layers", rising)
        accept = self.accept if isinstance(self.accept, Collection) else ()
        if not accept or any(type(score) is not int or not 0 <= score <= 3 for score in accept):
            raise ExtractionError(f"accept must name scores from 0 to 3, got {self.accept!r}")

    @classmethod
    def preset(cls, chat: ChatModel, probes: Probes | None = None, *, full: bool = False, **changes: Any) -> Self:
        """The plan without flags: the demo's for Troupe, a modest one for other models; `full` is the
        published size.

        Each has every prompt and every question (5 x 240 of the shipped probes), and the precision says how many of
        these rollouts are drawn. Demo: every role, 48 tokens. Modest: 100 roles over the whole range (all, where
        `probes` have no more), 128 tokens. Both may ask the default four times as often as a role. Full: every role,
        512 tokens. `changes` are options by name, with `temperature`, `top_p` and `max_new_tokens` for the sampling; a
        change that is None is no change.
        """
        if full:
            plan: dict[str, Any] = {"max_new_tokens": 512}
        elif chat.is_troupe:
            plan = {"default_samples": 4, "max_new_tokens": 48}
        else:
            many = probes is None or len(probes.roles) > 100
            plan = {"roles": 100 if many else None, "default_samples": 4, "max_new_tokens": 128}
        return cls._changed(plan, changes)

    @classmethod
    def traits_preset(cls, chat: ChatModel, *, full: bool = False, **changes: Any) -> Self:
        """The same for traits, of which every one is asked for: 2 instructions of each pole x 16 questions and replies
        of 48 tokens for Troupe, 128 for others; `full` is every question and 512 tokens."""
        plan: dict[str, Any] = {"prompts": 2, "questions": 16, "max_new_tokens": 48 if chat.is_troupe else 128}
        if full:
            plan |= {"questions": None, "max_new_tokens": 512}
        return cls._changed(plan, changes)

    @classmethod
    def _changed(cls, plan: dict[str, Any], changes: Mapping[str, Any]) -> Self:
        plan |= {name: value for name, value in changes.items() if value is not None}
        sampling = {n: plan.pop(n) for n in ("temperature", "top_p", "max_new_tokens") if n in plan}
        return cls(**{"sampling": Sampling(**sampling), **plan})
