"""JSONL, read and written in one way everywhere: errors name file and line, drops have reasons, files appear whole.

Read are lines of objects, a JSON array of them, or one object over several lines; packed or not. NaN and Infinity are
no JSON: they are refused where they enter, and never written. Lone surrogates become U+FFFD.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

from prism.errors import DataError
from prism.files.ids import DOCUMENT_IDS, QUERY_IDS, id_in
from prism.files.lines import byte_lines, decode, open_bytes
from prism.outputs import TextFile, write_text
from prism.text import clean, clean_all, stable_id

OnBad = Literal["fail", "skip"]
"""What a malformed line does: end the command, or be counted and left out."""
Row = dict[str, Any]
_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Drops:
    """Records left out, counted by reason; the first few of each reason are named."""

    def __init__(self, named: int = 5) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self._most = named

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < self._most:
            places.append(place)

    def report(self) -> dict[str, Any]:
        """Reason -> how many, and where the first few were."""
        return {reason: {"count": n, "first": self.places[reason]} for reason, n in sorted(self.counts.items())}

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Drops:
        """What `report` said."""
        drops = cls()
        drops.counts.update({reason: told["count"] for reason, told in report.items()})
        drops.places.update({reason: told["first"] for reason, told in report.items()})
        return drops

    @property
    def named(self) -> list[str]:
        """`place: reason` of the first few of each reason."""
        return [f"{place}: {reason}" for reason, places in self.places.items() for place in places]


class Line(NamedTuple):
    """One record and where it came from."""

    place: str
    """`file:line`."""
    row: Row


# --- reading ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """Stream the objects of a JSON file (see above); blank lines are skipped.

    What is not UTF-8, not JSON or not an object raises DataError with file and line, or goes into `drops`.
    """
    for _, place, row in read_objects(path):
        if isinstance(row, DataError):
            reject(row, place, drops, on_bad)
        else:
            yield Line(place, row)


def read_objects(path: Path) -> Iterator[tuple[int, str, Row | DataError]]:
    """(line, `file:line`, object or what is wrong with it). Raises DataError for a file that cannot be read at all."""
    with open_bytes(path) as stream:
        yield from objects_of(stream, str(path))


def objects_of(stream: BinaryIO, name: str) -> Iterator[tuple[int, str, Row | DataError]]:
    """As `read_objects`, from an open stream."""
    for number, place, found in unparsed(stream, name):
        if not isinstance(found, bytes):
            yield number, place, found
            continue
        try:
            yield number, place, parse_row(found, place)
        except DataError as error:
            yield number, place, error


def unparsed(stream: BinaryIO, name: str) -> Iterator[tuple[int, str, bytes | Row | DataError]]:
    """As `objects_of`, with lines left for `parse_row`, which another process may do; arrays are parsed as one."""
    lines = byte_lines(stream, name)
    for number, line in lines:
        if not line.removeprefix(_MARK).strip():
            continue
        first = (number, line)
        if is_array(line):
            yield from _of_array(chain([first], lines), name)
        else:
            yield from ((n, f"{name}:{n}", text) for n, text in chain([first], lines) if text.strip())


def is_array(line: bytes) -> bool:
    """Whether the first line of a file begins an array, or an object over several lines, rather than being a record."""
    head = line.removeprefix(_MARK).strip()
    return head.startswith(b"[") or head == b"{"


def _of_array(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[int, str, Row | DataError]]:
    """The elements of an array, or one object, over any number of lines; held in memory as a whole."""
    numbered = list(lines)
    text = "".join(decode(line, f"{name}:{number}") + "\n" for number, line in numbered).rstrip(" \t\r\n")
    decoder = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)
    at, number, counted = _past_space(text, 0), numbered[0][0], 0
    is_array = text[at] == "["
    at = _past_space(text, at + 1) if is_array else at
    while not (is_array and text[at : at + 1] == "]"):
        number, counted = number + text.count("\n", counted, at), at
        place = f"{name}:{number}"
        value, at = _element(decoder, text, at, name, numbered[0][0])
        yield number, place, clean_all(value) if isinstance(value, dict) else _no_object(value, place)
        at = _past_space(text, at)
        if not is_array:
            break
        if text[at : at + 1] == ",":
            at = _past_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise DataError(f"{_line_at(name, text, at, numbered[0][0])}: not JSON: expected a comma or `]`")
    rest = _past_space(text, at + 1 if is_array else at)
    if rest < len(text):
        raise DataError(
            f"{_line_at(name, text, rest, numbered[0][0])}: something follows the"
            f" {'array' if is_array else 'object'}: expected one JSON array, or one object a line"
        )


def _element(decoder: json.JSONDecoder, text: str, at: int, name: str, first: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(f"{_line_at(name, text, error.pos, first)}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_line_at(name, text, at, first)}: not JSON: {error}") from error


def _line_at(name: str, text: str, at: int, first: int) -> str:
    return f"{name}:{first + text.count(chr(10), 0, at)}"


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def parse_row(line: bytes | str, place: str) -> Row:
    """The object on one line. Raises DataError naming `place`."""
    text = decode(line, place) if isinstance(line, bytes) else line
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg} (character {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _no_object(value, place)
    row: Row = clean_all(value) if _SURROGATE.search(text) else value
    return row


def _no_object(value: Any, place: str) -> DataError:
    return DataError(f"{place}: expected an object, got {type(value).__name__}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number: leave the field out, or write null")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def reject(error: DataError, place: str, drops: Drops, on_bad: OnBad) -> None:
    """Raise, or count the line as malformed."""
    if on_bad == "fail":
        raise DataError(f"{error} (to leave such lines out and count them: --on-bad skip)") from error
    drops.add("malformed line", f"{place}: {str(error).removeprefix(place + ': ')}")


# --- pairs and queries -----------------------------------------------------------------------------------------------


def read_pairs(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """Rows with a query and a document, both non-blank; `id` is set to the stable hash of the two, ids are checked."""
    for line in read_rows(path, drops, on_bad):
        try:
            yield Line(line.place, with_id(with_names(line.row, line.place), line.place))
        except DataError as error:
            reject(error, line.place, drops, on_bad)


def read_queries(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """Rows with a non-blank `query` (or `question`, or `text` as BEIR has it); a document may or may not be there."""
    for place, row in read_rows(path, drops, on_bad):
        name = next((name for name in ("query", "question", "text") if name in row), "query")
        try:
            yield Line(place, {**with_names(row, place), "query": require_text(row, name, place)})
        except DataError as error:
            reject(error, place, drops, on_bad)


def with_names(row: Row, place: str) -> Row:
    """The row with its `query_id` and `doc_id` as strings, where it has any. Raises DataError for what is no id."""
    found = {name: id_in(row, (name,), place) for name in (QUERY_IDS[0], DOCUMENT_IDS[0]) if name in row}
    return {**row, **found}


def with_id(row: Row, place: str) -> Row:
    """The row with `id`. Raises DataError when query or document is missing or blank."""
    query, document = (require_text(row, name, place) for name in ("query", "document"))
    return {**row, "id": stable_id(query, document)}


def require_text(row: Mapping[str, Any], name: str, place: str) -> str:
    """The text in a field. Raises DataError when there is none."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        got = "a blank" if isinstance(value, str) else type(value).__name__ if name in row else "nothing"
        raise DataError(f"{place}: {name}: expected text, got {got}")
    return value


