"""Errors as problem documents (RFC 9457). They name fields and limits, and repeat nothing of what was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from api.auth import may_read
from api.codes import INTERNAL, Code, code_of, field_of, message_of
from api.schemas import OWN_ERRORS, FieldProblem, Problem
from indexer.errors import ArgumentError, ClinragError, HeldError

_PLAIN = re.compile(r"[A-Za-z0-9_]{1,40}\Z")
MEDIA_TYPE = "application/problem+json"
_HELD = "a patient of what was asked for is under legal hold; nothing was changed; GET .../holds tells whose and why"

_HTTP = {
    400: Code(400, 2, "bad-request", "The request cannot be read"),
    401: Code(401, 2, "unauthorized", "A valid key is needed"),
    403: Code(403, 2, "cross-site", "Other pages may not call this server"),
    404: Code(404, 2, "not-found", "There is nothing at this address"),
    405: Code(405, 2, "method-not-allowed", "This address does not take this method"),
    408: Code(408, 2, "too-slow", "The request did not come in time"),
    413: Code(413, 2, "too-large", "The input is over its size limit"),
    415: Code(415, 2, "unsupported-media-type", "Send application/json"),
    421: Code(421, 2, "misdirected", "This server does not answer to that host name"),
    422: Code(422, 2, "bad-argument", "An argument is not of the allowed form"),
}


def problem(code: Code, detail: str, request_id: str | None, errors: Sequence[FieldProblem] | None = None) -> Response:
    """Return the response of a failure."""
    document = Problem(
        type=f"urn:clinrag:problem:{code.slug}",
        title=code.title,
        status=code.status,
        detail=detail,
        request_id=request_id,
        errors=None if errors is None else list(errors),
    )
    headers = {"Cache-Control": "no-store"}
    if code.retry_after_s is not None:
        headers["Retry-After"] = str(code.retry_after_s)
    if code.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="clinrag"'
    content = document.model_dump_json(exclude_none=True)
    return Response(content, status_code=code.status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem document."""
    app.add_exception_handler(ClinragError, _ours)
    app.add_exception_handler(OSError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


def http_problem(status: int, detail: str, request_id: str | None) -> Response:
    """Return the response of a failure that HTTP itself names."""
    return problem(_HTTP.get(status, INTERNAL), detail, request_id)


def _ours(request: Request, error: Exception) -> Response:
    code = code_of(error)
    if code is INTERNAL:
        raise error  # the outermost layer logs where it came from, and answers
    fields = None
    if isinstance(error, ArgumentError):
        fields = [FieldProblem(field=field_of(error), reason=error.reason)]
    detail = message_of(error)
    if isinstance(error, HeldError) and not may_read(request):
        detail = _HELD  # whose hold it is, and why, is for those who may read
    return problem(code, detail, _request_id(request), fields)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP.get(error.status_code, Code(error.status_code, 1, "failed", "The request failed"))
    detail = error.detail if error.status_code in (400, 408, 413) else code.title
    response = problem(code, str(detail), _request_id(request))
    if error.headers and "allow" in {name.lower() for name in error.headers}:
        response.headers["Allow"] = {name.lower(): value for name, value in error.headers.items()}["allow"]
    return response


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if _unread(request, error):
        return http_problem(
            415, "the body was not read: send it with Content-Type: application/json", _request_id(request)
        )
    fields = [FieldProblem(field=_place(found), reason=_reason(found)) for found in error.errors()[:20]]
    names = ", ".join(dict.fromkeys(found.field for found in fields))
    return problem(_HTTP[422], f"not of the allowed form: {names}", _request_id(request), fields)


def _unread(request: Request, error: RequestValidationError) -> bool:
    """Return whether a body was taken for no JSON, because its header says another type or none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    whole = any(found["loc"] == ("body",) and found["type"] != "missing" for found in error.errors())
    return whole and not is_json


def _place(found: Mapping[str, Any]) -> str:
    """Return ``scope.from`` for ``("body", "scope", "from")``. A name that no model has is the caller's, not ours."""
    if found["type"] == "json_invalid" or len(found["loc"]) == 1:
        return str(found["loc"][0])
    return ".".join(part if _PLAIN.match(part) else "?" for part in map(str, found["loc"][1:]))


def _reason(found: dict[str, Any]) -> str:
    """Return what is wrong. Types are named and values are not: pydantic's own message can repeat the input."""
    kind = str(found["type"])
    if kind in OWN_ERRORS:
        return str(found["msg"])
    context = found.get("ctx", {})
    known = {
        "missing": "is missing",
        "extra_forbidden": "is not a field that this request takes",
        "json_invalid": "is not JSON",
        "literal_error": f"must be one of {context.get('expected', 'the allowed values')}",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "too_long": f"has more than {context.get('max_length')} items",
        "string_too_long": f"has more than {context.get('max_length')} characters",
        "too_short": "is empty",
        "repeated": "is given twice",
        "string_type": "must be a text",
        "list_type": "must be a list",
        "dict_type": "must be an object",
        "model_type": "must be an object",
        "model_attributes_type": "must be an object",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "finite_number": "must be a whole number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
    }
    return known.get(kind, f"is not valid ({kind.replace('_', ' ')})")


def _request_id(request: Request) -> str | None:
    found = request.scope.get("clinrag.request_id")
    return found if isinstance(found, str) else None
