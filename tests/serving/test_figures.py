from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_axis.serving.figures import PERCENTILES, Figures, as_json, prometheus

INF = torch.tensor([math.inf, math.inf])


def figures_of(projections: torch.Tensor, floor: torch.Tensor, parts: int = 1) -> Figures:
    figures = Figures((4, 7), torch.device("cpu"))
    for part in projections.chunk(parts, dim=1):
        figures.add(part, floor, INF)
    return figures


def test_what_is_counted_by_hand() -> None:
    low, high = figures_of(torch.tensor([[0.0, 2.0, 5.0], [-1.0, -1.0, -4.0]]), torch.tensor([3.0, -2.0])).read()
    assert (low.layer, low.tokens, low.capped, low.mean_correction) == (4, 3, 2, 2.0)  # moved by 3 and by 1
    assert (high.layer, high.tokens, high.capped, high.mean_correction) == (7, 3, 1, 2.0)


def test_nothing_seen_is_not_a_figure_of_zero() -> None:
    (row, _) = Figures((4, 7), torch.device("cpu")).read()
    assert row.tokens == 0 and row.percentiles == {}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=60),
    st.integers(1, 5),
    st.floats(-100, 100, width=32),
)
def test_percentiles_are_numpys_to_two_percent_however_the_tokens_come(
    values: list[float], parts: int, floor: float
) -> None:
    seen = torch.tensor([values, values])
    (row, other) = figures_of(seen, torch.tensor([floor, floor]), parts).read()
    assert row.percentiles == other.percentiles
    for percentile in PERCENTILES:
        true = torch.quantile(torch.tensor(values).double(), percentile / 100, interpolation="higher").item()
        lower = torch.quantile(torch.tensor(values).double(), percentile / 100, interpolation="lower").item()
        found = row.percentiles[percentile]
        assert lower - abs(lower) * 0.02 - 0.002 <= found <= true + abs(true) * 0.02 + 0.002
    assert row.capped == sum(v < torch.tensor(floor).item() for v in torch.tensor(values).tolist())


def test_cleared_figures_start_again() -> None:
    figures = figures_of(torch.ones(2, 5), torch.tensor([3.0, 3.0]))
    figures.clear()
    assert figures.read() == Figures((4, 7), torch.device("cpu")).read()


def test_not_a_number_is_counted_and_does_not_stop_the_server() -> None:
    (row, _) = figures_of(torch.full((2, 3), math.nan), torch.tensor([3.0, 3.0])).read()
    assert row.tokens == 3


def test_prometheus_reads_them() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    rows = [{**row, "worker": 1} for row in as_json(figures_of(torch.ones(2, 5), torch.tensor([3.0, 0.0])).read())]
    found = {
        (sample.name, sample.labels["layer"], sample.labels.get("percentile")): sample.value
        for family in parser.text_string_to_metric_families(prometheus(rows))
        for sample in family.samples
    }
    assert found["persona_axis_tokens_total", "4", None] == 5
    assert found["persona_axis_capped_tokens_total", "4", None] == 5
    assert found["persona_axis_capped_tokens_total", "7", None] == 0
    assert found["persona_axis_mean_correction", "4", None] == 2
    assert found["persona_axis_projection", "4", "50"] == pytest.approx(1, rel=0.02)
