"""One conversation beside its curve: the text runs down the page, and the projection of each reply next to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator

from persona_axis.plots.bands import Band, band_names, names_above, percentile_bands, shade
from persona_axis.plots.courses import assistant_turns
from persona_axis.plots.house import STYLE, UNITS, titled

if TYPE_CHECKING:
    from pandas import DataFrame

    from persona_axis.axis import Axis

_WIDTH, _LABELS, _TEXT, _GUTTER = 7.4, 1.45, 3.6, 0.4  # inches: the page; from the left, columns of text; turn numbers
_MARGIN, _LINE, _ABOVE, _BELOW = 0.12, 0.135, 0.72, 0.57  # inches: outside, a line of text, the title, the scale
_BETWEEN = 0.8  # lines between two turns
_SIZE = 7.2  # points


class _Said(NamedTuple):
    """One message in lines that fit: who spoke, what stands beside it, and what was said."""

    speaker: str
    label: list[str]
    text: list[str]

    @property
    def height(self) -> int:
        return max(len(self.label), len(self.text))


def one_conversation(
    frame: DataFrame,
    messages: Sequence[Mapping[str, str]],
    layer: int,
    axis: Axis | None = None,
    *,
    first: int = 1,
    count: int = 20,
    lines: int = 3,
) -> Figure:
    """The projection of one conversation's replies, each beside its text and the message that it answers.

    frame: the tidy table of that conversation (the assistant's turns at `layer` are taken); messages: what was said,
    in the OpenAI shape, whose n-th assistant message is turn n. Shown are `count` turns from turn `first` on, each
    message cut after `lines` lines. With `axis`, the percentiles 5-95 of its default and roles are shaded. There is
    no interval: every point is one reply.
    """
    rows = assistant_turns(frame, layer)
    if rows["conversation"].nunique() > 1:
        raise ValueError(f"frame: holds {rows['conversation'].nunique()} conversations: choose one")
    if first < 1 or count < 1 or lines < 1:
        raise ValueError(f"first={first}, count={count}, lines={lines}: each must be at least 1")
    turns = _turns(messages)
    values = dict(zip(rows["turn"].astype(int), rows["projection"].astype(float), strict=True))
    if max(values) > len(turns):
        raise ValueError(f"frame: has turn {max(values)}, but the messages hold {len(turns)} assistant turns")
    kinds = dict(zip(rows["turn"].astype(int), rows["kind"], strict=True)) if "kind" in rows else {}
    shown = range(first, min(first + count, len(turns) + 1))
    if not shown:
        raise ValueError(f"first={first}: the conversation has {len(turns)} assistant turns")
    title = titled(f"Conversation {rows['conversation'].iloc[0]}", layer)
    if len(shown) < len(turns):
        title += f": turns {shown[0]} to {shown[-1]} of {len(turns)}"
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        fit = _Fit(figure, lines)
        blocks = [[fit.said(message, kinds.get(turn)) for message in turns[turn - 1]] for turn in shown]
        points = [(turn, values.get(turn, np.nan)) for turn in shown]
        _draw(figure, blocks, points, fit.cut(title, _WIDTH - 2 * _MARGIN, 1, 9.5)[0], percentile_bands(axis, layer))
    return figure


def _turns(messages: Sequence[Mapping[str, str]]) -> list[list[Mapping[str, str]]]:
    """The messages of each turn: those since the reply before, and the reply. What has no reply is left out."""
    turns: list[list[Mapping[str, str]]] = [[]]
    for message in messages:
        turns[-1].append(message)
        if message["role"] == "assistant":
            turns.append([])
    return turns[:-1]


class _Fit:
    """Cuts texts into lines that fit a column, measured with the font they are drawn in."""

    def __init__(self, figure: Figure, lines: int) -> None:
        self._renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        self._dpi = figure.dpi
        self._lines = lines

    def said(self, message: Mapping[str, str], kind: Any) -> _Said:
        """A message with its label: who spoke, and of a user's message rather its kind, where that is known."""
        speaker = message["role"]
        known = speaker == "user" and isinstance(kind, str) and kind
        label = self.cut(kind if known else speaker, _LABELS - 0.1, 2, _SIZE)
        return _Said(speaker, label, self.cut(message["content"], _TEXT, self._lines, _SIZE))

    def cut(self, text: str, width: float, lines: int, size: float) -> list[str]:
        """At most `lines` lines of at most `width` inches; the last ends in an ellipsis when something is left out."""
        words, cut = " ".join(text.split())[: 300 * lines].split(), [""]  # more than fits, however long the text
        while words:
            word = words.pop(0)
            joined = f"{cut[-1]} {word}".lstrip()
            if self._width(joined, size) <= width:
                cut[-1] = joined
            elif not cut[-1]:  # one word alone is too long
                fitting = bisect_right(range(1, len(word)), width, key=lambda n: self._width(word[:n], size))
                keep = max(fitting, 1)
                words[:0] = [word[keep:]]
                cut[-1] = word[:keep]
                cut.append("")
            else:
                words.insert(0, word)
                cut.append("")
            if len(cut) > lines:
                last = cut[lines - 1]
                while last and self._width(f"{last}…", size) > width:
                    last = last.rpartition(" ")[0] or last[:-1]
                return [*cut[: lines - 1], f"{last.rstrip()}…"]
        return cut if cut[-1] or len(cut) == 1 else cut[:-1]

    def _width(self, text: str, size: float) -> float:
        return float(
            self._renderer.get_text_width_height_descent(text, FontProperties(size=size), False)[0] / self._dpi
        )


def _draw(
    figure: Figure,
    blocks: Sequence[Sequence[_Said]],
    points: Sequence[tuple[int, float]],
    title: str,
    bands: Sequence[Band],
) -> None:
    """Lays out in inches by hand: a line of text must be as high beside the curve as on the page."""
    total = sum(said.height for block in blocks for said in block) + _BETWEEN * len(blocks)
    above = _ABOVE if bands else _ABOVE - 0.2
    page = above + total * _LINE + _BELOW
    figure.set_size_inches(_WIDTH, page)
    left = _MARGIN + _LABELS + _TEXT + _GUTTER
    ax = figure.add_axes((left / _WIDTH, _BELOW / page, 1 - (left + _MARGIN + 0.06) / _WIDTH, total * _LINE / page))
    figure.text(_MARGIN / _WIDTH, 1 - 0.1 / page, title, va="top", fontsize=9.5, parse_math=False)
    places, top = [], _BETWEEN / 2
    for block in blocks:
        for said in block:
            _write(figure, said, (page - above - top * _LINE) / page, _LINE / page)
            top += said.height
        places.append(top - block[-1].height + len(block[-1].text) / 2)
        top += _BETWEEN
    shade(ax, bands, upright=True)
    values = np.array([value for _, value in points])
    ax.plot(values, places, color="0.1", lw=1.3, marker="o", ms=4.5, mec="white", mew=0.6, zorder=3)
    ax.set_yticks(places, [str(turn) for turn, _ in points])
    ax.set_ylim(total, 0)
    ax.tick_params(axis="y", length=0, labelsize=7.5)
    ax.grid(axis="y", color="0.88", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.set_xlabel(f"projection ({UNITS})\nlarger = more Assistant", fontsize=8)
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": "0.35"}
    ax.annotate("turn", (0, 1), xycoords="axes fraction", xytext=(-3, 3), ha="right", **note)
    if any(said.label != [said.speaker] for block in blocks for said in block):
        head = (_MARGIN / _WIDTH, 1 - above / page)
        ax.annotate("kind of the user's message", head, xycoords=figure.transFigure, xytext=(0, 3), **note)
    ax.margins(x=0.08)
    ax.set_xlim(ax.get_xlim())
    names_above(ax, band_names(bands))


def _write(figure: Figure, said: _Said, top: float, line: float) -> None:
    """One message, its first line hanging from `top`; both as parts of the page's height."""
    colour = "black" if said.speaker == "assistant" else "0.38"
    look: dict[str, Any] = {"va": "center_baseline", "parse_math": False, "fontsize": _SIZE, "color": colour}
    columns = (
        (_MARGIN, said.label, "italic" if said.label != [said.speaker] else "normal"),
        (_MARGIN + _LABELS, said.text, "italic" if said.speaker == "system" else "normal"),
    )
    for x, lines, style in columns:
        for at, text in enumerate(lines):
            figure.text(x / _WIDTH, top - (at + 0.5) * line, text, style=style, **look)
