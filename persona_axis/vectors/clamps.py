"""Published capping configurations, and the cap that does the same.

There <h, v> is clamped from ABOVE at tau along a vector v that points away from the Assistant (the axis negated):
h - v * max(<h, v> - tau, 0). Here a floor holds it from below along the axis itself: with d = -v, <h, v> > tau is
<h, d> < -tau, and the two edits are the same vector. So direction = -unit(v) and floor = -tau.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Clamp, Clamps, Points, Rows, quoted
from persona_axis.vectors.torchfile import tensor_rows
from persona_axis.vectors.units import unit

_WINDOW = re.compile(r"layers_(\d{1,6}):(\d{1,6})(?:-.*)?")
_OWN = re.compile(r"layer_(\d{1,6})/(floor|ceiling)")
"""What `exporting.cap_to_dict` calls its vectors."""
_BYTES = 8
"""A file has more for each clamp. One list named many times in a pickle would make millions of a few."""
_SAME = 4 * float(np.finfo(np.float32).eps)
"""How far unit vectors lie apart at most that are one, scaled and stored in float32 twice. Farther ones are two
directions, and a cap along one would not do what the published formula does."""
_INTERVENTION = ("vector", "layer", "layers", "cap")


class Bounds(NamedTuple):
    """A cap's content: one row a layer, floors and ceilings with -inf and inf where there is none."""

    layers: tuple[int, ...]
    direction: Rows
    floor: Rows
    ceiling: Rows
    norms: tuple[float, ...]
    """Lengths of the vectors in the file."""


def clamps_of(where: str, held: Mapping[Any, Any], size: int) -> Clamps:
    """The experiments of a dictionary with `vectors` and `experiments`. Raises `VectorsError`, naming the field."""
    unknown = [key for key in held if key not in ("vectors", "experiments")]
    if unknown:
        raise VectorsError(f"{where}: unknown key {str(unknown[0])[:60]!r}; this layout holds vectors, experiments")
    vectors, experiments = held.get("vectors"), held.get("experiments")
    if not isinstance(vectors, dict) or not isinstance(experiments, list) or not experiments:
        raise VectorsError(f"{where}: expected a dictionary 'vectors' and a list 'experiments'")
    read: dict[int, tuple[int | None, Rows]] = {}
    room = size // _BYTES
    found: dict[str, tuple[Clamp, ...]] = {}
    others: dict[str, int] = {}
    for number, experiment in enumerate(experiments):
        if not isinstance(experiment, dict) or not isinstance(experiment.get("id"), str):
            raise VectorsError(f"{where}: experiment {number}: expected a dictionary with an 'id'")
        name, listed = experiment["id"], experiment.get("interventions")
        if name in found or not isinstance(listed, list):
            raise VectorsError(f"{where}: experiment {name[:60]!r}: its id occurs twice or it lists no interventions")
        at = f"{where}: experiment {name[:60]!r}"
        held_here: list[Clamp] = []
        for entry in listed:
            clamps = _clamps(at, entry, vectors, read, where, size)
            held_here += clamps
            room -= max(1, len(clamps))
            if room < 0:
                raise VectorsError(f"{at}: lists more interventions than a file of {size} bytes can hold")
        found[name] = tuple(held_here)
        others[name] = sum("cap" not in entry for entry in listed)
    return Clamps(where, found, others)


