"""Runs the application under uvicorn until a signal says stop."""

from __future__ import annotations

import signal
import socket

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.connections import PatientProtocol
from api.logs import SERVER, set_up
from api.settings import Settings
from indexer.errors import ArgumentError
from indexer.store.background import serve_evenly


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are answered and the running batch is finished first.

    Raises:
        ArgumentError: the address cannot be listened on, or needs keys that are not there.
    """
    serve_evenly()
    app = create_app(settings)
    listening = listen(settings.host, settings.port)
    set_up(settings.log_level)
    SERVER.info("listening", extra={"fields": {"host": settings.host, "port": listening.getsockname()[1]}})
    # uvicorn raises the signal again once it has shut down; a stop that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    uvicorn.Server(configured(app)).run(sockets=[listening])


def configured(app: FastAPI) -> uvicorn.Config:
    """Return how the application is served."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        limit_concurrency=512,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ArgumentError: the address is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ArgumentError(
            "host and port", f"{host}:{port} cannot be listened on ({reason}); choose others"
        ) from error
