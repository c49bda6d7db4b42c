"""The HTTP routes that a vLLM server gets: what its cap does, and the change of the cap by who may.

    VLLM_PLUGINS=persona_axis PERSONA_AXIS_CAP=cap.safetensors vllm serve MODEL

vLLM adds routes only of plugins that `VLLM_PLUGINS` names.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from argparse import Namespace
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict

from persona_axis.serving.figures import prometheus
from persona_axis.serving.vllm import ADMIN_KEY, NO_CAP

log = logging.getLogger("vllm.persona_axis")


class Change(BaseModel):
    """The body of a change: the path of a cap file on the server, or null for none."""

    model_config = ConfigDict(extra="forbid")
    cap: str | None


class Routes:
    """An endpoint plugin of vLLM (`vllm.plugins.endpoint_plugins.interface`)."""

    name = "persona_axis"
    required_tasks = None

    def __init__(self) -> None:
        self.engine: Any = None
        self.changing = asyncio.Lock()

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        router = APIRouter(prefix="/persona-axis")
        router.add_api_route("/figures", self.figures, methods=["GET"])
        router.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=PlainTextResponse)
        router.add_api_route("/cap", self.change, methods=["POST"])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Keep the way to the engine."""
        self.engine = engine_client

    async def figures(self) -> list[dict[str, Any]]:
        """What each worker's cap did, and which cap it is."""
        told: list[dict[str, Any] | None] = await self._all_workers("persona_axis_figures")
        if None in told:
            raise HTTPException(404, NO_CAP)
        return [worker for worker in told if worker is not None]

    async def metrics(self) -> str:
        """The figures in Prometheus' text format."""
        workers = await self.figures()
        return prometheus([{**layer, "worker": told["worker"]} for told in workers for layer in told["layers"]])

    async def change(self, request: Request, body: Change) -> dict[str, Any]:
        """Change the cap between two steps of the engine; what it has cached under the old one is computed anew."""
        key = os.environ.get(ADMIN_KEY, "")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if not key:
            raise HTTPException(403, f"the cap of this server cannot be changed: it was started without {ADMIN_KEY}")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), key.encode()):
            raise HTTPException(401, "the cap is changed with `Authorization: Bearer` and the server's admin key")
        async with self.changing:
            problems = [told for told in await self._all_workers("persona_axis_check", body.cap) if told]
            if problems:
                raise HTTPException(409, f"the cap stays as it is: {problems[0]}")
            await self.engine.pause_generation(mode="keep", clear_cache=False)
            try:
                changed = await self._all_workers("persona_axis_change", body.cap, key)
                # Requests on the way too: what they have read so far was computed under the old cap.
                if not await self.engine.reset_prefix_cache(reset_running_requests=True):
                    raise HTTPException(503, "the engine did not drop its prefix cache")
            except BaseException:
                log.critical(
                    "persona-axis: the change to %s failed half-way, workers may hold different caps: this server "
                    "stays paused and answers nothing more. Ask for a cap again, or restart it", body.cap,
                )  # fmt: skip
                raise
            await self.engine.resume_generation()
        before = changed[0]["before"]
        log.warning("persona-axis: cap %s in place of %s, asked for by %s", body.cap, before, _who(request))
        return {"before": before, "now": body.cap, "workers": len(changed)}

    async def _all_workers(self, method: str, *args: Any) -> list[Any]:
        if self.engine is None:
            raise HTTPException(404, "this server runs no engine, so it has no cap")
        try:
            return list(await self.engine.collective_rpc(method, args=args))
        except Exception as error:
            # The engine's own text: it names the method that a worker without a cap does not have.
            raise HTTPException(503, f"the engine did not answer {method}: {error}") from error


def _who(request: Request) -> str:
    return request.client.host if request.client else "an unknown address"
