"""A stand-in for the program `llama-server`: a process that serves chat completions as its "model file" says.

The file is JSON: `answer` (text), `tokens` (first tokens -> log-probability), `delay_s`, `die_after` (answers),
`exit_code` (at once, with words on standard error), `silent` (never ready), `log` (a file that gets each request).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USAGE = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "alias", "host", "ctx-size", "threads", "parallel", "chat-template"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    plan = json.loads(Path(given.model).read_text(encoding="utf-8"))
    if (code := plan.get("exit_code")) is not None:
        print("error: unknown model architecture", file=sys.stderr)
        sys.exit(code)
    known = {"pid": os.getpid(), "alias": given.alias, "context": int(given.ctx_size)}
    ThreadingHTTPServer((given.host, given.port), handler(plan, known)).serve_forever(0.02)


def handler(plan: dict[str, Any], known: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    answered = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 503 if plan.get("silent") else 200
            self.reply({"data": [{"id": known["alias"]}]} if self.path == "/v1/models" else {"status": "ok"}, status)

        def do_POST(self) -> None:
            nonlocal answered
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answered += 1
            if answered > plan.get("die_after", 10**9):
                os.kill(os.getpid(), signal.SIGKILL)
            if "log" in plan:
                with Path(plan["log"]).open("a", encoding="utf-8") as log:
                    log.write(json.dumps({**known, **body}) + "\n")
            time.sleep(plan.get("delay_s", 0.0))
            self.reply({"choices": [choice(plan, body)], "usage": USAGE})

        def reply(self, content: Any, status: int = 200) -> None:
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def choice(plan: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": plan.get("answer", "1")}
    found: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
    if body.get("logprobs") and "tokens" in plan:
        top = [{"token": token, "logprob": value} for token, value in plan["tokens"].items()]
        found["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return found


if __name__ == "__main__":
    main()
