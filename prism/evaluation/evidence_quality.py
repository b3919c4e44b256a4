"""How good an evidence text is for one pair, and a whole system's evidence over many.

Per pair, from the text alone: does it parse, are its facts in the document, where does the document back it, how much
shorter is it, is it in the document's language. Where gold evidence or answers are known:

    sentences   a document sentence is *chosen* when spans of the evidence cover at least half of its characters
    correct     a chosen sentence of a rationale all of whose sentences are chosen (several rationales are alternatives)
    precision   correct / chosen, recall = correct / sentences in any rationale, both over the sums of all pairs, and F1
                is their harmonic mean: SciFact's "sentence-level, selection only" (Wadden et al. 2020, section 4;
                allenai/scifact, `count_rationale_sents`)
    sufficiency share of pairs whose evidence is enough: it holds the words of a right answer
                (`prism.evaluation.answers`), or, where only gold sentences are known, a rationale chosen whole
    cut         the same of the document cut to as many tokens: what the reader would have had at equal cost
    gain        sufficiency - cut, pair by pair
    concision   share of the evidence's tokens in sentences that answer or belong to a rationale
    repeated    share of evidence sentences that an earlier one has already said (`prism.evidence.compare`)
    conflicts   share of evidence texts one of whose sentences contradicts the document (the same comparison)

A pair without evidence counts as nothing chosen and not enough; it has no fidelity, support, compression or language.
Intervals are percentile bootstraps over pairs (95 %).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prism import evidence
from prism.evaluation.answers import contains_answer
from prism.evaluation.evidence_sets import Case
from prism.evidence.compare import clashes, said_by
from prism.evidence.language import same_language
from prism.evidence.tokens import ComparedText
from prism.measures.agreement import interval, resample
from prism.types import EvidenceCheck, Outcome, Record, Span

SAMPLES = 2_000
Count = Callable[[str], int]
Floats = NDArray[np.float64]


class Extract(Record):
    """What a system gives an agent in place of one document."""

    evidence: str | None
    contribution: str | None = None
    outcome: Outcome = Outcome.COMPLETE
    generated: bool = False
    """Written by a model in an agreed format, so that there is something to parse."""
    failure: str | None = None
    """Why there is no text, when the system broke; never scored as if it had answered."""
    seconds: float = 0.0
    spent: int | None = None
    """Tokens a model read and wrote to judge the document and make this; None where no model did."""


class Sentences(Record):
    """Gold sentences of one pair: counts that add up over pairs."""

    chosen: int
    gold: int
    correct: int
    """SciFact's: of rationales that were chosen whole."""
    touched: int
    """Chosen and in any rationale."""
    sufficient: bool


class Measured(Record):
    """Everything measured on one evidence text. None: not defined for this pair."""

    case: str
    outcome: Outcome
    generated: bool
    failed: bool
    written: bool
    format: float | None
    """Share of three things the format asks for: a contribution, an evidence, and a complete answer."""
    facts: int = 0
    unsupported: int = 0
    fidelity: float | None = None
    support: float | None = None
    unbacked: float | None = None
    """Share of evidence sentences that no span of the document backs."""
    compression: float | None = None
    tokens: int
    document_tokens: int
    spent: int | None = None
    sentences: Sentences | None = None
    sufficient: bool | None = None
    """A right answer is in the evidence; without known answers, a rationale is chosen whole."""
    cut_sufficient: bool | None = None
    """The same of the document cut to as many tokens."""
    concision: float | None = None
    repeated: float | None = None
    conflicts: bool | None = None
    language: bool | None = None
    """Evidence in the language of the document."""
    contribution_language: bool | None = None
    """Contribution in the language of the query."""


def measure_extract(case: Case, extract: Extract, count: Count) -> Measured:
    """Measure one extract; `count` counts tokens."""
    text = extract.evidence or ""
    written = bool(text.strip()) and extract.failure is None
    check = None
    if written:
        check = evidence.check(
            text, case.document, contribution=extract.contribution, query=case.query, title=case.title
        )
    tokens = count(text) if written else 0
    sentences = chosen_sentences(case, check.spans if check else ()) if case.gold else None
    cut = truncated(case.document, tokens, count)
    return Measured(
        case=case.id,
        outcome=extract.outcome,
        generated=extract.generated,
        failed=extract.failure is not None,
        written=written,
        format=_format(extract) if extract.generated else None,
        tokens=tokens,
        document_tokens=count(case.document),
        spent=extract.spent,
        sentences=sentences,
        sufficient=_suffices(case, text if written else "", sentences),
        cut_sufficient=_suffices(
            case, cut, chosen_sentences(case, [Span(start=0, end=len(cut), support=1.0)] if cut else [])
        ),
        concision=_concision(case, check, count) if check else None,
        language=same_language(text, case.document) if written else None,
        contribution_language=same_language(extract.contribution, case.query) if extract.contribution else None,
        **(_checked(check) if check else {}),  # type: ignore[arg-type]
        **(_compared(case, text, check) if check else {}),  # type: ignore[arg-type]
    )


