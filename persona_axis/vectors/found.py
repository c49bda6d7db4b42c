"""What a file of somebody else's holds, before anything is assumed about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from persona_axis.errors import VectorsError

Rows: TypeAlias = NDArray[np.float64]
Points: TypeAlias = Literal["toward", "away"]
"""Where a direction points: toward the Assistant or away from it."""

_LARGEST = 1e30  # what float32 holds with room for sums
_KEPT_ITEMS, _KEPT_CHARACTERS = 1000, 2000  # of foreign metadata: enough for remarks, too little to hurt


class Settled(NamedTuple):
    """Something that the vectors alone do not tell, and how it was settled."""

    value: str
    by: Literal["said", "proven", "file", "layout", "assumed"]
    """`layout`: as this published form has it; `assumed`: nothing speaks against it, and nothing for it."""
    how: str
    """One sentence for people."""


@dataclass(frozen=True, eq=False)
class Found:
    """One direction a row. What is None or empty the file does not hold."""

    where: str
    """The file, as error messages name it."""
    layout: str
    """Which published form it has."""
    rows: Rows
    """[n, hidden], of any length: finite, not yet unit."""
    index: tuple[int, ...] | None
    """The number that the file gives each row; None for a single row without a number."""
    named: bool = False
    """Whether the numbers are written in the file; else they are the rows' positions."""
    reference: Rows | None = None
    """default - mean(roles) [n, hidden] where the file holds both, for a check of the sign."""
    default: Rows | None = None
    """Default vector [n, hidden]."""
    roles: Rows | None = None
    """Role vectors [k, n, hidden]."""
    role_names: tuple[str, ...] = ()
    sign: Settled | None = None
    """Where the rows point, if the file or its form says so."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Remarks of the file, for the record."""
    states_layers: bool = False
    """Whether the file says that number r is the output of layer r, as exports of ours do."""
    unclear: str = ""
    """Which tools mean different layers by these numbers, and what to say of the files of each."""


class Clamp(NamedTuple):
    """One intervention of a published capping configuration: <h, unit(vector)> is held at or below `cap`."""

    layer: int
    """As the file numbers it."""
    vector: Rows
    """[hidden], of any length."""
    cap: float
    """In units of the residual stream."""
    turn: int = 0
    """1 along the direction of the cap that it was exported from, -1 against it; 0 where the file does not say."""


@dataclass(frozen=True, eq=False)
class Clamps:
    """A published capping configuration: named experiments, each a list of clamps."""

    where: str
    experiments: Mapping[str, tuple[Clamp, ...]]
    others: Mapping[str, int]
    """How many interventions of each experiment are no caps."""


def checked_rows(where: str, name: str, values: NDArray[Any], *, ranks: tuple[int, ...] = (1, 2)) -> Rows:
    """`values` as finite float64 rows [n, hidden]; one vector [hidden] becomes one row. Raises `VectorsError`."""
    if values.dtype.kind != "f":
        raise VectorsError(f"{where}: {name} is {values.dtype}; vectors must be floating-point numbers")
    if values.ndim not in ranks or 0 in values.shape:
        shapes = " or ".join({1: "[hidden]", 2: "[layers, hidden]"}[rank] for rank in ranks)
        raise VectorsError(f"{where}: {name} has shape {list(values.shape)}; expected {shapes}")
    with np.errstate(invalid="ignore", over="ignore"):  # a signalling NaN, and what no float64 holds, is found below
        rows = np.atleast_2d(values).astype(np.float64)
    bad = np.flatnonzero(~(np.abs(rows) <= _LARGEST).all(axis=1))
    if bad.size:
        raise VectorsError(f"{where}: {name} holds NaN, infinite or absurdly large values, first in row {bad[0]}")
    return rows


def quoted(value: Any) -> str:
    """A foreign value as an error quotes it: plain ones by what they are, others by their kind.

    A list that holds another one twice, and that one another, is a few bytes in a file and has no end as a text.
    """
    plain = value is None or type(value) in (bool, float, str) or (type(value) is int and abs(value) < 2**64)
    return repr(str(value)[:60]) if plain else f"a {type(value).__name__}"


def remarks(metadata: Any) -> dict[str, Any]:
    """The plain entries of a foreign dictionary: texts, numbers, and short lists of them; the rest is left out."""
    if not isinstance(metadata, Mapping):
        return {}
    kept = {}
    for key, value in list(metadata.items())[:_KEPT_ITEMS]:
        if isinstance(key, str) and len(key) <= _KEPT_CHARACTERS and _is_remark(value):
            kept[key] = list(value) if isinstance(value, list | tuple) else value
    return kept


def _is_remark(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _KEPT_ITEMS and all(_is_plain(item) for item in value)
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    if type(value) is float:
        return bool(np.isfinite(value))
    if type(value) is int:
        return abs(value) < 2**63
    return value is None or type(value) is bool or (type(value) is str and len(value) <= _KEPT_CHARACTERS)
