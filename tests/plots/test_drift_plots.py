"""The figures of drift, calibration and space: exact numbers, drawn in every regime, nothing cut off."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from persona_axis import Axis, plots
from persona_axis.files.axisfile import CONVENTIONS, FORMAT
from persona_axis.plots.bands import percentile_bands, spread
from persona_axis.plots.courses import FEWEST, by_domain, summary
from persona_axis.plots.pareto import front

GENERATOR = np.random.default_rng(11)
DOMAINS = ("coding", "writing", "emotional", "meta-reflective")
LAYER = 4


def axis(*tables: str) -> Axis:
    """An axis of layers 3 to 5 that holds percentiles: the default about 18, the roles about -12."""
    direction = np.zeros((3, 8), np.float32)
    direction[:, 0] = 1
    spans = {"default": np.linspace(16, 20, 101), "roles": np.linspace(-24, 0, 101)}
    held = {f"quantiles_{name}": np.stack([spans[name]] * 3).astype(np.float32) for name in tables}
    arrays = {"direction": direction, "layers": np.array([3, 4, 5], np.int64), **held}
    metadata = {"format": FORMAT, "conventions": dict(CONVENTIONS), "provenance": "imported"}
    return Axis(arrays, metadata | {"hidden_size": 8, "num_layers": 6})


AXIS = axis("default", "roles")


def table(count: int = 8, turns: int = 5, domains: tuple[str, ...] = DOMAINS, fall: float = 3.0) -> pd.DataFrame:
    rows = [
        (f"{domain}-{c}", domain, "train", t, speaker, "venting", 9, layer, 18 - fall * t * at + GENERATOR.normal())
        for at, domain in enumerate(domains)
        for c in range(count)
        for t in range(1, turns + 1)
        for speaker in ("user", "assistant")
        for layer in (3, LAYER)
    ]
    return pd.DataFrame(
        rows, columns=["conversation", "domain", "split", "turn", "speaker", "kind", "tokens", "layer", "projection"]
    )


def said(turns: int, text: str = "And the preacher said her name wrong.") -> list[dict[str, str]]:
    return [{"role": role, "content": f"{text} {n}"} for n in range(turns) for role in ("user", "assistant")]


def changes(**columns: Any) -> pd.DataFrame:
    kinds = ["bounded task", "venting", "demand for inner experience"]
    frame = pd.DataFrame({"kind": kinds, "turns": [40, 1300, 3], "change": [0.4, -2.0, -1.0]})
    return frame.assign(low=[0.1, -2.5, np.nan], high=[0.7, -1.5, np.nan], **columns)


LEVELS = {"level": [17.0, 4.0, 1.0], "level_low": [16.0, 3.0, np.nan], "level_high": [18.0, 5.0, np.nan]}


def sweep(**columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame({
        "setting": ["no cap", "3-5 default_tokens:p2", "3-5 default_tokens:p25", "0-5 default_tokens:p50"],
        "kind": ["none", "cap", "cap", "cap"], "stage": ["full", "full", "full", "screened"],
        "chosen": [False, True, False, False], "harm": [0.7, 0.2, 0.1, 0.0], "capability": [0.0, -0.4, -3.0, -60.0],
    })  # fmt: skip
    frame = frame.assign(capability_low=frame["capability"] - 0.5, capability_high=frame["capability"] + 0.5)
    return frame.assign(harm_low=frame["harm"] - 0.05, harm_high=frame["harm"] + 0.05).assign(**columns)


def held_out(count: int) -> pd.DataFrame:
    """The chosen cap beside `count` draws of each kind of control."""
    kinds = ["gaussian", "shuffled", "span", "mixture"]
    rows = [("no cap", "none", None, False), ("1-3 default_tokens:p50 of a file far away", "cap", None, True)]
    rows += [(f"{kind} {n}", "control", kind, False) for kind in kinds for n in range(count)]
    frame = pd.DataFrame(rows, columns=["setting", "kind", "control", "chosen"])
    frame = frame.assign(harm=np.linspace(0.8, 0, len(frame)), capability=np.linspace(0, -1, len(frame)))
    frame = frame.assign(capability_low=frame["capability"] - 0.5, capability_high=frame["capability"] + 0.5)
    return frame.assign(harm_low=frame["harm"] - 0.05, harm_high=frame["harm"] + 0.05)


def space(count: int = 60) -> Figure:
    points = GENERATOR.normal(size=(count, 3)) * (9, 6, 3)
    names = [f"role number {i}" for i in range(count)]
    return plots.persona_space_3d(
        points,
        points @ (0.6, 0.8, 0.0),
        names,
        [9.0, 12.0, 1.0],
        default_projection=15.0,
        shares=(0.4, 0.2, 0.1),
        layer=4,
    )


DOSES = np.array([1.0, -1.0, 0.0])
CURVE = (np.array([0.9, 0.1, 0.5]), np.array([0.8, 0.0, 0.4]), np.array([1.0, 0.2, 0.6]))

FIGURES: dict[str, Callable[[], Figure]] = {
    "trajectories": lambda: plots.trajectories_by_domain(table(), LAYER, AXIS),
    "trajectories of one": lambda: plots.trajectories_by_domain(
        table(1, 1, ("a domain with a very long name indeed, longer than its panel",)), LAYER, note="word " * 60
    ),
    "trajectories of 400": lambda: plots.trajectories_by_domain(table(400, 2), LAYER, AXIS, centre="mean"),
    "trajectories of 7 domains": lambda: plots.trajectories_by_domain(table(2, 3, tuple("abcdefg")), LAYER),
    "capped": lambda: plots.capped_against_uncapped(
        {"uncapped": table(), "capped": table(fall=0.2)}, LAYER, AXIS, bounds={"floor": 15.0}, note="read again"
    ),
    "capped, other domains": lambda: plots.capped_against_uncapped(
        {"uncapped": table(), "a cap with $5 in its name": table(domains=DOMAINS[:2])}, LAYER, AXIS
    ),
    "conversation": lambda: plots.one_conversation(
        table(1, 3, ("emotional",)), said(3, "It cost $5, not $6, x_1^2! "), LAYER, AXIS
    ),
    "kinds": lambda: plots.drift_by_kind(changes(**LEVELS), LAYER, AXIS, groups={"venting": "drifting"}),
    "kinds, changes only": lambda: plots.drift_by_kind(changes()),
    "space": space,
    "cosines": lambda: plots.layer_cosines(np.eye(6), range(6), chosen=4),
    "cosines of 80": lambda: plots.layer_cosines(np.eye(80) - 0.1, range(80), chosen=37),
    "cosine curves": lambda: plots.layer_cosines(
        {"axis and PC1": [0.2, 0.5], "base and chat": [-0.1, 0.4]},
        [0, 1],
        bands={"axis and PC1": ([0, 0.4], [0.3, 0.6])},
    ),
    "dose": lambda: plots.dose_response(DOSES, {"axis": CURVE}, {"gaussian": np.full((10, 3), 0.5)}, layer=4),
    "dose, 40 controls": lambda: plots.dose_response(
        DOSES, {"axis": CURVE}, dict.fromkeys(("gaussian", "shuffled", "span", "mixture"), np.full((10, 3), 0.5))
    ),
    "pareto": lambda: plots.calibration_pareto(sweep(), 1.0),
    "pareto, 40 controls": lambda: plots.calibration_pareto(held_out(10), 1.0),
}


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_it_draws_and_no_text_is_cut_off(name: str) -> None:
    figure = FIGURES[name]()
    assert png(figure).startswith(b"\x89PNG") and figure.dpi >= 200
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    width, height = figure.get_size_inches() * figure.dpi
    shown = [ax for ax in figure.axes if ax.get_visible()]
    texts = [
        *figure.texts,
        *(text for ax in shown for text in (*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label)),
    ]
    texts += [figure._suptitle, figure._supxlabel, figure._supylabel]  # type: ignore[attr-defined]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for text in texts:
        if text is not None and text.get_text().strip():
            box = Text.get_window_extent(text, renderer)
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text


@pytest.mark.parametrize("name", FIGURES)
def test_projections_have_their_units(name: str) -> None:
    figure = FIGURES[name]()
    if name.startswith(("trajectories", "capped", "conversation", "kinds", "space")):
        assert "residual-stream units" in words(figure) and "more Assistant" in words(figure)
    elif name.startswith("pareto"):
        assert "points" in words(figure) and "%" in figure.axes[0].xaxis.get_major_formatter()(0.5)
    elif name.startswith("cosine"):
        assert "cosine" in words(figure)


@pytest.mark.parametrize("name", ["trajectories", "capped", "kinds", "dose", "cosine curves", "conversation"])
def test_names_in_the_margin_touch_nothing(name: str) -> None:
    figure = FIGURES[name]()
    png(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    notes = [text for ax in figure.axes for text in ax.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert notes
    boxes = [Text.get_window_extent(note, renderer) for note in notes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frames = [ax.get_window_extent(renderer) for ax in figure.axes]
    assert not any(box.overlaps(frame) for box in boxes for frame in frames)


class TestSpread:
    @given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.5, 20)), min_size=1, max_size=12))
    def test_nothing_overlaps_and_the_order_stays(self, things: list[tuple[float, float]]) -> None:
        places = np.sort([place for place, _ in things])
        sizes = np.array([size for _, size in things])
        moved = spread(places, sizes)
        assert np.all(np.diff(moved) >= (sizes[1:] + sizes[:-1]) / 2 - 1e-9)
        assert moved.mean() == pytest.approx(places.mean(), abs=1e-9)  # least squares moves the middle of none

    def test_what_is_apart_stays(self) -> None:
        np.testing.assert_array_equal(spread(np.array([0.0, 10.0, 20.0]), np.full(3, 9.0)), [0, 10, 20])

    def test_a_pair_moves_apart_by_halves_and_leaves_the_others(self) -> None:
        moved = spread(np.array([0.0, 1.0, 50.0]), np.full(3, 4.0))
        np.testing.assert_allclose(moved, [-1.5, 2.5, 50.0])


class TestSummary:
    @pytest.mark.parametrize("count", [6, 7, 8, 20, 101, 999, 1001, 3000])
    def test_the_medians_interval_is_the_narrowest_that_holds_95_percent(self, count: int) -> None:
        _, low, high = summary(np.arange(1.0, count + 1)[:, None])
        rank = int(low[0])
        assert high[0] == count + 1 - rank
        below = [math.comb(count, k) for k in range(rank + 1)]
        slack = 2 if count > 1000 else 0  # the normal approximation may be one rank too wide or too narrow
        assert sum(below[: rank - slack]) * 40 <= 2**count < sum(below[: rank + 1]) * 40 + (slack and 2**count)

    def test_it_covers_the_median_about_as_often_as_it_says(self) -> None:
        samples = np.random.default_rng(0).exponential(size=(25, 4000))
        _, low, high = summary(samples)
        covered = np.mean((low <= math.log(2)) & (high >= math.log(2)))
        assert 0.94 <= covered <= 0.98

    def test_few_values_have_a_centre_and_no_interval(self) -> None:
        values = np.full((FEWEST, 3), np.nan)
        values[:, 0] = [5, 1, 4, 2, 3, 6]
        values[1:, 1] = [5, 1, 4, 2, 3]
        centre, low, high = summary(values)
        np.testing.assert_array_equal(centre, [3.5, 3.0, np.nan])
        np.testing.assert_array_equal(low, [1.0, np.nan, np.nan])
        np.testing.assert_array_equal(high, [6.0, np.nan, np.nan])

    @settings(deadline=None, max_examples=20)
    @given(st.integers(FEWEST, 40), st.integers(0, 1000))
    def test_the_mean_lies_in_its_interval(self, count: int, seed: int) -> None:
        values = np.random.default_rng(seed).normal(size=(count, 1)) * 3 + 7
        centre, low, high = summary(values, "mean")
        assert centre[0] == pytest.approx(float(np.mean(values))) and low[0] < centre[0] < high[0]
        assert high[0] - low[0] < 8 * values.std() / math.sqrt(count)

    def test_another_centre_is_refused(self) -> None:
        with pytest.raises(ValueError, match="choose median or mean"):
            summary(np.ones((3, 1)), "mode")  # type: ignore[arg-type]


class TestBands:
    def test_without_colours_the_bands_differ_by_their_hatch(self) -> None:
        figure = plots.trajectories_by_domain(table(2, 2, ("coding",)), LAYER, AXIS)
        hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
        assert len(hatched) == 1 and hatched[0].get_window_extent().height > 0
        assert len(figure.axes[0].patches) == 3

    def test_ribbons_that_overlap_have_edges_in_their_lines(self) -> None:
        figure = plots.capped_against_uncapped({"a": table(), "b": table()}, LAYER)
        thin = [line.get_linestyle() for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.7]
        assert len(thin) == 4 and len(set(thin)) == 2

    def test_single_conversations_lie_above_the_ribbon_and_below_the_median(self) -> None:
        figure = plots.trajectories_by_domain(table(8, 5, ("coding",)), LAYER)
        ax = figure.axes[0]
        (ribbon,) = (c for c in ax.collections if isinstance(c, PolyCollection))
        single = [line for line in ax.get_lines() if line.get_linewidth() == 0.6]
        median = ax.get_lines()[-1]
        assert len(single) == 8 and {line.get_alpha() for line in single} == {0.5}
        assert ribbon.get_zorder() < single[0].get_zorder() < median.get_zorder()


class TestCourses:
    def test_the_assistants_turns_of_the_layer_and_nothing_else(self) -> None:
        frame = table(2, 3)
        courses = by_domain(frame, LAYER)
        assert list(courses) == list(DOMAINS)
        own = frame[(frame["layer"] == LAYER) & (frame["speaker"] == "assistant") & (frame["domain"] == "coding")]
        expected = own.pivot(index="conversation", columns="turn", values="projection").to_numpy()
        np.testing.assert_array_equal(courses["coding"].values, expected)
        np.testing.assert_array_equal(courses["coding"].turns, [1, 2, 3])

    def test_missing_turns_and_projections_are_gaps(self) -> None:
        frame = table(2, 3, ("coding",))
        frame = frame[~((frame["conversation"] == "coding-1") & (frame["turn"] == 3))]
        frame.loc[(frame["conversation"] == "coding-0") & (frame["turn"] == 1), "projection"] = np.nan
        np.testing.assert_array_equal(by_domain(frame, LAYER)["coding"].counts, [1, 2, 1])

    @pytest.mark.parametrize("missing", [None, pd.NA, np.nan])
    def test_conversations_without_a_domain(self, missing: Any) -> None:
        frame = table(1, 2)
        frame["domain"] = frame["domain"].astype(object)
        frame.loc[frame["domain"] == "writing", "domain"] = missing
        assert list(by_domain(frame, LAYER)) == ["coding", "", "emotional", "meta-reflective"]
        assert list(by_domain(frame.drop(columns="domain"), LAYER)) == [""]
        assert "no domain" in words(plots.trajectories_by_domain(frame, LAYER))

    def test_what_is_wrong_is_named(self) -> None:
        frame = table(1, 2)
        with pytest.raises(ValueError, match="capped: no rows of layer 9; its layers: 3, 4"):
            by_domain(frame, 9, "capped")
        with pytest.raises(ValueError, match="no column layer, projection"):
            by_domain(frame.drop(columns=["layer", "projection"]), LAYER)
        with pytest.raises(ValueError, match="no assistant turn with a projection"):
            by_domain(frame.assign(projection=np.nan), LAYER)
        with pytest.raises(ValueError, match="'coding-0' has turn 1 twice"):
            by_domain(pd.concat([frame, frame]), LAYER)


class TestTrajectories:
    def test_the_curve_is_the_median_of_each_turn(self) -> None:
        frame = table(9, 4)
        figure = plots.trajectories_by_domain(frame, LAYER, AXIS)
        courses = by_domain(frame, LAYER)
        for ax, domain in zip(figure.axes, DOMAINS, strict=True):
            x, y = ax.get_lines()[-1].get_data()
            np.testing.assert_array_equal(x, [1, 2, 3, 4])
            np.testing.assert_allclose(np.asarray(y, np.float64), np.median(courses[domain].values, axis=0))

    def test_it_says_how_many_conversations_it_stands_on(self) -> None:
        frame = table(8, 3, ("coding",))
        frame = frame[(frame["turn"] < 3) | frame["conversation"].isin(["coding-0", "coding-1"])]
        shown = words(plots.trajectories_by_domain(frame, LAYER))
        assert "8 → 2 conversations" in shown and "no interval for fewer than 6" in shown
        assert "1 conversation " in words(plots.trajectories_by_domain(table(1, 3), LAYER)) + " "

    def test_percentiles_of_the_axis_are_shaded_as_far_as_it_has_them(self) -> None:
        bands = {band.name: (band.low, band.high) for band in percentile_bands(AXIS, LAYER)}
        assert bands["default"] == pytest.approx((16.2, 19.8)) and bands["roles"] == pytest.approx((-22.8, -1.2))
        assert [band.name for band in percentile_bands(axis("roles"), LAYER)] == ["roles"]
        assert percentile_bands(axis(), LAYER) == [] == percentile_bands(None, LAYER)
        assert "default" in words(plots.trajectories_by_domain(table(2, 2), LAYER, AXIS))
        assert "default" not in words(plots.trajectories_by_domain(table(2, 2), LAYER))

    def test_frames_are_named_and_counted(self) -> None:
        shown = words(FIGURES["capped"]())
        assert "Uncapped against capped" in shown and "floor" in shown and "read again" in shown
        with pytest.raises(ValueError, match="5 tables: at most 4"):
            plots.capped_against_uncapped(dict.fromkeys("abcde", table(1, 1)), LAYER)
        with pytest.raises(ValueError, match="b: no rows of layer 5"):
            frame = table(1, 1)
            plots.capped_against_uncapped({"a": frame[frame["layer"] == 3].assign(layer=5), "b": frame}, 5)


class TestConversation:
    FRAME = table(1, 4, ("emotional",))

    def drawn(self, figure: Figure) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x, y = figure.axes[0].get_lines()[-1].get_data()
        return np.asarray(x, np.float64), np.asarray(y, np.float64)

    def test_each_point_stands_beside_its_reply(self) -> None:
        messages = said(4)
        figure = plots.one_conversation(self.FRAME, messages, LAYER, AXIS)
        png(figure)
        x, y = self.drawn(figure)
        own = self.FRAME[(self.FRAME["layer"] == LAYER) & (self.FRAME["speaker"] == "assistant")]
        np.testing.assert_allclose(x, own["projection"])
        ax = figure.axes[0]
        for turn, height in enumerate(y):
            point = figure.transFigure.inverted().transform(ax.transData.transform((x[turn], height)))[1]
            reply = messages[2 * turn + 1]["content"]
            heights = [text.get_position()[1] for text in figure.texts if text.get_text() == reply]
            assert min(abs(h - point) for h in heights) < 1e-6

    def test_texts_fit_their_column_and_tell_that_they_were_cut(self) -> None:
        long = [{"role": "user", "content": "w" * 5000}, {"role": "assistant", "content": "one two three\n" * 500}]
        figure = plots.one_conversation(table(1, 1, ("emotional",)), long, LAYER, lines=2)
        png(figure)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        left = figure.axes[0].get_window_extent(renderer).x0
        column = [text for text in figure.texts if text.get_text().startswith(("w", "one"))]
        assert len(column) == 4 and sum(text.get_text().endswith("…") for text in column) == 2
        assert all(text.get_window_extent(renderer).x1 < left for text in column)

    def test_the_heading_stays_above_the_labels_however_it_is_saved(self) -> None:
        """As notebooks save it: cut to what is drawn, with the model's name below the page."""
        figure = plots.one_conversation(self.FRAME, said(4), LAYER, AXIS)
        figure.text(0.99, -0.01, "model: Troupe", ha="right", va="top", fontsize=7)
        boxes: dict[str, list[Bbox]] = {}

        def noting(text: Text) -> Callable[[Any], None]:
            def draw(renderer: Any, whole: Callable[[Any], None] = text.draw) -> None:
                whole(renderer)
                boxes.setdefault(text.get_text(), []).append(Text.get_window_extent(text, renderer))

            return draw

        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            text.draw = noting(text)  # type: ignore[method-assign]
        figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
        heading, label, turn = boxes["kind of the user's message"][-1], boxes["venting"][-4], boxes["turn"][-1]
        assert not heading.overlaps(label) and heading.y0 == pytest.approx(turn.y0, abs=3)

    def test_a_turn_without_a_projection_is_a_gap(self) -> None:
        frame = self.FRAME.copy()
        frame.loc[frame["turn"] == 2, "projection"] = np.nan
        x, _ = self.drawn(plots.one_conversation(frame, said(4), LAYER))
        assert np.isnan(x).tolist() == [False, True, False, False]

    def test_part_of_a_long_conversation(self) -> None:
        figure = plots.one_conversation(table(1, 40, ("coding",)), said(40), LAYER, first=11, count=5)
        assert "turns 11 to 15 of 40" in words(figure)
        assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["11", "12", "13", "14", "15"]

    def test_the_system_prompt_and_two_messages_before_a_reply(self) -> None:
        messages = [
            {"role": "system", "content": "Be old."}, {"role": "user", "content": "Who?"},
            {"role": "user", "content": "And why?"}, {"role": "assistant", "content": "I."},
            {"role": "user", "content": "unanswered"},
        ]  # fmt: skip
        shown = words(plots.one_conversation(table(1, 1, ("emotional",)), messages, LAYER))
        assert all(text in shown for text in ("Be old.", "Who?", "And why?", "I.")) and "unanswered" not in shown

    def test_what_is_wrong_is_named(self) -> None:
        with pytest.raises(ValueError, match="holds 4 conversations: choose one"):
            plots.one_conversation(table(1, 2), said(2), LAYER)
        with pytest.raises(ValueError, match="has turn 4, but the messages hold 3 assistant turns"):
            plots.one_conversation(self.FRAME, said(3), LAYER)
        with pytest.raises(ValueError, match="first=9: the conversation has 4"):
            plots.one_conversation(self.FRAME, said(4), LAYER, first=9)
        with pytest.raises(ValueError, match="each must be at least 1"):
            plots.one_conversation(self.FRAME, said(4), LAYER, lines=0)


