"""What every client is asked, and how its answers are told to the test: one JSON object on standard output.

Run by the tests in an environment of the clients, not of Prism: nothing here imports prism.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
BAD = "p=0.2 Nothing to see. Move on."
DOCUMENTS = [BAD, GOOD]
KEY = "secret-key"
WRONG_KEY = "wrong-key"

Ask = Callable[[str, list[str], str], list[tuple[int, float | None]]]
"""(query, documents, key) -> (index, score), best first."""


def run(clients: dict[str, Ask], more: dict[str, Callable[[], Any]] | None = None) -> None:
    """Each client: a good request, a blank document, a blank query, a wrong key. `more`: what else is asked."""
    answers: dict[str, dict[str, Any]] = {}
    for name, ask in clients.items():
        answers[name] = {
            "good": _tried(lambda ask=ask: ask(QUERY, DOCUMENTS, KEY)),
            "blank document": _tried(lambda ask=ask: ask(QUERY, [*DOCUMENTS, " "], KEY)),
            "blank query": _tried(lambda ask=ask: ask(" ", DOCUMENTS, KEY)),
            "wrong key": _tried(lambda ask=ask: ask(QUERY, DOCUMENTS, WRONG_KEY)),
        }
    for name, call in (more or {}).items():
        answers[name] = {"answer": _tried(call)}
    json.dump(answers, sys.stdout)


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # whatever a client raises is its answer
        return {"raised": type(error).__name__, "message": str(error)[:600]}
