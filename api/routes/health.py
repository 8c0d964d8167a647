"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.auth import READ
from api.codes import Code
from api.problems import problem
from api.state import Shared

# In the loop and not on threads: a server whose threads are all taken is busy, not dead.
router = APIRouter(tags=["health"])

_NOT_READY = Code(503, 1, "not-ready", "The server is starting", 2)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(state: Shared, request: Request) -> dict[str, str] | Response:
    """Say whether collections are open and their encoders loaded."""
    if not state.warm.is_set():
        return problem(_NOT_READY, "encoders are being loaded", request.scope.get("clinrag.request_id"))
    return {"status": "ready"}


@router.get("/metrics", dependencies=[READ], response_class=Response)
async def metrics(state: Shared) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
