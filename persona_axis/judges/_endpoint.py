"""One endpoint that speaks OpenAI's chat protocol: a request, a bounded number of tries, an answer or one clear error.

One clock runs over a whole try, from the name's look-up to the last byte, and one bound holds its bytes, whatever the
status: a client's own timeouts begin again with every byte that drips in. Nothing is sent elsewhere, so redirects are
an error. The key is in the request's header alone, and is cut out of whatever the endpoint says back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from persona_axis.errors import JudgeError
from persona_axis.judges._cache import Completion

INSTALL = 'pip install "persona-axis[judge]"'
KEY, OPENAI_KEY = "PERSONA_AXIS_JUDGE_API_KEY", "OPENAI_API_KEY"
OPENAI_URL = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
_LARGEST = 1 << 20  # bytes of an answer
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the endpoint asks for
_AGAIN = (408, 409, 429)


@dataclass(frozen=True)
class Bounds:
    """How patient a judge is: seconds for a try, how many tries, seconds before the second (doubled for each after)."""

    timeout: float = 60.0
    tries: int = 4
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and self.tries >= 1 and self.backoff >= 0):
            raise JudgeError(f"a judge needs a timeout above 0, 1 try or more and a backoff of 0 or more, got {self}")


class _Failed(Exception):
    """A try that may be worth another; `after` is the wait that the endpoint asks for, in seconds."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _Said(NamedTuple):
    """What came back: the status, the headers that matter here (None: not there), the body."""

    status: int
    retry_after: str | None
    location: str | None
    body: bytes


@dataclass(frozen=True)
class Endpoint:
    """Where the model is: `url` without a slash at its end. `key` (None: there is none) is never shown."""

    model: str
    url: str
    bounds: Bounds
    key: str | None = field(repr=False)
    trust: Any = field(repr=False)
    """The certificates that are trusted: read once, since they take longer than a request."""

    @classmethod
    def of(cls, model: str, url: str | None, bounds: Bounds) -> Endpoint:
        """The endpoint at `url` (that of OPENAI_BASE_URL, or OpenAI's, without one), the key from the environment.

        PERSONA_AXIS_JUDGE_API_KEY goes to any endpoint, OPENAI_API_KEY only where no url is given: a key is not sent
        to a server it was not made for. Raises `JudgeError`.
        """
        try:
            import httpx
        except ImportError as error:
            raise JudgeError(f"a judge behind an API takes a package that is not installed: {INSTALL}") from error
        where = _url((os.environ.get(OPENAI_URL) or _OPENAI) if url is None else url)
        key = _key(KEY) or (_key(OPENAI_KEY) if url is None else None)
        if key is None and url is None:
            raise JudgeError(f"a judge behind an API needs a key in {KEY} or {OPENAI_KEY}, or a url that needs none")
        try:
            trust = httpx.create_ssl_context()
        except OSError as error:
            raise JudgeError(f"the certificates that a judge's client trusts cannot be read: {error}") from error
        return cls(model, where, bounds, key, trust)

    def complete(self, request: dict[str, Any]) -> Completion:
        """The model's answer. Raises `JudgeError` when the tries are used up, or at once where another cannot help.

        It runs an event loop, and so belongs into a thread that has none.
        """
        why = ""
        for attempt in range(self.bounds.tries):
            try:
                return self._try(request)
            except _Failed as failed:
                why, after = str(failed), failed.after
            if attempt + 1 < self.bounds.tries:
                wait = self.bounds.backoff * 2**attempt * random.uniform(0.75, 1)
                time.sleep(min(max(wait, after or 0.0), _LONGEST_WAIT))
        tries = f"{self.bounds.tries} {'try' if self.bounds.tries == 1 else 'tries'}"
        raise JudgeError(f"judge {self.model!r} did not answer in {tries}: {why}")

    def _try(self, request: dict[str, Any]) -> Completion:
        import httpx

        try:
            said = asyncio.run(self._post(request))
        except TimeoutError:
            raise _Failed(f"no whole answer came within {self.bounds.timeout:g} s") from None
        except httpx.ConnectError as error:
            raise _Failed(f"it cannot be reached: {self._clean(str(error), 300)}") from None
        except httpx.HTTPError as error:
            told = f"{type(error).__name__}: {error}"
            raise _Failed(f"its answer broke off: {self._clean(told, 300)}") from None
        text = said.body.decode(errors="replace")
        if 200 <= said.status < 300:
            if (found := _completion(text)) is None:
                raise _Failed(f"its answer is no chat completion: {self._clean(text, 60)!r}")
            return found
        if 300 <= said.status < 400:
            elsewhere = self._clean(said.location or "nowhere", 300)
            raise JudgeError(
                f"judge {self.model!r} is not at its url, which redirects to {elsewhere!r}: texts go to no url but the "
                "one that was given, so give the right one"
            )
        told = f"status {said.status}, {self._clean(text, 300)}"
        if said.status in _AGAIN or said.status >= 500:
            raise _Failed(told, _seconds(said.retry_after))
        raise JudgeError(f"judge {self.model!r} refuses the request: {told}")

    async def _post(self, request: dict[str, Any]) -> _Said:
        """Raises `TimeoutError`, `_Failed` and what httpx raises."""
        import httpx

        # Compressed bytes would say little of how many they become.
        headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {self.key}"} if self.key else {})}
        body = bytearray()
        async with (
            asyncio.timeout(self.bounds.timeout),
            httpx.AsyncClient(verify=self.trust, timeout=None, headers=headers) as client,
            client.stream("POST", f"{self.url}/chat/completions", json=request) as answer,
        ):
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > _LARGEST:
                    raise _Failed(f"its answer is longer than {_LARGEST} bytes")
        return _Said(answer.status_code, answer.headers.get("retry-after"), answer.headers.get("location"), bytes(body))

    def _clean(self, text: str, longest: int) -> str:
        """The text without the key, as it is and as JSON writes it, and cut only then: a part of a key is one too."""
        if self.key:
            quoted = json.dumps(self.key)[1:-1]
            for form in (quoted.replace("/", "\\/"), quoted, self.key):
                text = text.replace(form, "***")
        return text[:longest]


def _url(given: str) -> str:
    """The url, checked. It is not shown where it is refused, since there may be a key in it."""
    import httpx

    such = JudgeError(f"the judge's url must be such as http://127.0.0.1:8000/v1 (--judge-url, {OPENAI_URL})")
    try:
        parts = urlsplit(given)
        _ = httpx.URL(given), parts.port  # the one refuses what the other passes over
    except (ValueError, TypeError, AttributeError, httpx.InvalidURL):
        raise such from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise such
    if parts.username or parts.password or parts.query or parts.fragment:
        raise JudgeError(f"the judge's url must hold no key, name or query: give the key in {KEY}")
    return given.rstrip("/")


def _key(name: str) -> str | None:
    """The key in the environment's `name`, without the line break of the file that it was read from."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(f"the key in {name} holds a character that no key has, such as a line break: set it anew")
    return key or None


def _seconds(retry_after: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        seconds = float(retry_after or "")
        return seconds if 0 <= seconds < float("inf") else None
    return None


def _completion(text: str) -> Completion | None:
    """The first choice's text, "" where the model said nothing (a refusal, a tool call); None: no completion."""
    try:
        found = json.loads(text)
        said = found["choices"][0]["message"]["content"]
        usage = found.get("usage") or {}
        counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if not (said is None or isinstance(said, str)) or not all(type(count) is int for count in counts):
        return None
    return Completion(said or "", *counts)
