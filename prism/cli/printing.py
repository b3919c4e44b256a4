"""What commands print: plainly, so that nothing in a text steers the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def plain(text: str, style: str = "") -> Text:
    from rich.text import Text

    from prism.text import printable

    return Text(printable(text), style)
