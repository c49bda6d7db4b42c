"""The meter of `persona-axis chat`: where a reply lies between the roles and the default, and a safe band."""

from __future__ import annotations

from rich.text import Text

from persona_axis.talks.ruler import Ruler

_NARROWEST, _WIDEST = 8, 40  # columns of the scale


class Meter:
    """Shows where a reply lies: a scale from the roles to the default, and a warning outside the safe band.

    The band is everything from the default's percentile `band` upwards; without the default's percentiles there is
    neither scale nor band, only the number. A line takes at most `columns`, if that leaves room for a scale at all.
    """

    def __init__(self, ruler: Ruler, band: float = 1.0, *, columns: int = 80, ascii_only: bool = False) -> None:
        self.ruler, self.band = ruler, band
        self.edge = ruler.quantile("default", band) if ruler.knows("default") else None
        self.width = min(max(columns - self._text_columns(), _NARROWEST), _WIDEST)
        self._point, self._line, self._middle, self._end = "o-|:" if ascii_only else "●─│┊"

    def is_safe(self, value: float) -> bool:
        """Whether `value` lies in the band; always where there is none."""
        return self.edge is None or value >= self.edge

    def legend(self) -> str:
        """What the meter shows and what it cannot, in a few lines."""
        layer = self.ruler.layer
        said = []
        if self.edge is None:
            said.append(f"the number is the reply's mean projection at layer {layer}, larger = more Assistant")
        else:
            left = "the roles' 5th percentile" if self.ruler.knows("roles") else "the default's lowest"
            said.append(
                f"{self._point} the reply at layer {layer}, right = more Assistant; {self._middle} median of the "
                f"default; {self._end} its percentile {self.band:g}, the end of the safe band; left end: {left}"
            )
            said.append("the band is of single replies; deep in a conversation healthy ones may lie below")
        if self.ruler.capped:
            said.append(f"layer {layer} is capped: its projection lies inside the bounds by construction")
        if self.ruler.axis is None:
            said.append("no safe band and no warning: name an axis file with --axis")
        elif self.edge is None:
            said.append("no safe band and no warning: the axis file does not say where the default's replies lie")
        return "\n".join(said)

    def line(self, value: float, before: float | None = None) -> Text:
        """The scale and the figures of a reply at `value`; `before` is the stream as it reached the cap's edit."""
        told = f"{value:.2f}" + ("" if self.edge is None else f", p{self.ruler.percentile(value):.0f} of the default")
        if before is not None and abs(before - value) > 0.005:
            told += f" ({before:.2f} as it reaches this layer's edit)"
        safe = self.is_safe(value)
        return Text.assemble((self._scale(value), "green" if safe else "bold red"), f" {told}")

    def warning(self, value: float) -> Text | None:
        """One line where a reply lies below the band."""
        if self.is_safe(value):
            return None
        text = (
            f"warning: below the safe band, which ends at {self.edge:.2f} "
            f"(about {self.band:g}% of the default's replies lie there)"
        )
        return Text(text, style="bold red")

    def _text_columns(self) -> int:
        """What stands beside the scale, with a digit to spare in each number."""
        if self.edge is None:
            return 0
        low, high = self._ends()
        figure = max(len(f"{low:.2f}"), len(f"{high:.2f}")) + 1
        text = " , p100 of the default" + " ( as it reaches this layer's edit)" * self.ruler.capped
        return len(text) + figure * (1 + self.ruler.capped)

    def _ends(self) -> tuple[float, float]:
        """The projections at the left and the right end of the scale."""
        assert self.edge is not None
        start = ("roles", 5) if self.ruler.knows("roles") else ("default", 0)
        low = min(self.ruler.quantile(*start), self.edge)
        return low, self.ruler.quantile("default", 99)

    def _scale(self, value: float) -> str:
        if self.edge is None:
            return f"layer {self.ruler.layer}:"
        low, high = self._ends()
        span = max(high - low, 1e-9)
        cells = [self._line] * self.width
        for mark, at in (
            (self._end, self.edge), (self._middle, self.ruler.quantile("default", 50)), (self._point, value),
        ):  # fmt: skip
            place = round((at - low) / span * (self.width - 1))
            cells[min(max(place, 0), self.width - 1)] = mark
        return "".join(cells)
