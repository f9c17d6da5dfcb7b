"""The endpoints for health and metrics: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from mosec_asgi.batching.engine import Engine, StageStatistics
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
        """Answer 200 when every stage has a worker, else 503 with the stages that have none, or are being loaded."""
        now = self._engine.statistics()
        if now.loading and not now.closing:
            loading = {stage.name: _progress(stage) for stage in now.stages if stage.ready < stage.workers}
            return JSONResponse({"status": "loading", "stages": loading}, status_code=503)
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


def _progress(stage: StageStatistics) -> str:
    """Return how far a stage has come that starts for the first time."""
    ready = f"{stage.ready} of {stage.workers} workers are ready"
    loading = [worker.seconds for worker in stage.places if worker.state == "starting"]
    return f"{ready}; loading for {max(loading):.1f} s" if loading else ready
