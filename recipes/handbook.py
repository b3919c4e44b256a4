"""German, Russian and Chinese technical text for `recipes/nano.yaml`, out of Debian's package debian-handbook.

    apt-get download debian-handbook && dpkg-deb --extract debian-handbook_*.deb handbook
    python recipes/handbook.py handbook/usr/share/doc/debian-handbook/html runs/handbook.jsonl.gz

"The Debian Administrator's Handbook" by Raphaël Hertzog and Roland Mas, its translations by volunteers: GPL-2+ or
CC BY-SA 3.0, named in every line. One JSON line a section, as in a corpus of documentation: `id`, `title`, `headings`,
`text`, `source`, `license`, `language`. Paragraphs that nobody has translated yet are left out.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated

import typer

LICENSE = "CC-BY-SA-3.0"
_GERMAN = re.compile(r"\b(der|die|das|und|ist|nicht|ein|eine|wird|mit|für|auf|den|zu|von|werden)\b", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")


def _share(pattern: str) -> Callable[[str], bool]:
    of_script = re.compile(pattern)
    return lambda text: 2 * len(of_script.findall(text)) >= len(_LETTER.findall(text))


TRANSLATED: dict[str, Callable[[str], bool]] = {
    "de-DE": lambda text: 10 * len(_GERMAN.findall(text)) >= len(text.split()),
    "ru-RU": _share("[\u0400-\u04ff]"),
    "zh-CN": _share("[\u4e00-\u9fff]"),
}
"""Language folders, and whether a paragraph is in that language."""


class _Sections(HTMLParser):
    """(heading, paragraphs) of a page, in reading order; listings, tables and notes in the margin are left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, list[str]]] = []
        self._open: list[str] = []
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("class") or ""
        if tag in ("h1", "h2", "h3", "h4"):
            self._begin("heading")
        elif tag == "div" and kind == "para":
            self._begin("para")
        elif tag in ("div", "pre", "table"):
            self._end()
            self._open.append(tag if tag == "div" else "skipped")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "h4", "div", "pre", "table"):
            self._end()
            if self._open:
                self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("heading", "para"):
            self._text.append(data)

    def _begin(self, kind: str) -> None:
        self._end()
        self._open.append(kind)

    def _end(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if not text or not self._open:
            return
        if self._open[-1] == "heading":
            self.found.append((re.sub(r"^[\d.]+\s*", "", text), []))
        elif self.found:
            self.found[-1][1].append(text)


def sections(folder: Path, language: str) -> Iterator[dict[str, object]]:
    """Lines of one language."""
    for page in sorted((folder / language).glob("*.html")):
        parser = _Sections()
        parser.feed(page.read_text(encoding="utf-8"))
        title = parser.found[0][0] if parser.found else ""
        for number, (heading, paragraphs) in enumerate(parser.found):
            text = "\n".join(filter(TRANSLATED[language], paragraphs))
            if text:
                yield {
                    "id": f"handbook/{language}/{page.stem}#{number}",
                    "title": title,
                    "headings": [heading],
                    "text": text,
                    "source": "handbook",
                    "license": LICENSE,
                    "language": language[:2],
                }


def main(
    html: Annotated[Path, typer.Argument(help="Folder with one folder per language.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Argument(help="JSONL file to write, gzip by its name.")],
) -> None:
    """Write the sections of the translated handbook."""
    out.parent.mkdir(parents=True, exist_ok=True)
    opener: Callable[..., object] = gzip.open if out.suffix == ".gz" else open
    with opener(out, "wt", encoding="utf-8") as lines:  # type: ignore[attr-defined]
        for language in TRANSLATED:
            rows = list(sections(html, language))
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            characters = sum(len(str(row["text"])) for row in rows)
            print(f"{language}: {len(rows):,} sections, {characters:,} characters")


if __name__ == "__main__":
    typer.run(main)
