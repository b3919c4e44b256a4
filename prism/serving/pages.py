"""The two pages of the server: the playground at `/` and the reference at `/docs`.

Both are one file each, without anything from elsewhere, so that they work without a network. The policy sent with them
lets only their own script and style run, forbids to make HTML of texts (trusted types), and lets them talk to this
server alone. They hold no data: who has no key may read them, and ask nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from prism.demo import DOCUMENTS, QUERIES
from prism.reranker import Reranker
from prism.serving.limits import Keys, Limits
from prism.serving.reference import reference
from prism.version import __version__

_CONFIG = '<script type="application/json" id="config">{}</script>'


def add_pages(app: FastAPI, reranker: Reranker, limits: Limits, keys: Keys) -> None:
    """GET `/` and `/docs`."""
    ground = playground(reranker, limits, keyed=bool(keys))

    @cache
    def described() -> HTMLResponse:
        return page(reference(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return ground

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return described()


def playground(reranker: Reranker, limits: Limits, *, keyed: bool) -> HTMLResponse:
    """The playground, told what it must know of this server before it asks; `keyed`: whether to ask for a key."""
    config = {
        "model": reranker.name,
        "version": __version__,
        "threshold": reranker.threshold,
        "evidence": limits.evidence,
        "key": keyed,
        "sample": {
            "queries": QUERIES,
            "documents": [{"title": document.title, "text": document.text} for document in DOCUMENTS],
        },
    }
    text = json.dumps(config).replace("<", "\\u003c")  # nothing in it ends the element
    source = files("prism.serving").joinpath("playground.html").read_text(encoding="utf-8")
    return page(source.replace(_CONFIG, _CONFIG.replace("{}", text)))


def page(source: str) -> HTMLResponse:
    """A page whose own script and style, and no others, may run."""
    return HTMLResponse(
        source,
        headers={
            "Content-Security-Policy": policy(source),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def policy(source: str) -> str:
    """The Content-Security-Policy of a page: by hash, what stands in its `<script>` and `<style>`."""
    allowed = {kind: re.findall(rf"<{kind}>(.*?)</{kind}>", source, re.DOTALL) for kind in ("script", "style")}
    directives = [
        "default-src 'none'",
        *(f"{kind}-src {' '.join(map(_hash, found)) or chr(39) + 'none' + chr(39)}" for kind, found in allowed.items()),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join(directives)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
