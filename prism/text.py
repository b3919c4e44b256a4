"""Plain functions on text that even `prism --help` can afford to import."""

from __future__ import annotations

import hashlib
import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Lone surrogates, which no tokenizer or UTF-8 stream accepts, become U+FFFD one for one: offsets stay right."""
    return _SURROGATES.sub("\ufffd", text)


def stable_id(*parts: str) -> str:
    """16 hexadecimal digits that depend on the parts alone."""
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()
