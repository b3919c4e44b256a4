"""Ids in files: strings or whole numbers. `1.0` is 1, in JSON and in tables, so that one id is one id in every file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prism.errors import DataError
from prism.text import as_id

QUERY_IDS = ("query_id", "query-id", "qid")
DOCUMENT_IDS = ("doc_id", "corpus-id", "document_id", "docid")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")


def read_id(value: object, name: str, where: str) -> str:
    """One id. Raises DataError at `where` for a boolean, NaN, a fraction, a list, an object, or a blank."""
    try:
        text = as_id(value).strip()
    except ValueError as error:
        raise DataError(f"{where}: {name}: {error}, got {value!r:.60}") from error
    if not text:
        raise DataError(f"{where}: {name} is blank: expected a string or a whole number")
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def fits_tables(id_: str) -> bool:
    """Whether an id can stand in a table: a run, qrels."""
    return not any(character in id_ for character in "\t\r\n")


def id_in(row: Mapping[str, Any], names: Iterable[str], where: str) -> str | None:
    """The first of the fields that holds something; None when none does (missing, null or blank). Raises DataError."""
    for name in names:
        value = row.get(name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return read_id(value, name, where)
    return None