# --- writing ---------------------------------------------------------------------------------------------------------

_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Characters that some readers take for the end of a line."""


def dumps(value: Any, **options: Any) -> str:
    """JSON that every reader takes: no NaN, no lone surrogate. Raises DataError for a number that is none."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError as error:
        raise DataError(f"cannot be written as JSON: {error}: NaN and Infinity are no JSON numbers") from error
    return clean(text).translate(_LINE_ENDS)


class JsonlWriter:
    """A `TextFile` of records. Raises DataError as it does, and for what is no JSON."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._file = TextFile(path)

    @property
    def unchanged(self) -> bool:
        """Whether the very same records were there already, once it is closed."""
        return self._file.unchanged

    def __enter__(self) -> JsonlWriter:
        self._file.__enter__()
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(dumps(row) + "\n")
        self.count += 1

    def __exit__(self, *failure: Any) -> None:
        self._file.__exit__(*failure)


class WrittenFile(NamedTuple):
    """What became of a file."""

    records: int
    unchanged: bool
    """The very same records were there already: the file was left alone."""


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> WrittenFile:
    """Write a whole file atomically. Raises DataError."""
    with JsonlWriter(path) as out:
        for row in rows:
            out.write(row)
    return WrittenFile(out.count, out.unchanged)


def report_path(output: Path) -> Path:
    """Where the report of the stage that made `output` lies."""
    return output.with_name(output.name + ".report.json")


def write_stage_report(output: Path, stage: str, inputs: Sequence[Path], drops: Drops, **facts: Any) -> Row:
    """What a stage did, beside what it made: counts, drops with reasons, cost. Returned as well."""
    report = {"stage": stage, "inputs": [str(path) for path in inputs], **facts, "dropped": drops.report()}
    write_text(report_path(output), dumps(report, indent=2) + "\n")
    return report
