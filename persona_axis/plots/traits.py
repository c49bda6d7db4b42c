"""The figure of trait vectors: how each lies to the axis, beside what would be there without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from persona_axis.plots.house import ACCENT, DARK, canvas, matrix, note_above, titled, vector

_ROW = 0.132  # inches


def trait_cosines(
    names: Sequence[str],
    cosines: ArrayLike,
    intervals: ArrayLike,
    noise: ArrayLike,
    *,
    apart: Sequence[bool] | None = None,
    random: float | None = None,
    mixture: float | None = None,
    layer: int | None = None,
) -> Figure:
    """One row a trait, in falling order of its cosine with the axis.

    cosines: [n]; intervals: [n, 2], their ends; noise: [n], the |cosine| that the trait's own noise gives, shaded;
    apart: which traits are told from 0 (filled dots; all unless given); random, mixture: the |cosine| that random
    directions and random mixtures of roles reach one time in twenty.
    """
    values, ends, floor = vector(cosines, "cosines"), matrix(intervals, "intervals", 2), vector(noise, "noise")
    filled = np.ones(len(values), dtype=bool) if apart is None else np.asarray(apart, dtype=bool)
    if not len(names) == len(values) == len(ends) == len(floor) == len(filled):
        raise ValueError(
            f"{len(names)} names, {len(values)} cosines, {len(ends)} intervals, {len(floor)} noises, "
            f"{len(filled)} marks"
        )
    order = np.argsort(-values, kind="stable")
    rows = np.arange(len(order))
    with canvas(5.4, 1.35 + _ROW * len(rows)) as (figure, ax):
        ax.barh(rows, 2 * floor[order], left=-floor[order], height=0.86, color="0.86", zorder=1)
        for edge in rows[4:-1:5] + 0.5:  # guides the eye from a name to its dot
            ax.axhline(edge, color="0.8", lw=0.4, zorder=0)
        ax.axvline(0, color="0.35", lw=0.7, zorder=2)
        for value, colour, line, name, side in (  # each named on a side of its own: they may lie close together
            (random, "0.35", (0, (1, 1.5)), "random\ndirection", 1),
            (mixture, ACCENT, (0, (5, 2)), "mixture\nof roles", -1),
        ):
            if value is not None:
                for edge in (-value, value):
                    ax.axvline(edge, color=colour, lw=0.9, ls=line, zorder=2)
                note_above(ax, name, side * value, colour)
        ax.hlines(rows, *ends[order].T, color=DARK, lw=1.0, zorder=3)
        for told, face in ((True, DARK), (False, "white")):
            shown = filled[order] == told
            ax.plot(values[order][shown], rows[shown], "o", ms=3.8, mfc=face, mec=DARK, mew=0.9, zorder=4)
        ax.set_yticks(rows, [names[index] for index in order], fontsize=7.2, parse_math=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set(xlim=(-1.04, 1.04), ylim=(len(rows) - 0.4, -0.6))
        ax.set_xlabel(
            "cosine with the axis\n"
            "$\\leftarrow$ away from the Assistant          toward the Assistant $\\rightarrow$\n"
            "lines: 95% over questions; grey: the trait's own noise;\n"
            "filled: told from 0, and the same in other wordings"
        )
        named = random is not None or mixture is not None
        ax.set_title(titled(f"{len(rows)} traits and the axis", layer), pad=28 if named else 6)
    return figure
