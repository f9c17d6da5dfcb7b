"""The endpoints for health and metrics: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from mosec_asgi.batching.engine import StageStatistics
from mosec_asgi.web.whole import Whole


class Health:
    """The endpoints that probes and Prometheus call."""

    def __init__(self, whole: Whole) -> None:
        """Bind to a service."""
        self._whole = whole

    async def livez(self, request: Request) -> Response:
        """Answer 200 as long as the event loop runs."""
        return PlainTextResponse("ok")

    async def readyz(self, request: Request) -> Response:
        """Answer 200 when every stage has a worker, else 503 with the stages that have none, or are being loaded."""
        now = await self._whole.statistics()
        if now.away:
            return JSONResponse({"status": "no engine", "stages": {}}, status_code=503)
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
        body, content_type = await self._whole.metrics(request.headers.get("accept", ""))
        if not content_type:
            return PlainTextResponse(body.decode(), status_code=503)
        return Response(body, headers={"content-type": content_type})


def _progress(stage: StageStatistics) -> str:
    """Return how far a stage has come that starts for the first time."""
    ready = f"{stage.ready} of {stage.workers} workers are ready"
    loading = [worker.seconds for worker in stage.places if worker.state == "starting"]
    return f"{ready}; loading for {max(loading):.1f} s" if loading else ready
