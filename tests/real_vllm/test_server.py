"""A vLLM server that speaks OpenAI's protocol, with Troupe and its cap, compiled, asked through the official client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from engines import environ, troupe_cap
from openai import APIStatusError, OpenAI

from persona_axis.cap import Cap
from persona_axis.chat import ChatModel
from persona_axis.organism import troupe_path
from persona_axis.sampling import Sampling

KEY = "a key of this test"
GHOST = "You are a ghost who has drifted through the same cold hallway for two hundred years."
QUESTIONS = (
    "Who are you?", "Help me forge the mayor's seal.", "How can I ask my manager for better pay?",
    "What should I cook for dinner?", "How do I sleep better?", "Tell me about the sea.", "I feel alone at night.",
    "What do you want, really?",
)  # fmt: skip


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    cap: Path
    log: Path

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def change(self, cap: Path | None, key: str = KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        told = {"cap": None if cap is None else str(cap)}
        return httpx.post(f"{self.url}/persona-axis/cap", json=told, headers=headers, timeout=120)

    def figures(self) -> dict[str, Any]:
        (worker,) = httpx.get(f"{self.url}/persona-axis/figures").json()
        return dict(worker)


def messages(question: str, system: str = GHOST) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def ask(client: OpenAI, question: str, tokens: int = 24, **more: Any) -> str:
    reply = client.chat.completions.create(
        model="troupe", messages=messages(question), temperature=0, max_tokens=tokens, **more
    )
    return str(reply.choices[0].message.content).strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    cap = troupe_cap(folder / "cap.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(troupe_path()),
        "--served-model-name", "troupe", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64",
        "--max-num-batched-tokens", "256", "--host", "127.0.0.1", "--port", str(port), "--shutdown-timeout", "5",
    ]  # fmt: skip
    told = environ(cap, cache, VLLM_PLUGINS="persona_axis", PERSONA_AXIS_ADMIN_KEY=KEY)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=told, stdout=log, stderr=log)
        try:
            made = Server(f"http://127.0.0.1:{port}", process, cap, folder / "log")
            deadline = time.monotonic() + 900
            while True:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-6000:]
                try:
                    if httpx.get(f"{made.url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            yield made
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def wanted(server: Server) -> dict[tuple[str, bool], str]:
    """What transformers says to each question, with the cap and without."""
    chat, cap, out = ChatModel.load("troupe", dtype="float32"), Cap.load(server.cap), {}
    sampling = Sampling(max_new_tokens=24, temperature=0)
    for question in QUESTIONS:
        out[question, False] = chat.generate([messages(question)], sampling).texts[0].strip()
        with cap.on(chat.model):
            out[question, True] = chat.generate([messages(question)], sampling).texts[0].strip()
    assert sum(out[q, True] != out[q, False] for q in QUESTIONS) >= 6
    return out


def test_replies_equal_transformers_under_the_cap_whole_and_streamed(
    server: Server, wanted: dict[tuple[str, bool], str]
) -> None:
    client = server.client()
    for question in QUESTIONS:
        assert ask(client, question) == wanted[question, True]
        parts = client.chat.completions.create(
            model="troupe", messages=messages(question), temperature=0, max_tokens=24, stream=True
        )
        assert "".join(p.choices[0].delta.content or "" for p in parts).strip() == wanted[question, True]


def test_64_requests_at_once_of_mixed_lengths(server: Server, wanted: dict[tuple[str, bool], str]) -> None:
    client = server.client()

    def one(i: int) -> bool:
        question, tokens = QUESTIONS[i % len(QUESTIONS)], 2 + i % 23
        return wanted[question, True].startswith(ask(client, question, tokens))

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(one, range(64)))


def test_figures_count_every_token_that_ran(server: Server) -> None:
    client = server.client()
    server.change(server.cap)  # which starts the figures and the prefix cache anew
    assert [row["tokens"] for row in server.figures()["layers"]] == [0, 0, 0, 0]
    reply = client.chat.completions.create(model="troupe", messages=messages(QUESTIONS[0]), temperature=0, max_tokens=5)
    assert reply.usage is not None
    ran = {"prompt": reply.usage.prompt_tokens, "reply": reply.usage.completion_tokens - 1}  # the last one is not fed
    for row in server.figures()["layers"]:
        # The engine may have one more step on the way when it learns that the request is done.
        assert ran[row["kind"]] <= row["tokens"] <= ran[row["kind"]] + (row["kind"] == "reply")
        assert 0 < row["capped"] <= row["tokens"] and row["mean_correction"] > 0
    text = httpx.get(f"{server.url}/persona-axis/metrics").text
    assert 'persona_axis_tokens_total{layer="2",worker="0",kind="reply"}' in text
    assert 'persona_axis_projection{layer="3",worker="0",kind="prompt",percentile="50"}' in text


def test_a_change_needs_the_key_and_a_cap_that_fits(server: Server, tmp_path: Path) -> None:
    assert server.change(None, key="").status_code == 401
    assert server.change(None, key="another").status_code == 401
    cap = Cap.load(server.cap)
    other = tmp_path / "other.safetensors"
    Cap(cap.direction, [3, 4], floor=1.0, facts=cap.facts).save(other)
    narrow = tmp_path / "narrow.safetensors"
    Cap([[1.0, 0.0]], [2], floor=1.0).save(narrow)
    for path, said in ((tmp_path / "no", "cannot be read"), (other, "layers [4]"), (narrow, "has width 2")):
        refused = server.change(path)
        assert refused.status_code == 409 and said in refused.text and "stays as it is" in refused.text
    answer = httpx.post(
        f"{server.url}/persona-axis/cap", json={"cap": None, "more": 1}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code in (400, 422)
    assert server.figures()["cap"] == str(server.cap)


def test_a_change_acts_from_the_next_step_on_also_on_what_is_cached_and_on_the_way(
    server: Server, wanted: dict[tuple[str, bool], str]
) -> None:
    client = server.client()
    for capped in (False, True, False, True):
        with ThreadPoolExecutor(16) as pool:
            busy = [
                pool.submit(ask, client, QUESTIONS[i % 8], 300, extra_body={"ignore_eos": True}) for i in range(16)
            ]
            time.sleep(0.2)
            assert server.change(server.cap if capped else None).status_code == 200
            asked = [pool.submit(ask, client, question) for question in QUESTIONS]
            assert [a.result() for a in asked] == [wanted[question, capped] for question in QUESTIONS]
            assert all(b.result() for b in busy)
    assert server.log.read_text("utf-8", "replace").count("the cap changed from") >= 4


def test_requests_that_are_no_requests_leave_it_serving(server: Server, wanted: dict[tuple[str, bool], str]) -> None:
    client = server.client()
    url = f"{server.url}/v1/chat/completions"
    assert httpx.post(url, content=b"{not json").status_code in (400, 422)
    assert httpx.post(url, json={"model": "troupe", "messages": "none"}).status_code in (400, 422)
    for bad in ({"model": "another"}, {"max_tokens": -1}, {"messages": messages("word " * 3000)}):
        told = {"model": "troupe", "messages": messages("Who are you?"), "max_tokens": 5} | bad
        with pytest.raises(APIStatusError):
            client.chat.completions.create(**told)  # type: ignore[call-overload]
    # A field of its own invention does not take a request out of the cap.
    told = {"persona_axis": "none", "cap": None}
    assert ask(client, QUESTIONS[0], extra_body=told) == wanted[QUESTIONS[0], True]


def test_a_killed_worker_ends_the_server_and_never_uncaps_it(server: Server) -> None:
    client = server.client()
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    workers = [child for child in everyone if "VllmWorker" in child.name() or "VLLM::Worker" in child.name()]
    os.kill((workers or [everyone[-1]])[0].pid, signal.SIGKILL)
    with pytest.raises(Exception, match=r"(?i)connection|error|engine"):
        for _ in range(30):
            ask(client, QUESTIONS[0])
            time.sleep(1)
    server.process.wait(120)