class TestKinds:
    def test_largest_gain_first_with_counts(self) -> None:
        figure = plots.drift_by_kind(changes())
        names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        assert names == ["bounded task  (40)", "demand for inner experience  (3)", "venting  (1,300)"]
        assert len(figure.axes) == 1 and "hollow" in words(figure)

    def test_the_level_has_a_panel_of_its_own_over_the_axis(self) -> None:
        figure = plots.drift_by_kind(changes(**LEVELS), LAYER, AXIS)
        assert len(figure.axes) == 2 and "default" in words(figure)
        low, high = figure.axes[1].get_xlim()
        assert low < -22 and high > 19.8

    def test_what_is_wrong_is_named(self) -> None:
        with pytest.raises(ValueError, match="no column low, turns"):
            plots.drift_by_kind(changes().drop(columns=["turns", "low"]))
        with pytest.raises(ValueError, match="no kind of message has a change"):
            plots.drift_by_kind(changes().assign(change=np.nan))
        groups = {f"kind {i}": f"group {i}" for i in range(5)}
        frame = pd.DataFrame({"kind": list(groups), "turns": 1, "change": 0.0, "low": 0.0, "high": 0.0})
        with pytest.raises(ValueError, match="5 groups of kinds: at most 4"):
            plots.drift_by_kind(frame, groups=groups)


