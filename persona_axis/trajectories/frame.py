"""The tidy table of drift: one row for each conversation, turn and layer, in columns that are always in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from persona_axis.conversations import Conversation

Array = NDArray[np.floating[Any]]

PERCENTILES = {"default": "percentile_default", "roles": "percentile_roles"}
"""The column that places a projection in each distribution of an axis file."""

DTYPES = {
    "conversation": "string", "domain": "string", "split": "string", "turn": "int64", "speaker": "string",
    "kind": "string", "tokens": "int64", "token": "int64", "id": "int64", "text": "string", "layer": "int64",
    "projection": "float64", "projection_before": "float64", **dict.fromkeys(PERCENTILES.values(), "float64"),
}  # fmt: skip
_MAY_BE_MISSING = ("projection_before", *PERCENTILES.values())
_STREAMS = ("projection", "projection_before")
_OF_TOKENS = ("token", "id", "text")

COLUMNS = tuple(name for name in DTYPES if name not in _OF_TOKENS)
"""Of the table of turns; `projection_before` and the percentiles only where they are known."""

TOKEN_COLUMNS = ("conversation", "turn", "speaker", *_OF_TOKENS, "layer", "projection", "projection_before")
"""Of the table of tokens."""


def tidy(columns: Mapping[str, Any], order: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Columns of equal length (or one value for all rows) as the table, in order and with the table's dtypes.

    None is NA. A column that the table does not know, or that is missing, is a `KeyError`.
    """
    if unknown := set(columns) - set(order):
        raise KeyError(f"the table has no columns {sorted(unknown)}")
    names = [name for name in order if name in columns or name not in _MAY_BE_MISSING]
    rows = max((len(v) for v in columns.values() if not isinstance(v, str | None)), default=0)
    return pd.DataFrame({n: pd.Series(columns[n], index=range(rows), dtype=DTYPES[n]) for n in names})


def empty() -> pd.DataFrame:
    """The table of turns without rows and without the columns that may be missing."""
    return tidy({name: [] for name in COLUMNS if name not in _MAY_BE_MISSING})


class Said(NamedTuple):
    """One message: whose it is and where it stands."""

    turn: int
    """The n-th assistant turn from 1; of another's message, the number of the assistant turn that it precedes."""
    speaker: str
    kind: str | None
    """Of the user's message itself, or of the last one that a reply answers."""


def said(conversation: Conversation) -> list[Said]:
    """What the table tells about each message."""
    kinds, turn, kind = iter(conversation.kinds), 1, None
    found = []
    for message in conversation.messages:
        role = message["role"]
        if role == "user":
            kind = next(kinds, None)
        found.append(Said(turn, role, None if role == "system" else kind))
        turn += role == "assistant"
    return found


class TurnRows:
    """Rows of one conversation's turns: means over the turns' own tokens.

    `streams` are the projections that come with each message: 1, or 2 with those before a lever.
    """

    def __init__(self, conversation: Conversation, layers: Sequence[int], streams: int) -> None:
        self._conversation = conversation
        self._layers = list(layers)
        self._names = _STREAMS[:streams]
        self._said: list[Said] = []
        self._tokens: list[int] = []
        self._means: list[list[Array]] = []

    def __len__(self) -> int:
        return len(self._said) * len(self._layers)

    def add(self, said: Said, ids: Sequence[int], projections: Sequence[Array]) -> None:
        """One message: its tokens and, for each stream, their projections [layers, tokens]; NaN without tokens."""
        self._said.append(said)
        self._tokens.append(len(ids))
        none = np.full(len(self._layers), np.nan)
        self._means.append([p.mean(axis=1, dtype=np.float64) if len(ids) else none for p in projections])

    def take(self) -> pd.DataFrame:
        """The rows since the last time."""
        each, one = len(self._layers), self._conversation
        columns: dict[str, Any] = {
            "conversation": one.id,
            "domain": one.domain,
            "split": one.split,
            "turn": np.repeat([s.turn for s in self._said], each),
            "speaker": [s.speaker for s in self._said for _ in self._layers],
            "kind": [s.kind for s in self._said for _ in self._layers],
            "tokens": np.repeat(self._tokens, each),
            "layer": np.tile(self._layers, len(self._said)),
        }
        means = np.array(self._means, dtype=np.float64).reshape(-1, len(self._names), each)
        columns |= {name: means[:, stream].ravel() for stream, name in enumerate(self._names)}
        self._said, self._tokens, self._means = [], [], []
        return tidy(columns)


class TokenRows:
    """Rows of one conversation's tokens."""

    def __init__(
        self, conversation: Conversation, layers: Sequence[int], streams: int, text: Mapping[int, str]
    ) -> None:
        self._conversation = conversation
        self._layers = list(layers)
        self._names = _STREAMS[:streams]
        self._text = text
        self._read: list[tuple[Said, Sequence[int], Sequence[Array]]] = []

    def __len__(self) -> int:
        return sum(len(ids) for _, ids, _ in self._read) * len(self._layers)

    def add(self, said: Said, ids: Sequence[int], projections: Sequence[Array]) -> None:
        """As `TurnRows.add`; a message without tokens has no rows."""
        if ids:
            self._read.append((said, ids, projections))

    def take(self) -> pd.DataFrame:
        """The rows since the last time."""
        each = len(self._layers)
        lengths = np.array([len(ids) for _, ids, _ in self._read], dtype=np.int64) * each
        flat = [i for _, ids, _ in self._read for i in ids]
        columns: dict[str, Any] = {
            "conversation": self._conversation.id,
            "turn": np.repeat([s.turn for s, _, _ in self._read], lengths),
            "speaker": np.repeat(np.array([s.speaker for s, _, _ in self._read], dtype=object), lengths),
            "token": [n for _, ids, _ in self._read for n in range(len(ids)) for _ in self._layers],
            "id": np.repeat(flat, each),
            "text": [self._text[i] for i in flat for _ in self._layers],
            "layer": np.tile(self._layers, len(flat)),
        }
        for stream, name in enumerate(self._names):
            columns[name] = np.concatenate([np.empty(0), *(found[stream].T.ravel() for _, _, found in self._read)])
        self._read = []
        return tidy(columns, TOKEN_COLUMNS)
