"""Claims about persona space and the axis: what lies where, and what steering along it does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from _claim import Claim, told
from _evidence import ALPHAS, Evidence

from persona_axis.controls import KINDS, random_directions


def low_dimensional(ev: Evidence) -> Iterator[Claim]:
    first, count = ev.over_roles("pc1", ev.layer), ev.over_roles("components", ev.layer)
    yield Claim(
        "persona space is low-dimensional",
        "4 / 8 / 19 components for 70%; PC1 about 49% (Gemma 2 27B)",
        f"{told(count, 1, 0)} components; PC1 {told(first, 100, 0)}%, layer {ev.layer}",
        "at most 19 components for 70%",
        count.high <= 19,
        {"pc1": first, "components": count},
    )


def axis_is_pc1(ev: Evidence) -> Iterator[Claim]:
    at = {layer: ev.over_roles("cosine", layer) for layer in ev.axis.layers}
    middle = [layer for layer in at if 0 < layer < ev.axis.num_layers - 1]
    yield Claim(
        "the axis is the first component of persona space",
        "abs cosine above .60 at every layer, above .71 in the middle",
        "; ".join(f"{layer}: {told(e)}" for layer, e in at.items()),
        "the same bounds",
        all(e.value > 0.6 for e in at.values()) and all(at[layer].value > 0.71 for layer in middle),
        {str(k): v for k, v in at.items()},
    )


def in_the_base(ev: Evidence) -> Iterator[Claim]:
    at = {layer: ev.base_cosine(layer) for layer in ev.axis.layers}
    chance = 1 / np.sqrt(ev.axis.hidden_size)
    yield Claim(
        "the axis is there before post-training",
        "present in the base checkpoints",
        "cosine of base and chat axis " + "; ".join(f"{layer}: {told(e)}" for layer, e in at.items()),
        "at every layer above three times that of chance",
        all(e.low > 3 * chance for e in at.values()),
        {str(k): v for k, v in at.items()},
    )


def steering(ev: Evidence) -> Iterator[Claim]:
    row = ev.axis.direction[ev.axis.row(ev.layer)]
    asked = [None, *ev.far[:40]]
    curve = {a: ev.steered(row, a, asked) for a in ALPHAS}
    ends = (ALPHAS[0], ALPHAS[-1])
    controls = {
        kind: [
            [ev.steered(random_directions(ev.axis, [ev.layer], kind, ev.seed + draw)[0], a, asked).value for a in ends]
            for draw in range(ev.effort.steering_controls)
        ]
        for kind in KINDS
    }
    doses = list(curve.values())
    rise = doses[-1].value - doses[0].value
    worst, kind = max((abs(high - low), kind) for kind, draws in controls.items() for low, high in draws)
    monotone = all(b.high >= a.low for i, b in enumerate(doses) for a in doses[:i])
    yield Claim(
        "steering along the axis moves the voice, dose by dose; controls do not",
        "monotone; controls flat",
        "share Assistant at alpha " + ", ".join(f"{a:+.1f}: {e.value:.2f}" for a, e in curve.items())
        + f"; largest change of {sum(map(len, controls.values()))} controls {worst:.2f} ({kind})",
        "no dose certainly below a smaller one, a rise above .3, no control a third of it",
        monotone and rise > 0.3 and worst < rise / 3,
        {"curve": {str(k): v for k, v in curve.items()}, "controls": controls},
    )  # fmt: skip
