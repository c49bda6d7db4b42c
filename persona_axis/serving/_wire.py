"""What goes over the wire: a chat request read from JSON, and the replies as OpenAI's clients expect them.

Everything that a request may say is either done or refused by name: a field that is silently ignored would be a
promise that is not kept.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_axis.serving._draws import Likely
from persona_axis.serving._token_bytes import bytes_of

NEUTRAL = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
"""Fields of OpenAI's that say nothing about the reply."""
_DEFAULTS = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "tools": [],
             "response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "none"}  # fmt: skip
_EMPTY = ("refusal", "annotations", "audio", "function_call", "tool_calls")
"""What a reply of OpenAI's client has beside its text, all empty, when it is sent back as a message."""
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


def unknown_model(served: str, named: str) -> Refused:
    """What who asks for another model is told."""
    return Refused(404, f"this server serves {served!r}, not {named!r}", param="model", code="model_not_found")


@dataclass(frozen=True)
class Wanted:
    """A chat request."""

    messages: list[dict[str, str]]
    max_tokens: int | None
    limit: str
    """The field that said so."""
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
        raise unknown_model(model, named)
    for name, only in _DEFAULTS.items():
        if take(name, only) != only:
            raise Refused(400, f"{name}: this server knows only {json.dumps(only)}", param=name)
    for name in NEUTRAL:
        take(name, None)
    messages = _messages(take("messages", None))
    limits = {name: take(name, None, int, "a whole number") for name in ("max_tokens", "max_completion_tokens")}
    longest, limit = min(((n, name) for name, n in limits.items() if n is not None), default=(None, "max_tokens"))
    if longest is not None and longest < 1:
        raise Refused(400, f"{limit}: {longest} is not at least 1", param=limit)
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
    result = Wanted(
        messages, longest, limit, temperature=temperature, top_p=take.number("top_p", 1.0, 1e-9, 1.0), seed=seed,
        stop=stops, top_logprobs=top if logprobs else None,
        stream=take("stream", False, bool, "true or false"),
        with_usage=_asks_usage(take("stream_options", {}, dict, "an object")),
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
    for name in sorted(set(message) - {"role", "content", "name"}):
        if name not in _EMPTY or message[name] not in (None, []):
            told = f"{where}.{name}: this server knows a message's role, content and name"
            raise Refused(400, told, param="messages")
    if not isinstance(message.get("name"), str | None):  # the client's own note: no template gets it
        raise Refused(400, f"{where}.name: expected a text", param="messages")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        for i, part in enumerate(content):
            if other := sorted(set(part) - {"type", "text"}):
                told = f"{where}.content[{i}].{other[0]}: this server knows a part's type and text"
                raise Refused(400, told, param="messages")
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise Refused(400, f"{where}.content: expected a text, or a list of parts of type text", param="messages")
    return {"role": _ROLES[role], "content": content}


def _asks_usage(given: dict[str, Any]) -> bool:
    asked = given.get("include_usage", False)
    if not isinstance(asked, bool):
        raise Refused(400, "stream_options.include_usage: expected true or false", param="stream_options")
    # Padding of a stream against who measures its pieces: there is none here, which only false asks for.
    for name in sorted(set(given) - {"include_usage"}):
        if name != "include_obfuscation" or given[name] is not False:
            raise Refused(400, f"stream_options.{name}: this server knows only include_usage", param="stream_options")
    return asked


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

    def __init__(self, model: str, tokenizer: Any) -> None:
        self.base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.tokenizer = tokenizer

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
        text = str(self.tokenizer.decode([token]))
        # JSON knows no infinity: OpenAI's own floor stands for "never".
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": bytes_of(self.tokenizer, token, text)}


def usage_of(prompt: int, reply: int) -> dict[str, int]:
    """Tokens of a prompt and of its reply, the stop token not counted."""
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
