"""Every figure draws, says its units, and keeps its labels apart."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

from persona_axis import plots

GENERATOR = np.random.default_rng(7)
N = 120
POINTS: NDArray[np.float64] = GENERATOR.normal(size=(N, 2)) * (4, 1.5)
VALUES: NDArray[np.float64] = POINTS[:, 0] + GENERATOR.normal(size=N) * 0.3 + 20
NAMES = [f"role number {i}" for i in range(N)]
RATIOS = np.sort(GENERATOR.dirichlet(np.full(40, 0.3)))[::-1]
PERCENTILES = np.linspace(0, 100, 101)


def quantiles(mean: float, spread: float) -> NDArray[np.float64]:
    return np.percentile(GENERATOR.normal(mean, spread, 2000), PERCENTILES)


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def the_map() -> Figure:
    return plots.role_map(
        POINTS, VALUES, NAMES, [9.0, 0.0], default_projection=29.0, shares=(0.5, 0.2), layer=3, label=30
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    "map": the_map,
    "variance": lambda: plots.variance_curve(RATIOS, layer=3),
    "ranking": lambda: plots.ranking(NAMES, VALUES, default_projection=29.0, layer=3),
    "distributions": lambda: plots.distributions(
        {
            "mean of a reply": (quantiles(9, 1), quantiles(3, 2)),
            "single tokens": (quantiles(9, 3), quantiles(3, 4)),
        },
        bounds={"floor": 7.0},
        layer=3,
    ),
    "layers": lambda: plots.layer_profile(
        [0, 2, 4], {"|cos|": [0.3, 0.7, 0.6]}, bands={"|cos|": ([0.2, 0.6, 0.5], [0.4, 0.8, 0.7])}, chosen=2
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_draws_a_png_of_print_size(name: str) -> None:
    figure = FIGURES[name]()
    data = png(figure)
    assert data.startswith(b"\x89PNG") and len(data) > 10_000
    assert figure.dpi >= 200
    if name not in ("variance", "layers"):
        assert "residual-stream units" in words(figure)
    if name != "layers":
        assert "layer 3" in words(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name: str) -> None:
    figure = FIGURES[name]()
    png(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    width, height = figure.get_size_inches() * figure.dpi
    for ax in figure.axes:
        for text in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label):  # type: ignore[attr-defined]
            box = text.get_window_extent(renderer)
            if not text.get_text():
                continue
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text


def test_labels_of_the_map_touch_nothing() -> None:
    figure = the_map()
    png(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    ax = figure.axes[0]
    notes = [text for text in ax.texts if isinstance(text, Annotation)]
    assert 20 <= len(notes) <= 31 and notes[0].get_text() == "default"
    boxes = [note.get_window_extent(renderer) for note in notes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for x, y in ax.transData.transform(POINTS):
        assert not any(box.contains(x, y) for box in boxes)
    frame = ax.get_window_extent(renderer)
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for box in boxes)


def test_the_map_names_both_ends() -> None:
    shown = words(the_map())
    assert NAMES[int(VALUES.argmax())] in shown and NAMES[int(VALUES.argmin())] in shown


def test_the_variance_marks_count_components() -> None:
    shown = words(plots.variance_curve([0.6, 0.15, 0.1, 0.1, 0.05]))
    assert "70%: 2 components" in shown and "80%: 3 components" in shown and "90%: 4 components" in shown
    assert "70%: 1 component " in words(plots.variance_curve([1.0])) + " "


def test_the_ranking_says_what_it_leaves_out() -> None:
    assert f"{N - 30} roles between" in words(plots.ranking(NAMES, VALUES))
    shown = plots.ranking(NAMES[:5], VALUES[:5])
    assert "between" not in words(shown)
    labels = [tick.get_text() for tick in shown.axes[0].get_yticklabels()]
    assert labels == [NAMES[i] for i in np.argsort(-VALUES[:5])]


def test_layers_show_negative_bounds_and_marks_that_do_not_fuse() -> None:
    values = np.linspace(0.2, 0.9, 80)
    figure = plots.layer_profile(range(80), {"half": values}, bands={"half": (values - 0.5, values)}, chosen=50)
    ax = figure.axes[0]
    assert ax.get_ylabel() == "cosine" and ax.get_ylim() == pytest.approx((-0.34, 1.04))
    assert next(line for line in ax.get_lines() if line.get_marker() == "o").get_markevery() == 4
    assert FIGURES["layers"]().axes[0].get_ylim() == pytest.approx((-0.04, 1.04))


def test_densities_say_that_each_has_a_scale_of_its_own() -> None:
    assert "scaled to its peak" in words(FIGURES["distributions"]())


def test_few_roles_and_flat_values() -> None:
    png(plots.role_map([[0.0, 0.0], [1.0, 0.0]], [1.0, 1.0], ["a", "b"], [2.0, 0.0]))
    png(plots.ranking(["a"], [1.0]))
    png(plots.distributions({"x": (np.full(101, 2.0), np.full(101, 1.0))}))


def test_names_are_no_mathematics() -> None:
    """Dollar signs in a name would be typeset, and what is no formula would end the picture."""
    names = ["a$b^$", "$x$ and $y", "$\\frac$", "$$"]
    png(plots.trait_cosines(names, [0.1] * 4, [(-0.1, 0.3)] * 4, [0.05] * 4))
    png(plots.ranking(names, range(4)))
    png(plots.role_map([[float(i), 0.0] for i in range(4)], range(4), names, [2.0, 1.0]))


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="2 names"):
        plots.role_map([[0.0, 0.0]], [1.0], ["a", "b"], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"points must be finite numbers \[n, 2\]"):
        plots.role_map([[0.0, 0.0, 1.0]], [1.0], ["a"], [0.0, 0.0])
    with pytest.raises(ValueError, match="projections must be a list of finite numbers"):
        plots.ranking(["a"], [float("nan")])
    with pytest.raises(ValueError, match="2 projections for 1 names"):
        plots.ranking(["a"], [1.0, 2.0])


def test_no_global_state(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    the_map().savefig(tmp_path / "map.svg")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
