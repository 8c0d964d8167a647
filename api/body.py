"""What a request brings: a body within its size and time, JSON that has one reading only, no parameter unread."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from indexer.readers.record import RecordError
from indexer.readers.strict_json import load

QUESTION_BYTES = 1024 * 1024
"""What a request may hold that brings no notes, ids or receipts: JSON is taken apart before it can be refused, while
every other request waits."""

MOST_BRACKETS = 1_000_000
"""So many lists and objects a body may begin, in its texts too: they take far more time and memory than their bytes."""

_LARGE = ("/notes", "/erasures", "/receipts/verify")
_SLOWEST_BYTES_S = 64 * 1024
_PLAIN = re.compile(r"[A-Za-z0-9_]{1,40}\Z")


def most_bytes(path: str, max_body_bytes: int) -> int:
    """Return how long the body of a request to this address may be."""
    return max_body_bytes if path.endswith(_LARGE) else min(QUESTION_BYTES, max_body_bytes)


def too_large(limit: int) -> str:
    """Return what is said of a body over its limit."""
    return f"the body is over {limit:,} bytes" + ("; send the notes in smaller requests" * (limit > QUESTION_BYTES))


def measured(receive: Receive, limit: int, patience_s: float) -> Receive:
    """Return a receive that counts bytes and time: a chunked body has no length to look at, a slow one no end.

    A body has ``patience_s``, and a second more for each 64 KiB that came.
    """
    seen, more = 0, True
    started = asyncio.get_running_loop().time()

    async def counted() -> Message:
        nonlocal seen, more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout_at(started + patience_s + seen / _SLOWEST_BYTES_S):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not come in time") from None
        seen += len(message.get("body", b""))
        more = message.get("more_body", False)
        if seen > limit:
            raise HTTPException(413, too_large(limit))
        return message

    return counted


class _StrictRequest(Request):
    """A request whose JSON names no key twice and holds no NaN: what one parser sees, every parser sees."""

    async def json(self) -> Any:
        """Return the value of the body."""
        body = await self.body()
        if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
            raise HTTPException(413, f"the body holds over {MOST_BRACKETS:,} brackets; send it in smaller requests")
        try:
            return load(body)
        except RecordError as error:
            named = f" names {error.field}, which" if _PLAIN.match(error.field) else ""
            raise HTTPException(400, f"the body{named} {error.reason}") from None


class StrictRoute(APIRoute):
    """A route that reads its body so, and refuses what it would not read of the address: no scope, no ``?version``.

    The parameters of a route that takes some are a `Wire` model's, which refuses others itself.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()
        takes_some = bool(self.dependant.query_params)

        async def strict(request: Request) -> Response:
            given = [name for name, _ in request.query_params.multi_items()]
            repeated = len(given) > len(set(given))
            if given and (repeated or not takes_some):
                kind = "repeated" if repeated else "extra_forbidden"
                at_fault = {name for name in given if not repeated or given.count(name) > 1}
                raise RequestValidationError([{"type": kind, "loc": ("query", name)} for name in sorted(at_fault)])
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict
