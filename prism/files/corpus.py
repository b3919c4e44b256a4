"""What a corpus is made of, and its reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prism.errors import DataError
from prism.files.ids import DOCUMENT_IDS, id_in
from prism.files.jsonl import Drops, OnBad, read_rows, reject, require_text
from prism.text import stable_id


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


_TEXT_FIELDS = ("text", "document", "contents")


def read_corpus(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Text]:
    """Documents of a corpus: `text` (or `document`, `contents`) and optionally `id`, `title`, `headings`, `source`.

    `group` names what must stay on one side of a split; by default the id up to a `#` (sections of one page).
    """
    for place, row in read_rows(path, drops, on_bad):
        name = next((name for name in _TEXT_FIELDS if name in row), "text")
        try:
            text = require_text(row, name, place)
            key = id_in(row, ("id", *DOCUMENT_IDS, "_id"), place) or stable_id(text)
        except DataError as error:
            reject(error, place, drops, on_bad)
            continue
        headings = row.get("headings") or [row.get("heading") or ""]
        yield Text(
            id=key,
            group=str(row.get("group") or key.partition("#")[0]),
            title=str(row.get("title") or ""),
            heading=str(headings[-1]) if isinstance(headings, list) and headings else "",
            text=text,
            source=str(row.get("source") or path.name.partition(".")[0]),
        )
