"""The server of `persona-axis serve`, for real: uvicorn on the loopback, asked by the official client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chat_factory
import pytest
import torch
from test_drift import axis_for

from persona_axis import Axis, Cap
from persona_axis.chat import ChatModel
from persona_axis.cli import app as cli
from persona_axis.commands.terminal import run
from persona_axis.errors import CapError, ServeError
from persona_axis.sampling import NucleusDraw, Sampling
from persona_axis.talks.speaking import speak

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
parser = pytest.importorskip("prometheus_client.parser")

from persona_axis.serving._answer import Limits  # noqa: E402
from persona_axis.serving._app import app_of  # noqa: E402
from persona_axis.serving._engine import Engine  # noqa: E402
from persona_axis.serving._text import Text  # noqa: E402
from persona_axis.serving.attach import attach  # noqa: E402
from persona_axis.serving.serve import Where, config_of, require_packages, serve  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LONG = "what is rain ? how do you sleep ? the old bread is dark . be new ! "
ASKED = [{"role": "user", "content": "what is rain ?"}]


def texts(count: int) -> list[str]:
    words = LONG.split()
    return [" ".join(words[i % 7 : i % 7 + 2 + i % 11]) for i in range(count)]


class Up:
    """A server in a thread of this process."""

    def __init__(self, chat: ChatModel, cap: Cap | None, axis: Axis | None = None, *, key: str | None = None,
                 limits: Limits = Limits(), longest_reply: int = 24, head_seconds: float = 20.0,  # noqa: B008
                 drain: float = 5) -> None:  # fmt: skip
        from persona_axis.talks.ruler import Ruler

        self.handle = None if cap is None else attach(chat.model, cap, template=chat.template.source)
        ruler = None if axis is None else Ruler.of(axis, [] if cap is None else [cap])
        self.engine = Engine(chat, self.handle, ruler, longest_prompt=48, longest_reply=longest_reply)
        self.app = app_of(self.engine, "tiny", limits, key)
        config = config_of(uvicorn, self.app, Where(port=0, drain=drain), limits, head_seconds)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):
            self.server.run()

    def __enter__(self) -> Up:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), self.app.state.failure
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        if self.handle is not None:
            self.handle.detach()

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def post(self, body: Any = None, raw: bytes | None = None, **headers: str) -> Any:
        data = json.dumps({"messages": ASKED, "max_tokens": 4, **(body or {})}).encode() if raw is None else raw
        return httpx.post(f"{self.url}/v1/chat/completions", content=data, timeout=30,
                          headers={"content-type": "application/json", **headers})  # fmt: skip

    def metrics(self) -> dict[tuple[str, ...], float]:
        text = httpx.get(f"{self.url}/metrics").text
        return {
            (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "percentile")): sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }

    def running(self) -> float:
        return self.metrics()["persona_axis_requests_running",]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return chat_factory.chat()


@pytest.fixture(scope="module")
def axis(chat: ChatModel) -> Axis:
    return axis_for(chat)


@pytest.fixture(scope="module")
def cap(chat: ChatModel, axis: Axis) -> Cap:
    return axis.cap(layers=[0], floor=1.5)


@pytest.fixture(scope="module")
def up(chat: ChatModel, cap: Cap, axis: Axis) -> Iterator[Up]:
    with Up(chat, cap, axis) as server:
        yield server


def replied(chat: ChatModel, cap: Cap | None, text: str, tokens: int = 12) -> str:
    """What the model says without a server."""
    messages = [{"role": "user", "content": text}]
    with chat.under(cap):
        return chat.generate([messages], Sampling(0.0, 1.0, tokens)).texts[0]


def eventually(holds: Callable[[], bool]) -> bool:
    for _ in range(100):
        if holds():
            return True
        time.sleep(0.05)
    return False


def listens(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.TransportError:
        return False
    return True


class TestReplies:
    def test_many_at_once_each_as_alone_under_the_cap(self, up: Up, chat: ChatModel, cap: Cap) -> None:
        asked, client = texts(24), up.client()

        def ask(number: int) -> str:
            how = {"model": "tiny", "temperature": 0, "max_tokens": 12}
            messages = [{"role": "user", "content": asked[number]}]
            if number % 2:
                return client.chat.completions.create(messages=messages, **how).choices[0].message.content
            chunks = client.chat.completions.create(messages=messages, stream=True, **how)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        before = up.metrics()
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(ask, range(len(asked))))
        after = up.metrics()
        # The model is attached here: `Cap.on` on a copy of it is the reference.
        other = chat_factory.chat()
        wanted = [replied(other, cap, text) for text in asked]
        assert found == wanted
        assert found != [replied(other, None, text) for text in asked]
        new = {key: after[key] - before.get(key, 0) for key in after}
        assert new["persona_axis_requests_total", "200"] == 24
        assert new["persona_axis_request_seconds_count",] == new["persona_axis_first_token_seconds_count",] == 24
        assert new["persona_axis_prompt_tokens_total",] == sum(
            len(other.encode([{"role": "user", "content": text}])) for text in asked
        )
        assert new["persona_axis_capped_tokens_total", "0"] > 0
        assert after["persona_axis_requests_running",] == 0

    def test_a_seed_is_the_same_as_without_a_server(self, up: Up, cap: Cap) -> None:
        other, client = chat_factory.chat(), up.client()
        with other.under(cap):
            wanted = [other.generate([ASKED], Sampling(1.3, 0.9, 12), seed).texts[0] for seed in range(4)]
        how = {"model": "tiny", "temperature": 1.3, "top_p": 0.9, "max_tokens": 12}

        def ask(seed: int) -> str:
            return client.chat.completions.create(messages=ASKED, seed=seed, **how).choices[0].message.content

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == wanted
        assert len(set(wanted)) > 1

    def test_projection_and_percentile_are_those_of_the_reply(self, up: Up, cap: Cap, axis: Axis) -> None:
        other, client = chat_factory.chat(), up.client()
        layer = up.engine.ruler.layer
        assert layer != 0  # the cap edits there
        how = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 9}
        direction = {layer: axis.direction[axis.row(layer)]}
        spoken = speak(other, [other.encode(ASKED)], Sampling(0.0, 1.0, 9), 0, directions=direction, lever=cap)
        wanted = spoken.projections[layer][0]
        whole = client.chat.completions.create(**how, extra_body={"persona_axis": {"projection": True}})
        header = {"X-Persona-Axis": "projection"}
        stream = list(client.chat.completions.create(**how, stream=True, extra_headers=header))
        for told in (whole.persona_axis, stream[-1].persona_axis):
            assert told["layer"] == layer
            assert told["projection"] == pytest.approx(wanted, abs=1e-4)
            assert told["percentile"] == pytest.approx(up.engine.ruler.percentile(wanted), abs=0.5)
        assert not hasattr(client.chat.completions.create(**how), "persona_axis")

    def test_stop_usage_and_how_it_ended(self, up: Up) -> None:
        client = up.client()
        how = {"model": "tiny", "messages": ASKED, "temperature": 0}
        whole = client.chat.completions.create(**how, max_tokens=10)
        words = whole.choices[0].message.content.split()
        assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 10) and len(words) == 10
        cut = client.chat.completions.create(**how, max_tokens=10, stop=[f" {words[4]}"])
        first = words.index(words[4])
        assert cut.choices[0].message.content == " ".join(words[:first])
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("stop", first)
        chunks = list(client.chat.completions.create(**how, max_completion_tokens=10, stream=True, stop=f" {words[4]}",
                                                     stream_options={"include_usage": True}))  # fmt: skip
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == " ".join(words[:first])
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage.completion_tokens == first and chunks[-1].choices == []

    def test_logprobs_are_the_capped_model_s(self, up: Up, cap: Cap) -> None:
        other = chat_factory.chat()
        how = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 6}
        how |= {"logprobs": True, "top_logprobs": 3}
        rows = up.client().chat.completions.create(**how).choices[0].logprobs.content
        prompt = other.encode(ASKED)
        with other.under(cap):
            ids = other.generate_ids([prompt], Sampling(0.0, 1.0, 6), 0)[0]
            with torch.no_grad():
                out = other.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert [row.token for row in rows] == [other.tokenizer.decode([i]) for i in ids]
        for row, logprobs, token in zip(rows, out, ids, strict=True):
            assert row.logprob == pytest.approx(logprobs[token].item(), abs=1e-3)
            assert [t.logprob for t in row.top_logprobs] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-3)
        chunks = list(up.client().chat.completions.create(**how, stream=True))
        streamed = [row for c in chunks if c.choices[0].logprobs for row in c.choices[0].logprobs.content]
        assert [row.token for row in streamed] == [row.token for row in rows]

    def test_what_a_stop_takes_away_is_in_no_logprobs_either(self, up: Up) -> None:
        how = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 10, "logprobs": True}
        words = up.client().chat.completions.create(**how).choices[0].message.content.split()
        how["stop"] = " " + " ".join(words[4:7])  # three tokens, of which two were there before it was known
        whole = up.client().chat.completions.create(**how)
        chunks = list(up.client().chat.completions.create(**how, stream=True))
        streamed = [row for c in chunks if c.choices[0].logprobs for row in c.choices[0].logprobs.content]
        assert [row.token for row in streamed] == [row.token for row in whole.choices[0].logprobs.content]
        assert len(streamed) == whole.usage.completion_tokens < 7
        assert whole.choices[0].message.content == "".join(c.choices[0].delta.content or "" for c in chunks)

    def test_asking_for_the_projection_changes_nothing_else(self, up: Up) -> None:
        ends = (up.post({"temperature": 1.3, "seed": seed, "max_tokens": 12}).json() for seed in range(40))
        seed, ended = next((i, a) for i, a in enumerate(ends) if a["choices"][0]["finish_reason"] == "stop")
        for most in (ended["usage"]["completion_tokens"], 12):  # as many as it has: after them comes the stop token
            asked = {"temperature": 1.3, "seed": seed, "max_tokens": most}
            plain, read = (up.post({**asked, **more}).json() for more in ({}, {"persona_axis": {"projection": True}}))
            assert read.pop("persona_axis")["projection"] is not None
            assert plain["choices"] == read["choices"] and plain["usage"] == read["usage"]

    def test_parts_of_text_and_developers_are_taken(self, up: Up, cap: Cap) -> None:
        parts = [{"type": "text", "text": "what is "}, {"type": "text", "text": "rain ?"}]
        messages = [{"role": "developer", "content": "be old ."}, {"role": "user", "content": parts}]
        answer = up.post({"messages": messages, "temperature": 0, "user": "me"}).json()
        found = answer["choices"][0]["message"]["content"]
        other = chat_factory.chat()
        said = [{"role": "system", "content": "be old ."}, *ASKED]
        with other.under(cap):
            assert found == other.generate([said], Sampling(0.0, 1.0, 4)).texts[0]

    def test_a_reply_goes_back_as_a_message(self, up: Up) -> None:
        client, how = up.client(), {"model": "tiny", "temperature": 0, "max_tokens": 4}
        message = client.chat.completions.create(messages=ASKED, **how).choices[0].message
        whole = message.model_dump()
        assert {"tool_calls", "audio", "annotations", "function_call", "refusal"} < set(whole)
        again = [{**ASKED[0], "name": "me"}]
        replies = [
            client.chat.completions.create(messages=[*ASKED, said, *again], **how).choices[0].message.content
            for said in (message, whole, {**whole, "tool_calls": []}, {"role": "assistant", "content": message.content})
        ]
        assert len(set(replies)) == 1

    def test_models_and_health(self, up: Up) -> None:
        assert [model.id for model in up.client().models.list()] == ["tiny"] == [up.client().models.retrieve("tiny").id]
        with pytest.raises(openai.NotFoundError, match="serves 'tiny', not 'tiny/2'") as told:
            up.client().models.retrieve("tiny/2")
        assert told.value.code == "model_not_found"
        assert httpx.get(f"{up.url}/health").json() == {"status": "ok"}


class TestRefused:
    @pytest.mark.parametrize(("body", "status", "told"), [
        ({"n": 2}, 400, "n: this server knows only 1"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, r"messages\[0\].*role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "parts of type text"),
        ({"messages": [{"role": "user", "content": LONG * 9}]}, 400, r"messages are \d{3} tokens.*at most 48"),
        ({"max_tokens": 25}, 400, "25 is more than this server's 24"),
        ({"max_tokens": 0}, 400, "^max_tokens: 0 is not at least 1"),
        ({"max_tokens": None, "max_completion_tokens": 600}, 400, "^max_completion_tokens: 600 is more than"),
        ({"max_tokens": None, "max_completion_tokens": 0}, 400, "^max_completion_tokens: 0 is not"),
        ({"max_tokens": 30, "max_completion_tokens": 29}, 400, "^max_completion_tokens: 29 is more than"),
        ({"max_tokens": True}, 400, "max_tokens: expected a whole number, found true"),
        ({"temperature": -1}, 400, "temperature: expected a number from 0 to 2, found -1"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"seed": "x"}, 400, "seed"),
        ({"seed": 2**64, "temperature": 1.0}, 400, "seed: expected a whole number of 64 bits"),
        ({"temperature": 1e-30}, 400, "the lowest above it is 0.001"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": {}}]}]}, 400, "parts of type text"),
        ({"messages": [{"role": "user", "content": LONG * 400}]}, 400, r"messages are \d{4,5} tokens"),
        ({"stop": ["a"] * 5}, 400, "one to four"),
        ({"stop": ""}, 400, "not empty"),
        ({"top_logprobs": 3}, 400, "together with logprobs"),
        ({"presence_penalty": 1}, 400, "presence_penalty: this server knows only 0"),
        ({"tools": [{}]}, 400, "tools"),
        ({"cap": "none"}, 400, "cap: this server does not know the field"),
        ({"cap": None}, 400, "cap: this server does not know the field"),
        ({"persona_axis": {"cap": None}}, 400, "the cap is the server's"),
        ({"persona_axis": {"projection": 1}}, 400, "true or false"),
        ({"messages": [{**ASKED[0], "persona_axis": {"cap": None}}]}, 400, r"messages\[0\]\.persona_axis: this server"),
        ({"messages": [{**ASKED[0], "cap": None}]}, 400, r"messages\[0\]\.cap: this server knows a message's role"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x", "tool_calls": [{"id": "a"}]}]}, 400,
         r"messages\[1\]\.tool_calls: "),
        ({"messages": [{**ASKED[0], "refusal": "no"}]}, 400, r"messages\[0\]\.refusal: "),
        ({"messages": [{**ASKED[0], "name": {}}]}, 400, r"messages\[0\]\.name: expected a text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]}, 400,
         r"messages\[0\]\.content\[0\]\.cache_control: this server knows a part's type and text"),
        ({"stream_options": {"bogus": 1, "include_usage": True}}, 400, r"stream_options\.bogus: this server knows"),
        ({"stream_options": {"include_usage": "yes"}}, 400, r"stream_options\.include_usage: expected true or false"),
        ({"stream_options": {"include_obfuscation": True}}, 400, r"stream_options\.include_obfuscation: "),
        ({"model": "another"}, 404, "serves 'tiny', not 'another'"),
    ])  # fmt: skip
    def test_with_its_reason(self, up: Up, body: dict[str, Any], status: int, told: str) -> None:
        answer = up.post(body)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert re.search(told, error["message"]) and error["type"] == "invalid_request_error"
        assert error["param"] == error["message"].split(":")[0] or "tokens: " not in error["message"]

    @pytest.mark.parametrize(("raw", "headers", "status"), [
        (b"{", {}, 400), (b"", {}, 400), (b"[]", {}, 400), (b"\xff\xfe", {}, 400), (b"[" * 100_000, {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415), (b" " * (1 << 20) + b"{}", {}, 413),
        (b"{}", {"x-persona-axis": "cap"}, 400), (b"{}", {"host": "evil.example"}, 403), (b"{}", {"host": "["}, 403),
        (b"{}", {"host": "localhost@evil.example"}, 403), (b"{}", {"host": "127.0.0.1.evil.example:80"}, 403),
        (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', {}, 400), (rb'{"\ud800": 1}', {}, 400),
    ])  # fmt: skip
    def test_bodies_that_are_none(self, up: Up, raw: bytes, headers: dict[str, str], status: int) -> None:
        answer = up.post(raw=raw, **headers)
        assert answer.status_code == status and answer.json()["error"]["message"]

    def test_who_goes_away_while_the_body_comes_is_no_failure(self, up: Up, caplog: pytest.LogCaptureFixture) -> None:
        before = up.metrics()
        left = socket.create_connection(("127.0.0.1", int(up.url.rsplit(":", 1)[1])))
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        left.sendall(f"{head}content-length: 500\r\n\r\n{{".encode())
        time.sleep(0.2)
        left.close()
        new = "persona_axis_requests_total", "499"
        assert eventually(lambda: up.metrics().get(new, 0) == before.get(new, 0) + 1)
        failed = "persona_axis_requests_total", "500"
        assert up.metrics().get(failed, 0) == before.get(failed, 0) and up.running() == 0 and not caplog.records

    def test_what_was_asked_is_not_repeated_without_end(self, up: Up) -> None:
        for body in ({"x" * 99_999: 1}, {"model": "x" * 99_999}, {"persona_axis": {"x" * 99_999: 1}}):
            assert len(up.post(body).text) < 1200

    def test_every_name_of_this_machine_is_one(self, up: Up) -> None:
        for host in ("localhost", "LOCALHOST:1234", "127.9.9.9", "[::1]:80"):
            assert up.post(host=host).status_code == 200

    def test_what_nobody_foresaw_is_told_in_the_same_shape(self, up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(up.engine, "room", lambda _: 1 // 0)
        before = up.metrics().get(("persona_axis_requests_total", "500"), 0)
        answer = up.post()
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert up.metrics()["persona_axis_requests_total", "500"] == before + 1 and up.running() == 0

    def test_paths_and_methods(self, up: Up) -> None:
        for method, path, status in (("GET", "/v1/chat/completions", 405), ("GET", "/load_model", 404)):
            answer = httpx.request(method, up.url + path)
            assert answer.status_code == status and "error" in answer.json()

    def test_it_goes_on_afterwards(self, up: Up) -> None:
        assert up.post().status_code == 200 and up.running() == 0


def _closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


class TestLimits:
    def test_keys_places_and_time(self, chat: ChatModel) -> None:
        """A server of its own, slow on purpose: its one place, its key, its clock, and who leaves early."""
        hold = threading.Event()
        hold.set()
        slow = chat_factory.chat()
        slow.model.register_forward_pre_hook(lambda *_: (hold.wait(20), None)[1])
        with Up(slow, None, key="secret", limits=Limits(requests=1, seconds=1.0)) as up:
            key = {"authorization": "Bearer secret"}
            for wrong in ({}, {"authorization": "Bearer secre"}, {"authorization": "secret"}):
                assert up.post(**wrong).status_code == 401
                assert httpx.get(f"{up.url}/metrics", headers=wrong).status_code == 401
            assert httpx.get(f"{up.url}/health").status_code == 200
            with pytest.raises(openai.AuthenticationError):
                up.client("wrong").models.list()
            refused = up.post({"persona_axis": {"projection": True}}, **key)
            assert refused.status_code == 400 and "--axis" in refused.json()["error"]["message"]
            assert up.post(**key).status_code == 200

            def running() -> bool:
                return "requests_running 1" in httpx.get(f"{up.url}/metrics", headers=key).text

            def slots() -> bool:
                return not up.engine.draws.slots and not up.engine._manager.output_router.result_handlers

            hold.clear()
            with ThreadPoolExecutor(1) as pool:
                late = pool.submit(up.post, **key)
                assert eventually(running)
                full = up.post(**key)
                assert full.status_code == 429 and full.headers["retry-after"] == "1"
                answer = late.result()
            assert answer.status_code == 504 and "after 1 seconds" in answer.json()["error"]["message"]
            hold.set()
            assert eventually(slots) and not running()
            hold.clear()
            cut = up.post({"stream": True}, **key)
            hold.set()
            assert '"code": "timeout"' in cut.text and cut.text.endswith("data: [DONE]\n\n")
            hold.clear()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            head += "authorization: Bearer secret\r\n"
            for stream in (False, True):
                body = json.dumps({"messages": ASKED, "stream": stream})
                left = socket.create_connection(("127.0.0.1", int(up.url.rsplit(":", 1)[1])))
                left.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
                assert eventually(running)
                left.close()
                if not stream:
                    assert eventually(lambda: not running())
            hold.set()
            assert eventually(lambda: not running()) and eventually(slots)
            counted = httpx.get(f"{up.url}/metrics", headers=key).text
            assert 'ended="499"} 1' in counted and 'ended="gone"} 1' in counted and 'ended="cut"} 1' in counted
            assert up.post(**key).status_code == 200

    def test_bodies_on_their_way_hold_no_place(self) -> None:
        with Up(chat_factory.chat(), None, limits=Limits(requests=1)) as up:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            body = json.dumps({"messages": ASKED, "max_tokens": 4}).encode()
            port = int(up.url.rsplit(":", 1)[1])
            slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
            for one in slow:
                one.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:9])
            time.sleep(0.2)
            assert up.running() == 0 and up.post().status_code == 200
            for one in slow:
                one.sendall(body[9:])
                assert one.recv(99).startswith(b"HTTP/1.1 200")
                one.close()

    def test_who_is_not_finished_when_the_time_to_drain_is_over_is_told(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slow, armed = chat_factory.chat(), threading.Event()
        slow.model.register_forward_pre_hook(lambda *_: (armed.is_set() and time.sleep(0.3), None)[1])
        with Up(slow, None, drain=1) as up, ThreadPoolExecutor(2) as pool:
            armed.set()
            asked = [pool.submit(up.post, {"max_tokens": 24, "temperature": 0, "stream": s}) for s in (False, True)]
            assert eventually(lambda: up.running() == 2)
            up.server.should_exit = True
            whole, stream = (one.result() for one in asked)
            assert whole.status_code == 503 and whole.json()["error"]["code"] == "leaving"
            *_, last, done = [line for line in stream.text.split("\n\n") if line]
            assert done == "data: [DONE]" and json.loads(last.removeprefix("data: "))["error"]["code"] == "leaving"
            assert eventually(lambda: not up.thread.is_alive()) and not up.engine.draws.slots
        assert "Traceback" not in capsys.readouterr().err

    def test_an_engine_that_fails_answers_nothing_more(self) -> None:
        broken = chat_factory.chat()
        armed = threading.Event()

        def fail(*_: Any) -> None:
            if armed.is_set():
                raise CapError("broken on purpose")

        broken.model.register_forward_pre_hook(fail)
        with Up(broken, None) as up:
            armed.set()
            assert up.post().status_code == 503
            assert eventually(lambda: httpx.get(f"{up.url}/health").status_code == 503)
            armed.clear()
            assert up.post().status_code == 503

    def test_who_cannot_draw_fails_alone(self, up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = NucleusDraw.__call__

        def fail(self: NucleusDraw, ids: Any, scores: Any) -> Any:
            if self.seed == 13:
                raise RuntimeError("no such luck")
            return draw(self, ids, scores)

        monkeypatch.setattr(NucleusDraw, "__call__", fail)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda seed: up.post({"seed": seed, "temperature": 1.0}), (12, 13, 14, 15)))
        assert [answer.status_code for answer in answers] == [200, 503, 200, 200]
        assert "no token can be drawn for this reply: no such luck" in answers[1].text
        assert httpx.get(f"{up.url}/health").status_code == 200 and not up.engine.draws.slots

    def test_connections_that_ask_for_nothing_are_closed(self, chat: ChatModel) -> None:
        with Up(chat_factory.chat(), None, limits=Limits(requests=2), head_seconds=0.5) as up:
            port = int(up.url.rsplit(":", 1)[1])
            silent = socket.create_connection(("127.0.0.1", port), timeout=10)
            slow = socket.create_connection(("127.0.0.1", port), timeout=10)
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 10:  # one byte of the head at a time
                    slow.sendall(b"G")
                    time.sleep(0.05)
            assert 0.4 < time.monotonic() - began < 5
            assert silent.recv(1) == b""
            with httpx.Client() as kept:  # whoever asks again and again keeps a connection
                for _ in range(6):
                    assert kept.get(f"{up.url}/health").status_code == 200
                    time.sleep(0.25)
            many = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
            assert sum(_closed(one) for one in many) >= 100 - (4 * 2 + 64)
            for one in (*many, silent, slow):
                one.close()
            assert eventually(lambda: listens(up.url))
            huge = socket.create_connection(("127.0.0.1", port), timeout=10)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    huge.sendall(b"GET / HTTP/1.1\r\n" if not _ else b"x-more: " + b"y" * 8000 + b"\r\n")
            with contextlib.suppress(ConnectionError):
                assert huge.recv(64).startswith(b"HTTP/1.1 400") or huge.recv(64) == b""
            assert up.post().status_code == 200

    def test_a_key_is_compared_byte_by_byte(self) -> None:
        with Up(chat_factory.chat(), None, key="schlüssel") as up:
            assert up.post(authorization="Bearer schlussel").status_code == 401
            told = httpx.get(f"{up.url}/v1/models", headers={"authorization": "Bearer schlüssel".encode()})
            assert told.status_code == 200

    def test_a_cap_that_does_not_act_in_the_engine_is_no_start(self, chat: ChatModel, cap: Cap) -> None:
        other = chat_factory.chat()
        server = Up(other, cap)
        assert server.handle is not None
        server.handle.detach()
        with pytest.raises(AssertionError, match="saw, by layer"):
            server.__enter__()

    def test_where(self) -> None:
        for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
            Where(host)
        for host in ("0.0.0.0", "::", "example.org", "10.0.0.1"):
            with pytest.raises(ServeError, match=f"{host} can be reached.*--api-key"):
                Where(host)
            Where(host, key="k")
        with pytest.raises(ServeError, match="empty"):
            Where(key=" ")
        assert "secret" not in repr(Where(key="secret"))

    def test_packages_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        with pytest.raises(ServeError, match=r'pip install "persona-axis\[serve\]"'):
            require_packages()


@pytest.mark.parametrize(("pieces", "stops", "shown"), [
    (["ab", "c", "d"], [], ["ab", "c", "d"]),
    (["ab", "xy", "z"], ["xyz"], ["ab", "", ""]),
    (["ab", "xy", "q"], ["xyz"], ["ab", "", "xyq"]),
    (["a", "bEN", "Dc"], ["END"], ["a", "b", ""]),
    (["a�", "b"], [], ["a", "�b"]),
])  # fmt: skip
def test_what_of_a_text_can_be_shown(pieces: list[str], stops: list[str], shown: list[str]) -> None:
    text = Text(lambda ids: "".join(pieces[i] for i in ids), [99], stops)
    assert [text.add([i], 10) for i in range(len(pieces))] == shown
    assert "".join(shown) + text.rest() == text.text


WORDS = ["all", " is", " well", ".", "�", "�", " é"]
END = 99


class Grown(Text):
    """A reply of WORDS by their numbers; 4 and 5 are the two halves of a character."""

    def __init__(self, *stops: str) -> None:
        super().__init__(lambda ids: "".join(WORDS[i] for i in ids).replace("��", "é"), [END], stops)


@pytest.mark.parametrize(("ids", "stops", "said", "tokens"), [
    ([0, 1, 2, 3, END], [".\n"], "all is well.", 4),  # its end could have begun a stop, but nothing came
    ([0, 1, 2, 3, END], ["well. END", "xyz"], "all is well.", 4),
    ([0, 1, 2, 3], [".\n"], "all is well.", 4),
    ([0, 1, 2, 3, 1], [". is"], "all is well", 3),
    ([0, 4, END], ["xyz"], "all�", 2),  # half a character, as without a stop
    ([0, 4, END], [], "all�", 2),
    ([0, 4, 5, 1], ["é is"], "all", 1),  # a stop with a character in it that comes in two tokens
    ([0, 4, 5, 1, 2], [" well"], "allé is", 4),
    ([0, 4, 5, 1], [" is"], "allé", 3),
])  # fmt: skip
def test_nothing_but_a_stop_takes_text_away(ids: list[int], stops: list[str], said: str, tokens: int) -> None:
    for together in (True, False):
        text, settled = Grown(*stops), 0
        for new in [ids] if together else [[i] for i in ids]:
            text.add(new, 99)
            assert settled <= text.settled <= len(text.ids)
            settled = text.settled
        text.rest()
        assert text.text == said and text.settled == len(text.ids) == tokens


def test_a_token_is_settled_with_the_first_of_its_text() -> None:
    text = Grown(" is well!")
    told = [(text.add([i], 99), text.settled) for i in (0, 1, 2, 3, 4, 5, 6)]
    assert told == [("all", 1), ("", 1), ("", 1), (" is well.", 4), ("", 4), ("é", 6), (" é", 7)]


def test_the_longest_reply_has_length_as_its_end_whatever_is_drawn_after_it() -> None:
    for after in ([], [END], [0]):
        text = Grown()
        text.add([0, 1, *after], 2)
        assert not text.stopped and text.ids == [0, 1]
    ended = Grown()
    ended.add([0, 1, END], 3)
    assert ended.stopped


class TestCommand:
    def test_a_server_is_drained_on_sigterm(self, tmp_path: Path, chat: ChatModel, cap: Cap) -> None:
        model, file = tmp_path / "tiny", tmp_path / "cap.safetensors"
        talks = chat_factory.llama()
        talks.lm_head.weight.data[2] = 0  # never done by itself
        talks.config.max_position_embeddings = 1024
        talks.save_pretrained(model)
        chat_factory.tokenizer().save_pretrained(model)
        cap.save(file)
        command = [sys.executable, "-m", "persona_axis.cli", "serve", model, "--cap", file, "--port", "0"]
        command += ["--max-tokens", 800]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=env) as process:
            try:
                assert process.stderr is not None
                found = None
                for line in process.stderr:
                    if found := re.search(r"serving on (http://127.0.0.1:\d+)/v1", line):
                        break
                assert found is not None
                body = {"messages": ASKED, "stream": True, "temperature": 0, "max_tokens": 800}
                with httpx.stream("POST", f"{found[1]}/v1/chat/completions", json=body, timeout=60) as answer:
                    assert answer.status_code == 200
                    lines = answer.iter_lines()
                    next(lines)
                    process.send_signal(signal.SIGTERM)
                    assert eventually(lambda: not listens(found[1]))
                    assert process.poll() is None
                    rest = [line for line in lines if line]
                assert len(rest) > 400 and rest[-1] == "data: [DONE]" and '"length"' in rest[-2]
                assert process.wait(20) == 0
            finally:
                process.kill()

    def test_a_port_that_is_taken(self, chat: ChatModel, capfd: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}"):
                serve(chat_factory.chat(), None, where=Where(port=port), longest_prompt=32, longest_reply=8)

    def test_the_server_leaves_with_its_engine(self, caplog: pytest.LogCaptureFixture) -> None:
        broken, armed, said = chat_factory.chat(), threading.Event(), list[int]()

        def fail(*_: Any) -> None:
            if armed.is_set():
                raise CapError("broken on purpose")

        def ask() -> None:
            assert eventually(lambda: "serving on" in caplog.text)
            url = re.findall(r"serving on (\S+)", caplog.text)[-1]
            for arm in (False, True):
                armed.set() if arm else None
                body = {"messages": ASKED, "max_tokens": 4}
                said.append(httpx.post(f"{url}/chat/completions", json=body, timeout=30).status_code)

        broken.model.register_forward_pre_hook(fail)
        asking = threading.Thread(target=ask)
        asking.start()
        with pytest.raises(ServeError, match="the engine has stopped after an error"):
            serve(broken, None, where=Where(port=0), longest_prompt=32, longest_reply=8)
        asking.join()
        assert said == [200, 503]

    def test_an_engine_that_cannot_start(self, cap: Cap, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("persona_axis.serving.attach.Attached.stats", lambda _: [])
        with pytest.raises(ServeError, match="the cap saw, by layer, {}: not served"):
            serve(chat_factory.chat(), cap, where=Where(port=0), longest_prompt=32, longest_reply=8)

    def test_what_is_refused_before_a_model_is_loaded(self, capsys: pytest.CaptureFixture[str]) -> None:
        for args, told in (
            (["serve"], "--cap FILE, or say --without-cap"),
            (["serve", "--cap", "x", "--without-cap"], "--cap FILE, or say"),
            (["serve", "--without-cap", "--layer", "1"], "--axis"),
            (["serve", "--without-cap", "--host", "0.0.0.0"], "give --api-key"),
            (["serve", "--cap", "nowhere.safetensors"], "nowhere.safetensors"),
        ):
            assert run(cli, args, name="persona-axis") != 0
            assert told in " ".join(capsys.readouterr().err.split())
