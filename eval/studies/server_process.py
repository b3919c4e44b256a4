"""A server in a process of its own, for scripts that measure one or break it (Linux: they look into /proc)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from prism.errors import EngineError
from prism.llm.local_server import answers, free_port


class Running(NamedTuple):
    """A server that answers."""

    url: str
    pid: int


@contextmanager
def server(
    command: Sequence[str],
    *,
    ready: str = "/ready",
    within_s: float = 600.0,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[Running]:
    """`command` with `--port` and a free one, as soon as GET `ready` answers 200; ended with all it started.

    Raises EngineError with the end of its log when it does not start.
    """
    chosen = port or free_port()
    url = f"http://127.0.0.1:{chosen}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(chosen)],
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            until = time.monotonic() + within_s
            while process.poll() is None and time.monotonic() < until and not answers(url, ready):
                time.sleep(0.2)
            if not answers(url, ready):
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise EngineError(f"{' '.join(command[:4])} did not start; the end of its log:\n{said}")
            yield Running(url, process.pid)
        finally:
            _end(process)


def prism_serve(*options: str) -> list[str]:
    """The command line of `prism serve` in this environment."""
    return [sys.executable, "-m", "prism.cli", "serve", *options]


def _end(process: subprocess.Popen[bytes]) -> None:
    """First the way an operator would, so that what is under way is finished; then for good."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> set[int]:
    """Every living process under `pid`; zombies do not live."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def command_of(pid: int) -> str:
    """The process's command line, or the title it gave itself; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def cpu_s(pids: set[int]) -> float:
    """Processor time that the processes took so far, in seconds."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15 of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")
