from __future__ import annotations

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_axis.serving.figures import PERCENTILES, Figures, as_json, prometheus

INF = torch.tensor([math.inf, math.inf])


def figures_of(projections: torch.Tensor, floor: torch.Tensor, parts: int = 1) -> Figures:
    figures = Figures((4, 7), floor, INF)
    for part in projections.chunk(parts, dim=1):
        figures.add(part)
    return figures


def test_what_is_counted_by_hand() -> None:
    low, high = figures_of(torch.tensor([[0.0, 2.0, 5.0], [-1.0, -1.0, -4.0]]), torch.tensor([3.0, -2.0])).read()
    assert (low.layer, low.tokens, low.capped, low.mean_correction) == (4, 3, 2, 2.0)  # moved by 3 and by 1
    assert (high.layer, high.tokens, high.capped, high.mean_correction) == (7, 3, 1, 2.0)


def test_nothing_seen_is_not_a_figure_of_zero() -> None:
    (row, _) = Figures((4, 7), INF, INF).read()
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
    assert figures.read() == Figures((4, 7), INF, INF).read()
    figures.add(torch.ones(2, 5))
    assert [row.capped for row in figures.read()] == [5, 5]
    figures.clear(torch.tensor([0.0, 2.0]), INF)  # which counts by these from here on, also what waited under others
    figures.add(torch.ones(2, 5))
    assert [(row.tokens, row.capped) for row in figures.read()] == [(5, 0), (5, 5)]


@pytest.mark.parametrize("sizes", [(1,), (3000,), (4096,), (4097,), (1, 4096, 2, 9000, 4095)])
def test_what_waits_is_bounded_and_nothing_falls_between_two_blocks(sizes: tuple[int, ...]) -> None:
    figures, total = Figures((4, 7), torch.tensor([3.0, -3.0]), INF), 0
    for i in range(600):
        tokens = sizes[i % len(sizes)]
        figures.add(torch.ones(2, tokens))
        total += tokens
        assert figures._waiting <= figures._room.shape[1] < 5000
        assert figures._waiting + figures._tokens == total
    low, high = figures.read()
    assert (low.tokens, low.capped, high.tokens, high.capped) == (total, total, total, 0)


def test_a_graph_of_gradients_is_not_kept() -> None:
    figures = Figures((4,), torch.zeros(1), INF[:1])
    figures.add(torch.ones(3, requires_grad=True) * 2)
    assert figures._room.grad_fn is None and figures.read()[0].tokens == 3


def test_many_small_moves_are_summed_as_exactly_as_few() -> None:
    figures = Figures((4,), torch.tensor([0.1]), INF[:1])
    figures._moved += 2.0**24  # as if it had counted for months: one more is below float32's step
    before = figures._moved.item()
    for _ in range(1000):
        figures.add(torch.zeros(1))
        figures.read()
    assert figures._moved.item() - before == pytest.approx(100, rel=1e-3)


def test_threads_add_while_others_read_and_nothing_is_lost_or_counted_twice() -> None:
    figures, switch = Figures((4,), torch.tensor([0.5]), INF[:1]), sys.getswitchinterval()
    tokens: list[int] = []

    def add(seed: int) -> None:
        mode = torch.inference_mode() if seed % 2 else torch.no_grad()
        with mode:
            for i in range(700):
                figures.add(torch.full((1, 1 + i % 3), float(i % 2)))

    def read(_: int) -> None:
        for _ in range(60):
            tokens.append(figures.read()[0].tokens)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(add, seed) for seed in range(6)] + [pool.submit(read, 0)]
            for one in done:
                one.result()
    finally:
        sys.setswitchinterval(switch)
    assert tokens == sorted(tokens)
    (row,) = figures.read()
    sizes = [(1 + i % 3, i % 2) for i in range(700)]
    assert row.tokens == 6 * sum(size for size, _ in sizes)
    assert row.capped == 6 * sum(size for size, high in sizes if not high) and row.mean_correction == 0.5


def test_not_a_number_is_counted_and_does_not_stop_the_server() -> None:
    (row, _) = figures_of(torch.full((2, 3), math.nan), torch.tensor([3.0, 3.0])).read()
    assert row.tokens == 3


def test_prometheus_reads_them() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    figures = figures_of(torch.ones(2, 5), torch.tensor([3.0, 0.0]))
    rows = [{**row, "worker": 1, "kind": "reply"} for row in as_json(figures.read())]
    found = {
        (sample.name, sample.labels["layer"], sample.labels.get("percentile")): sample.value
        for family in parser.text_string_to_metric_families(prometheus(rows))
        for sample in family.samples
    }
    assert 'persona_axis_tokens_total{layer="4",worker="1",kind="reply"} 5' in prometheus(rows)
    assert found["persona_axis_tokens_total", "4", None] == 5
    assert found["persona_axis_capped_tokens_total", "4", None] == 5
    assert found["persona_axis_capped_tokens_total", "7", None] == 0
    assert found["persona_axis_mean_correction", "4", None] == 2
    assert found["persona_axis_projection", "4", "50"] == pytest.approx(1, rel=0.02)
    assert found["persona_axis_correction_total", "4", None] == 10
    assert found["persona_axis_projections_sum", "7", None] == found["persona_axis_projections_count", "7", None] == 5
    assert 'persona_axis_projections_bucket{layer="4",worker="1",kind="reply",le="0.7298"} 0' in prometheus(rows)
    assert 'persona_axis_projections_bucket{layer="4",worker="1",kind="reply",le="1.282"} 5' in prometheus(rows)
    assert 'persona_axis_projections_bucket{layer="4",worker="1",kind="reply",le="+Inf"} 5' in prometheus(rows)


