"""The endpoints for health and metrics: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from mosec_asgi.batching.engine import Engine
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.observing.exposition import Exposition
from mosec_asgi.observing.metrics import ServiceMetrics


class Health:
    """The endpoints that probes and Prometheus call."""

    def __init__(self, engine: Engine, metrics: ServiceMetrics, custom: CustomMetrics | None = None) -> None:
        self._engine = engine
        self._exposition = Exposition(metrics, engine.statistics, custom)

    async def livez(self, request: Request) -> Response:
        """Answer 200 as long as the event loop runs."""
        return PlainTextResponse("ok")

    async def readyz(self, request: Request) -> Response:
        """Answer 200 when every stage has a worker, else 503 with the stages that have none."""
        now = self._engine.statistics()
        waiting = {
            stage.name: "its workers do not start" if stage.down else "no worker is ready"
            for stage in now.stages
            if stage.ready == 0
        }
        if now.closing:
            return JSONResponse({"status": "shutting down", "stages": waiting}, status_code=503)
        if waiting:
            return JSONResponse({"status": "not ready", "stages": waiting}, status_code=503)
        return JSONResponse({"status": "ready", "stages": {}})

    async def metrics(self, request: Request) -> Response:
        """Show the metrics as Prometheus text, or OpenMetrics where the Accept header asks for it."""
        body, content_type = self._exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})
