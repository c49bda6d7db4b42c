"""What a file does not tell: which layer a row is, and where it points. Said by the user, or proven by a check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Found, Points, Rows, Settled
from persona_axis.vectors.units import cosines

RowsAre = Literal["layers", "embeddings-first"]

NEARER = 0.01
"""How much better a layer has to fit than its neighbours do; less than that is the noise of two axes of one model."""

CLEAR = 0.1
"""A cosine below this proves no sign: directions without any relation reach .05 in a stream of 1,000."""


class Said(NamedTuple):
    """What the user says about a file."""

    sign: Points | None = None
    """Where its directions point: toward the Assistant or away from it."""
    rows: RowsAre | None = None
    """`layers`: number r is the output of layer r; `embeddings-first`: 0 is the embeddings, r is layer r - 1."""
    layers: tuple[int, ...] | None = None
    """Which layers to take; where the file numbers nothing, the layer of each row."""


class Placed(NamedTuple):
    """Which rows of a file are taken, and which layers they are."""

    picks: tuple[int, ...]
    layers: tuple[int, ...]
    settled: Settled


def placed(found: Found, said: Said, num_layers: int) -> Placed:
    """The layer of each row in a model of `num_layers`. Raises `VectorsError` where it has to be asked.

    The last of transformers' `output_hidden_states`, where number 0 is the embeddings, has been through the final norm
    and is no layer's output: it is left out unless `said.layers` names it. GGUF files are not made from that.
    """
    rows, where = len(found.rows), found.where
    if found.index is None or (said.layers is not None and len(said.layers) == rows < num_layers and not found.named):
        return _by_user(found, said, num_layers)
    if found.unclear and said.rows is None:
        raise VectorsError(f"{where}: {found.unclear}")
    if found.states_layers and said.rows == "embeddings-first":
        raise VectorsError(
            f"{where}: which layers its rows are is contradicted: the file says that number r is the output of layer "
            "r, from 0; leave out --rows"
        )
    shift = 1 if said.rows == "embeddings-first" else 0
    if said.rows is None and not found.named and rows == num_layers + 1:
        raise VectorsError(
            f"{where}: has {rows} rows, the model {num_layers} layers: if row 0 is the embeddings (as in files of "
            "persona vectors), say --rows embeddings-first; if not, the vectors are of another model"
        )
    if not found.named and rows not in (num_layers, num_layers + shift):
        raise VectorsError(
            f"{where}: has {rows} rows, the model {num_layers} layers: the vectors are of another model, or --layers "
            "has to name the layer of each row"
        )
    by_layer = {number - shift: row for row, number in enumerate(found.index) if number >= shift}
    if not by_layer or max(by_layer) >= num_layers:
        past = max(by_layer, default=-1)
        counted = said.rows is None and not found.states_layers and past == num_layers
        raise VectorsError(
            f"{where}: has a row of layer {past}; the model has layers 0 to {num_layers - 1}"
            + ("; if number 0 is the embeddings, and 1 the first layer, say --rows embeddings-first" if counted else "")
        )
    wanted = tuple(sorted(by_layer)) if said.layers is None else said.layers
    missing = [layer for layer in wanted if layer not in by_layer]
    if missing:
        raise VectorsError(f"{where}: --layers {missing[0]}: the file has layers {min(by_layer)} to {max(by_layer)}")
    settled, last = _settled(found, said), num_layers - 1
    if shift and not found.unclear and last in by_layer:
        wanted, how = _without_normed(where, said, wanted, last)
        settled = settled._replace(how=settled.how + how)
    return Placed(tuple(by_layer[layer] for layer in wanted), wanted, settled)


def pointing(found: Found, said: Said, rows: Rows, layers: tuple[int, ...], check: Mapping[int, Rows] | None,
             picks: tuple[int, ...]) -> Settled:  # fmt: skip
    """Where the picked `rows` point. `check` is a direction toward the Assistant by layer, made from other vectors.

    Raises `VectorsError` where nothing tells, and where what is said, stated or proven disagrees.
    """
    known: list[Settled] = [] if said.sign is None else [Settled(said.sign, "said", "said with --sign")]
    known += [] if found.sign is None else [found.sign]
    if found.reference is not None and (found.sign is None or found.sign.by != "proven"):
        own = dict(zip(layers, found.reference[list(picks)], strict=True))
        known.append(proven(found.where, rows, layers, own, "default_mean - role_mean in the file"))
    if check is not None:
        known.append(proven(found.where, rows, layers, check, "default - mean(roles) of the check"))
    if not known:
        raise VectorsError(
            f"{found.where}: does not say whether its directions point toward the Assistant or away from it: say "
            "--sign toward or --sign away, or prove it with --check or --try-roles"
        )
    if len({one.value for one in known}) > 1:
        told = "; ".join(f"{one.value} ({one.how})" for one in known)
        raise VectorsError(f"{found.where}: where its directions point is contradicted: {told}")
    return next((one for one in known if one.by == "proven"), known[0])


def proven(where: str, rows: Rows, layers: tuple[int, ...], toward: Mapping[int, Rows], what: str) -> Settled:
    """The sign of `rows` [n, hidden] by their cosine with directions toward the Assistant; all layers must agree.

    Raises `VectorsError` for no common layer, another width, cosines near 0, and layers that disagree.
    """
    common = [layer for layer in layers if layer in toward]
    if not common:
        raise VectorsError(f"{where}: no layer in common with {what}")
    own = np.stack([rows[layers.index(layer)] for layer in common])
    other = np.stack([toward[layer] for layer in common])
    if own.shape != other.shape:
        raise VectorsError(f"{where}: hidden size {own.shape[1]}, that of {what} is {other.shape[1]}")
    found = cosines(own, other)
    weakest = int(np.argmin(np.abs(found)))
    how = f"cosine with {what} from {found.min():.3f} to {found.max():.3f} at {len(common)} layers"
    if abs(found[weakest]) < CLEAR:
        raise VectorsError(
            f"{where}: the sign is not proven: cosine {found[weakest]:.3f} with {what} at layer {common[weakest]}; "
            "another layer convention, another model, or no relation"
        )
    if (found > 0).any() and (found < 0).any():
        odd = [layer for layer, cosine in zip(common, found, strict=True) if cosine < 0]
        raise VectorsError(f"{where}: the sign is not proven: {how}, below 0 at layers {', '.join(map(str, odd[:8]))}")
    return Settled("toward" if found[0] > 0 else "away", "proven", how)


def located(where: str, rows: Rows, at: Placed, check: Mapping[int, Rows]) -> Settled:
    """Whether `rows` [n, hidden] fit a direction of known layers best where they are placed; the layers' record.

    Compared over the placed layers whose two neighbours the check has as well: none, or a tie, proves nothing. Raises
    `VectorsError` where one layer lower or higher fits better by more than `NEARER`.
    """
    inner = [i for i, layer in enumerate(at.layers) if all(layer + step in check for step in (-1, 0, 1))]
    if not inner:
        return at.settled
    fits = {}
    for step in (-1, 0, 1):
        toward = np.stack([check[at.layers[i] + step] for i in inner])
        fits[step] = float(np.abs(cosines(rows[inner], toward)).mean())
    how = f"mean cosine with the check {fits[0]:.3f}, one layer lower {fits[-1]:.3f}, one layer higher {fits[1]:.3f}"
    if max(fits[-1], fits[1]) > fits[0] + NEARER:
        raise VectorsError(
            f"{where}: its rows do not fit the layers they are taken for: {how}; say how they are numbered with "
            "--rows (and those of the check with --check-rows)"
        )
    if fits[0] > max(fits[-1], fits[1]) + NEARER:
        return Settled(at.settled.value, "proven", f"{at.settled.how}; {how}")
    return at.settled


def _without_normed(where: str, said: Said, wanted: tuple[int, ...], last: int) -> tuple[tuple[int, ...], str]:
    """The layers without the last unless it is asked for, and a remark on it. Raises `VectorsError` for none left."""
    why = "output_hidden_states gives it after the model's final norm"
    if said.layers is not None:
        return wanted, f"; layer {last} was asked for; {why}" if last in wanted else ""
    if wanted == (last,):
        raise VectorsError(f"{where}: holds the last layer alone, and {why}: say --layers {last} to take it")
    return wanted[:-1], f"; layer {last} is left out, since {why} (--layers takes it)"


def _by_user(found: Found, said: Said, num_layers: int) -> Placed:
    rows = len(found.rows)
    if said.layers is None:
        raise VectorsError(f"{found.where}: holds one vector and no layer: say --layers L")
    if said.rows is not None:
        raise VectorsError(f"{found.where}: --rows goes with numbered rows; here --layers names the layer of each")
    if len(said.layers) != rows:
        raise VectorsError(f"{found.where}: has {rows} rows, --layers names {len(said.layers)}")
    if said.layers[-1] >= num_layers:
        raise VectorsError(f"--layers {said.layers[-1]}: the model has layers 0 to {num_layers - 1}")
    return Placed(tuple(range(rows)), said.layers, Settled("layers", "said", "each row's layer said with --layers"))


def _settled(found: Found, said: Said) -> Settled:
    if said.rows == "embeddings-first":
        how = "said with --rows: number 0 is the embeddings, number r the output of layer r - 1"
        return Settled("embeddings-first", "said", how)
    if said.rows == "layers":
        return Settled("layers", "said", "said with --rows: number r is the output of layer r, counted from 0")
    if found.states_layers:
        return Settled("layers", "file", "the file says that number r is the output of layer r, from 0")
    if found.named:
        return Settled("layers", "assumed", "the file numbers its vectors; number r is taken as the output of layer r")
    how = "as many rows as the model has layers; row r is taken as the output of layer r, from 0"
    return Settled("layers", "assumed", how)
