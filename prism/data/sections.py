"""A corpus from text files: Markdown section by section, other text whole.

Headings are ATX headings (CommonMark 0.31, section 4.2) outside fenced code; a `#` inside a fence is a comment there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from prism.errors import DataError, InputError
from prism.files.jsonl import Drops, OnBad, Row, reject
from prism.files.lines import open_bytes, read_text_file

MARKDOWN = frozenset({".md", ".markdown", ".mdown"})
ENDINGS = MARKDOWN | {".txt", ".text"}
"""What is read below a folder; a file that is named is read whatever its ending."""
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def read_texts(sources: Sequence[Path], drops: Drops, on_bad: OnBad = "fail") -> Iterator[Row]:
    """Rows with `id` (file#n), `title`, `headings` and `text`, file by file; what is no text is refused or dropped.

    Raises DataError for a source that is not there, InputError for a folder without a text file and for two files of
    one name.
    """
    seen: dict[str, Path] = {}
    for name, path in _files(sources):
        if (other := seen.setdefault(name, path)) is not path:
            raise InputError(f"{other} and {path} would both be {name}: name the folder above both")
        try:
            with open_bytes(path) as stream:
                text = read_text_file(stream, name)
        except DataError as error:
            reject(error, name, drops, on_bad)
            continue
        found = list(markdown_sections(text)) if path.suffix.lower() in MARKDOWN else [((), text.strip())]
        for number, (headings, body) in enumerate(found):
            if body:
                title = headings[-1] if headings else path.stem
                yield {"id": f"{name}#{number}", "title": title, "headings": list(headings), "text": body}
            else:
                drops.add("no text under the heading" if headings else "no text", f"{name}#{number}")


def markdown_sections(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(the headings above it, outermost first; the text below the last one), in reading order."""
    headings: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""
    for line in text.splitlines():
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            fence = _fence_after(line, fence)
            lines.append(line)
            continue
        if headings or any(map(str.strip, lines)):
            yield tuple(name for _, name in headings), "\n".join(lines).strip()
        level = len(heading[1])
        headings = [one for one in headings if one[0] < level] + [(level, heading[2] or "")]
        lines = []
    yield tuple(name for _, name in headings), "\n".join(lines).strip()


def _fence_after(line: str, fence: str) -> str:
    """The fence that is open behind a line: closed by as many of the same marks and nothing else."""
    found = _FENCE.match(line)
    if found is None:
        return fence
    if not fence:
        return found[1]
    closes = found[1].startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


def _files(sources: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Names as ids have them, below a folder relative to it; hidden files and folders are left out."""
    for source in sources:
        if not source.is_dir():
            yield source.name if source.is_absolute() else source.as_posix(), source
            continue
        below = sorted(
            path
            for path in source.rglob("*")
            if path.is_file() and path.suffix.lower() in ENDINGS and not _hidden(path.relative_to(source))
        )
        if not below:
            raise InputError(f"no text file ({', '.join(sorted(ENDINGS))}) below {source}: name the files themselves")
        yield from ((path.relative_to(source).as_posix(), path) for path in below)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
