"""What of a conversation is read at once: all of it where it fits into the model's context, else windows of it.

A window begins with the system prompt and then, if one is near enough, with a message of the user. Every message is
read in one window only; what has been read before it, as far as half of the context holds it, comes along as history.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from persona_axis.errors import DriftError, ModelError
from persona_axis.model.layout import text_config
from persona_axis.model.turns import Span

if TYPE_CHECKING:
    from persona_axis.chat import ChatModel

OVERFLOWS = ("refuse", "window")
_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")
_NO_LIMIT = 10**9  # tokenizers say "very large" for "unknown"
_BLOCK = 256  # messages whose words are counted together


class Window(NamedTuple):
    """One reading: its token ids, and of each message read in it the place in the conversation and the tokens."""

    ids: list[int]
    messages: list[tuple[int, Span]]
    whole: bool
    """Whether this is the whole conversation."""


def context_limit(chat: ChatModel) -> int | None:
    """How many tokens the model can read at once, as its config or else its tokenizer states; None if neither does."""
    config = text_config(chat.model)
    stated = [getattr(config, name, None) for name in _LENGTHS] + [getattr(chat.tokenizer, "model_max_length", None)]
    return next((int(n) for n in stated if isinstance(n, int | float) and 0 < n < _NO_LIMIT), None)


def windows(
    chat: ChatModel, messages: Sequence[Mapping[str, str]], overflow: str, speakers: Collection[str], where: str
) -> Iterator[Window]:
    """The readings that make up a conversation, each made when it is asked for; `where` names it in errors.

    Raises `DriftError` for one that is longer than the context when `overflow` is "refuse", for a turn that does not
    fit even alone, and for what the template does not take.
    """
    log = _Log(chat, messages, speakers)
    try:
        limit = context_limit(chat)
        tokens = None
        if limit is None or not log.surely_exceeds(limit):
            window = log.window(0, len(log.body), 0)
            tokens = len(window.ids)
            if limit is None or tokens <= limit:
                yield window
                return
        if overflow == "refuse":
            length = f"more than {limit}" if tokens is None else f"{tokens}"
            raise DriftError(
                f"{where} has {length} tokens where the model's context holds {limit}: shorten it, or have it read in "
                'windows (--overflow window, in Python overflow="window")'
            )
        yield from log.windows(limit, where)
    except ModelError as error:
        raise DriftError(f"{where}: {error}") from error


class _Log:
    """A conversation whose parts are encoded on demand. `body` are the messages after the system prompt."""

    def __init__(self, chat: ChatModel, messages: Sequence[Mapping[str, str]], speakers: Collection[str]) -> None:
        self.chat, self.speakers = chat, speakers
        count = int(messages[0]["role"] == "system")
        self.head, self.body = messages[:count], messages[count:]
        self._head_words = sum(len(self._encoded(m["content"])) for m in self.head)
        self._words: list[int] = []
        self._around = 0.0  # tokens that the template writes around a message, as last seen

    def surely_exceeds(self, limit: int) -> bool:
        """Whether the words alone are too many; looks no further than it needs to."""
        total = 0
        for i, message in enumerate(self.body):
            # Words in their place may be fewer by a token at each end than words alone, but are not nothing.
            total += max(1, self._count(i) - 2) if message["content"].strip() else 0
            if total > limit:
                return True
        return False

    def windows(self, limit: int, where: str) -> Iterator[Window]:
        """The readings of a conversation that is longer than `limit`."""
        first = 0
        while first < len(self.body):
            for start in self._starts(first, limit // 2 - self._head_words):
                end = self._furthest(start, first + 1, limit)
                if end is not None:
                    break
            else:
                turn = 1 + sum(m["role"] == "assistant" for m in self.body[:first])
                raise DriftError(
                    f"{where}, turn {turn}: the {self.body[first]['role']}'s message with the one before it does not "
                    f"fit into the model's context of {limit} tokens"
                )
            end = self._before_a_reply(start, first, end, limit)
            yield self.window(start, end, first)
            first = end

    def window(self, start: int, end: int, first: int) -> Window:
        """`body[start:end]` encoded, of which the messages from `first` on are read."""
        shown = [*self.head, *self.body[start:end]]
        ids, ranges = self.chat.encode_messages(shown, self.speakers)
        offset = len(self.head)
        places = [i if i < offset else start + i for i in range(len(shown))]
        own = [first == 0 if i < offset else place - offset >= first for i, place in enumerate(places)]
        found = zip(places, ranges, shown, own, strict=True)
        read = [(place, span) for place, span, m, mine in found if mine and m["role"] in self.speakers]
        return Window(ids, read, start == 0 and end == len(self.body))

    def _furthest(self, start: int, least: int, limit: int) -> int | None:
        """The end of the longest window from `start` that fits, `least` or later; None where not even that does."""
        low, high = None, len(self.body) + 1  # low fits, high does not
        end = max(least, self._forward(start, limit - self._head_words, high - 1))
        while True:
            tokens = self._length(start, end)
            if tokens <= limit:
                low, following = end, self._forward(end, limit - tokens, high - 1)
                if following == end:
                    return end
            else:
                high, following = end, end
                excess = float(tokens - limit)
                while excess > 0 and following > least:
                    following -= 1
                    excess -= self._size(following)
                if low is not None and following <= low:
                    return low
                if high == least:
                    return None
            end = following

    def _before_a_reply(self, start: int, first: int, end: int, limit: int) -> int:
        """The window's end, moved back to a message of the user: templates write earlier turns otherwise than last."""
        if end == len(self.body):
            return end
        asked = next((e for e in range(end, first, -1) if self.body[e - 1]["role"] == "user"), end)
        return asked if asked == end or self._length(start, asked) <= limit else end

    def _starts(self, first: int, room: float) -> list[int]:
        """Where the window that reads on from `first` may begin, best first.

        With the earliest message of the user that leaves `room` tokens or fewer before `first`; else with the last one
        however far; else, amid many messages of one speaker, with any that has room.
        """
        asked = range(min(first, len(self.body) - 1), -1, -1)
        question = next((i for i in asked if self.body[i]["role"] == "user"), first)
        begin = earliest = first
        used = 0.0
        for i in range(first - 1, -1, -1):
            used += self._size(i)
            if used > room:
                break
            earliest = i
            if self.body[i]["role"] == "user":
                begin = i
        history = begin if self.body[begin]["role"] == "user" else question
        return list(dict.fromkeys([history, question, min(earliest, max(first - 1, 0))]))

    def _length(self, start: int, end: int) -> int:
        shown = [*self.head, *self.body[start:end]]
        tokens = len(self.chat.encode(shown, generation_prompt=False))
        words = self._head_words + sum(self._count(i) for i in range(start, end))
        self._around = max(0.0, (tokens - words) / len(shown))
        return tokens

    def _forward(self, end: int, room: float, top: int) -> int:
        while end < top and (room := room - self._size(end)) >= 0:
            end += 1
        return end

    def _size(self, i: int) -> float:
        return self._count(i) + self._around

    def _count(self, i: int) -> int:
        """Tokens of the words of `body[i]`, without thinking."""
        while i >= len(self._words):
            block = self.body[len(self._words) : len(self._words) + _BLOCK]
            words = self.chat.template.reply_in
            said = [words(m["content"]) if m["role"] == "assistant" else m["content"] for m in block]
            self._words += map(len, self._encoded(said))
        return self._words[i]

    def _encoded(self, texts: Any) -> Any:
        return self.chat.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
