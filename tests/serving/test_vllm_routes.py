"""The routes of a vLLM server, on an engine that does as it is told. The real one is in `tests/real_vllm`."""

from __future__ import annotations

from argparse import Namespace
from asyncio import run
from typing import Any

import pytest

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from persona_axis.serving._vllm_routes import Routes  # noqa: E402
from persona_axis.serving.vllm import ADMIN_KEY, NO_CAP  # noqa: E402

KEY = {"authorization": "Bearer secret"}


class Engine:
    """Two workers; `broken` names the step that fails."""

    def __init__(self) -> None:
        self.broken, self.problem = "", ""
        self.done: list[str] = []
        self.figures: list[Any] = [{"cap": "old", "worker": i, "layers": []} for i in range(2)]

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self._step(method)
        answers: dict[str, Any] = {"persona_axis_check": ["", self.problem], "persona_axis_figures": self.figures}
        return list(answers.get(method, [{"before": "old", "now": args[0] if args else None}] * 2))

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self._step("pause")

    async def resume_generation(self) -> None:
        self._step("resume")

    async def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        self._step("reset")
        return self.broken != "not reset"

    def _step(self, name: str) -> None:
        self.done.append(name.removeprefix("persona_axis_"))
        if name == self.broken:
            raise RuntimeError("broken on purpose")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv(ADMIN_KEY, "secret")
    app, routes = fastapi.FastAPI(), Routes()
    routes.attach_router(app)
    run(routes.init_state(engine, None, Namespace()))
    return TestClient(app, raise_server_exceptions=False)


def test_a_change_is_checked_on_every_worker_made_in_a_pause_and_cached_tokens_go(
    client: TestClient, engine: Engine
) -> None:
    told = client.post("/persona-axis/cap", json={"cap": "new"}, headers=KEY)
    assert told.json() == {"before": "old", "now": "new", "workers": 2}
    assert engine.done == ["check", "pause", "change", "reset", "resume"]


def test_one_worker_that_says_no_changes_nothing(client: TestClient, engine: Engine) -> None:
    engine.problem = "layer 9"
    told = client.post("/persona-axis/cap", json={"cap": "new"}, headers=KEY)
    assert told.status_code == 409 and "stays as it is: layer 9" in told.text and engine.done == ["check"]


@pytest.mark.parametrize("broken", ["persona_axis_change", "reset", "not reset"])
def test_a_change_that_fails_half_way_serves_nothing_until_one_succeeds(
    client: TestClient, engine: Engine, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine.broken = broken
    assert client.post("/persona-axis/cap", json={"cap": "new"}, headers=KEY).status_code >= 500
    assert "resume" not in engine.done and "answers nothing more" in caplog.text
    engine.broken = ""
    assert client.post("/persona-axis/cap", json={"cap": "new"}, headers=KEY).status_code == 200
    assert engine.done[-1] == "resume"


@pytest.mark.parametrize("route", ["figures", "metrics"])
def test_a_server_without_a_cap_says_so(client: TestClient, engine: Engine, route: str) -> None:
    assert client.get(f"/persona-axis/{route}").status_code == 200
    engine.figures = [None, None]
    told = client.get(f"/persona-axis/{route}")
    assert told.status_code == 404 and told.json() == {"detail": NO_CAP}


def test_who_may(client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("", "Bearer secre", "Bearer ", "Bearer", "secret", "Basic secret", "Bearersecret"):
        headers = {"authorization": wrong} if wrong else {}
        assert client.post("/persona-axis/cap", json={"cap": None}, headers=headers).status_code == 401
    monkeypatch.delenv(ADMIN_KEY)
    assert client.post("/persona-axis/cap", json={"cap": None}, headers=KEY).status_code == 403
    assert client.post("/persona-axis/cap", json={"cap": 3}, headers=KEY).status_code == 422
    assert not engine.done
