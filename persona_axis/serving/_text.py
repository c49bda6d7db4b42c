"""The text of a reply while it grows: what of it may be sent, and which of its tokens no stop can take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Text:
    """The text of a reply that grows by tokens: what can be shown of it, and where it stops."""

    def __init__(self, decode: Callable[[list[int]], str], stop_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._decode, self._stop_ids, self._stops = decode, frozenset(stop_ids), stops
        self.ids: list[int] = []
        """The reply's own tokens."""
        self.text = ""
        """All of it that may be shown."""
        self.settled = 0
        """How many of the tokens can no longer be taken back by a stop: those of which text is shown."""
        self.stopped = False
        """It ended by itself, or at one of the stops."""
        self._cut = False  # at one of the stops: what is not shown by then never is
        self._starts: list[int] = []
        self._end = 0

    def add(self, ids: Sequence[int], longest: int) -> str:
        """What more can be shown now; `longest` is how many tokens the reply may have."""
        for token in ids:
            # In this order: a reply as long as it may be is that, whether or not the token after it was drawn.
            if self.stopped or len(self.ids) == longest:
                break
            if token in self._stop_ids:
                self.stopped = True
                break
            self.ids.append(token)
            whole = self._decode(self.ids)
            self._starts.append(self._end)
            self._end = max(self._end, len(_finished(whole)))  # the tokens of one character begin where it does
            found = [at for stop in self._stops if (at := whole.find(stop)) >= 0]
            if found:
                self.stopped = self._cut = True
                self.ids = [t for t, start in zip(self.ids, self._starts, strict=True) if start < min(found)]
                return self._show(whole[: min(found)], last=True)
        whole = self._decode(self.ids)
        return self._show(whole[: len(whole) - self._held_back(whole)])

    def rest(self) -> str:
        """What was held back, now that nothing more comes."""
        return "" if self._cut else self._show(self._decode(self.ids), last=True)

    def _show(self, upto: str, *, last: bool = False) -> str:
        new = upto[len(self.text) :]
        self.text += new
        while self.settled < len(self.ids) and (last or self._starts[self.settled] < len(self.text)):
            self.settled += 1
        return new

    def _held_back(self, whole: str) -> int:
        """Characters at the end that may still change or turn out to begin a stop."""
        finished = _finished(whole)
        unfinished = len(whole) - len(finished)
        return max(unfinished + self._begun(finished), self._begun(whole))

    def _begun(self, text: str) -> int:
        """The longest end of a text that is the beginning of a stop."""
        lengths = ((n, stop) for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)))
        return max((n for n, stop in lengths if text.endswith(stop[:n])), default=0)


def _finished(text: str) -> str:
    """Without a character at the end of which not all bytes are here."""
    return text.rstrip("\ufffd")