def truncated(text: str, tokens: int, count: Count) -> str:
    """The longest beginning of `text` of at most `tokens` tokens, cut at a character."""
    low, high = 0, len(text)
    while low < high:  # what a prefix costs grows with its length, but for a token or two at the cut
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle - 1)
    return text[:low]


def _suffices(case: Case, text: str, sentences: Sentences | None) -> bool | None:
    """An answer that the document does not hold in so many words cannot be found in its evidence: None."""
    if case.answers:
        return contains_answer(text, case.answers) if contains_answer(case.document, case.answers) else None
    return sentences.sufficient if sentences and case.gold else None


def _concision(case: Case, check: EvidenceCheck, count: Count) -> float | None:
    if not case.gold and not case.answers:
        return None
    gold = [stretch for alternative in case.gold for stretch in alternative]
    needed = total = 0
    for sentence in check.sentences:
        tokens = count(sentence.text)
        needs = contains_answer(sentence.text, case.answers) or any(
            span.start < high and low < span.end for span in sentence.spans for low, high in gold
        )
        needed, total = needed + tokens * needs, total + tokens
    return needed / max(1, total)


def _compared(case: Case, text: str, check: EvidenceCheck) -> dict[str, float | bool]:
    passages = [ComparedText(sentence.text) for sentence in check.sentences]
    again = [said_by(passage, passages[:at]) is not None for at, passage in enumerate(passages)]
    return {
        "repeated": sum(again) / max(1, len(again)),
        "conflicts": bool(clashes(ComparedText(text), ComparedText(case.document))),
    }


def _format(extract: Extract) -> float:
    parts = (bool(extract.contribution), bool(extract.evidence), extract.outcome.parsed)
    return sum(parts) / len(parts)


def _checked(check: EvidenceCheck) -> dict[str, float | int]:
    backed = [bool(sentence.spans) for sentence in check.sentences]
    return {
        "facts": check.written.checked,
        "unsupported": len(check.written.unsupported),
        "fidelity": check.written.score,
        "support": check.support,
        "unbacked": 1.0 - sum(backed) / max(1, len(backed)),
        "compression": check.compression,
    }


def chosen_sentences(case: Case, spans: Iterable[Span]) -> Sentences:
    """Which sentences the spans choose, against the gold ones (see the module)."""
    borders = case.sentences()
    covered = np.zeros(len(case.document) + 1, dtype=bool)
    for span in spans:
        covered[span.start : span.end] = True
    chosen = {i for i, (start, end) in enumerate(borders) if covered[start:end].sum() * 2 >= end - start}
    rationales = [frozenset(_overlapping(alternative, borders)) for alternative in case.gold]
    gold: set[int] = set().union(*rationales)
    whole = [rationale for rationale in rationales if rationale and rationale <= chosen]
    return Sentences(
        chosen=len(chosen),
        gold=len(gold),
        correct=len(set().union(*whole)),
        touched=len(chosen & gold),
        sufficient=bool(whole),
    )


def _overlapping(stretches: Iterable[tuple[int, int]], borders: Sequence[tuple[int, int]]) -> Iterable[int]:
    """Sentences that share more than half of the shorter of the two with a stretch: borders may differ by a bracket."""
    for low, high in stretches:
        for index, (start, end) in enumerate(borders):
            if 2 * (min(end, high) - max(start, low)) > min(end - start, high - low):
                yield index


# --- a whole system --------------------------------------------------------------------------------------------------


