"""A language model behind an OpenAI-compatible API as the judge.

    judge = ApiJudge("some-model", url="http://127.0.0.1:8000/v1", cache="verdicts")
    adherence(conversations, judge)
    print(judge.spent)

Verdicts are asked for at temperature 0 in a fixed form, several at once, and kept on disk. An answer in any other form
is counted, is no verdict and is not kept: the next run asks again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_axis.errors import JudgeError
from persona_axis.judges import _prompts
from persona_axis.judges._cache import Cache, key_of
from persona_axis.judges._endpoint import Bounds, Endpoint
from persona_axis.judges.base import Judged
from persona_axis.judges.questions import Question

__all__ = ["ApiJudge", "Bounds", "Spent"]

_LONGEST_ANSWER = 256  # tokens


@dataclass(frozen=True)
class Spent:
    """What a judge took so far. `prices` are in money a million tokens, of prompts and of answers."""

    requests: int = 0
    cached: int = 0
    unparsable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prices: tuple[float, float] | None = None

    @property
    def cost(self) -> float | None:
        """In the money of the prices; None where they are not known. Cached answers cost nothing."""
        if self.prices is None:
            return None
        return (self.prompt_tokens * self.prices[0] + self.completion_tokens * self.prices[1]) / 1e6

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.requests} requests ({self.prompt_tokens} + {self.completion_tokens} tokens{cost}), "
            f"{self.cached} answers from the cache, {self.unparsable} answers that could not be read"
        )


class ApiJudge:
    """Judges rollouts (`Judge`) and answers signals' questions (`SignalJudge`).

    `url` is the endpoint's, OpenAI's own without one. The key comes from the environment only: see `Endpoint.of`.
    `concurrency` requests run at a time. `cache` is a directory (None: nothing is kept). `prices` as in `Spent`.
    `options` are added to every request, and None takes one out: some models refuse a temperature, or call `max_tokens`
    otherwise ({"max_tokens": None, "max_completion_tokens": 2000}). `name` tells all that a verdict
    depends on: model, endpoint, the prompts' version, options. Raises `JudgeError` for an endpoint that cannot be
    asked, and when asking fails: what was answered until then is in the cache.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        concurrency: int = 8,
        bounds: Bounds = Bounds(),  # noqa: B008  frozen
        prices: tuple[float, float] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not model:
            raise JudgeError("a judge behind an API needs the model's name")
        if concurrency < 1:
            raise JudgeError(f"concurrency must be at least 1, got {concurrency}")
        self._options = dict(options or {})
        told = f", {json.dumps(self._options, sort_keys=True)}" if self._options else ""
        self._endpoint = Endpoint.of(model, url, bounds)
        self.name = f"api {model} at {self._endpoint.url}, prompts {_prompts.VERSION}{told}"
        self._cache = None if cache is None else Cache(Path(cache))
        self._concurrency = concurrency
        self._spent = Spent(prices=prices)
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """Requests, tokens, cost and unreadable answers so far."""
        return self._spent

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        return [verdict if isinstance(verdict, int) else None for verdict in self._verdicts(rollouts)]

    def answer(self, questions: Sequence[Question]) -> list[Any]:
        """Verdicts as `SignalJudge` says."""
        return self._verdicts(questions)

    def _verdicts(self, asked: Sequence[_prompts.Asked]) -> list[_prompts.Verdict | None]:
        requests = [self._request(one) for one in asked]
        keys = [key_of({**request, "endpoint": self._endpoint.url}) for request in requests]
        # What is asked twice is asked once.
        wanted = {key: (one, request) for key, one, request in zip(keys, asked, requests, strict=True)}
        found = self._all(wanted)
        verdicts = [found[key] for key in keys]
        self._count(unparsable=sum(verdict is None for verdict in verdicts))
        return verdicts

    def _all(self, wanted: dict[str, tuple[_prompts.Asked, dict[str, Any]]]) -> dict[str, _prompts.Verdict | None]:
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        try:
            running = {pool.submit(self._one, key, *asked): key for key, asked in wanted.items()}
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # the first failure ends the batch: waiting requests are not sent
            return {key: future.result() for future, key in running.items()}
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, key: str, asked: _prompts.Asked, request: dict[str, Any]) -> _prompts.Verdict | None:
        known = None if self._cache is None else self._cache.get(key)
        if known is not None and (verdict := _prompts.verdict(asked, known.text)) is not None:
            self._count(cached=1)
            return verdict
        made = self._endpoint.complete(request)
        self._count(requests=1, prompt_tokens=made.prompt_tokens, completion_tokens=made.completion_tokens)
        verdict = _prompts.verdict(asked, made.text)
        # A bad answer may be bad luck, and may hold anything, the key among it.
        if self._cache is not None and verdict is not None:
            self._cache.put(key, made)
        return verdict

    def _count(self, **more: int) -> None:
        with self._lock:
            self._spent = replace(self._spent, **{name: getattr(self._spent, name) + n for name, n in more.items()})

    def _request(self, asked: _prompts.Asked) -> dict[str, Any]:
        request = {
            "model": self._endpoint.model, "messages": _prompts.messages(asked), "temperature": 0,
            "max_tokens": _LONGEST_ANSWER, **self._options,
        }  # fmt: skip
        return {name: value for name, value in request.items() if value is not None}
