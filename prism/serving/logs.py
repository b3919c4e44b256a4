"""Logs as one JSON object a line. They name sizes, times and kinds of errors, never a text of a request or a key."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

NAME = "prism.serving"


class JsonLines(logging.Formatter):
    """`time, level, event` and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(line | getattr(record, "fields", {}), ensure_ascii=True)


def configure() -> None:
    """Everything the server and uvicorn log goes to standard error, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (NAME, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
