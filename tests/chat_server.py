"""A real HTTP server that speaks `/v1/chat/completions` and misbehaves on schedule."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

import uvicorn

USAGE = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}


def reply(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": USAGE, **more}


class ChatServer:
    """Answers each request by the next step of its schedule, then with `default`.

    A step: a text (a good answer), a number (an HTTP status with an error body), `cut` (half a JSON body), `drop` (the
    connection breaks), `slow` (bytes that never end), a dict (this body), or (status, headers, body).
    """

    def __init__(self, schedule: Iterable[Any] = (), default: Any = "1", delay_s: float = 0.0) -> None:
        self.schedule = list(schedule)
        self.default = default
        self.delay_s = delay_s
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        config = uvicorn.Config(self._app, interface="asgi3", log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def asked(self) -> Counter[str]:
        """Last message -> how often it came."""
        return Counter(request["messages"][-1]["content"] for request in self.requests)

    async def _app(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(json.loads(body))
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        step = self.schedule.pop(0) if self.schedule else self.default
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
            await self._answer(step, scope["path"], send)
        finally:
            self.at_once -= 1

    async def _answer(self, step: Any, path: str, send: Any) -> None:
        status, headers, content = 200, {}, step
        if path != "/v1/chat/completions":
            status, content = 404, {"error": "no such path"}
        elif isinstance(step, tuple):
            status, headers, content = step
        elif isinstance(step, int):
            status, content = step, {"error": {"message": f"status {step}", "code": "oops"}}
        elif isinstance(step, str) and step not in ("cut", "drop", "slow"):
            content = reply(step)
        body = json.dumps(content if isinstance(content, dict) else reply("1")).encode()
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        if step == "slow":
            for _ in range(600):
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                await asyncio.sleep(0.05)
        if step == "drop":
            await send({"type": "http.response.body", "body": body[:10], "more_body": True})
            raise ConnectionError("dropped on schedule")
        await send({"type": "http.response.body", "body": body[: len(body) // 2] if step == "cut" else body})
