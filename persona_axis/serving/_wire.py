"""What goes over the wire: a chat request read from JSON, and the replies as OpenAI's clients expect them.

Everything that a request may say is either done or refused by name: a field that is silently ignored would be a
promise that is not kept.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_axis.serving._draws import Likely

NEUTRAL = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
"""Fields of OpenAI's that say nothing about the reply."""
_DEFAULTS = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "tools": [],
             "response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "none"}  # fmt: skip
_COLDEST = 1e-3  # logits divided by less leave float32
_LONGEST = 500  # characters of what was asked that an error repeats
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refused(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message, param = str(self)[:_LONGEST], self.param and self.param[:_LONGEST]
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


@dataclass(frozen=True)
class Wanted:
    """A chat request."""

    messages: list[dict[str, str]]
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    with_usage: bool
    projection: bool


def wanted(body: Any, model: str, header: str | None) -> Wanted:
    """The request in a parsed body; `header` is that of `X-Persona-Axis`. Raises `Refused`."""
    if not isinstance(body, dict):
        raise Refused(400, f"the body is a JSON {_kind(body)}, not an object")
    given = {key: value for key, value in body.items() if value is not None}
    take = _Fields(given)
    if (named := take("model", model, str, "a string")) != model:
        raise Refused(404, f"this server serves {model!r}, not {named!r}", param="model", code="model_not_found")
    for name, only in _DEFAULTS.items():
        if take(name, only) != only:
            raise Refused(400, f"{name}: this server knows only {json.dumps(only)}", param=name)
    for name in NEUTRAL:
        take(name, None)
    messages = _messages(take("messages", None))
    limits = [take(name, None, int, "a whole number") for name in ("max_tokens", "max_completion_tokens")]
    longest = min((limit for limit in limits if limit is not None), default=None)
    if longest is not None and longest < 1:
        raise Refused(400, f"max_tokens: {longest} is not at least 1", param="max_tokens")
    stop = take("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else (None,)
    if len(stops) > 4 or not all(isinstance(text, str) and text for text in stops):
        raise Refused(400, "stop: expected one to four texts that are not empty", param="stop")
    logprobs = take("logprobs", False, bool, "true or false")
    top = take("top_logprobs", 0, int, "a whole number")
    if not 0 <= top <= 20 or (top and not logprobs):
        raise Refused(400, "top_logprobs: expected 0 to 20, together with logprobs", param="top_logprobs")
    seed = take("seed", None, int, "a whole number")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise Refused(400, "seed: expected a whole number of 64 bits", param="seed")
    temperature = take.number("temperature", 1.0, 0.0, 2.0)
    if 0 < temperature < _COLDEST:
        raise Refused(400, f"temperature: 0 is greedy, the lowest above it is {_COLDEST:g}", param="temperature")
    options = take("stream_options", {}, dict, "an object")
    result = Wanted(
        messages, longest, temperature=temperature, top_p=take.number("top_p", 1.0, 1e-9, 1.0), seed=seed,
        stop=stops, top_logprobs=top if logprobs else None,
        stream=take("stream", False, bool, "true or false"), with_usage=options.get("include_usage") is True,
        projection=_asks_projection(take("persona_axis", {}, dict, "an object"), header),
    )  # fmt: skip
    if left := sorted(set(body) - take.taken):  # also where it says null: a cap of null is no field of ours
        raise Refused(400, f"{left[0]}: this server does not know the field", param=left[0])
    return result


class _Fields:
    """The fields of a request, each asked for once."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.taken: set[str] = set()

    def __call__(self, name: str, default: Any, kind: type = object, said: str = "") -> Any:
        self.taken.add(name)
        value = self.given.get(name, default)
        # In Python a truth value is a whole number.
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise Refused(400, f"{name}: expected {said}, found {json.dumps(value)[:80]}", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Refused(
                400, f"{name}: expected a number from {low:.3g} to {high:g}, found {json.dumps(value)[:80]}", param=name
            )
        return float(value)


def _messages(given: Any) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages: expected a list with at least one message", param="messages")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(given)]


def _message(where: str, message: Any) -> dict[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise Refused(400, f"{where}: expected an object whose role is one of {', '.join(_ROLES)}", param="messages")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise Refused(400, f"{where}.content: expected a text, or a list of parts of type text", param="messages")
    return {"role": _ROLES[role], "content": content}


def _asks_projection(given: dict[str, Any], header: str | None) -> bool:
    if other := sorted(set(given) - {"projection"}):
        raise Refused(
            400, f"persona_axis.{other[0]}: a request may only ask for its projection; the cap is the server's, and "
            "every request's", param="persona_axis",
        )  # fmt: skip
    asked = given.get("projection", False)
    if not isinstance(asked, bool):
        raise Refused(400, "persona_axis.projection: expected true or false", param="persona_axis")
    if header is not None and header.strip() != "projection":
        raise Refused(400, f"X-Persona-Axis: expected 'projection', found {header[:40]!r}", param="persona_axis")
    return asked or header is not None


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value", type(None): "null"}.get(type(value), "number")


class Replies:
    """Builds the answers to one request."""

    def __init__(self, model: str, token_text: Callable[[int], str]) -> None:
        self.base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.token_text = token_text

    def whole(
        self, text: str, ended: str, usage: tuple[int, int], likely: Sequence[Likely] | None, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The reply that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": ended, "logprobs": self._logprobs(likely)}
        return {
            **self.base, "object": "chat.completion", "choices": [choice], "usage": usage_of(*usage), **extra,
        }  # fmt: skip

    def chunk(
        self, text: str, *, first: bool = False, ended: str | None = None, likely: Sequence[Likely] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A piece of a reply that is streamed."""
        delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
        choice = {"index": 0, "delta": delta, "finish_reason": ended, "logprobs": self._logprobs(likely)}
        return {**self.base, "object": "chat.completion.chunk", "choices": [choice], **(extra or {})}

    def usage_chunk(self, usage: tuple[int, int]) -> dict[str, Any]:
        """The last piece, where the client wanted to know what was used."""
        return {**self.base, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(*usage)}

    def _logprobs(self, likely: Sequence[Likely] | None) -> dict[str, Any] | None:
        if likely is None:
            return None
        rows = [
            {**self._token(one.token, one.logprob), "top_logprobs": [self._token(*pair) for pair in one.top]}
            for one in likely
        ]
        return {"content": rows, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token_text(token)
        # JSON knows no infinity: OpenAI's own floor stands for "never".
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def usage_of(prompt: int, reply: int) -> dict[str, int]:
    """Tokens of a prompt and of its reply, the stop token not counted."""
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


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
