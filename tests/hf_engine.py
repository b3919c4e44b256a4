"""Engines on tiny models, for tests that speak in token ids."""

from __future__ import annotations

from typing import Any

from prism.engines.hf import HfEngine, HfOptions

YES, NO, STOP, VOCABULARY = 5, 9, 2, 600


def one_character_each(ids: list[int]) -> str:
    """A decode that keeps tokens apart, so that texts compare as tokens."""
    return "".join(chr(0x4E00 + token) for token in ids)


def make_engine(model: Any, **options: Any) -> HfEngine:
    """`options`: of the engine; `stop_ids`, `stop_strings`, `decode` too."""
    given = {name: options.pop(name) for name in ("stop_ids", "stop_strings", "decode") if name in options}
    given = {"stop_ids": {STOP}, "stop_strings": (), "decode": one_character_each} | given
    return HfEngine(model, label_ids=(YES, NO), pad_id=0, options=HfOptions(**options), **given)
