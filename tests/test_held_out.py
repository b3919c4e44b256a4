"""Held-out measures, worked by hand on tiny groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from prism import evidence
from prism.errors import DataError
from prism.files.examples import write_examples
from prism.types import Document, Example, Judgment, Outcome
from studies.held_out import evaluate, markdown, read_groups

GOLD = "The harbour froze in 1963."


def record(query: str, document: str, verdict: str, kind: str = "keyword") -> Example:
    gold = GOLD if verdict == "yes" else None
    return Example(
        query=query, document=document, query_id=query, source=f"made/{kind}", verdict=verdict, evidence=gold,
        contribution="It says when." if gold else None, teacher_score=0.5,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = []
    for number in range(4):
        query = f"harbour froze {number}"
        made.append(record(query, f"{GOLD} Number {number} came later than anybody thought it would.", "yes"))
        made += [record(query, f"Copper conducts heat {number} {other}.", "no") for other in range(3)]
    write_examples(tmp_path / "dev.jsonl", made)
    return tmp_path / "dev.jsonl"


class Scripted:
    """Scores documents by a table of substrings; writes GOLD, or the first words of the document."""

    def __init__(self, scores: dict[str, float], *, writes_gold: bool = True) -> None:
        self.scores, self.writes_gold = scores, writes_gold

    def rerank(
        self, query: str, documents: Sequence[Document], *, evidence: bool, threshold: float | None = None
    ) -> list[Judgment]:
        made = [self._judge(i, d, evidence, 0.5 if threshold is None else threshold) for i, d in enumerate(documents)]
        return sorted(made, key=lambda judgment: -(judgment.score or 0.0))

    def _judge(self, index: int, document: Document, write: bool, threshold: float) -> Judgment:
        score = next((value for mark, value in self.scores.items() if mark in document.text), 0.1)
        verdict = "yes" if score >= threshold else "no"
        if verdict == "no" or not write:
            return Judgment(index=index, score=score, verdict=verdict)
        text = GOLD if self.writes_gold else document.text[-20:]
        check = evidence.check(text, document.text)
        scored = Judgment(index=index, score=score, verdict=verdict, contribution="c")
        return scored.model_copy(update={"outcome": Outcome.COMPLETE, "evidence": text, "check": check})


def test_perfect_reranker(path):
    report = evaluate(Scripted({"harbour": 0.9}), read_groups(path))
    assert report.overall.mrr == 1.0
    assert report.overall.top1 == 1.0
    assert report.parse_rate == 1.0
    assert report.written == 4
    assert report.evidence_right == {"keyword": 1.0}
    # Four documents: (1 + 1/2 + 1/3 + 1/4) / 4 = 25/48.
    assert report.chance_mrr == pytest.approx(25 / 48)
    # A reranker that never looks at the query ranks as well under another group's query: the control exposes it.
    assert report.shuffled_control.mrr == 1.0


def test_ties_rank_the_positive_last(path):
    report = evaluate(Scripted({}), read_groups(path))
    assert report.overall.mrr == pytest.approx(1 / 4)
    assert report.written == 0


def test_known_ranks(path):
    # Positives 1, 2, 4, 4: (1 + 1/2 + 1/4 + 1/4) / 4 = 1/2; one of four on top.
    scores = {
        "Number 0": 0.9, "Number 1": 0.5, "Number 2": 0.05, "Number 3": 0.05, "heat 1 0": 0.8,
    }  # fmt: skip
    report = evaluate(Scripted(scores), read_groups(path))
    assert report.overall.mrr == pytest.approx(0.5)
    assert report.overall.top1 == 0.25
    low, high = report.overall.mrr_interval
    assert low < 0.5 < high


def test_evidence_elsewhere_is_not_right_even_when_asked_for_below_the_threshold(path):
    report = evaluate(Scripted({"harbour": 0.2}, writes_gold=False), read_groups(path))
    assert report.evidence_right == {"keyword": 0.0}


def test_report_reads_well(path):
    text = markdown("mini", evaluate(Scripted({"harbour": 0.9}), read_groups(path)))
    assert "| mini | 4 | 1.000 |" in text
    assert "parsed complete: 100.0%" in text


def test_malformed_groups_are_named(tmp_path):
    write_examples(tmp_path / "dev.jsonl", [record("q", "d", "no"), record("q", "e", "no")])
    with pytest.raises(DataError, match="'q' has 0 positives"):
        read_groups(tmp_path / "dev.jsonl")
