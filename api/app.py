"""The HTTP application: `create_app(settings)`. Nothing is built at import."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from api import problems
from api.auth import Gate
from api.jobs import JobRunner, Outcome
from api.logs import SERVER
from api.metrics import Metrics
from api.middleware import Edge
from api.routes import collections, docs, erasures, health, jobs, notes, receipts, search
from api.schemas import Problem
from api.settings import Settings
from api.state import State
from api.wiring import build_served
from api.withdrawals import RawNote

TIDY_S = 5.0
"""How often collections are let go of that are gone; whoever asks for one that is learns it at once."""


def create_app(settings: Settings) -> FastAPI:
    """Return the application over the home folder of these settings.

    Raises:
        ArgumentError: the address is reachable from other machines and there is no key.
    """
    gate = Gate(settings)
    gate.check_start()
    state = _build(settings, gate)
    # FastAPI's own telemetry would record messages of exceptions and can be switched on from the environment: all off.
    silent = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
    app = FastAPI(
        title="clinrag",
        summary="Search and ask clinical notes in many languages; every answer points to characters of a note.",
        version=metadata.version("clinrag"),
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect to the address without the last slash is made of the Host header and the scheme that the server
        # sees: behind a proxy that speaks TLS it would send notes and the key once more in clear.
        redirect_slashes=False,
        telemetry=silent,  # type: ignore[arg-type]
        responses={422: {"model": Problem, "description": "Refused"}, "default": {"model": Problem}},
    )
    app.state.clinrag = state
    for resource in (collections, notes, erasures, receipts, jobs, search, health, docs):
        app.include_router(resource.router)
    problems.install(app)
    _describe_problems(app)
    app.add_middleware(Edge, settings=settings, gate=gate, metrics=state.metrics)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Name the media type of errors in the OpenAPI document, where FastAPI knows models as plain JSON only."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        for operations in document["paths"].values():
            for operation in operations.values():
                for status in ("422", "default"):
                    content = operation["responses"].get(status, {}).get("content", {})
                    if "application/json" in content:
                        content[problems.MEDIA_TYPE] = content.pop("application/json")
        return document

    app.openapi = described  # type: ignore[method-assign]


def _build(settings: Settings, gate: Gate) -> State:
    service, workers = build_served(settings)
    metrics = Metrics()

    def index(
        name: str, notes: Sequence[RawNote], report: Callable[[Outcome], None], stopping: threading.Event
    ) -> Outcome:
        outcome = service.index_posted(name, notes, report, stopping)
        metrics.indexed(outcome.stored, outcome.skipped, len(outcome.rejected))
        return outcome

    runner = JobRunner(settings.home, index, settings.max_queued_jobs)
    metrics.watch(lambda: runner.waiting, lambda: sum(worker.waiting for worker in workers))
    posts = threading.BoundedSemaphore(settings.max_concurrent_posts)
    answers = threading.BoundedSemaphore(settings.max_concurrent_answers)
    return State(settings, service, workers, gate, metrics, runner, posts, answers)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.clinrag
    resumed = state.jobs.start()
    SERVER.info("started", extra={"fields": {"jobs_resumed": resumed, "loopback": state.settings.loopback}})
    if not state.settings.loopback:
        SERVER.warning("without TLS: keys and notes go in clear unless a proxy in front speaks it")
    threading.Thread(target=_warm, args=(state,), name="clinrag-warm", daemon=True).start()
    tidying = asyncio.create_task(_tidy(state))
    try:
        yield
    finally:
        tidying.cancel()
        # Requests are answered by now. The running batch is finished; jobs behind it wait on disk for the next start.
        state.jobs.stop()
        for worker in state.workers:
            worker.close()
        state.service.close()
        SERVER.info("stopped")


async def _tidy(state: State) -> None:
    while True:
        await asyncio.sleep(TIDY_S)
        await run_in_threadpool(state.service.let_go)


def _warm(state: State) -> None:
    """Open the collections and load their encoders, so that the first query does not pay for it."""
    try:
        for name in state.service.library.names():
            try:
                state.service.encoder(state.service.collection(name).encoder_name)
            except Exception as error:
                SERVER.warning("collection not ready", extra={"fields": {"error": type(error).__name__}})
    finally:
        state.warm.set()
