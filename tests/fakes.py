"""A deterministic engine for tests of what stands above engines."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from prism.engines.base import LabelLogits, ScoreOutput, WritePiece, WriteRequest
from prism.errors import DocumentError, EngineError
from prism.template import Template

TEXT_TOKENS = 20


class FakeEngine:
    """Reads its answers out of the documents: `p=0.9` is the score; `refuse`, `nan`, `ramble`, `endless` and `break`
    fail so.

    Any other text is written about as `It helps.` with the document's first sentence as evidence, in 20 tokens.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self.calls: list[tuple[Any, ...]] = []
        self.requests: list[WriteRequest] = []
        self.fails: Exception | None = None
        self.hold: asyncio.Event | None = None
        """While set and not signalled, `score` waits."""
        self.cancelled = 0
        self.closed = 0

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        self.calls.append(("score", len(prompts)))
        if self.fails:
            raise self.fails
        if self.hold:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return ScoreOutput([self._label(self._document(ids)) for ids in prompts], cached_tokens=7 * (len(prompts) - 1))

    async def write(self, requests: Sequence[WriteRequest]) -> AsyncIterator[WritePiece]:
        self.calls.append(("write", len(requests), requests[0].max_tokens))
        self.requests += requests
        texts = [self._text(self._document(request.ids)) for request in requests]
        for index, text in enumerate(texts):
            yield WritePiece(index, text[:9], TEXT_TOKENS - 1, None)
        for index, text in enumerate(texts):
            await asyncio.sleep(0)
            yield WritePiece(index, text[9:], 1, "stop" if text.endswith(">") or "ramble" in text else "length")

    async def aclose(self) -> None:
        self.closed += 1

    def _document(self, ids: Sequence[int]) -> str:
        text = self.template.decode(list(ids))
        return text.split("Document: ", 1)[1].rsplit("\nassistant\n", 1)[0]

    def _label(self, document: str) -> LabelLogits | DocumentError:
        if "refuse" in document:
            return DocumentError("this one is too long for the model")
        if "nan" in document:
            return LabelLogits(math.nan, 0.0)
        match = re.search(r"p=(0\.\d+)", document)
        p = float(match[1]) if match else 0.25
        return LabelLogits(math.log(p), math.log(1 - p))

    def _text(self, document: str) -> str:
        if "break" in document:
            raise EngineError("the engine broke off a text")
        if "ramble" in document:
            return "\nI ramble without tags"
        sentence = document.partition(". ")[0].rpartition("\n")[2]
        text = f"\n<contribution>It helps.</contribution>\n<evidence>{sentence}."
        return text if "endless" in document else text + "</evidence>"
