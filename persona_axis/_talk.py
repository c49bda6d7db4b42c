"""A conversation that goes on turn by turn, each reply measured while it is said, and the meter that shows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from rich.text import Text

from persona_axis._tables import layer_to_show
from persona_axis.errors import CapError, DriftError

if TYPE_CHECKING:
    from torch import Tensor

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.chat import ChatModel
    from persona_axis.sampling import Sampling


_LEAST_REPLY = 16  # tokens; less room than that is none


class Said(NamedTuple):
    """A reply, its mean projection, and that of the stream before the caps' edits; None where there is none."""

    text: str
    projection: float | None = None
    before: float | None = None


@dataclass(frozen=True, eq=False)
class Ruler:
    """One layer's direction [hidden], and the axis it is of, which may know where replies lie."""

    layer: int
    direction: Tensor
    axis: Axis | None = None

    @classmethod
    def of(cls, axis: Axis | None, caps: Sequence[Cap], layer: int | None = None) -> Self | None:
        """The axis at `layer` or where it recommends; without an axis the last cap's own; None without either."""
        if axis is not None:
            at = layer_to_show(axis, layer)
            return cls(at, axis.direction[axis.row(at)], axis)
        if not caps:
            return None
        at = caps[-1].layers[-1] if layer is None else layer
        if at not in caps[-1].layers:
            raise CapError(f"layer {at} is not in the cap, which has {', '.join(map(str, caps[-1].layers))}")
        return cls(at, caps[-1].direction[caps[-1].layers.index(at)])

    def knows(self, distribution: str) -> bool:
        """Whether the axis file has this distribution."""
        return self.axis is not None and f"quantiles_{distribution}" in self.axis.arrays

    def quantile(self, distribution: str, percentile: float) -> float:
        """The projection below which `percentile` percent of a distribution's replies lie."""
        assert self.axis is not None
        return float(self.axis.quantile(distribution, percentile)[self.axis.row(self.layer)])

    def percentile(self, value: float) -> float:
        """How many percent of the default's replies lie below `value`."""
        from persona_axis.drift import percentiles

        assert self.axis is not None
        return float(percentiles(self.axis, self.layer, value))


class Talk:
    """A conversation under `caps`. The model's cache is kept from turn to turn; each turn has its own seed."""

    def __init__(
        self,
        chat: ChatModel,
        sampling: Sampling,
        *,
        system: str = "",
        caps: Sequence[Cap] = (),
        ruler: Ruler | None = None,
        seed: int = 0,
        allow: Collection[str] = (),
    ) -> None:
        self.chat, self.sampling, self.caps, self.ruler, self.allow = chat, sampling, tuple(caps), ruler, allow
        self._system = [{"role": "system", "content": system}] if system else []
        self._seed = seed
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        from persona_axis._memory import Memory

        self.messages = list(self._system)
        self._memory = Memory(self.chat.model)

    def say(self, text: str) -> Said:
        """The reply to `text`. Raises `DriftError` where there is no room for one; nothing has then been said."""
        from persona_axis._speaking import speak

        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self.chat.encode(asked)
        ruler, seed = self.ruler, self._seed + sum(m["role"] == "user" for m in self.messages)
        directions = {} if ruler is None else {ruler.layer: ruler.direction}
        spoken = speak(self.chat, [ids], self._fitting(len(ids)), seed, directions=directions, lever=self.caps,
                       allow=self.allow, memory=self._memory)  # fmt: skip
        reply = self.chat.decode(spoken.ids)[0]
        self.messages = [*asked, {"role": "assistant", "content": reply}]
        if ruler is None or not spoken.ids[0]:
            return Said(reply)
        before = spoken.before.get(ruler.layer)
        return Said(reply, spoken.projections[ruler.layer][0], None if before is None else before[0])

    def _fitting(self, tokens: int) -> Sampling:
        """The sampling, with replies no longer than the context has room for."""
        from persona_axis.drift import context_limit

        limit, longest = context_limit(self.chat), self.sampling.max_new_tokens
        room = longest if limit is None else min(longest, limit - tokens)
        if room < min(longest, _LEAST_REPLY):
            raise DriftError(
                f"{tokens} tokens have been said and the model can read {limit}: there is no room for a reply, begin a "
                "new conversation"
            )
        return replace(self.sampling, max_new_tokens=room)


class Meter:
    """Shows where a reply lies: a scale from the roles to the default, and a warning outside the safe band.

    The band is everything from the default's percentile `band` upwards; without the default's percentiles there is
    neither scale nor band, only the number.
    """

    def __init__(self, ruler: Ruler, band: float = 1.0, *, width: int = 40, ascii_only: bool = False) -> None:
        self.ruler, self.band, self.width = ruler, band, max(width, 8)
        self.edge = ruler.quantile("default", band) if ruler.knows("default") else None
        self._point, self._line, self._middle, self._end = "o-|:" if ascii_only else "●─│┊"

    def is_safe(self, value: float) -> bool:
        """Whether `value` lies in the band; always where there is none."""
        return self.edge is None or value >= self.edge

    def legend(self) -> str:
        """What the scale shows, in a line."""
        if self.edge is None:
            return f"the number is the reply's mean projection at layer {self.ruler.layer}, larger = more Assistant"
        left = "the roles' 5th percentile" if self.ruler.knows("roles") else "the default's lowest"
        return (
            f"{self._point} the reply at layer {self.ruler.layer}, right = more Assistant; {self._middle} median of "
            f"the default; {self._end} its percentile {self.band:g}, the end of the safe band; left end: {left}"
        )

    def line(self, said: Said) -> Text:
        """The scale and the figures of a reply that has a projection."""
        value = said.projection
        assert value is not None
        told = f"{value:.2f}" + ("" if self.edge is None else f", p{self.ruler.percentile(value):.0f} of the default")
        if said.before is not None and abs(said.before - value) > 0.005:
            told += f" ({said.before:.2f} before the cap)"
        safe = self.is_safe(value)
        return Text.assemble((self._scale(value), "green" if safe else "bold red"), f" {told}")

    def warning(self, said: Said) -> Text | None:
        """One line where the reply lies below the band."""
        if said.projection is None or self.is_safe(said.projection):
            return None
        text = (
            f"warning: below the safe band, which ends at {self.edge:.2f} "
            f"(about {self.band:g}% of the default's replies lie there)"
        )
        return Text(text, style="bold red")

    def _scale(self, value: float) -> str:
        if self.edge is None:
            return f"layer {self.ruler.layer}:"
        start = ("roles", 5) if self.ruler.knows("roles") else ("default", 0)
        low = min(self.ruler.quantile(*start), self.edge)
        span = max(self.ruler.quantile("default", 99) - low, 1e-9)
        cells = [self._line] * self.width
        for mark, at in (
            (self._end, self.edge), (self._middle, self.ruler.quantile("default", 50)), (self._point, value),
        ):  # fmt: skip
            place = round((at - low) / span * (self.width - 1))
            cells[min(max(place, 0), self.width - 1)] = mark
        return "".join(cells)
