"""A connection has to be worth its place: one on which no request comes in time is closed."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, where a client has ``head_s`` seconds to send the head of its next request.

    uvicorn itself waits for ever for the first one, and for the rest of one that was begun: as many silent clients as
    there are places for connections would lock out all others, with no key at all.
    """

    head_s: ClassVar[float] = 10.0

    _deadline: asyncio.TimerHandle | None = None

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

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget()
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
