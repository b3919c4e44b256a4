"""Published figures to set a run beside, and what makes the comparison unfair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prism.files.beir import BEIR_QA

FIRST_STAGE: Final = "jina-embeddings-v3"
DEPTH: Final = 100
PUBLISHED: Final = {
    "Qwen3-Reranker-0.6B": 51.84,
    "bge-reranker-v2-m3": 53.29,
    "mxbai-rerank-large-v2": 55.43,
    "jina-reranker-v3": 56.04,
    "Qwen3-Reranker-4B": 57.33,
    "Prism on Qwen3-Reranker-4B": 58.87,
}
"""nDCG@10 in per cent, mean over BEIR-QA: the first 100 documents of jina-embeddings-v3, reranked."""


def differences(report: Mapping[str, Any], system: str) -> list[str]:
    """Why this system may not be read as one of the published figures; empty when it was measured as they were."""
    sets, found = report["datasets"], []
    if missing := [name for name in BEIR_QA if system not in sets.get(name, {})]:
        found.append(f"{len(missing)} of the nine sets are missing ({', '.join(missing)})")
    options = [meta[system]["options"] for name, meta in report["meta"].items() if name in BEIR_QA and system in meta]
    stages = {str(o.get("candidates", "itself a first stage")) for o in options}
    if strange := sorted(stage for stage in stages if FIRST_STAGE not in stage):
        found.append(f"its candidates are not those of {FIRST_STAGE} ({', '.join(strange)})")
    if depths := sorted({int(o["top_k"]) for o in options if o.get("top_k", DEPTH) != DEPTH}):
        found.append(f"it reranked {', '.join(map(str, depths))} candidates, not {DEPTH}")
    if any(o.get("limit") for o in options):
        found.append("only the first queries were measured")
    if any(o.get("split") != "test" for o in options):
        found.append("the split is not test")
    return found


def mean_ndcg(report: Mapping[str, Any], system: str) -> float | None:
    """Mean nDCG@10 in per cent over the sets of BEIR-QA the system was measured on; None without any."""
    values = [v[system]["nDCG@10"] for name, v in report["datasets"].items() if name in BEIR_QA and system in v]
    return 100 * sum(values) / len(values) if values else None
