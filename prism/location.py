"""Where a checkpoint's files are, and whether they are all there and safe to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prism import catalogue, merge
from prism.errors import CheckpointError, in_one_line

MINI = Path(__file__).parent / "mini"
"""The embedded default."""


def locate(source: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Where a checkpoint lies: a folder (plain or adapter), or a base's GGUF file.

    `source`: `mini`, a directory, a file, a name of the catalogue, or a hub id, in this order. Without `weights` only
    the small files of a hub id are downloaded. Raises CheckpointError.
    """
    if str(source) == "mini":
        return MINI
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{source} is a file: pass the folder that holds the checkpoint, or a GGUF file")
        return path
    if known := catalogue.CATALOGUE.get(str(source)):
        return catalogue.verified_file(known)
    if path.suffix.lower() == ".gguf":
        raise CheckpointError(f"no GGUF file {source}: check the path, or pull a base (`prism pull` lists them)")
    return _download(str(source), revision, weights=weights)


def plain_weights(home: Path, source: str | Path, base_sha256: str | None, *, weights: bool = True) -> Path:
    """The folder with the weights that engines read. `base_sha256`: of an adapter's base, where it is noted.

    Without `weights` one with the same tokenizer and configuration: an adapter's base, of the hub without weights.
    """
    if home.is_file():
        return merge.plain_from_gguf(home)
    if merge.is_adapter(home) and not weights:
        base = merge.base_of(home)
        return plain_weights(locate(base, weights=False), base, None, weights=False)
    if merge.is_adapter(home):
        return merge.plain_from_adapter(home, locate, base_sha256)
    if not (home / "config.json").is_file():
        raise CheckpointError(f"{source} is not a checkpoint: neither config.json nor {merge.ADAPTER} is in it")
    if weights or home == Path(source).expanduser():  # else of the hub, and incomplete by intent
        _require_safe_weights(home, source)
        _require_whole(home, source)
    return home


def _download(source: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        # Weights as safetensors only: pickles run code when they load.
        wanted = [*(["*.safetensors"] if weights else []), "*.json", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise CheckpointError(f"no checkpoint {source!r}: no such directory, and not a hub id (owner/name)") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"no checkpoint {source!r}: no such directory, and the hub does not know it") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"no checkpoint {source!r}: no such directory, and the hub could not be reached ({in_one_line(error)})"
        ) from error


def _require_safe_weights(path: Path, source: str | Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    unsafe = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern))
    found = f"only {unsafe[0]}, which can run code when loaded; convert it" if unsafe else "no weights"
    raise CheckpointError(f"{source} has {found}: expected *.safetensors")


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")


def refuse_pointers(home: Path, source: str | Path) -> None:
    for file in sorted(item for item in home.iterdir() if item.is_file()) if home.is_dir() else [home]:
        with file.open("rb") as content:
            if content.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise CheckpointError(
                    f"{source}: {file.name} is a Git LFS pointer, not the file itself: run `git lfs pull` there"
                )


def _require_whole(path: Path, source: str | Path) -> None:
    """Raises CheckpointError for an index whose shards are not there, and for a missing tokenizer."""
    read_json_object(path / "config.json")
    index = path / "model.safetensors.index.json"
    shards = read_json_object(index).get("weight_map") if index.is_file() else {}
    for shard in sorted({str(name) for name in shards.values()} if isinstance(shards, dict) else ()):
        if not (path / shard).is_file():
            raise CheckpointError(f"{source} lacks {shard}, which {index.name} names: is the download complete?")
    if not any(any(path.glob(name)) for name in _TOKENIZER_FILES):
        raise CheckpointError(f"{source} has no tokenizer: expected {', '.join(_TOKENIZER_FILES[:3])} or the like")


def read_json_object(path: Path) -> dict[str, Any]:
    return json_object(path.read_bytes(), path)


def json_object(text: str | bytes, where: Path | str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {in_one_line(error)}: is the download complete?") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content
