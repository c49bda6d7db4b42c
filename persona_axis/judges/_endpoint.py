"""One endpoint that speaks OpenAI's chat protocol: a request, a bounded number of tries, an answer or one clear error.

The body is read here and not by the client, because a body that comes drop by drop, is cut or is no JSON needs the same
bounds as a refused connection. The key is in the client alone, and is cut out of whatever the endpoint says back.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from persona_axis.errors import JudgeError
from persona_axis.judges._cache import Completion

INSTALL = 'pip install "persona-axis[judge]"'
KEY, OPENAI_KEY = "PERSONA_AXIS_JUDGE_API_KEY", "OPENAI_API_KEY"
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


@dataclass(frozen=True)
class Endpoint:
    """Where the model is. `client` holds the key and is never shown."""

    model: str
    bounds: Bounds
    client: Any = field(repr=False)
    key: str = field(repr=False)

    @classmethod
    def of(cls, model: str, url: str | None, bounds: Bounds) -> Endpoint:
        """The endpoint at `url` (OpenAI's own, or OPENAI_BASE_URL, without one), the key taken from the environment.

        PERSONA_AXIS_JUDGE_API_KEY goes to any endpoint, OPENAI_API_KEY only where no url is given: a key is not sent
        to a server it was not made for. Raises `JudgeError`.
        """
        try:
            import openai
        except ImportError as error:
            raise JudgeError(f"a judge behind an API takes a package that is not installed: {INSTALL}") from error
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise JudgeError("the judge's url must be such as http://127.0.0.1:8000/v1")
            if parts.username or parts.password or parts.query:
                raise JudgeError(f"the judge's url must hold no key, name or query: give the key in {KEY}")
        key = os.environ.get(KEY) or (os.environ.get(OPENAI_KEY) if url is None else None)
        if not key and url is None:
            raise JudgeError(f"a judge behind an API needs a key in {KEY} or {OPENAI_KEY}, or a url that needs none")
        key = key or "none"
        try:
            client = openai.OpenAI(api_key=key, base_url=url, max_retries=0, timeout=bounds.timeout)
        except Exception as error:
            raise JudgeError(f"the judge's client cannot be made: {_without(key, str(error))}") from None
        return cls(model, bounds, client, key)

    def complete(self, request: dict[str, Any]) -> Completion:
        """The model's answer. Raises `JudgeError` when the tries are used up, or at once where another cannot help."""
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
        import openai

        ends = time.monotonic() + self.bounds.timeout
        body = bytearray()
        try:
            with self.client.chat.completions.with_streaming_response.create(**request) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _LARGEST:
                        raise _Failed(f"its answer is longer than {_LARGEST} bytes")
                    if time.monotonic() > ends:
                        raise _Failed(f"its answer took longer than {self.bounds.timeout:g} s")
        except _Failed:
            raise
        except openai.APIStatusError as error:
            said = f"status {error.status_code}, {self._clean(error)}"
            if error.status_code in _AGAIN or error.status_code >= 500:
                raise _Failed(said, _retry_after(error.response.headers)) from None
            raise JudgeError(f"judge {self.model!r} refuses the request: {said}") from None
        except openai.APITimeoutError:
            raise _Failed(f"nothing came within {self.bounds.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _Failed(f"it cannot be reached: {self._clean(error.__cause__ or error)}") from None
        except Exception as error:
            # The client passes on what its transport raises while a body is read, whichever transport that is.
            if not type(error).__module__.startswith(("httpx", "httpcore", "h11")):
                raise
            raise _Failed(f"its answer broke off: {self._clean(error)}") from None
        return _completion(bytes(body))

    def _clean(self, error: BaseException) -> str:
        return _without(self.key, f"{type(error).__name__}: {error}")[:300]


def _without(key: str, text: str) -> str:
    return text if key == "none" else text.replace(key, "***")


def _retry_after(headers: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        seconds = float(headers.get("retry-after"))
        return seconds if 0 <= seconds < float("inf") else None
    return None


def _completion(body: bytes) -> Completion:
    """The first choice's text, "" where the model said nothing (a refusal, a tool call)."""
    try:
        found = json.loads(body)
        said = found["choices"][0]["message"]["content"]
        usage = found.get("usage") or {}
        counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Failed(f"its answer is no chat completion: {body[:60]!r}") from None
    if not (said is None or isinstance(said, str)) or not all(type(count) is int for count in counts):
        raise _Failed(f"its answer is no chat completion: {body[:60]!r}")
    return Completion(said or "", *counts)
