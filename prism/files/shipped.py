"""YAML files, also the panels and recipes that Prism brings, under the names by which its pages call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prism.errors import PrismError, in_one_line

HOME = Path(__file__).parents[1]
_FOLDERS = {"configs/panels": "panels", "recipes": "recipes"}
"""In the repository -> in the package."""


def shipped(path: Path) -> Path:
    """The path as given; where nothing is there and it names a file that Prism brings, that file."""
    folder = _FOLDERS.get(path.parent.as_posix())
    ours = HOME / folder / path.name if folder else path
    return ours if ours.is_file() and not path.exists() else path


def read_yaml(path: Path, what: str, example: str, refused: type[PrismError]) -> dict[str, Any]:
    """Keys and values of a file. Raises `refused`, calling it `what`, for a file that is not there or holds others."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise refused(f"no {what} {path}: expected a YAML file, such as {example}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"cannot read {what} {path}: {error}") from error
    except yaml.YAMLError as error:
        raise refused(f"{path} is not YAML: {in_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise refused(f"{path}: expected keys and values at the top level, got {type(raw).__name__}")
    return raw