class TestDose:
    def test_doses_are_put_in_order_with_their_values(self) -> None:
        figure = plots.dose_response(DOSES, {"axis": CURVE}, {"span": [[0.5, np.nan, 0.4]]})
        curve = next(line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.6)
        np.testing.assert_array_equal(curve.get_xdata(), [-1, 0, 1])
        np.testing.assert_array_equal(curve.get_ydata(), [0.1, 0.5, 0.9])
        control = next(line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.6)
        np.testing.assert_array_equal(control.get_xdata(), [0, 1])
        np.testing.assert_array_equal(control.get_ydata(), [0.4, 0.5])
        assert "grey: 1 control, one line" in words(figure) and "aside" not in words(figure)

    def test_kinds_of_controls_are_told_by_a_legend_and_stand_apart(self) -> None:
        flat = dict.fromkeys(("gaussian", "shuffled", "span", "mixture"), np.full((10, 3), 0.5))
        figure = plots.dose_response(DOSES, {"axis": CURVE}, flat)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == [f"{kind} (10)" for kind in flat]
        assert not [note for note in figure.axes[0].texts if note.get_text() in flat]
        drawn = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.6]
        starts = {(float(np.asarray(line.get_xdata())[0]), line.get_marker()) for line in drawn}
        assert len(drawn) == 40 and len(starts) == 4 == len({marker for _, marker in starts})
        assert all(abs(start + 1) < 0.25 for start, _ in starts) and "aside" in words(figure)

    def test_what_is_wrong_is_named(self) -> None:
        with pytest.raises(ValueError, match="at most 4"):
            plots.dose_response(DOSES, {})
        with pytest.raises(ValueError, match=r"control span: expected \[draws, 3\], got shape \(2, 2\)"):
            plots.dose_response(DOSES, {"axis": CURVE}, {"span": np.ones((2, 2))})
        with pytest.raises(ValueError, match="axis: expected 3 numbers"):
            plots.dose_response(DOSES, {"axis": ([1.0], [1.0], [1.0])})


