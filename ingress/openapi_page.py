"""The description of the API for people: one page of plain HTML, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

from ingress.openapi_answers import REF


def page(document: dict[str, Any]) -> str:
    """The document for people: plain HTML, no script, nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Shiver API</title><style>body{font:16px/1.5 "
        "system-ui;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:1em;overflow:auto}"
        "td,th{text-align:left;vertical-align:top;padding:.2em .8em .2em 0}</style>",
        f"<h1>Shiver API</h1><p>{html.escape(document['info']['description'])}</p>",
        "<p><a href=/openapi.json>openapi.json</a></p>",
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{html.escape(tag['description'])}</h2>")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    parts += _operation(f"{method.upper()} {path}", operation, document["components"]["schemas"])
    return "".join(parts)


def _operation(name: str, operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    parts = [f"<h3><code>{html.escape(name)}</code></h3><p>{html.escape(operation['description'])}</p>"]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    for kind, example in body.get("examples", {}).items():
        parts.append(f"<p>{html.escape(kind.capitalize())}:</p>" + _pre(example["value"]))
    form = body.get("schema", {}).get("$ref", "").removeprefix(REF)
    if form in schemas:
        parts.append(_fields(schemas[form]))
    for parameter in operation.get("parameters", ()):
        told = f"<code>{html.escape(parameter['name'])}</code> ({parameter['in']}): "
        parts.append(f"<p>{told}{html.escape(parameter['description'])}.</p>")
    content = operation["responses"].get("200", {}).get("content", {})
    if "example" in content.get("application/json", {}):
        parts.append("<p>Answer:</p>" + _pre(content["application/json"]["example"]))
    if "text/event-stream" in content:
        parts.append(f"<p>Streamed:</p><pre>{html.escape(content['text/event-stream']['example'])}</pre>")
    rows = [
        f"<tr><td>{status}</td><td>{html.escape(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
        if status != "200"
    ]
    return [*parts, "<table><tr><th>refused</th><th>why</th></tr>", *rows, "</table>"]


def _pre(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"


def _fields(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema.get("properties", {}).items():
        kinds = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        told = ", ".join(_kind(one) for one in kinds)
        needed = " (needed)" if name in schema.get("required", ()) else ""
        rows.append(f"<tr><td><code>{html.escape(name)}</code>{needed}</td><td>{html.escape(told)}</td>")
        rows.append(f"<td>{html.escape(field.get('description', ''))}</td></tr>")
    return "<table><tr><th>field</th><th>takes</th><th>what</th></tr>" + "".join(rows) + "</table>"


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", schema.get("$ref", "one of several").removeprefix(REF)))
    said = [f"{sign} {schema[name]}" for name, sign in _LIMITS.items() if name in schema]
    return f"{kind} {', '.join(said)}".strip()


_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "maxLength": "length <=", "maxItems": "items <="}
