"""How evaluation scripts face the shell."""

from __future__ import annotations

import re


def taught(text: str | None) -> str:
    """Help text from a module's docstring; its indented lines, the examples, are not filled into paragraphs."""
    return re.sub(r"\n\n(?= )", "\n\n\b\n", text or "")
