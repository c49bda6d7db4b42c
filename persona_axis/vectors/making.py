"""From what was found and what was told to an `Axis` or a `Cap`, with a record of how each thing is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persona_axis.axis import Axis
from persona_axis.errors import VectorsError
from persona_axis.vectors.clamps import bounds_of, chosen, exported
from persona_axis.vectors.found import Clamps, Found, Points, Rows, Settled
from persona_axis.vectors.telling import Placed, RowsAre, Said, located, placed, pointing, proven
from persona_axis.vectors.units import lengths, unit

if TYPE_CHECKING:
    from persona_axis.cap import Cap


class Origin(NamedTuple):
    """Where vectors come from and which model they are said to be of."""

    file: str
    """The file's name, without its path."""
    sha256: str
    model: Mapping[str, Any]
    """The model's facts; at least `model`, `hidden_size`, `num_layers`."""
    model_known: Settled
    """Whether only the model's configuration was read."""


def made_axis(found: Found, said: Said, origin: Origin, check: Mapping[int, Rows] | None = None) -> Axis:
    """The axis in a file. `check` is a direction toward the Assistant by layer that the sign has to agree with.

    Rows are made unit and turned toward the Assistant; `metadata["imported"]` keeps their lengths and how layers,
    sign and model are known. Raises `VectorsError` naming what does not fit or has to be said.
    """
    facts = origin.model
    _require_width(found, int(facts["hidden_size"]))
    at = placed(found, said, int(facts["num_layers"]))
    picked = found.rows[list(at.picks)]
    _require_length(found, picked, at.layers)
    sign = pointing(found, said, picked, at.layers, check, at.picks)
    rows, norms = unit(picked, found.where)
    settled = at.settled if check is None else located(found.where, rows, at, check)
    record = _record(origin, found.layout, settled, sign, norms) | {"about": dict(found.about)}
    metadata: dict[str, Any] = {**facts, "provenance": "imported", "imported": record, "notes": _notes(record)}
    if found.default is not None and found.roles is not None:
        picks = list(at.picks)
        names = list(found.role_names)
        default, roles = found.default[picks], found.roles[:, picks]
        return Axis.from_means(default, roles, layers=at.layers, metadata=metadata | {"role_names": names})
    return Axis.from_direction(rows if sign.value == "toward" else -rows, layers=at.layers, metadata=metadata)


def made_cap(
    clamps: Clamps, experiment: str | None, said: Said, origin: Origin, check: Mapping[int, Rows] | None = None
) -> Cap:
    """The cap that does what an experiment of a published capping configuration does.

    Its vectors point away from the Assistant by the layout's convention unless `said` or `check` tells otherwise; the
    edit is the same vector either way. An export of ours gives the cap's own directions again. Raises
    `VectorsError` as `made_axis` does.
    """
    from persona_axis.cap import Cap

    if said.layers is not None:
        raise VectorsError(f"{clamps.where}: is a capping configuration, which names its layers; leave out --layers")
    name, held = chosen(clamps, experiment)
    if exported(held) and (said.sign or said.rows == "embeddings-first"):
        raise VectorsError(
            f"{clamps.where}: experiment {name!r} was exported from a cap, as the names of its vectors say: it has "
            "that cap's layers and directions; leave out --sign and --rows"
        )
    if said.rows == "embeddings-first":
        held = tuple(clamp._replace(layer=clamp.layer - 1) for clamp in held)
    for clamp in held:
        if not 0 <= clamp.layer < origin.model["num_layers"]:
            raise VectorsError(
                f"{clamps.where}: experiment {name!r} caps layer {clamp.layer}; the model has layers 0 to "
                f"{origin.model['num_layers'] - 1}"
            )
        if clamp.vector.shape[-1] != origin.model["hidden_size"]:
            raise VectorsError(_width(clamps.where, clamp.vector.shape[-1], origin.model["hidden_size"]))
    at = f"{clamps.where}: experiment {name!r}"
    away = bounds_of(at, held, "away")
    if exported(held):
        how = "the names of its vectors tell how the cap's directions lie: ceilings along them, floors against them"
        known, vectors = Settled("as exported", "file", how), away.direction
    else:
        how = "the layout clamps from above along the negated axis"
        known, vectors = Settled("away", "layout", how), -away.direction
    sign = _clamped_sign(clamps.where, said, known, vectors, away.layers, check)
    points: Points = "toward" if sign.value == "toward" else "away"
    bounds = bounds_of(at, held, points)
    layers = Settled("layers", "layout", "the layout numbers decoder layers from 0; a layer is its output")
    if said.rows is not None:
        layers = Settled(said.rows, "said", "said with --rows")
    if check is not None:
        layers = located(clamps.where, bounds.direction, Placed((), bounds.layers, layers), check)
    record = _record(origin, "capping configuration", layers, sign, bounds.norms) | {"experiment": name}
    facts = {key: value for key, value in origin.model.items() if value is not None}
    floor = bounds.floor if np.isfinite(bounds.floor).any() else None
    ceiling = bounds.ceiling if np.isfinite(bounds.ceiling).any() else None
    provenance = {"imported": record, "notes": _notes(record)}
    return Cap(bounds.direction, bounds.layers, floor, ceiling, facts=facts, provenance=provenance)


