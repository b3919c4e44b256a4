"""`prism data …`: from texts to training files. Each command is a thin shell over one module of `prism.data`.

Every command reads JSONL (`.gz` too), streams, writes its output whole or not at all, and puts `OUT.report.json` beside
it: how many records came in and went out, how many were dropped and why, what it cost.
"""

from __future__ import annotations

from prism.data import build_commands, pair_commands, query_commands
from prism.data.command_app import app

__all__ = ["app", "build_commands", "pair_commands", "query_commands"]  # importing the modules adds their commands
