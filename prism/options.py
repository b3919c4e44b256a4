"""What a call may ask for: every option once, read in one place, for Python, HTTP, the command line and integrations.

`Options` is what a caller says, `Call` what was read of it: the frozen record everything behind the border works with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from prism.errors import InputError
from prism.inputs import kind_of, read_count, read_fraction, read_text
from prism.text import clean
from prism.types import EvidenceChoice, EvidenceSource, Side

MAX_AGAINST, MAX_AGAINST_CHARS = 500, 100_000
OnLongDocument = Literal["truncate", "window", "refuse"]


class Options(TypedDict, total=False):
    """What `Reranker.rerank`, `arerank`, `astream` and `preflight` take besides query and documents; None: not said."""

    instruction: str | None
    """What counts as relevant, where the template takes that; it is echoed in the result."""
    top_n: int | None
    """How many judgments to return; documents with an error come on top."""
    threshold: float | None
    """Scores from here on mean yes; by default the checkpoint's own threshold, or that of the query's language."""
    evidence: EvidenceChoice | bool | None
    """`written` by the model, with a contribution; `quoted`: sentences of the document that the model says yes to,
    which any reranker can do; `auto` or true (the default): as the checkpoint prefers; false: none."""
    evidence_tokens: int | None
    """At most so many tokens of contributions and evidence in all; 0: none."""
    evidence_top_n: int | None
    """Evidence for at most so many documents, the best."""
    evidence_threshold: float | None
    """Evidence for documents that score at least this, and at least `threshold`."""
    check: bool | None
    """Whether to look evidence up in the document; true by default."""
    max_query_tokens: int | None
    """Read so many tokens of the query: its first; of several fields see `prism.query`. What is cut off is reported."""
    max_document_tokens: int | None
    """Read so many tokens of each document and its title."""
    max_prompt_tokens: int | None
    """Of one prompt as a whole; the template's limit by default. Only the document is cut."""
    max_total_tokens: int | None
    """Refuse a call whose prompts are larger than this together, and quote no evidence beyond it."""
    truncation_side: Side | None
    """Where a long document is cut: `right` (default) reads its beginning, `left` its end. Titles stay."""
    on_long_document: OnLongDocument | None
    """`truncate` (default) cuts and reports it; `window` reads what would be cut off in further windows; `refuse`
    refuses the call."""
    against: Sequence[str] | None
    """Evidence texts that the caller holds already; a document that adds nothing to one of them comes behind all others
    of its verdict, and its `held` says to which."""
    answer_risk: float | None
    """Of the calls whose documents are taken for an answer (no `reason`) at most this share may hold none, as far as
    the checkpoint promises such a rate; without it what is more probable than not is an answer."""
    score_version: str | None
    """For which scores the thresholds of this call were chosen; others are a warning."""
    priority: int | None
    """Whose turn it is where several calls wait for one model: lower numbers first, 0 by default."""


class Call(NamedTuple):
    """`Options`, read: what each is when it was not said, too."""

    instruction: str | None
    top_n: int | None
    threshold: float
    evidence: EvidenceSource | None
    evidence_tokens: int | None
    evidence_top_n: int | None
    evidence_threshold: float
    """Beside `threshold`, which evidence needs too."""
    check: bool
    max_query_tokens: int | None
    max_document_tokens: int | None
    max_prompt_tokens: int | None
    max_total_tokens: int | None
    truncation_side: Side
    on_long_document: OnLongDocument
    against: tuple[str, ...]
    answer_risk: float | None
    score_version: str | None
    priority: int


def read_options(default_threshold: float, preferred: EvidenceSource, options: Mapping[str, Any]) -> Call:
    """`preferred`: what `auto` evidence is.

    Raises InputError naming the option that is wrong, or those that contradict each other; TypeError for an option
    there is not.
    """
    if unknown := sorted(set(options) - set(Call._fields)):
        raise TypeError(f"no option {unknown[0]!r}: expected {', '.join(Call._fields)}")
    said = {name: value for name, value in options.items() if value is not None}
    call = Call(
        instruction=read_text("instruction", said["instruction"]) if "instruction" in said else None,
        top_n=_count("top_n", said),
        threshold=read_fraction("threshold", said.get("threshold", default_threshold)),
        evidence=_read_evidence(said.get("evidence", True), preferred),
        evidence_tokens=_count("evidence_tokens", said, least=0),
        evidence_top_n=_count("evidence_top_n", said, least=0),
        evidence_threshold=read_fraction("evidence_threshold", said.get("evidence_threshold", 0)),
        check=bool(said.get("check", True)),
        max_query_tokens=_count("max_query_tokens", said),
        max_document_tokens=_count("max_document_tokens", said),
        max_prompt_tokens=_count("max_prompt_tokens", said),
        max_total_tokens=_count("max_total_tokens", said),
        truncation_side=_one_of("truncation_side", said, "right", get_args(Side)),
        on_long_document=_one_of("on_long_document", said, "truncate", get_args(OnLongDocument)),
        against=_read_against(said.get("against", ())),
        answer_risk=read_fraction("answer_risk", said["answer_risk"]) if "answer_risk" in said else None,
        score_version=_read_version(said),
        priority=read_count("priority", said.get("priority", 0), least=None),
    )
    _refuse_contradictions(call, said)
    return call


def _refuse_contradictions(call: Call, said: Mapping[str, Any]) -> None:
    limits = ("evidence_tokens", "evidence_top_n", "evidence_threshold")
    if call.evidence is None and (bounding := next((name for name in limits if said.get(name)), None)):
        raise InputError(
            f"evidence=False asks for none, and {bounding}={said[bounding]} bounds it: leave one of them out"
        )
    if call.truncation_side == "left" and call.on_long_document != "truncate":
        raise InputError(
            f"truncation_side='left' says where to cut, on_long_document={call.on_long_document!r} cuts nothing: leave"
            " one of them out"
        )


def _read_version(said: Mapping[str, Any]) -> str | None:
    if "score_version" not in said:
        return None
    return read_text("score_version", said["score_version"], "send what an answer said, or leave it out")


def _read_against(value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
        raise InputError(f"against must be a list of evidence texts, got {kind_of(value)}")
    texts = tuple(value)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"against[{at}] must be a string, got {kind_of(text)}")
        if not text.strip():
            raise InputError(f"against[{at}] is blank, expected evidence that is held: leave it out")
    if (total := sum(map(len, texts))) > MAX_AGAINST_CHARS or len(texts) > MAX_AGAINST:
        raise InputError(
            f"against has {total:,} characters in {len(texts):,} texts, at most {MAX_AGAINST_CHARS:,} in"
            f" {MAX_AGAINST:,}: send the evidence that is held, not its documents"
        )
    return tuple(map(clean, texts))


def _read_evidence(value: object, preferred: EvidenceSource) -> EvidenceSource | None:
    if value is False:
        return None
    if value is True or value == "auto":
        return preferred
    if value == "written" or value == "quoted":
        return value
    raise InputError(f"evidence must be true, false, 'written', 'quoted' or 'auto', got {str(value)[:40]!r}")


def _one_of(name: str, said: Mapping[str, Any], default: str, choices: Sequence[str]) -> Any:
    value = said.get(name, default)
    if value not in choices:
        *some, last = map(repr, choices)
        raise InputError(f"{name} must be {', '.join(some)} or {last}, got {str(value)[:40]!r}")
    return value


def _count(name: str, said: Mapping[str, Any], least: int = 1) -> int | None:
    return read_count(name, said[name], least) if name in said else None
