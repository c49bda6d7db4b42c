"""What a server counts of its requests, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Seconds:
    """How long something took: a histogram."""

    def __init__(self) -> None:
        self.buckets: Counter[float] = Counter()
        self.count, self.sum = 0, 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.sum += seconds
        self.buckets.update(limit for limit in _SECONDS if seconds <= limit)


class Counters:
    """Requests by how they ended, tokens, and how long they took. Used by the event loop's thread only."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """By HTTP status, or how a stream ended after its status was sent: cut, failed, gone."""
        self.prompt_tokens = self.reply_tokens = 0
        self.running = 0
        self.whole, self.first = Seconds(), Seconds()

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        name = "persona_axis_requests_total"
        yield f"# HELP {name} Chat requests by how they ended."
        yield f"# TYPE {name} counter"
        for ended, times in sorted(self.requests.items()):
            yield f'{name}{{ended="{ended}"}} {times}'
        for name, kind, value, text in (
            ("prompt_tokens_total", "counter", self.prompt_tokens, "Tokens of the prompts that were answered."),
            ("reply_tokens_total", "counter", self.reply_tokens, "Tokens of the replies."),
            ("requests_running", "gauge", self.running, "Chat requests that are waiting or being answered."),
        ):
            yield f"# HELP persona_axis_{name} {text}"
            yield f"# TYPE persona_axis_{name} {kind}"
            yield f"persona_axis_{name} {value}"
        for name, seconds, text in (
            ("request_seconds", self.whole, "From the request to the end of its reply."),
            ("first_token_seconds", self.first, "From the request to the first token of its reply."),
        ):
            yield f"# HELP persona_axis_{name} {text}"
            yield f"# TYPE persona_axis_{name} histogram"
            for limit in _SECONDS:
                yield f'persona_axis_{name}_bucket{{le="{limit:g}"}} {seconds.buckets[limit]}'
            yield f'persona_axis_{name}_bucket{{le="+Inf"}} {seconds.count}'
            yield f"persona_axis_{name}_sum {seconds.sum:.9g}"
            yield f"persona_axis_{name}_count {seconds.count}"
