"""The outermost layer of the server: request ids, the host check, the size limit, the access log, the last catch."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import Gate, bearer
from api.body import measured, most_bytes, too_large
from api.codes import INTERNAL, AccessError, code_of, message_of
from api.keys import KeyScope
from api.logs import ACCESS, SERVER
from api.metrics import Metrics
from api.problems import http_problem, problem
from api.settings import LOOPBACK_HOSTS, Settings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_PROBES = ("/healthz", "/readyz")
_OPEN = (*_PROBES, "/docs", "/openapi.json")
_FOREIGN = ("cross-site", "same-site")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Edge:
    """Wraps the application; everything that leaves passes here, and nothing of a request's content is logged."""

    def __init__(self, app: ASGIApp, settings: Settings, gate: Gate, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._gate = gate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            # What GET answers, without its body: the server below leaves that out, by the method in a scope of its own.
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        scope["clinrag.request_id"] = request_id
        started = time.perf_counter()
        answer: dict[str, int] = {}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                out["X-Content-Type-Options"] = "nosniff"
                out.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            refused = self._refusal(scope["path"], headers, request_id)
            if refused is not None:
                await refused(scope, receive, sending)
            else:
                limit = most_bytes(scope["path"], self._settings.max_body_bytes)
                await self._app(scope, measured(receive, limit, self._settings.body_patience_s), sending)
        except Exception as error:
            SERVER.error("request failed", exc_info=error, extra={"fields": {"request_id": request_id}})
            if "status" in answer:
                raise ConnectionAbortedError("the answer had begun") from None
            code = code_of(error)
            detail = "something went wrong inside; the server's log has the place under this request_id"
            await problem(INTERNAL if code.status == 500 else code, detail, request_id)(scope, receive, sending)
        finally:
            self._say(scope, method, answer.get("status", 499), time.perf_counter() - started)

    def _refusal(self, path: str, headers: Headers, request_id: str) -> ASGIApp | None:
        # A page in a browser can reach a loopback server through a name of its own that resolves to 127.0.0.1; the Host
        # header then holds that name. Beyond loopback names are the operator's business, and a key is needed.
        if self._settings.loopback and _host_name(headers.get("host", "")) not in LOOPBACK_HOSTS:
            return http_problem(421, "use localhost or 127.0.0.1", request_id)
        if _from_another_page(headers) and not path.startswith(_OPEN):
            return http_problem(403, "pages of other sites may not call this server", request_id)
        if not path.startswith(_OPEN):
            # Before the body is read, and for every address: a route that forgets its scope still needs a key.
            try:
                self._gate.admit(bearer(headers), tuple(KeyScope))
            except AccessError as error:
                return problem(code_of(error), message_of(error), request_id)
        try:
            length = int(headers.get("content-length", "0"))
        except ValueError:
            return http_problem(400, "Content-Length is not a number", request_id)
        limit = most_bytes(path, self._settings.max_body_bytes)
        return http_problem(413, too_large(limit), request_id) if length > limit else None

    def _say(self, scope: MutableMapping[str, Any], method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")  # the template: a path holds note ids
        method = method if method in _METHODS else "other"
        self._metrics.request(method, route, status, seconds)
        fields = {
            "request_id": scope["clinrag.request_id"],
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 1),
        }
        if "clinrag.key_id" in scope:
            fields["key"] = scope["clinrag.key_id"]
        # Probes come every few seconds and say nothing; they are there at the level DEBUG.
        level = logging.DEBUG if route in _PROBES else logging.INFO
        ACCESS.log(level, "request", extra={"fields": fields})


def _from_another_page(headers: Headers) -> bool:
    """Return whether a browser says that a page from elsewhere asks, without a key and not by a link.

    Such a page cannot read the answer, but by whether it loads it could find out which notes there are.
    """
    foreign = headers.get("sec-fetch-site") in _FOREIGN and headers.get("sec-fetch-dest") != "document"
    return foreign and "authorization" not in headers


def _host_name(host: str) -> str:
    """Return the name of a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
