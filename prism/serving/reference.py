"""The reference at `/docs`: one page made of the OpenAPI schema, without script and without anything from elsewhere.

Swagger UI is 1.5 MB of script that builds HTML at run time, which the policy of these pages forbids. What readers need
of it is a table of fields; to try a request there is the playground.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from http import HTTPStatus
from typing import Any, NamedTuple

Schema = Mapping[str, Any]
_SCALARS = ("boolean", "integer", "number")

_STYLE = """
:root { --paper: #f6f5f1; --card: #fff; --ink: #1f1e1b; --quiet: #66625a; --line: #e3e0d8; --accent: #4750c4; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #131316; --card: #1b1b1f; --ink: #ebe9e4; --quiet: #a5a19a; --line: #2d2d33; --accent: #a3abff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; }
body::before { content: ""; display: block; height: 4px;
  background: linear-gradient(90deg, #6d4bd1, #3f7be0, #1fa58a, #d9a520, #d4552f); }
header, main { max-width: 1000px; margin: 0 auto; padding: 22px clamp(16px, 3vw, 40px); }
h1 { font-size: 1.5rem; letter-spacing: -.01em; margin: 0 0 8px; }
h2 { font-size: 1.1rem; margin: 0; }
h3 { font-size: .95rem; margin: 22px 0 8px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 16px; margin-bottom: 18px;
  padding: clamp(16px, 2.4vw, 26px); }
section p { margin: 6px 0; }
a { color: var(--accent); text-underline-offset: 3px; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
nav ul { columns: 16rem; list-style: none; padding: 0; margin: 16px 0 0; }
code, pre { font: .88em/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--paper); border-radius: 10px; padding: 14px 16px; white-space: pre-wrap; margin: 8px 0; }
.method { color: var(--accent); }
dl { margin: 0; }
dt { border-top: 1px solid var(--line); padding-top: 9px; }
dd { margin: 0 0 9px; color: var(--quiet); }
dt span { color: var(--quiet); font-size: .9rem; margin-left: 8px; }
dt b { color: var(--accent); font-size: .8rem; margin-left: 8px; }
"""

_EXAMPLE = """curl -sS http://127.0.0.1:8000/v1/rerank -H 'Content-Type: application/json' --data-binary @- <<'JSON'
{
  "query": "How long is the warranty?",
  "documents": ["Orders over 50 euros ship free.", {"id": "warranty", "text": "The warranty covers two years."}],
  "evidence": {"max_tokens": 200}
}
JSON"""


class Described(NamedTuple):
    """One operation, or one model that operations name."""

    anchor: str
    title: str
    """Text: `POST /v1/rerank`, or the model's name."""
    body: str
    """HTML."""


def reference(openapi: Schema) -> str:
    """The page of an OpenAPI schema."""
    found = sections(openapi)
    links = "".join(f'<li><a href="#{escape(each.anchor)}">{escape(each.title)}</a></li>' for each in found)
    body = "".join(
        f'<section id="{escape(each.anchor)}"><h2>{_title(each.title)}</h2>{each.body}</section>' for each in found
    )
    info = openapi["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(info["title"])}: API reference</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><header><h1>{escape(info["title"])}'
        f' {escape(info["version"])}: API reference</h1><p>For programs: <a href="openapi.json">openapi.json</a>.'
        f' To try it: <a href="./">the playground</a>.</p><pre>{escape(_EXAMPLE)}</pre>'
        f'<nav aria-label="On this page"><ul>{links}</ul></nav></header><main>{body}</main></body></html>'
    )


def sections(openapi: Schema) -> list[Described]:
    """Every operation with its fields and answers, then every model they name."""
    operations = [
        Described(f"{method}-{path}", f"{method.upper()} {path}", _operation(operation))
        for path, item in openapi["paths"].items()
        for method, operation in item.items()
    ]
    models = openapi.get("components", {}).get("schemas", {})
    return operations + [Described(f"model-{name}", name, _model(schema)) for name, schema in models.items()]


def _title(title: str) -> str:
    method, _, path = title.partition(" ")
    return f'<span class="method">{escape(method)}</span> <code>{escape(path)}</code>' if path else escape(title)


def _operation(operation: Schema) -> str:
    parts = [f"<p>{escape(operation.get('summary', ''))}</p>"]
    sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if sent is not None:
        parts.append(f"<h3>Request</h3>{_model(sent)}")
    same: dict[str, list[str]] = {}  # answers that are alike are told once
    for status, answer in operation.get("responses", {}).items():
        same.setdefault(_answer(answer), []).append(status)
    for text, statuses in same.items():
        names = ", ".join(f"{status} {HTTPStatus(int(status)).phrase}" for status in statuses)
        parts.append(f"<h3>{escape(names)}</h3>{text}")
    return "".join(parts)


def _answer(answer: Schema) -> str:
    found = []
    for media_type, content in answer.get("content", {}).items():
        schema = content.get("schema", {})
        said = f": {_said(schema)}" if "description" in schema and "$ref" not in schema else ""
        found.append(f"<p><code>{escape(media_type)}</code> {kind(schema)}{said}</p>")
    for name, header in answer.get("headers", {}).items():
        found.append(f"<p>header <code>{escape(name)}</code> {_said(header)}</p>")
    return "".join(found)


def _model(schema: Schema) -> str:
    said = f"<p>{_said(schema)}</p>" if "description" in schema else ""
    rows = "".join(_row(*field) for field in _fields(schema))
    return f'{said}<dl class="fields">{rows}</dl>' if rows else f"{said}<p>{kind(schema)}</p>"


def _fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Name, schema and whether it is required, of every field and of those in the objects written out inside."""
    for name, field in schema.get("properties", {}).items():
        yield prefix + name, field, name in schema.get("required", ())
        for inner in _alternatives(field):
            if inner.get("properties"):
                yield from _fields(inner, f"{prefix}{name}.")
            elif inner.get("type") == "array":
                for item in _alternatives(inner["items"]):
                    yield from _fields(item, f"{prefix}{name}[].")


def _row(name: str, field: Schema, required: bool) -> str:
    needed = "<b>required</b>" if required else ""
    return f"<dt><code>{escape(name)}</code><span>{kind(field)}</span>{needed}</dt><dd>{_said(field)}</dd>"


def _said(schema: Schema) -> str:
    """The description, as HTML: what stands in backticks is code."""
    return re.sub("`(.+?)`", r"<code>\1</code>", escape(" ".join(schema.get("description", "").split())))


def _alternatives(schema: Schema) -> Iterator[Schema]:
    """The schemas of which one holds, however deep they are nested."""
    nested = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if not nested:
        yield schema
    for alternative in nested:
        yield from _alternatives(alternative)


def kind(schema: Schema) -> str:
    """What a value may be, as HTML: "integer (at least 1), also as text, or null"."""
    found: list[str] = []
    scalar = as_text = nullable = False
    for option in _alternatives(schema):
        if option.get("type") == "null":
            nullable = True
        elif scalar and (option.get("type") == "string" or "enum" in option):
            as_text = True  # `"3"` for 3
        elif option.get("pattern") != r"^\s*$":  # a blank text counts as none
            scalar = scalar or option.get("type") in _SCALARS
            found.append(_one(option))
    said = " or ".join(dict.fromkeys(found)) or "anything"
    return said + (", also as text" if as_text else "") + (", or null" if nullable else "")


def _one(schema: Schema) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#model-{name}">{name}</a>'
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return " or ".join(escape(json.dumps(value)) for value in values)
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    bounds = [
        f"{words} {schema[name]:g}"
        for name, words in (("minimum", "at least"), ("maximum", "at most"))
        if name in schema
    ]
    return escape(schema.get("type", "anything") + (f" ({', '.join(bounds)})" if bounds else ""))
