"""/docs: the operations of /openapi.json on one page that loads nothing from anywhere."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

# No script at all, and no source but the page itself: the policy is what proves it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
code,pre{font-family:ui-monospace,monospace;font-size:13px}pre{background:#f4f5f7;padding:.7rem;overflow:auto}
section{border-top:1px solid #d7dbe0;padding:.6rem 0}h2{font-size:1rem;margin:.4rem 0}b.m{color:#0b5cad}
table{border-collapse:collapse}td,th{text-align:left;padding:.1rem .9rem .1rem 0;vertical-align:top;font-weight:400}
td:first-child{font-family:ui-monospace,monospace;font-size:13px}.q{color:#59636e}
code{overflow-wrap:anywhere}nav ul{list-style:none;padding:0;columns:22rem}section:target{background:#f4f8fd}
"""


@router.get("/docs", response_class=HTMLResponse)
def docs(request: Request) -> HTMLResponse:
    """Return the page."""
    document = request.app.openapi()
    parts = [
        _operation(method, path, operation, document)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    places = "".join(
        f"<li><a href='#{_anchor(method, path)}'>{method.upper()} <code>{escape(path)}</code></a>"
        for path, operations in document["paths"].items()
        for method in operations
    )
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>clinrag API</title><style>{_STYLE}</style><h1>clinrag {escape(document['info']['version'])}</h1>"
        f"<p>{escape(document['info']['summary'])}</p><p>The machine's form of this page is "
        "<a href=openapi.json>openapi.json</a> (OpenAPI 3.1). Once there are keys, send "
        "<code>Authorization: Bearer KEY</code>. Errors are problem documents (RFC 9457).</p>"
        f"<nav aria-label=operations><ul>{places}</ul></nav><main>{''.join(parts)}</main></html>"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"})


def _operation(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    lines = [
        f"<section id='{_anchor(method, path)}'><h2><b class=m>{method.upper()}</b> <code>{escape(path)}</code></h2>",
        f"<p>{_prose(operation.get('description', operation.get('summary', '')))}</p>",
    ]
    fields = [
        (f"{field['name']} ({field['in']})", field.get("schema", {}), field.get("required", False))
        for field in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        model = _resolved(body, document)
        fields += _fields(model, document)
    if fields:
        rows = "".join(
            f"<tr><td>{escape(name).replace('.', '.<wbr>')}<td>{escape(_type(schema))}"
            f"<td class=q>{'required ' if needed else ''}{_prose(_about(schema))}"
            for name, schema, needed in fields
        )
        lines.append(f"<table>{rows}</table>")
    answers = ", ".join(sorted(operation.get("responses", {})))
    lines.append(f"<p class=q>answers: {escape(answers)}</p></section>")
    return "".join(lines)


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{method}{path.lower()}").strip("-")


def _prose(text: str) -> str:
    """Return a text with what stands between backticks as code."""
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(text))


def _fields(model: dict[str, Any], document: dict[str, Any], of: str = "") -> list[tuple[str, dict[str, Any], bool]]:
    """Return the fields of an object with name, schema and whether they are required; those of a scope behind it."""
    required = model.get("required", [])
    found: list[tuple[str, dict[str, Any], bool]] = []
    for name, schema in model.get("properties", {}).items():
        inner = _resolved(schema, document) if "$ref" in schema else {}
        shown = {"type": "object"} if inner else schema
        found.append((of + name, shown, name in required))
        found += _fields(inner, document, f"{of}{name}.")
    return found


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    found: dict[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(_type(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"{_type(schema.get('items', {}))}[]"
    return str(schema.get("type", "any"))


def _about(schema: dict[str, Any]) -> str:
    parts = [schema["description"]] if "description" in schema else []
    bounds = [
        f"{word} {schema[key]:g}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in schema
    ]
    parts += [", ".join(bounds)] if bounds else []
    if schema.get("default") not in (None, [], {}):
        parts.append(f"default {json.dumps(schema['default'])}")
    return "; ".join(parts)
