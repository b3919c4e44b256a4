"""A server of `/v1/completions` in the shapes vLLM answers, for tests that kill it. `python completion_server.py PORT`

The label log-probabilities depend on the prompt's ids alone, so that a wrong answer shows.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = "\n<contribution>It helps.</contribution>\n<evidence>So it is.</evidence>"
DELAY_S = 0.02
"""Long enough for a kill to strike in the middle of an answer."""


def completion(index: int, ids: list[int], labels: list[int]) -> dict[str, Any]:
    yes = -0.01 - zlib.crc32(repr(ids).encode()) / 2**31
    top = {f"token_id:{labels[0]}": yes, f"token_id:{labels[1]}": -1.0}
    return {"index": index, "text": "", "finish_reason": "length", "logprobs": {"top_logprobs": [top]}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        model = {"id": "mini", "owned_by": "vllm", "max_model_len": 4096}
        self._send(json.dumps({"data": [model]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(DELAY_S)
        if body.get("stream"):
            half = len(TEXT) // 2
            parts = [{"index": 0, "text": TEXT[:half], "token_ids": [1], "finish_reason": None}]
            parts.append({"index": 0, "text": TEXT[half:], "token_ids": [2], "finish_reason": "stop"})
            events = "".join(f"data: {json.dumps({'choices': [part]})}\n\n" for part in parts)
            self._send(f"{events}data: [DONE]\n\n".encode(), "text/event-stream")
            return
        labels = body["logprob_token_ids"]
        choices = [completion(index, ids, labels) for index, ids in enumerate(body["prompt"])]
        self._send(json.dumps({"choices": choices}).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler)
    print("ready", flush=True)
    server.serve_forever()
