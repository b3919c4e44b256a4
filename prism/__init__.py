"""Prism: generative rerankers that explain themselves.

>>> from prism import Reranker
>>> result = Reranker.load("mini").rerank("how do I rotate access keys?", documents)
>>> print(result.context(max_tokens=500))

Names are imported on first use: `import prism` loads neither torch nor vllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prism.version import __version__

if TYPE_CHECKING:
    from prism.checkpoint import Checkpoint
    from prism.errors import (
        CheckpointError,
        DataError,
        DocumentError,
        EngineError,
        InputError,
        PrismError,
        RecipeError,
        TemplateError,
    )
    from prism.reranker import Reranker, RerankResult
    from prism.template import Template
    from prism.types import Document, Judgment, Outcome, Span, Unanswered, Usage

_HOME = {
    "Checkpoint": "checkpoint",
    "Reranker": "reranker",
    "RerankResult": "reranker",
    "Template": "template",
    "Document": "types",
    "Judgment": "types",
    "Outcome": "types",
    "Span": "types",
    "Unanswered": "types",
    "Usage": "types",
    "PrismError": "errors",
    "InputError": "errors",
    "DocumentError": "errors",
    "TemplateError": "errors",
    "CheckpointError": "errors",
    "RecipeError": "errors",
    "DataError": "errors",
    "EngineError": "errors",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "Document",
    "DocumentError",
    "EngineError",
    "InputError",
    "Judgment",
    "Outcome",
    "PrismError",
    "RecipeError",
    "RerankResult",
    "Reranker",
    "Span",
    "Template",
    "TemplateError",
    "Unanswered",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"prism.{_HOME[name]}"), name)
    raise AttributeError(f"module 'prism' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
