"""What mkdocs does beyond its plugins: pages made of the code, and pages that live beside the code they speak of.

Reference pages are made at every build (`reference_pages`). A README of a folder, a report, a log is shown where the
navigation or a link asks for `repository/<its path>`; files that are no pages are copied there, so that every relative
link of the repository works in the site too, and from `file://`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference_pages import PAGES

ROOT = Path(__file__).parents[2]
BESIDE = "repository/"
HOW_TO = "How to"
_LINK = re.compile(r"^ *```.*?^ *```|`[^`\n]*`|(?<=\]\()(?P<target>[^()\s]+)(?=\))", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page that the navigation does not name stands at the end of `How to`."""
    named = set(_named(config.nav or []))
    docs = Path(config.docs_dir)
    found = (path.relative_to(docs).as_posix() for path in sorted([*docs.glob("*.md"), *docs.glob("how-to/*.md")]))
    section = next(item[HOW_TO] for item in config.nav or [] if HOW_TO in item)
    section += [page for page in found if page not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference pages, and whatever of the repository the pages link to."""
    for uri, make in PAGES.items():
        files.append(File.generated(config, uri, content=make()))
    wanted = [uri.removeprefix(BESIDE) for uri in _named(config.nav or []) if uri.startswith(BESIDE)]
    wanted += [target for file in files.documentation_pages() for target in _outside(file.content_string, _path(file))]
    while wanted:
        path = wanted.pop()
        if BESIDE + path not in files.src_uris:
            file = File.generated(config, BESIDE + path, abs_src_path=str(ROOT / path))
            files.append(file)
            if file.is_documentation_page():
                wanted += _outside(file.content_string, path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages of the site."""
    return relinked(markdown, _path(page.file))


def relinked(markdown: str, page: str) -> str:
    """The text of a page, given by its path in the repository, with links as the site has them."""

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        path = target and resolve(target, page)
        if not path:
            return found[0]
        anchor = target.partition("#")
        return posixpath.relpath(_uri(path), posixpath.dirname(_uri(page)) or ".") + anchor[1] + anchor[2]

    return _LINK.sub(link, markdown)


def resolve(target: str, page: str) -> str | None:
    """The path in the repository that a link of a page leads to; None where it is no file of it."""
    path, _, _ = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if (ROOT / found).is_dir():
        inside = (f"{found}/{name}" for name in ("README.md", "report.md"))
        return next((path for path in inside if (ROOT / path).is_file()), None)
    return found if (ROOT / found).is_file() else None


def _outside(markdown: str, page: str) -> Iterator[str]:
    """The files outside docs/ that a page links to."""
    for found in _LINK.finditer(markdown):
        path = found["target"] and resolve(found["target"], page)
        if path and not path.startswith("docs/"):
            yield path


def _path(file: File) -> str:
    """A page's path in the repository."""
    uri = file.src_uri
    return uri.removeprefix(BESIDE) if uri.startswith(BESIDE) else f"docs/{uri}"


def _uri(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else BESIDE + path


def _named(nav: Iterable[object]) -> Iterator[str]:
    """The pages that a navigation names."""
    for item in nav:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            for value in item.values():
                yield from [value] if isinstance(value, str) else _named(value)
