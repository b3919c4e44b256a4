"""JSONL streams of the data tools: errors name file and line, drops have reasons, files appear whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prism.errors import DataError
from prism.text import clean, stable_id

if TYPE_CHECKING:
    from prism.data.sources import Text

OnBad = Literal["fail", "skip"]
"""What a malformed line does: end the command, or be counted and left out."""
Row = dict[str, Any]

_TEXT_FIELDS = ("text", "document", "contents")
_ID_FIELDS = ("id", "doc_id", "_id")


class Drops:
    """Records left out, counted by reason; the first few of each reason are named."""

    def __init__(self, named: int = 5) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self._named = named

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < self._named:
            places.append(place)

    def report(self) -> dict[str, Any]:
        """Reason -> how many, and where the first few were."""
        return {reason: {"count": n, "first": self.places[reason]} for reason, n in sorted(self.counts.items())}


class Line(NamedTuple):
    """One record and where it came from."""

    place: str
    """`file:line`."""
    row: Row


def read_rows(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """Stream the objects of a `.jsonl` or `.jsonl.gz` file; blank lines are skipped, lone surrogates replaced.

    A line that is not UTF-8, not JSON or not an object raises DataError with file and line, or goes into `drops`.
    """
    if not path.is_file():
        raise DataError(f"no file {path}: expected a .jsonl or .jsonl.gz file")
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        for number, line in enumerate(_whole(lines, path), 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                yield Line(place, parse_row(line, place))
            except DataError as error:
                reject(error, place, drops, on_bad)


def _whole(lines: Iterable[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from lines
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from error


def parse_row(line: bytes, place: str) -> Row:
    """The object on one line. Raises DataError naming `place`."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected an object, got {type(row).__name__}")
    return {key: clean(value) if isinstance(value, str) else value for key, value in row.items()}


def reject(error: DataError, place: str, drops: Drops, on_bad: OnBad) -> None:
    """Raise, or count the line as malformed."""
    if on_bad == "fail":
        raise DataError(f"{error} (to leave such lines out and count them: --on-bad skip)") from error
    drops.add("malformed line", f"{place}: {str(error).removeprefix(place + ': ')}")


def read_pairs(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """Rows with a query and a document, both non-blank; `id` is set to the stable hash of the two."""
    for line in read_rows(path, drops, on_bad):
        try:
            yield Line(line.place, with_id(line.row, line.place))
        except DataError as error:
            reject(error, line.place, drops, on_bad)


def read_queries(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """Rows with a non-blank `query` (or `question`, or `text` as BEIR has it); a document may or may not be there."""
    for place, row in read_rows(path, drops, on_bad):
        name = next((name for name in ("query", "question", "text") if name in row), "query")
        try:
            yield Line(place, {**row, "query": require_text(row, name, place)})
        except DataError as error:
            reject(error, place, drops, on_bad)


def with_id(row: Row, place: str) -> Row:
    """The row with `id`. Raises DataError when query or document is missing or blank."""
    query, document = (require_text(row, name, place) for name in ("query", "document"))
    return {**row, "id": stable_id(query, document)}


def require_text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        got = "a blank" if isinstance(value, str) else type(value).__name__ if name in row else "nothing"
        raise DataError(f"{place}: {name}: expected text, got {got}")
    return value


def read_corpus(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Text]:
    """Documents of a corpus: `text` (or `document`, `contents`) and optionally `id`, `title`, `headings`, `source`.

    `group` names what must stay on one side of a split; by default the id up to a `#` (sections of one page).
    """
    from prism.data.sources import Text

    for place, row in read_rows(path, drops, on_bad):
        name = next((name for name in _TEXT_FIELDS if name in row), "text")
        try:
            text = require_text(row, name, place)
        except DataError as error:
            reject(error, place, drops, on_bad)
            continue
        key = next((str(row[field]) for field in _ID_FIELDS if row.get(field) is not None), stable_id(text))
        headings = row.get("headings") or [row.get("heading") or ""]
        yield Text(
            id=key,
            group=str(row.get("group") or key.partition("#")[0]),
            title=str(row.get("title") or ""),
            heading=str(headings[-1]) if isinstance(headings, list) and headings else "",
            text=text,
            source=str(row.get("source") or path.name.partition(".")[0]),
        )


class JsonlWriter:
    """Writes beside `path`, moves the file into place when the block ends well: a crash leaves the old file or none."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._part = path.with_name(path.name + ".part")

    def __enter__(self) -> JsonlWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._part.open("w", encoding="utf-8")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        self._out.write(clean(json.dumps(row, ensure_ascii=False)) + "\n")
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._out:
            self._out.flush()
            os.fsync(self._out.fileno())
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a whole file atomically; returns the number of rows."""
    with JsonlWriter(path) as out:
        for row in rows:
            out.write(row)
    return out.count


def report_path(output: Path) -> Path:
    """Where the report of the stage that made `output` lies."""
    return output.with_name(output.name + ".report.json")


def write_report(output: Path, stage: str, inputs: Sequence[Path], drops: Drops, **facts: Any) -> Row:
    """What a stage did, beside what it made: counts, drops with reasons, cost. Returned as well."""
    report = {"stage": stage, "inputs": [str(path) for path in inputs], **facts, "dropped": drops.report()}
    write_text(report_path(output), json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