class Value(Record):
    """A figure over the pairs for which it is defined, with its 95 % interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0


class Summary(Record):
    """One system on one set."""

    pairs: int
    failures: int
    """The system broke; these pairs count as nothing found."""
    outcomes: dict[str, int]
    """Of generated texts."""
    measures: dict[str, Value]
    seconds: float

    def __getitem__(self, name: str) -> float | None:
        return self.measures[name].value


MEASURES = {
    "parse rate": "share of written texts that parse completely",
    "format": "share of the three parts the format asks for",
    "fidelity": "share of names, numbers, dates, addresses and code in the texts that the document has",
    "support": "how well spans of the document back the evidence",
    "unbacked": "share of evidence sentences without a span",
    "compression": "characters of evidence over characters of document",
    "tokens": "mean tokens an agent reads in place of the document",
    "spent": "mean tokens a model read and wrote to judge the document and make the evidence",
    "precision": "gold sentences: correct / chosen",
    "recall": "gold sentences: correct / gold",
    "F1": "gold sentences: harmonic mean of precision and recall",
    "F1, single": "the same when a sentence counts without the rest of its rationale",
    "sufficiency": "share of pairs whose evidence holds a right answer or, where none is known, a whole rationale",
    "cut": "the same of the document cut to as many tokens",
    "gain": "sufficiency - cut, pair by pair",
    "concision": "share of the evidence's tokens in sentences that answer or belong to a rationale",
    "repeated": "share of evidence sentences that an earlier one has already said",
    "conflicts": "share of evidence texts with a sentence that contradicts the document, by the comparison of passages",
    "language": "share of evidence in the document's language",
    "contribution language": "share of contributions in the query's language",
}


class _Figures(NamedTuple):
    """Statistics over pairs; `drawn`: their bootstrap samples."""

    measured: Sequence[Measured]
    drawn: Floats

    def over(self, above: Callable[[Measured], float | None], below: Callable[[Measured], float | None]) -> Value:
        rows = [[above(m) or 0.0, below(m) or 0.0] for m in self.measured]
        pairs = sum(bool(below(m)) for m in self.measured)
        return _value(rows, self.drawn, lambda sums: _over(sums[..., 0], sums[..., 1]), pairs)

    def mean(self, of: Callable[[Measured], float | None]) -> Value:
        return self.over(of, lambda m: float(of(m) is not None))

    def sentences(self, statistic: Callable[[Floats], Floats]) -> Value:
        rows = [m.sentences for m in self.measured]
        counts = [[s.correct, s.chosen, s.gold, s.touched] if s else [0, 0, 0, 0] for s in rows]
        return _value(counts, self.drawn, statistic, sum(s is not None for s in rows))


def summarise_extracts(measured: Sequence[Measured], seconds: float = 0.0) -> Summary:
    """The figures of one system on one set."""
    of = _Figures(measured, resample(len(measured), SAMPLES) if measured else np.zeros((1, 0)))
    found = {
        "parse rate": of.mean(lambda m: float(m.outcome.parsed) if m.generated else None),
        "format": of.mean(lambda m: m.format),
        "fidelity": of.over(lambda m: float(m.facts - m.unsupported), lambda m: float(m.facts)),
        "support": of.mean(lambda m: m.support),
        "unbacked": of.mean(lambda m: m.unbacked),
        "compression": of.mean(lambda m: m.compression),
        "tokens": of.mean(lambda m: float(m.tokens)),
        "spent": of.mean(lambda m: None if m.spent is None else float(m.spent)),
        "precision": of.sentences(lambda c: _over(c[..., 0], c[..., 1])),
        "recall": of.sentences(lambda c: _over(c[..., 0], c[..., 2])),
        "F1": of.sentences(lambda c: _over(2 * c[..., 0], c[..., 1] + c[..., 2])),
        "F1, single": of.sentences(lambda c: _over(2 * c[..., 3], c[..., 1] + c[..., 2])),
        "sufficiency": of.mean(lambda m: m.sufficient),
        "cut": of.mean(lambda m: m.cut_sufficient),
        "gain": of.mean(_gain),
        "concision": of.mean(lambda m: m.concision),
        "repeated": of.mean(lambda m: m.repeated),
        "conflicts": of.mean(lambda m: m.conflicts),
        "language": of.mean(lambda m: None if m.language is None else float(m.language)),
        "contribution language": of.mean(
            lambda m: None if m.contribution_language is None else float(m.contribution_language)
        ),
    }
    outcomes = dict(Counter(str(m.outcome) for m in measured if m.generated))
    failures = sum(m.failed for m in measured)
    return Summary(pairs=len(measured), failures=failures, outcomes=outcomes, measures=found, seconds=seconds)


def _gain(measured: Measured) -> float | None:
    if measured.sufficient is None or measured.cut_sufficient is None:
        return None
    return float(measured.sufficient) - float(measured.cut_sufficient)


def by_length(measured: Sequence[Measured], bands: int = 3) -> dict[str, list[Measured]]:
    """The pairs in bands of equal size by tokens of the document, shortest first: "91 to 240 tokens" -> pairs."""
    ordered = sorted(measured, key=lambda m: (m.document_tokens, m.case))
    cuts = [len(ordered) * band // bands for band in range(bands + 1)]
    parts = [ordered[low:high] for low, high in pairwise(cuts) if high > low]
    return {f"{part[0].document_tokens:,} to {part[-1].document_tokens:,} tokens": part for part in parts}


def _value(
    rows: Sequence[Sequence[float]], drawn_SP: Floats, statistic: Callable[[Floats], Floats], pairs: int
) -> Value:
    """The statistic of the column sums of [P, C], and of each bootstrap sample's."""
    if not pairs:
        return Value()
    rows_PC = np.array(rows, dtype=np.float64)
    value = float(statistic(rows_PC.sum(axis=0)))
    if np.isnan(value):
        return Value(pairs=pairs)
    low, high = interval(statistic(drawn_SP @ rows_PC))
    return Value(value=value, low=low, high=high, pairs=pairs)


def _over(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where there is nothing below."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