class TestPareto:
    def test_the_front_holds_what_none_betters(self) -> None:
        frame = pd.DataFrame({"harm": [0.1, 0.1, 0.2, 0.3, 0.4], "capability": [-3.0, -2.0, -2.5, 0.0, 0.0]})
        np.testing.assert_array_equal(front(frame), [[0.1, -2.0], [0.3, 0.0]])

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(-5, 5)), min_size=1, max_size=12))
    def test_front_against_its_definition(self, points: list[tuple[int, int]]) -> None:
        found = {(float(h), float(c)) for h, c in front(pd.DataFrame(points, columns=["harm", "capability"]))}
        better = {
            (float(h), float(c)) for h, c in points
            if not any(a <= h and b >= c and (a, b) != (h, c) for a, b in points)
        }  # fmt: skip
        assert found == better

    def test_what_costs_far_too_much_is_counted_at_the_edge(self) -> None:
        figure = plots.calibration_pareto(sweep(), 1.0)
        assert "1 setting below the edge, down to −60 points" in words(figure)
        assert figure.axes[0].get_ylim()[0] > -12
        assert "below the edge" not in words(plots.calibration_pareto(sweep(stage="full"), 1.0))

    def test_the_chosen_one_is_named_and_the_groups_are_counted(self) -> None:
        shown = words(plots.calibration_pareto(sweep(), 1.0))
        assert "chosen: 3-5 default_tokens:p2" in shown and "caps (1)" in shown and "fewer items (1)" in shown
        assert "allowed loss:\n1 point" in shown
        assert "no setting was chosen" in words(plots.calibration_pareto(sweep(chosen=False), 1.0))
        kinds = {"kind": ["none", "cap", "control", "control"], "control": [None, None, "gaussian", "span"]}
        shown = words(plots.calibration_pareto(sweep(**kinds).drop(columns="stage"), 2.0))
        assert "gaussian (1)" in shown and "span (1)" in shown and "2 points" in shown

    def test_settings_of_fewer_items_have_no_bars_but_their_width_is_told(self) -> None:
        screened = sweep(capability=[0.0, -0.4, -0.6, -0.5], capability_low=-3.5, capability_high=2.3)
        figure = plots.calibration_pareto(screened, 1.0)
        upright = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
        at = {float(segment[0][0]) for lines in upright for segment in lines.get_segments() if len(segment)}
        assert 0.0 not in at and {0.7, 0.2, 0.1} <= at
        assert "not drawn for fewer items: about ±2.9 points, harm ±5%" in words(figure)
        assert "not drawn" not in words(plots.calibration_pareto(screened.assign(stage="full"), 1.0))

    @pytest.mark.parametrize(("count", "drawn"), [(3, True), (10, False)])
    def test_controls_have_bars_while_these_make_no_grid(self, count: int, drawn: bool) -> None:
        shown = words(plots.calibration_pareto(held_out(count), 1.0))
        assert ("not drawn for controls" in shown) is not drawn and f"mixture ({count})" in shown

    def test_marks_that_hide_each_other_are_counted(self) -> None:
        figure = plots.calibration_pareto(sweep(stage="full", harm=[0.7, 0.0, 0.0, 0.0], capability=-0.4), 1.0)
        png(figure)
        ax = figure.axes[0]
        (note,) = [text for text in ax.texts if isinstance(text, Annotation) and "×" in text.get_text()]
        assert note.get_text() == "×3" and note.xy == (0.0, -0.4) and "×2: two settings at one place" in words(figure)
        assert "×" not in words(plots.calibration_pareto(sweep(), 1.0))

    @settings(deadline=None, max_examples=15)
    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(-2, 2)), min_size=2, max_size=40))
    def test_the_counts_add_up_and_touch_no_other(self, places: list[tuple[int, int]]) -> None:
        rows = [("cap", "cap", "screened", h / 100, c / 4, c / 4, c / 4) for h, c in places]
        rows.append(("no cap", "none", "full", 0.9, 0.0, 0.0, 0.0))
        names = ["setting", "kind", "stage", "harm", "capability", "capability_low", "capability_high"]
        figure = plots.calibration_pareto(pd.DataFrame(rows, columns=names), 1.0)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        figure.draw(renderer)
        notes = [text for text in figure.axes[0].texts if isinstance(text, Annotation) and "×" in text.get_text()]
        assert sum(int(note.get_text()[1:]) - 1 for note in notes) == len(places) - len(set(places))
        boxes = [Text.get_window_extent(note, renderer).shrunk(0.98, 0.7) for note in notes]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))

    def test_no_marker_stands_for_two_groups(self) -> None:
        figure = plots.calibration_pareto(held_out(3), 1.0)
        markers = [line.get_marker() for line in figure.axes[0].get_lines() if line.get_marker() not in ("None", "")]
        assert sorted(map(str, markers)) == sorted(("D", "*", "X", "<", "^", "s"))

    def test_a_long_legend_takes_a_second_row(self) -> None:
        figure = plots.calibration_pareto(held_out(10), 1.0)
        png(figure)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        (legend,) = figure.legends
        box = legend.get_window_extent(renderer)
        assert box.x1 <= figure.bbox.x1 and box.y0 >= figure.axes[0].get_window_extent(renderer).y1
        assert len({round(text.get_window_extent(renderer).y0) for text in legend.get_texts()}) == 2

    def test_settings_that_could_not_be_measured_are_counted(self) -> None:
        shown = words(plots.calibration_pareto(sweep(harm=[0.7, 0.2, np.nan, np.nan]), 1.0))
        assert "2 settings not drawn" in shown
        with pytest.raises(ValueError, match="no setting has a harm and a capability"):
            plots.calibration_pareto(sweep(harm=np.nan), 1.0)
        with pytest.raises(ValueError, match="no column harm"):
            plots.calibration_pareto(sweep().drop(columns="harm"), 1.0)

    def test_the_columns_that_must_be_there_are_enough(self) -> None:
        few = sweep()[["setting", "harm", "capability", "capability_low", "capability_high"]]
        assert "caps (4)" in words(plots.calibration_pareto(few, 1.0))
        png(plots.calibration_pareto(few.iloc[:1], 0.0))