def check_of(found: Axis | Found | Clamps, rows: RowsAre | None, num_layers: int) -> dict[int, Rows]:
    """default - mean(roles) by layer, from an axis file or from role vectors, to hold another file against.

    `rows` is what is said of the check's own rows; an axis file needs nothing said. Raises `VectorsError`.
    """
    if isinstance(found, Axis):
        if rows is not None:
            raise VectorsError("--check-rows goes with role vectors; the check is an axis file, which knows its layers")
        return dict(zip(found.layers, found.arrays["direction"].astype(np.float64), strict=True))
    if isinstance(found, Clamps) or found.reference is None:
        raise VectorsError(
            f"{found.where}: proves no sign: it holds no default vector beside role vectors; name an axis file, a "
            "directory of role vectors, or a dictionary with default_mean and role_mean"
        )
    try:
        at = placed(found, Said(rows=rows), num_layers)
    except VectorsError as error:
        raise VectorsError(f"--check: {error} (of the check, that is --check-rows)") from None
    return dict(zip(at.layers, found.reference[list(at.picks)], strict=True))


def _clamped_sign(
    where: str, said: Said, known: Settled, vectors: Rows, layers: tuple[int, ...], check: Mapping[int, Rows] | None
) -> Settled:
    """Where the vectors of a capping configuration point, `known` unless it is said or checked."""
    if said.sign is not None:
        known = Settled(said.sign, "said", "said with --sign")
    if check is None:
        return known
    found = proven(where, vectors, layers, check, "default - mean(roles) of the check")
    if said.sign is not None and said.sign != found.value:
        told = f"{said.sign} ({known.how}); {found.value} ({found.how})"
        raise VectorsError(f"{where}: where its vectors point is contradicted: {told}")
    return found


def _require_width(found: Found, hidden: int) -> None:
    rows, width = found.rows.shape
    if width != hidden:
        turned = "; it looks transposed, layers and hidden exchanged" if rows == hidden else ""
        raise VectorsError(_width(found.where, width, hidden) + turned)


def _width(where: str, width: int, hidden: int) -> str:
    return f"{where}: its vectors have width {width}, the model's residual stream {hidden}: made for another model"


def _require_length(found: Found, rows: Rows, layers: tuple[int, ...]) -> None:
    zero = [layer for layer, norm in zip(layers, lengths(rows), strict=True) if not norm]
    if zero:
        raise VectorsError(
            f"{found.where}: the row of layer {zero[0]} is zero and gives no direction ({len(zero)} such rows): name "
            "the layers to take with --layers"
        )


def _record(origin: Origin, layout: str, rows: Settled, sign: Settled, norms: tuple[float, ...]) -> dict[str, Any]:
    return {
        "file": origin.file,
        "sha256": origin.sha256,
        "layout": layout,
        "rows": rows._asdict(),
        "sign": sign._asdict(),
        "model": origin.model_known._asdict(),
        "norms": list(norms),
    }


def _notes(record: Mapping[str, Any]) -> list[str]:
    told = [f"imported from {record['file']} ({record['layout']})"]
    for name in ("sign", "rows", "model"):
        settled = record[name]
        told.append(f"{name} {settled['by']}: {settled['value']}; {settled['how']}")
    return told
