"""What a table comes to is the same however it is cut into frames, and takes no more memory when it is long."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator, Sequence

import chat_factory
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_drift import axis_for

from persona_axis import Axis
from persona_axis.drift import Alarm, alerts
from persona_axis.trajectories.account import (
    DRAWN_CONVERSATIONS,
    DRAWN_TURNS,
    MOST_DOMAINS,
    NAMED_ALERTS,
    OTHERS,
    Account,
    Turns,
    gathered,
    marked,
    told_turns,
)
from persona_axis.trajectories.frame import tidy

LAYER = 2


@pytest.fixture(scope="module")
def axis() -> Axis:
    return axis_for(chat_factory.chat())


def table(
    values: Sequence[Sequence[float]], domain: str | None = None, layers: Sequence[int] = (0, LAYER)
) -> pd.DataFrame:
    """Conversations "0", "1", ... with these projections at `LAYER`; other layers have other values."""
    rows = [
        (str(n), turn, layer, value if layer == LAYER else -999.0)
        for n, talk in enumerate(values)
        for turn, value in enumerate(talk, 1)
        for layer in layers
    ]
    names, turns, at, projections = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    return tidy({
        "conversation": names, "domain": domain, "split": None, "turn": turns, "speaker": ["assistant"] * len(rows),
        "kind": None, "tokens": [3] * len(rows), "layer": at, "projection": projections,
    })  # fmt: skip


def test_lines_of_turns() -> None:
    told = [str(Turns.with_(turn)) for turn in (1, 20, 21, 40, 41, 80, 81, 100_000)]
    assert told == ["1", "20", "21-40", "21-40", "41-80", "41-80", "81-160", "81921-163840"]


def test_told_turns() -> None:
    assert told_turns([3]) == "3" and told_turns([1, 2, 4, 7, 8, 9]) == "1-2, 4, 7-9"
    assert told_turns(list(range(1, 40, 2))).endswith("13, 15 ...")


def test_figures_are_means_over_the_conversations_at_one_layer() -> None:
    account = Account(LAYER)
    frame = table([[1.0, 4.0, math.nan], [3.0, -2.0]], domain="tea")
    account.add(frame.assign(projection_before=frame["projection"] - 1))
    assert account.conversations == 2 and account.turns == 5 and account.domains() == ["tea"] and account.has_before
    cells = {str(turns): cell for (_, turns), cell in account.cells.items()}
    assert (cells["1"].mean, cells["2"].mean, cells["1"].mean_before, cells["2"].lowest) == (2.0, 1.0, 1.0, -2.0)
    assert cells["3"].silent == 1 and cells["3"].count == 0 and math.isnan(cells["3"].mean)


def test_other_speakers_do_not_count() -> None:
    frame = table([[1.0, 2.0]])
    account = Account(LAYER)
    account.add(pd.concat([frame, frame.assign(speaker="user", projection=99.0)]))
    assert account.turns == 2 and max(cell.mean for cell in account.cells.values()) == 2.0


def test_many_domains_share_a_column() -> None:
    account = Account(LAYER)
    for number in range(MOST_DOMAINS + 5):
        account.add(table([[1.0]], domain=f"d{number}").assign(conversation=f"c{number}"))
    assert len(account.domains()) == MOST_DOMAINS + 1 and account.domains()[-1] == OTHERS
    assert account.cells[OTHERS, Turns(1, 1)].count == 5 and "domain" not in account.drawn()


def test_the_picture_shows_all_or_some_drawn_by_chance() -> None:
    few, many = Account(LAYER), Account(LAYER)
    few.add(table([[1.0, 2.0]] * 3))
    frame = few.drawn()
    assert len(frame) == 6 and set(frame["layer"]) == {LAYER}
    for number in range(DRAWN_CONVERSATIONS * 4):
        many.add(table([[float(number)] * 2], layers=[LAYER]).assign(conversation=str(number)))
    frame = many.drawn()
    assert frame["conversation"].nunique() == DRAWN_CONVERSATIONS
    numbers = frame["projection"] / (DRAWN_CONVERSATIONS * 4)
    assert abs(numbers.mean() - 0.5) < 0.08 and numbers.max() > 0.9  # not the first ones, not the last
    long = Account(LAYER)
    long.add(table([[1.0] * (DRAWN_TURNS + 1)]))
    assert len(long.drawn()) == DRAWN_TURNS


def cut(frame: pd.DataFrame, places: Sequence[int]) -> Iterator[pd.DataFrame]:
    edges = sorted({0, len(frame), *(place % (len(frame) + 1) for place in places)})
    yield from (frame.iloc[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True))


@given(
    st.lists(st.lists(st.sampled_from([-9.0, 9.0, math.nan]), min_size=1, max_size=9), min_size=1, max_size=4),
    st.lists(st.integers(0, 200), max_size=6),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_alerts_are_marked_alike_however_the_table_is_cut(
    axis: Axis, values: list[list[float]], places: list[int], run: int
) -> None:
    frame = table(values, layers=[LAYER])
    expected = alerts(frame, axis, 5, layer=LAYER, run=run)
    pieces = list(marked(cut(frame, places), Alarm(axis, 5, LAYER, run)))
    found = pd.concat(pieces)
    assert len(found) == len(frame) and list(found["turn"]) == list(frame["turn"])
    raised = found[found["alert"]]
    assert list(zip(raised["conversation"], raised["turn"], strict=True)) == list(
        zip(expected["conversation"], expected["turn"], strict=True)
    )
    account = Account(LAYER)
    for piece in pieces:
        account.add(piece)
    assert account.alerts == len(expected) and account.alerted == expected["conversation"].nunique()
    assert account.conversations == len(values) and account.turns == len(frame)
    assert account.named[:1] == [] if not len(expected) else len(account.named) == account.alerted


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_gathered_frames_are_the_same_rows(places: list[int], rows: int) -> None:
    frame = table([[1.0, 2.0, 3.0]] * 7)
    found = list(gathered(cut(frame, places), rows))
    pd.testing.assert_frame_equal(pd.concat(found, ignore_index=True), frame)
    assert all(len(piece) >= rows for piece in found[:-1])
    assert list(gathered([])) == []


def test_only_rows_of_the_alarms_layer_and_speaker_are_marked(axis: Axis) -> None:
    frame = table([[-9.0, 9.0]])
    frame = pd.concat([frame, frame.assign(speaker="user")])
    (found,) = marked([frame], Alarm(axis, 5, LAYER))
    assert found["alert"].sum() == 1 and "alert" not in frame
    assert found[found["alert"]].iloc[0][["turn", "layer", "speaker"]].tolist() == [1, LAYER, "assistant"]


def test_a_100000_turn_log_takes_no_more_memory_than_a_short_one(axis: Axis) -> None:
    def frames(count: int) -> Iterator[pd.DataFrame]:
        for number in range(count):
            values = np.full(500, -9.0 if number % 2 else 9.0)
            yield table([values], layers=[LAYER]).assign(
                conversation="long", turn=np.arange(500) + 500 * number
            )

    def peak(count: int) -> int:
        account = Account(LAYER)
        tracemalloc.start()
        try:
            for frame in marked(frames(count), Alarm(axis, 5, LAYER, 3)):
                account.add(frame)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert account.turns == 500 * count and account.conversations == 1

    peak(4)  # what is imported and cached at the first use
    assert peak(200) < 1.5 * peak(8)


def test_only_the_first_conversations_with_alerts_are_named(axis: Axis) -> None:
    account = Account(LAYER)
    (frame,) = marked([table([[-9.0]] * (NAMED_ALERTS + 3))], Alarm(axis, 5, LAYER))
    account.add(frame)
    assert account.alerted == NAMED_ALERTS + 3 and account.named == [f"{n}: turn 1" for n in range(NAMED_ALERTS)]
