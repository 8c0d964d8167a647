"""Runs the application under uvicorn until a signal says stop; a connection on which no request comes is closed."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.app import create_app
from api.logs import SERVER, set_up
from api.settings import Settings
from indexer.errors import ArgumentError
from indexer.store.background import serve_evenly


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are answered and the running batch is finished first.

    Raises:
        ArgumentError: the address cannot be listened on, or needs keys that are not there.
    """
    # Before uvicorn listens to it, too: a stop that was asked for is no failure, and the first process of a container
    # does not even hear of one. uvicorn raises the signal again once it has shut down.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    _open_many_files()
    serve_evenly()
    app = create_app(settings)
    listening = listen(settings.host, settings.port)
    set_up(settings.log_level)
    SERVER.info("listening", extra={"fields": {"host": settings.host, "port": listening.getsockname()[1]}})
    uvicorn.Server(configured(app)).run(sockets=[listening])


def _open_many_files() -> None:
    """Take as many open files as this user may have: a connection is one, an open collection six and more.

    The limit that holds without asking is 1,024 on most systems.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # There are systems that name a limit which they do not allow.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
        listening = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ArgumentError(
            "host and port", f"{host}:{port} cannot be listened on ({reason}); choose others"
        ) from error
    # Asked of the kernel, its protocol is TCP and not 0: only then does asyncio switch Nagle's delay off. With it, the
    # body of every answer on a connection that is kept waits 40 ms for the client to acknowledge the head.
    return socket.socket(fileno=listening.detach())


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with ``head_s`` seconds to send a request's head, or to take any of an answer.

    uvicorn itself waits for ever for both: as many silent clients as there are places for connections would lock out
    all others, with no key at all.
    """

    head_s: ClassVar[float] = 10.0

    _deadline: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _waiting_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once the head of a request is there; not for each byte of it."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._forget()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, unless it is there already."""
        answered = self.cycle
        super().on_response_complete()
        if self.cycle is answered:
            self._expect()

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what was answered."""
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        """Stop waiting for that."""
        self._forget_taken()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget()
        self._forget_taken()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._forget()
        self._deadline = self.loop.call_later(self.head_s, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
        self._expect_taken()  # it closes when the last answer has left

    def _expect_taken(self) -> None:
        self._forget_taken()
        self._waiting_bytes = self.transport.get_write_buffer_size()
        if self._waiting_bytes:
            self._look = self.loop.call_later(self.head_s, self._see_taken)

    def _forget_taken(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _see_taken(self) -> None:
        if self.transport.get_write_buffer_size() < self._waiting_bytes:
            self._expect_taken()
        else:
            self.transport.abort()
