"""Panels and recipes that Prism brings, under the names by which its pages call them."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parents[1]
_FOLDERS = {"configs/panels": "panels", "recipes": "recipes"}
"""In the repository -> in the package."""


def shipped(path: Path) -> Path:
    """The path as given; where nothing is there and it names a file that Prism brings, that file."""
    folder = _FOLDERS.get(path.parent.as_posix())
    ours = HOME / folder / path.name if folder else path
    return ours if ours.is_file() and not path.exists() else path
