"""A GGUF file of this machine behind an OpenAI-compatible server: started, waited for, and ended with its starter.

    with LocalServer(file, "qwen", log=Path("qwen.log")) as server:
        client = ChatClient(Provider(base_url=server.url), name="qwen")

llama.cpp does the work: through `llama_cpp.server` of llama-cpp-python where that is installed with its extra, else
through the program `llama-server`. Either keeps what its last prompt began with: prompts that differ at their end are
read from there on.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Self

from prism.devices import cores
from prism.errors import EngineError, InputError
from prism.text import printable

_NEEDED = ("llama_cpp", "uvicorn", "fastapi", "pydantic_settings", "sse_starlette", "starlette_context")
"""What `python -m llama_cpp.server` imports."""
_TETHER = Path(__file__).with_name("tether.py")
_MEMINFO = Path("/proc/meminfo")
_ROOM_BYTES = 300 * 2**20
"""Beside the weights: what is computed, and the memory of a context of some thousand tokens."""
_LOGITS_BYTES = 600 * 2**10
"""Of one token, where all are kept: 150,000 numbers."""
_PASSED_ON = re.compile(
    "(PATH|HOME|TMPDIR|LANG|LC_.*|LD_LIBRARY_PATH|PYTHON.*|VIRTUAL_ENV|OMP_.*|CUDA_.*|HIP_.*|ROCR_.*"
    "|HSA_.*|GGML_.*|SYSTEMROOT|USERPROFILE|TEMP|TMP)",
    re.IGNORECASE,
)
"""Variables that a server needs. Others are settings to it, such as API_KEY, SSL_KEYFILE or LLAMA_ARG_HOST."""
_POLL_S = 0.2


class Launch(NamedTuple):
    """What is to be served, and where."""

    file: Path
    name: str
    port: int
    context_tokens: int
    threads: int
    chat_format: str | None
    logits: bool


class Program(NamedTuple):
    """Something that serves GGUF files."""

    ready: str
    """GET it: 200 once the model is there."""
    command: Callable[[Launch], list[str]]
    keeps_logits: bool = False
    """Of all tokens of a prompt, where any are asked for."""


def _python_server(launch: Launch) -> list[str]:
    words = [sys.executable, "-m", "llama_cpp.server", "--model", str(launch.file), "--model_alias", launch.name]
    words += ["--host", "127.0.0.1", "--port", str(launch.port), "--n_ctx", str(launch.context_tokens)]
    words += ["--n_threads", str(launch.threads), "--n_threads_batch", str(launch.threads)]
    # Its default computes the logits of every token of the prompt: half of the work of a small model.
    words += ["--logits_all", str(launch.logits), "--verbose", "False"]
    return [*words, *(["--chat_format", launch.chat_format] if launch.chat_format else [])]


def _llama_server(launch: Launch) -> list[str]:
    words = ["llama-server", "--model", str(launch.file), "--alias", launch.name]
    words += ["--host", "127.0.0.1", "--port", str(launch.port), "--ctx-size", str(launch.context_tokens)]
    words += ["--threads", str(launch.threads), "--parallel", "1"]
    return [*words, *(["--chat-template", launch.chat_format] if launch.chat_format else [])]


def find_program() -> Program:
    """llama-cpp-python's server, else llama.cpp's own. Raises InputError when neither is here."""
    if all(find_spec(name) for name in _NEEDED):
        return Program("/v1/models", _python_server, keeps_logits=True)
    if shutil.which("llama-server"):
        return Program("/health", _llama_server)
    raise InputError(
        'no llama.cpp server on this machine: pip install "llama-cpp-python[server]" (it builds llama.cpp, some'
        " minutes), or put the program llama-server on PATH"
    )


class LocalServer:
    """One model behind one server on a free port of 127.0.0.1."""

    def __init__(
        self,
        file: Path,
        name: str,
        *,
        log: Path,
        context_tokens: int = 4096,
        threads: int | None = None,
        chat_format: str | None = None,
        logits: bool = False,
        within_s: float = 300.0,
        program: Program | None = None,
        available: Callable[[], int | None] = lambda: available_bytes(),
    ) -> None:
        """Nothing is started yet. `log`: what the server says is added to it. `threads`: default, the cores.

        `chat_format`: for files that carry no chat template. `logits`: log-probabilities can be asked for. `within_s`:
        how long to wait for it. Raises InputError when there is no program for it.
        """
        self.name = name
        self._program = program or find_program()
        self._launch = Launch(file, name, 0, context_tokens, threads or cores(), chat_format, logits)
        self._log, self._within_s, self._available = log, within_s, available
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    @property
    def url(self) -> str:
        """Up to and including `/v1`; of no use before `start`."""
        return f"http://127.0.0.1:{self._launch.port}/v1"

    def require_memory(self) -> None:
        """Raises InputError when the model does not fit into what is free now; where that is not known, nothing."""
        launch, free = self._launch, self._available()
        kept_tokens = launch.context_tokens if launch.logits and self._program.keeps_logits else 0
        needed = launch.file.stat().st_size + _ROOM_BYTES + kept_tokens * _LOGITS_BYTES
        if free is not None and free < needed:
            raise InputError(
                f"{self.name} needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free:"
                " end something else, or leave it out"
            )

    def start(self) -> None:
        """Start it, and wait until it answers. Raises InputError (memory) or EngineError (it does not come up)."""
        self.require_memory()
        self._launch = self._launch._replace(port=free_port())
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_TETHER), *self._program.command(self._launch)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for us: what is under way is still answered
            )
        until = time.monotonic() + self._within_s
        while not self._ready():
            problem = self.gone() if self._process else "ended before it answered"
            if problem is None and time.monotonic() > until:
                problem = f"no answer within {self._within_s:g} s of its start; see {self._log}"
            if problem:
                self.end()
                raise EngineError(f"{self.name}: {problem}")
            time.sleep(_POLL_S)

    def _environment(self) -> dict[str, str]:
        """llama_cpp.server believes its environment more than its command line: nothing of ours may be a setting."""
        ours = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        return {**ours, "HOST": "127.0.0.1", "PORT": str(self._launch.port)}

    def _ready(self) -> bool:
        """Whether our server answers; a stranger who took the port first is none."""
        base = self.url.removesuffix("/v1")
        return answers(base, self._program.ready) and self._is_ours(base)

    def _is_ours(self, base: str) -> bool:
        import httpx

        with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            models = httpx.get(f"{base}/v1/models", timeout=2, trust_env=False).json()["data"]
            return any(model["id"] == self.name for model in models)
        return False

    def gone(self) -> str | None:
        """How the server ended, in one line; None while it lives."""
        code = self._process.poll() if self._process else None
        if code is None:
            return None
        how = f"was ended by {_signal_name(code - 128)}" if code > 128 else f"ended with exit code {code}"
        last = self._last_line()
        return f"the server {how}{f' ({last})' if last else ''}; its log: {self._log}"

    def _last_line(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._said_before)
            lines = log.read()[-4000:].decode(errors="replace").splitlines()
        return next((" ".join(printable(line).split())[:200] for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        """End it. Calling twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin:
            with suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def available_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """Memory that programs can still have; None where the system does not say."""
    with suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def answers(url: str, path: str) -> bool:
    """Whether GET `path` of a server on this machine answers 200 within two seconds; proxies are not asked."""
    import httpx

    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}{path}", timeout=2, trust_env=False).status_code == 200
    return False
