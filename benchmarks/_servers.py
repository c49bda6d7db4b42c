"""Starts servers on this machine's loopback, and ends them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

ADMIN_KEY = "benchmark"
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Server(NamedTuple):
    """A server that answers."""

    name: str
    url: str
    pid: int
    log: Path

    def memory(self) -> int:
        """Bytes that its processes hold, shared pages counted once for each."""
        parent = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in [parent, *parent.children(recursive=True)])

    def model(self) -> str:
        """What it calls its model."""
        return str(httpx.get(f"{self.url}/v1/models", headers=HEADERS).json()["data"][0]["id"])

    def alive(self) -> bool:
        """Whether it still runs."""
        return psutil.pid_exists(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE


@contextmanager
def vllm(name: str, model: str, cap: Path | None, folder: Path, *more: str) -> Iterator[Server]:
    """vLLM's OpenAI server, compiled, float32, with a cap or without the plugin's having any."""
    command = [
        "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "model",
        "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64", "--max-num-batched-tokens", "512",
        "--disable-uvicorn-access-log", "--shutdown-timeout", "5", *more,
    ]  # fmt: skip
    told = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_PLUGINS": "persona_axis", "PERSONA_AXIS_ADMIN_KEY": ADMIN_KEY}
    if cap is not None:
        told["PERSONA_AXIS_CAP"] = str(cap)
    with _running(name, command, told, folder / f"{name}.log") as server:
        yield server


@contextmanager
def own(name: str, model: str, cap: Path | None, folder: Path, *more: str) -> Iterator[Server]:
    """`persona-axis serve`, with a key."""
    held = ["--cap", str(cap)] if cap else ["--without-cap"]
    command = ["-m", "persona_axis.cli", "serve", model, *held, "--dtype", "float32", *more]
    with _running(name, command, {"PERSONA_AXIS_API_KEY": ADMIN_KEY}, folder / f"{name}.log") as server:
        yield server


@contextmanager
def _running(name: str, command: list[str], told: dict[str, str], log: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PERSONA_AXIS")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
            env=kept | told, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        server = Server(name, f"http://127.0.0.1:{port}", process.pid, log)
        _wait(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{server.name} did not start:\n{server.log.read_text('utf-8', 'replace')[-3000:]}")
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"{server.name} did not answer within 300 s: see {server.log}")