Scrape = dict[str, float]


def scrape(figures: Figures) -> Scrape:
    lines = prometheus(as_json(figures.read())).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if 'layer="4"' in line)
    return {name.replace('layer="4"', "").replace(",", ""): float(value) for name, value in pairs}


def since(before: Scrape, now: Scrape) -> Scrape:
    """What Prometheus' increase() makes of counters and histograms."""
    return {name: value - before[name] for name, value in now.items()}


def quantile(share: float, window: Scrape) -> float:
    """Prometheus' histogram_quantile()."""
    found = [(float(name.split('"')[1]), n) for name, n in window.items() if "projections_bucket" in name]
    assert found == sorted(found) and math.isinf(found[-1][0])
    wanted = share * found[-1][1]
    for (low, under), (high, upto) in zip(found, found[1:], strict=False):
        if upto >= wanted:
            return low + (high - low) * (wanted - under) / (upto - under)
    raise AssertionError


def test_a_window_shows_a_drift_that_a_long_life_hides() -> None:
    figures, noise = Figures((4,), torch.tensor([0.0]), INF[:1]), torch.Generator().manual_seed(0)

    def run(tokens: int, at: float) -> None:
        figures.add(at + torch.randn(1, tokens, generator=noise))

    run(500_000, 10.0)
    long_ago = scrape(figures)
    run(50_000, 10.0)
    before = scrape(figures)
    run(50_000, -10.0)
    now = scrape(figures)
    lifetime = 'persona_axis_projection{percentile="50"}'
    assert now[lifetime] == pytest.approx(long_ago[lifetime], abs=0.3)
    held, drifted = since(long_ago, before), since(before, now)
    assert quantile(0.5, held) == pytest.approx(10, rel=0.15) and quantile(0.5, drifted) == pytest.approx(-10, rel=0.15)
    mean = "persona_axis_projections_sum{}", "persona_axis_projections_count{}"
    assert held[mean[0]] / held[mean[1]] == pytest.approx(10, abs=0.05)
    assert drifted[mean[0]] / drifted[mean[1]] == pytest.approx(-10, abs=0.05)
    assert drifted["persona_axis_correction_total{}"] / 50_000 == pytest.approx(10, abs=0.05)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.just(0.0), st.floats(-1e7, 1e7, width=32)), max_size=40), st.floats(-100, 100, width=32))
def test_buckets_are_counted_exactly_and_end_where_they_always_end(values: list[float], floor: float) -> None:
    seen = torch.tensor([values, values])
    (row, other) = figures_of(seen, torch.tensor([floor, -floor]), 2).read()
    assert list(row.buckets) == list(other.buckets) == list(Figures((1,), INF[:1], INF[:1]).read()[0].buckets)
    assert 20 <= len(row.buckets) <= 40 and list(row.buckets.values())[-1] == row.tokens == len(values)
    for edge, count in row.buckets.items():
        near = sum(0 < abs(v - edge) < 1e-4 * abs(edge) + 1e-6 for v in values)  # which float32 may see on either side
        assert abs(count - sum(v <= edge for v in values)) <= near
    assert row.total == pytest.approx(math.fsum(values), rel=1e-6, abs=1e-3 * len(values))
    assert row.correction == pytest.approx(row.mean_correction * row.capped)


def test_what_is_not_finite_is_counted_apart_and_spoils_nothing() -> None:
    seen = torch.tensor([[0.0, math.nan, 5.0, -math.inf], [1.0, 1.0, math.inf, 1.0]])
    figures = figures_of(seen, torch.tensor([3.0, 3.0]), parts=2)
    low, high = figures.read()
    assert (low.tokens, low.not_finite, low.capped, low.mean_correction) == (4, 2, 1, 3.0)
    assert (high.tokens, high.not_finite, high.capped, high.mean_correction) == (4, 1, 3, 2.0)
    assert low.percentiles[1] == pytest.approx(0, abs=0.01) and low.percentiles[99] == pytest.approx(5, rel=0.02)
    json.dumps(as_json(figures.read()), allow_nan=False)
    assert (low.total, list(low.buckets.values())[-1]) == (5.0, 2)
    assert 'persona_axis_not_finite_tokens_total{layer="4"} 2' in prometheus(as_json(figures.read()))
