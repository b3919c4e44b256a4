"""Text files as lines: packed or not, UTF-8 with or without a byte order mark. Another encoding is named, not read.

Lines end at a newline (with or without a carriage return before it) and nowhere else: U+2028, U+2029 and U+0085 are
characters like others.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from prism.errors import DataError

_PACKED = b"\x1f\x8b"
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class _Encoding(NamedTuple):
    name: str
    """As iconv calls it."""
    typical: re.Pattern[str]
    """What most characters beyond ASCII are, in text of this encoding."""


_GB_COMMON = bytes(range(0xB0, 0xD8))
"""First bytes of the 3,755 commonest characters in GB 2312, which are sorted by sound; the rare ones come after."""
_ENCODINGS = (
    _Encoding("SHIFT-JIS", re.compile("[\u3040-\u30ff\u3001\u3002]")),
    _Encoding("EUC-JP", re.compile("[\u3040-\u30ff\u3001\u3002]")),
    _Encoding("GB18030", re.compile("[\u4e00-\u9fff\u3000-\u3002\uff01-\uff1f\u201c\u201d]")),
    _Encoding("CP1251", re.compile("[а-яё]")),
    _Encoding("KOI8-R", re.compile("[а-яё]")),
    _Encoding("CP1252", re.compile("(?<![^\x00-\x7f])[\xa0-\xff€‚„…‘’“”•–—™](?![^\x00-\x7f]{2})")),
)


def likely_encoding(data: bytes) -> str:
    """The encoding of text that is not UTF-8, as iconv calls it: a guess, for a message. `data`: a line, or more."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    if data.count(0) * 4 > len(data):
        return "UTF-16LE" if data[1::2].count(0) >= data[0::2].count(0) else "UTF-16BE"
    scores = {encoding.name: _score(data, encoding) for encoding in _ENCODINGS}
    best = max(scores, key=scores.__getitem__)  # of equals the first
    return best if scores[best] >= 0.5 else "CP1252"


def _score(data: bytes, encoding: _Encoding) -> float:
    """Share of the characters beyond ASCII that are typical; Japanese text has kana in a third of its characters."""
    try:
        text = data.decode(encoding.name)
    except UnicodeDecodeError:
        return 0.0
    beyond = [character for character in text if ord(character) > 0x7F]
    if encoding.name == "GB18030":
        typical = sum(character.encode("gb18030")[0] in _GB_COMMON or ord(character) < 0x3003 for character in beyond)
    else:
        typical = len(encoding.typical.findall(text))
    japanese = 3 if encoding.name in ("SHIFT-JIS", "EUC-JP") else 1
    return min(1.0, japanese * typical / len(beyond)) if beyond else 0.0


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file as bytes, unpacked when its content is gzip. Raises DataError when it is not there or not readable."""
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"no file {path}: check the path") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    with file, unpacked(file) as stream:
        yield stream


def unpacked(stream: IO[bytes]) -> BinaryIO:
    """The stream, or what is packed in it; it can be peeked into (a file, standard input)."""
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream) if is_gzip(stream) else stream)


def is_gzip(stream: IO[bytes]) -> bool:
    """Whether what comes next is gzip."""
    head: bytes = stream.peek(2)[:2]  # type: ignore[attr-defined]  # buffered readers have it
    return head == _PACKED


def byte_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end). Raises DataError for a file cut off, and for UTF-16 and UTF-32 as a whole."""
    try:
        for number, line in enumerate(stream, 1):
            if number == 1:
                _refuse_wide(line, name)
            yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read to its end: {error}") from error


def _refuse_wide(line: bytes, name: str) -> None:
    head = line[:4096]
    if any(head.startswith(mark) for mark, _ in _MARKS) or head.count(0) * 4 > len(head):
        raise not_utf8(head, f"{name}:1")


def not_utf8(data: bytes, where: str) -> DataError:
    """The complaint about text in another encoding."""
    likely = likely_encoding(data)
    return DataError(f"{where}: not UTF-8 text, it looks like {likely}: convert it (iconv -f {likely} -t UTF-8)")


def decode(line: bytes, where: str) -> str:
    """One line without its end and without a byte order mark. Raises DataError that names the likely encoding."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(line, where) from error
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of the lines that are not blank. Raises DataError."""
    with open_bytes(path) as stream:
        for number, line in byte_lines(stream, str(path)):
            text = decode(line, f"{path}:{number}")
            if text.strip():
                yield f"{path}:{number}", text


def read_text_file(stream: BinaryIO, name: str) -> str:
    """A whole stream as text, without a byte order mark; line ends stay. Raises DataError naming the line."""
    lines = []
    for number, line in byte_lines(stream, name):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise not_utf8(line, f"{name}:{number}") from error
    return "".join(lines).removeprefix("\ufeff")


def ending(path: str | Path) -> str:
    """`.jsonl` of `pairs.JSONL.gz`: the last ending in small letters, that of packing left out."""
    name = Path(path).name.lower().removesuffix(".gz")
    return Path(name).suffix


def is_json(path: str | Path) -> bool:
    """Whether a file's name says that it holds JSON records."""
    return ending(path) in (".jsonl", ".ndjson", ".json", ".jl")
