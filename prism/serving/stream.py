"""Server-sent events: the ranking, then evidence as it is found, usage, done.

    event: ranking        the whole answer, without evidence
    event: contribution   {index, contribution}, while that document's evidence is still being written (not quoted)
    event: evidence       the document's result in full: evidence, spans, checks
    event: comparison     {order, same, conflicts, results}, where passages say the same, contradict or add nothing
    event: context        where the request asks for one: the evidence as it goes into a prompt
    event: usage          {usage, meta}
    event: error          an error body; nothing follows it
    event: done           {id}

A slow reader holds nothing up: what is written waits for it in memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from anyio import CancelScope, create_memory_object_stream, create_task_group
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prism.context import PromptContext
from prism.result import Contributed, Event, Judged, Ranked, RerankResult
from prism.serving.dialects import Dialect, dump, head, meta, result_out, usage
from prism.serving.schema import RerankRequest

Emit = Callable[[bytes], None]
EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "event": {"enum": ["ranking", "contribution", "evidence", "comparison", "context", "usage", "error", "done"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
    "description": "With `stream: true`: one of the events, whose data is a JSON object in one line.",
}


def encode(name: str, data: dict[str, Any]) -> bytes:
    """One event. JSON in ASCII has no line ends, so no text can begin an event of its own."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def told(
    event: Event, request_id: str, asked: RerankRequest, context_of: Callable[[RerankResult], PromptContext | None]
) -> list[bytes]:
    """What a client is told of one step, encoded."""
    if isinstance(event, Ranked):
        return [encode("ranking", dump(head(request_id, Dialect.COMMON, asked, event.result)))]
    if isinstance(event, Contributed):
        return [encode("contribution", event.model_dump())]
    if isinstance(event, Judged):
        return [encode("evidence", result_out(event.judgment, asked).model_dump(mode="json", exclude_unset=True))]
    said = meta(asked, event).model_dump(mode="json", exclude_unset=True)
    figures = {"usage": usage(event.usage).model_dump(), "meta": said}
    context = context_of(event)
    last = [encode("context", context.model_dump(mode="json"))] if context else []
    return [*_compared(event), *last, encode("usage", figures), encode("done", {"id": request_id})]


def _compared(result: RerankResult) -> list[bytes]:
    """What is known only once all evidence is there: what passages have to do with each other, and the final order."""
    told = [
        {"index": judgment.index, "also": judgment.also, "same_as": judgment.same_as, "held": judgment.held}
        for judgment in result
        if judgment.also or judgment.same_as is not None or judgment.held is not None
    ]
    if not (told or result.conflicts):
        return []
    data = result.model_dump(mode="json", include={"same", "conflicts"})
    return [encode("comparison", {"order": [judgment.index for judgment in result], **data, "results": told})]


class EventStream(Response):
    """Sends what `work` emits; hanging up cancels it. `work` answers its own failures with an `error` event."""

    def __init__(self, request: Request, work: Callable[[Emit], Awaitable[None]], finish: Callable[[], None]) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._request, self._work, self._finish = request, work, finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await until_disconnect(self._request, self._send_all(send))
        except (ClientDisconnect, OSError):
            pass  # nobody listens any more
        finally:
            self._finish()

    async def _send_all(self, send: Send) -> None:
        writer, reader = create_memory_object_stream[bytes](float("inf"))

        async def produce() -> None:
            with writer:
                await self._work(writer.send_nowait)

        with writer, reader:
            async with create_task_group() as group:
                group.start_soon(produce)
                async for chunk in reader:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_T = TypeVar("_T")


async def until_disconnect(request: Request, work: Awaitable[_T]) -> _T:
    """What `work` gives. Raises ClientDisconnect when the client hangs up first, which cancels the work."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            return await work
        finally:
            watcher.cancel()
    raise ClientDisconnect
