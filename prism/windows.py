"""Reading a document that is longer than a prompt: in windows that end where a sentence ends.

A document's score is that of its best window, its evidence comes from the windows that matter. Offsets are those of the
whole document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from prism.evidence.sentences import sentences
from prism.template import Prompt
from prism.types import Document

MAX_WINDOWS = 64
"""Windows of one document; what lies behind them is not read, and that is reported."""


class Window(NamedTuple):
    """`document.text[start:end]`, rendered as if it were the whole text."""

    start: int
    end: int
    prompt: Prompt
    score: float = 0.0
    logit: float = 0.0


def whole(document: Document, prompt: Prompt) -> Window:
    """The one window of a document that is read from its beginning, or to its end, as far as it was not cut."""
    cut = prompt.truncation
    return Window(cut.start, cut.start + cut.read_chars, prompt) if cut else Window(0, len(document.text), prompt)


def cut_windows(document: Document, render: Callable[[Document], Prompt]) -> list[Window]:
    """Windows in reading order that cover the text but for the white space between them, at most `MAX_WINDOWS`.

    `render` says how much of a text fits into a prompt. Each window has the document's title. A sentence that alone is
    longer than half a window is broken. The list is empty when not one character fits.
    """
    text, windows = document.text, list[Window]()
    start = _skip_space(text, 0)
    while start < len(text) and len(windows) < MAX_WINDOWS:
        rest = document.model_copy(update={"text": text[start:]})
        window = whole(rest, render(rest))
        if window.end == 0:
            break
        if window.prompt.truncation:
            part = rest.model_copy(update={"text": rest.text[: _last_border(rest.text[: window.end])]})
            window = whole(part, render(part))
        windows.append(Window(start, start + window.end, window.prompt))
        start = _skip_space(text, start + window.end)
    return windows


def _skip_space(text: str, start: int) -> int:
    return start + len(text[start:]) - len(text[start:].lstrip())


def _last_border(text: str) -> int:
    """Where the last sentence of a cut-off text begins, which may itself be cut; its end if that wastes half of it."""
    found = sentences(text)
    last = found[-1][0] if found else 0
    return last if last > len(text) // 2 else len(text)