class TestSpace:
    def test_names_touch_neither_each_other_nor_a_point(self) -> None:
        figure = space()
        png(figure)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        flat = figure.axes[-1]
        notes = [text for text in flat.texts if isinstance(text, Annotation)]
        assert notes[0].get_text() == "default" and len(notes) >= 8
        boxes = [note.get_window_extent(renderer) for note in notes]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))

    def test_names_stand_where_the_points_are_drawn(self) -> None:
        points = np.array([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [0.0, 5.0, 2.0]])
        figure = plots.persona_space_3d(points, [1.0, -1.0, 0.0], ["right", "left", "up"], [6.0, 6.0, 0.0])
        png(figure)
        places = {note.get_text(): note.xy for note in figure.axes[-1].texts if isinstance(note, Annotation)}
        assert places["left"][0] < places["up"][0] < places["right"][0] and places["up"][1] > places["left"][1]

    def test_flat_spaces_and_single_roles(self) -> None:
        png(plots.persona_space_3d([[0.0, 0.0, 0.0]], [1.0], ["a"], [0.0, 0.0, 0.0]))
        png(plots.persona_space_3d([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [1.0, 1.0], ["a", "b"], [2.0, 2.0, 0.0]))

    def test_the_map_writes_small_squares_out_and_scales_honestly(self) -> None:
        square = np.array([[1.0, 0.25], [0.25, 1.0]])
        figure = plots.layer_cosines(square, [3, 7], chosen=7)
        assert words(figure).count("0.25") >= 2 and figure.axes[0].images[0].get_clim() == (0, 1)
        assert [t.get_text() for t in figure.axes[0].get_xticklabels() if t.get_fontweight() == "bold"] == ["7"]
        assert plots.layer_cosines(-square, [3, 7]).axes[0].images[0].get_clim() == (-1, 1)
        large = plots.layer_cosines(np.eye(40), range(40), chosen=13)
        names = [tick.get_text() for tick in large.axes[0].get_xticklabels()]
        assert "13" in names and len(names) <= 10 and not large.axes[0].texts

    def test_curves_show_negative_bounds_and_marks_that_do_not_fuse(self) -> None:
        bands = {"PC1": (np.full(80, -0.3), np.full(80, 0.9))}
        figure = plots.layer_cosines({"PC1": np.full(80, 0.5)}, range(80), bands=bands)
        assert figure.axes[0].get_ylim() == pytest.approx((-0.34, 1.04))
        curve = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "o")
        assert curve.get_markevery() == 4

    def test_what_is_wrong_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"cosines: expected \[2, 2\], got shape \(3, 2\)"):
            plots.layer_cosines(np.ones((3, 2)), [0, 1])
        with pytest.raises(ValueError, match="PC1: 1 cosines for 2 layers"):
            plots.layer_cosines({"PC1": [0.5]}, [0, 1])
        with pytest.raises(ValueError, match="5 curves: at most 4"):
            plots.layer_cosines(dict.fromkeys("abcde", [0.5]), [0])
        with pytest.raises(ValueError, match="1 points, 2 projections"):
            plots.persona_space_3d([[0.0, 0.0, 0.0]], [1.0, 2.0], ["a"], [0.0, 0.0, 0.0])
        with pytest.raises(ValueError, match="shares: expected 3, got 2"):
            plots.persona_space_3d([[0.0, 0.0, 0.0]], [1.0], ["a"], [0.0, 0.0, 0.0], shares=(0.5, 0.5))


def test_no_global_state() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    for make in FIGURES.values():
        make()
    assert dict(matplotlib.rcParams) == before