def chosen(clamps: Clamps, experiment: str | None) -> tuple[str, tuple[Clamp, ...]]:
    """The experiment asked for, or the only one. Raises `VectorsError` that lists what there is."""
    names = list(clamps.experiments)
    if experiment is None and len(names) == 1:
        experiment = names[0]
    if experiment is None or experiment not in clamps.experiments:
        some = ", ".join(repr(name[:60]) for name in names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")
        asked = "holds several experiments" if experiment is None else f"no experiment {experiment!r}"
        raise VectorsError(f"{clamps.where}: {asked}; name one with --experiment: {some}")
    held = clamps.experiments[experiment]
    if not held:
        raise VectorsError(f"{clamps.where}: experiment {experiment!r} caps nothing: no intervention has a 'cap'")
    if clamps.others[experiment]:
        raise VectorsError(
            f"{clamps.where}: experiment {experiment!r} also holds {clamps.others[experiment]} interventions without a "
            "'cap', which a cap file would leave out: make an experiment of its caps alone"
        )
    window = _WINDOW.fullmatch(experiment)
    if window is not None:
        said, layers = range(int(window[1]), int(window[2])), sorted({clamp.layer for clamp in held})
        if layers != list(said):
            raise VectorsError(
                f"{clamps.where}: experiment {experiment!r} names layers {said.start} to {said.stop - 1} and holds "
                f"{', '.join(map(str, layers[:12]))}: its layer convention cannot be told"
            )
    return experiment, held


def exported(clamps: Sequence[Clamp]) -> bool:
    """Whether the names of all their vectors say how they lie to the direction of the cap they were exported from."""
    return all(clamp.turn for clamp in clamps)


def bounds_of(where: str, clamps: Sequence[Clamp], points: Points) -> Bounds:
    """The same edits as floors and ceilings on directions toward the Assistant; `points` says where the vectors do.

    Those of an exported cap get its directions again, wherever they point. Raises `VectorsError` where one layer is
    clamped along different directions, which a cap cannot express.
    """
    own = exported(clamps)
    rows: dict[int, Rows] = {}
    floors: dict[int, float] = {}
    ceilings: dict[int, float] = {}
    norms: list[float] = []
    for clamp in clamps:
        (row,), (norm,) = unit(clamp.vector[None], f"{where}: the vector of layer {clamp.layer}")
        norms.append(norm)
        turn = clamp.turn if own else 1 if points == "toward" else -1
        held = rows.setdefault(clamp.layer, turn * row)
        along = float(held @ row) > 0
        apart = _apart(held, row if along else -row)
        if apart > _SAME:
            degrees = np.degrees(2 * np.arcsin(apart / 2))
            raise VectorsError(
                f"{where}: layer {clamp.layer} is clamped along two directions, {degrees:.3g} degrees apart; a cap has "
                "one direction a layer: split the experiment and nest two caps"
            )
        if along:  # <h, held> <= cap
            ceilings[clamp.layer] = min(clamp.cap, ceilings.get(clamp.layer, np.inf))
        else:  # <h, -held> <= cap
            floors[clamp.layer] = max(-clamp.cap, floors.get(clamp.layer, -np.inf))
    layers = tuple(sorted(rows))
    for layer in layers:
        low, high = floors.get(layer, -np.inf), ceilings.get(layer, np.inf)
        if low > high:
            raise VectorsError(
                f"{where}: layer {layer} is clamped past itself from both sides: at least {low:g} and at most "
                f"{high:g} along one direction; no cap does that"
            )
    return Bounds(
        layers,
        np.stack([rows[layer] for layer in layers]),
        np.array([floors.get(layer, -np.inf) for layer in layers]),
        np.array([ceilings.get(layer, np.inf) for layer in layers]),
        tuple(norms),
    )


def _apart(one: Rows, other: Rows) -> float:
    """The distance of two directions, their lengths made 1: a row kept as it was stored is so only to float32."""
    return float(np.linalg.norm(one / np.linalg.norm(one) - other / np.linalg.norm(other)))


def _clamps(
    at: str, entry: Any, vectors: Mapping[Any, Any], read: dict[int, tuple[int | None, Rows]], where: str, size: int
) -> list[Clamp]:
    """The clamps of one intervention: one, or one for each of its layers."""
    if not isinstance(entry, dict):
        raise VectorsError(f"{at}: an intervention is a {type(entry).__name__}; expected a dictionary")
    if "cap" not in entry:
        return []
    unknown = [key for key in entry if key not in _INTERVENTION]
    if unknown:
        known = ", ".join(_INTERVENTION)
        raise VectorsError(f"{at}: an intervention has the unknown key {quoted(unknown[0])}; caps hold {known}")
    name = entry.get("vector")
    if not isinstance(name, str) or name not in vectors:
        raise VectorsError(f"{at}: an intervention names the vector {quoted(name)}, which 'vectors' does not hold")
    vector = vectors[name]
    if id(vector) not in read:  # the same one may have many names
        read[id(vector)] = _vector(where, name, vector, size)
    own, rows = read[id(vector)]
    layers = _numbers(at, "layers", entry.get("layers", entry.get("layer", own)), int)
    caps = _numbers(at, "cap", entry["cap"], float)
    if own is not None and set(layers) != {own}:
        raise VectorsError(f"{at}: vector {name[:60]!r} is of layer {own} and is used at layers {layers[:8]}")
    if len(caps) not in (1, len(layers)) or len(rows) not in (1, len(layers)):
        raise VectorsError(f"{at}: {len(layers)} layers, {len(caps)} caps and {len(rows)} rows do not go together")
    several = len(layers)
    written = _OWN.fullmatch(name)
    turn = 0 if written is None or own != int(written[1]) else -1 if written[2] == "floor" else 1
    return [
        Clamp(layers[i], rows[i if len(rows) == several else 0], float(caps[i if len(caps) == several else 0]), turn)
        for i in range(several)
    ]


def _vector(where: str, name: str, value: Any, size: int) -> tuple[int | None, Rows]:
    """A named vector: a tensor, or a dictionary with its layer."""
    told = f"vector {name[:60]!r}"
    if not isinstance(value, dict):
        return None, tensor_rows(where, told, value, size)
    if set(value) - {"layer", "vector"} or "vector" not in value:
        raise VectorsError(f"{where}: {told}: expected 'vector' and 'layer', found {sorted(map(str, value))[:5]}")
    layer = value.get("layer")
    if layer is not None:
        (layer,) = _numbers(where, f"{told}: layer", [layer], int)
    return layer, tensor_rows(where, told, value["vector"], size, ranks=(1,))


def _numbers(at: str, name: str, value: Any, kind: type) -> list[Any]:
    """One number or a list of them; finite, and layers not below 0."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    for item in items:
        right = type(item) is int and 0 <= item < 2**31 if kind is int else type(item) in (int, float)
        if not right or (kind is float and not abs(item) <= sys.float_info.max):
            raise VectorsError(f"{at}: {name}: {quoted(item)} is no {'layer' if kind is int else 'finite number'}")
    if not items:
        raise VectorsError(f"{at}: {name}: is empty")
    return items
