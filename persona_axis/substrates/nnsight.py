"""Inside nnsight: the cap, projections, trajectories and extraction in its traces, here or on a server.

    model = TransformersModel("Qwen/Qwen3-0.6B", dispatch=True)
    held = hold(model, cap)
    with model.trace("Who are you?"):
        acted = held().save()
        logits = model.output.logits.save()
    held.require(acted)

The arithmetic is `Cap`'s, and the layers are found as everywhere in this package. `remote=True` sends a trace to the
NDIF service, which needs its key and nothing of this package on the other side. Needs the extra `nnsight`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from persona_axis import drift
from persona_axis._asked import layers_of, require
from persona_axis.axis import Axis
from persona_axis.cap import Cap
from persona_axis.errors import DriftError, ModelError
from persona_axis.extract import Extraction, Listener, Options
from persona_axis.extract import extract as _extract
from persona_axis.extraction.events import silent
from persona_axis.judges import Judge
from persona_axis.probes import Probes
from persona_axis.sampling import Sampling
from persona_axis.substrates import _nnsight_readings  # noqa: F401 (imported so that they are registered)
from persona_axis.substrates._nnsight_chat import NNsightChat, held, require_here
from persona_axis.substrates._nnsight_inside import Gauge, Held
from persona_axis.template import Messages

__all__ = [
    "Gauge", "Held", "NNsightChat", "Replies", "capped", "chat", "extract", "gauge", "generate", "hold", "trajectory",
]  # fmt: skip

_REMOTE_BATCH = 8
"""Rollouts in one request unless told otherwise: the memory of a server cannot be seen from here."""


class Replies(NamedTuple):
    """Replies of one batch, and how often the cap acted at each of its layers while they were generated."""

    texts: list[str]
    ids: list[list[int]]
    acted: dict[int, int]


def chat(model: Any, *, remote: Any = False, layers: str | None = None, check: bool = True) -> NNsightChat:
    """A nnsight `TransformersModel` as `trajectory`, `extract` and `generate` ask it; make it once for many calls.

    `remote` True runs every pass on the NDIF service, "local" sends nothing and goes through nnsight's rehearsal of
    it; a nnsight backend is taken too. Later calls run where this one says. With `remote` True one small request asks
    for the weights' fingerprint. `layers` names the list of decoder layers where it cannot be found; `check` runs
    `ChatModel.check` where the weights are here. Raises `ModelError` in one sentence for a missing key, tokenizer or
    package.
    """
    made = NNsightChat(model, remote=remote, layers=layers)
    if check and not made.away:
        made.check()
    return made


def hold(model: Any, cap: Cap, *, allow: Collection[str] = (), stack: str | None = None) -> Held:
    """`cap` for use inside one block: `held()` acts at all its layers, `held.at(layer)` at one.

    Each block gets its own. `model` is a `TransformersModel` or what `chat` made of one; `allow` and `stack` as
    `Cap.on` takes them. What the block does to a layer before the call is capped, what it does after it
    is not. Raises `AxisMismatchError` for another model, or one whose weights are elsewhere and were not asked about
    with `chat`; `CapError` for layers and widths that do not fit.
    """
    return held(model, cap, allow, stack)


def capped(model: Any, cap: Cap, *, allow: Collection[str] = (), stack: str | None = None) -> Any:
    """A copy of `model` (nnsight's `edit`: it shares the weights) on which every trace and generation is capped.

    The cap acts before a block's own interventions at the same layer. A run in which it did not act at all its layers
    each time they ran is a `CapError`. Raises as `hold`.
    """
    inside = hold(model, cap, allow=allow, stack=stack)
    sight = model.sight if isinstance(model, NNsightChat) else model
    with sight.edit() as (_, edited):
        inside.throughout()
    return edited


def gauge(
    model: Any, axis: Axis, layers: Iterable[int] | int | None = None, *, held: Held | None = None,
    allow: Collection[str] = (), stack: str | None = None,
) -> Gauge:  # fmt: skip
    """Projections on `axis` inside a block: `gauge()` gives [layers, batch, seq], `gauge.at(layer)` [batch, seq].

    `layers` are all of the axis unless given. `held` acts on the way, each layer read before and after it.
    Raises `AxisMismatchError` for another model and for layers that the axis does not have, `DriftError` for none.
    """
    require("axis", axis, Axis)
    if held is not None:
        require("held", held, Held)
    _, envoys = require_here(axis.facts, model, allow, stack)
    wanted = axis.layers if layers is None else sorted(set(layers_of(layers, DriftError)))
    return Gauge(envoys, {layer: axis.direction[axis.row(layer)] for layer in wanted}, held)


def trajectory(
    model: Any,
    axis: Axis,
    conversation: Any,
    *,
    layers: Iterable[int] | int | None = None,
    speakers: Collection[str] = ("assistant",),
    tokens: bool = False,
    overflow: str = "refuse",
    lever: Cap | None = None,
    allow: Collection[str] = (),
    remote: Any = False,
) -> pd.DataFrame:
    """`persona_axis.drift.trajectory`, read in nnsight's traces: the same frame.

    `model` is a `TransformersModel` or what `chat` made of one; `lever` is a cap, if any. Only projections come back.
    """
    require("axis", axis, Axis)
    asked = _chat(model, remote)
    allow = asked.allowed(axis.facts, allow)
    return drift.trajectory(
        asked, axis, conversation, layers=layers, speakers=speakers, tokens=tokens, overflow=overflow, lever=lever,
        allow=allow,
    )  # fmt: skip


def extract(
    model: Any,
    probes: Probes,
    options: Options | None = None,
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    judge: Judge | None = None,
    progress: Listener = silent,
    remote: Any = False,
) -> Extraction:
    """`persona_axis.extract.extract`, drawn in nnsight's generations: here the same axis (its quantiles to rounding).

    Each batch is one request and comes back as token ids and one sum per reply and layer. A run that was interrupted
    goes on where it was. With `remote`, `options.batch_size` is 8 unless given.
    """
    asked = _chat(model, remote)
    options = Options.preset(asked, probes) if options is None else options
    if asked.away and options.batch_size is None:
        options = replace(options, batch_size=_REMOTE_BATCH)
    return _extract(asked, probes, options, out=out, run_dir=run_dir, judge=judge, progress=progress)


def generate(
    model: Any,
    chats: Sequence[Messages],
    cap: Cap | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    *,
    allow: Collection[str] = (),
    remote: Any = False,
) -> Replies:
    """One reply to each conversation under `cap`, the same as `ChatModel.generate` under `Cap.on`.

    Raises `CapError` unless the cap acted at each of its layers in every pass.
    """
    asked, drawn_as = _chat(model, remote), sampling or Sampling()
    inside = None if cap is None else held(asked, cap, allow)
    ids, acted, passes = asked.drawn(asked.encode_batch(chats), drawn_as, seed, inside)
    if inside is not None:
        inside.require(acted, passes)
    return Replies(asked.decode(ids), ids, dict(acted or {}))


def _chat(model: Any, remote: Any) -> NNsightChat:
    if not isinstance(model, NNsightChat):
        return chat(model, remote=remote)
    if remote is not False and remote != model.remote:  # whoever believes it runs elsewhere must not run here
        raise ModelError(
            f"remote={remote!r:.60} beside a chat that was made with remote={model.remote!r:.60}: where it runs is "
            "said once, when it is made: pass chat(model, remote=...) and leave remote out of this call"
        )
    return model
