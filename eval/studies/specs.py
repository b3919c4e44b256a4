"""Rerankers as they are named on the command line, by kind and name:

mini, path/to/checkpoint, org/name      Prism, by any engine
cross-encoder:PATH-OR-NAME              sentence-transformers' CrossEncoder
dense:PATH-OR-NAME                      cosine similarity of sentence-transformers vectors
cohere:MODEL, jina:MODEL, voyage:MODEL  a rerank service; MODEL@URL for one at another address
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from prism.errors import InputError

Kind = Literal["prism", "cross-encoder", "dense", "cohere", "jina", "voyage"]


class Spec(NamedTuple):
    """One reranker as named on the command line."""

    kind: Kind
    name: str
    url: str | None
    """Where the service is, when not at its usual address."""

    @property
    def system(self) -> str:
        """Its name in reports: the last part of a path or hub name."""
        return Path(self.name).name if self.kind in ("cohere", "jina", "voyage") else Path(self.name).resolve().name

    @property
    def is_service(self) -> bool:
        return self.kind in ("cohere", "jina", "voyage")


def parse_spec(text: str) -> Spec:
    """`kind:name[@url]`, or the bare name of a Prism checkpoint. Raises InputError when the name is missing."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in get_args(Kind):
        return Spec("prism", text, None)
    name, _, url = rest.partition("@") if kind in ("cohere", "jina", "voyage") else (rest, "", "")
    if "@" in url:
        raise InputError(f"--model {kind}:{name}@...: a key does not belong in an address: set it in the environment")
    if not name or (url and not url.startswith(("http://", "https://"))):
        raise InputError(f"--model {text!r}: expected {kind}:NAME, or {kind}:NAME@http://... for a service")
    return Spec(kind, name, url or None)  # type: ignore[arg-type]  # checked above


def parse_fields(text: str) -> dict[str, Any]:
    """A JSON object whose fields go into every request to a service. Raises InputError for anything else."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InputError(f"--api-fields {text!r}: expected a JSON object such as '{{\"evidence\": false}}'")
    return fields
