"""What a corpus is made of."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """A stretch of prose."""

    id: str
    group: str
    """Texts of one group (versions or sections of one document) stay on one side of a split."""
    title: str
    heading: str
    text: str
    source: str
    language: str = "en"
