"""Measuring a model on held-out pairs while it trains: it ranks and writes as it will when it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from prism.errors import DataError
from prism.files.examples import read_examples
from prism.outputs import write_text
from prism.template import Template
from prism.training.distill import unwrapped
from prism.training.recipe import Recipe
from prism.types import Document, Example, Judgment, Outcome, Record, Verdict

_SAMPLES = 8


class DevSet(NamedTuple):
    """Held-out records, query by query."""

    queries: dict[str, list[Example]]
    written: int
    """For so many records labelled yes the model writes."""

    @property
    def examples(self) -> list[Example]:
        return [example for of_query in self.queries.values() for example in of_query]


class Sample(Record):
    """What the model said about one pair."""

    query: str
    document: str
    label: Verdict
    gold_evidence: str | None
    score: float | None
    outcome: Outcome
    contribution: str | None
    evidence: str | None


class Assessment(Record):
    """Everything measured at one step."""

    step: int
    measures: dict[str, float]
    samples: tuple[Sample, ...]

    def write(self, folder: Path) -> None:
        write_text(folder / f"step-{self.step:07}.json", self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read_all(cls, folder: Path) -> list[Assessment]:
        """By step; none where nothing was measured."""
        return [cls.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("step-*.json"))]


def read_dev(recipe: Recipe, folder: Path) -> DevSet | None:
    """The recipe's held-out records. Raises DataError unless both verdicts occur."""
    settings = recipe.evaluation
    if settings is None:
        return None
    path = settings.file or folder / "data" / "dev.jsonl"
    queries: dict[str, list[Example]] = {}
    for example in read_examples(path):
        queries.setdefault(example.query_id or example.query, []).append(example)
    chosen = dict(islice(queries.items(), settings.queries))
    verdicts = {example.verdict for of_query in chosen.values() for example in of_query}
    if verdicts != {"yes", "no"}:
        raise DataError(
            f"{path}: the first {settings.queries} queries hold {' and '.join(sorted(verdicts)) or 'nothing'}:"
            " expected records labelled yes and records labelled no"
        )
    return DevSet(chosen, settings.written)


def assess(model: Any, template: Template, dev: DevSet, step: int) -> Assessment:
    """Measures by name: ndcg@10 (queries with a yes), auc and calibration_error (all pairs), failed (pairs without a
    score), and of what is written for records labelled yes: parse_rate, fidelity, gold_recall (share of the gold
    evidence's characters that the spans cover; records whose evidence stands in the document).

    The model is left in the mode it was in; no random numbers are drawn.
    """
    training = model.training
    model.eval()
    try:
        with _plain_attention(model), _reranker(model, template) as reranker:
            scored = {query: _scores(reranker, examples) for query, examples in dev.queries.items()}
            yes = [example for example in dev.examples if example.verdict == "yes"][: dev.written]
            texts = [(example, _write(reranker, example)) for example in yes]
            other = [example for example in dev.examples if example.verdict == "no"][: _SAMPLES // 2]
            shown = [*texts[: _SAMPLES - len(other)], *((example, _judge(reranker, example)) for example in other)]
    finally:
        model.train(training)
    measures = {**_ranking(dev.queries, scored), **_writing(texts)}
    return Assessment(step=step, measures=measures, samples=tuple(_sample(*pair) for pair in shown))


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Rows are packed by the trainer; the engine packs its own."""
    from prism.engines.packed import PACKED
    from prism.engines.prefix import attends_by

    config = unwrapped(model).config
    with attends_by(config, "sdpa" if config._attn_implementation == PACKED else config._attn_implementation):
        yield


@contextmanager
def _reranker(model: Any, template: Template) -> Iterator[Any]:
    from prism.engines.hf import HfEngine
    from prism.reranker import Reranker

    engine = HfEngine(
        unwrapped(model),
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        pad_id=template.pad_id,
        decode=template.decode,
    )
    with Reranker(template, engine, name="in training") as reranker:
        yield reranker


def _document(example: Example) -> Document:
    return Document(text=example.document, title=example.title)


def _scores(reranker: Any, examples: Sequence[Example]) -> list[float | None]:
    """In the order of the examples; None for a document that could not be judged."""
    result = reranker.rerank(examples[0].query, [_document(e) for e in examples], evidence=False)
    by_index = {judgment.index: judgment.score for judgment in result}
    return [by_index[index] for index in range(len(examples))]


def _write(reranker: Any, example: Example) -> Judgment:
    """What it writes, whatever its verdict: writing is measured apart from scoring."""
    judgment: Judgment = reranker.rerank(example.query, [_document(example)], threshold=0.0)[0]
    return judgment


def _judge(reranker: Any, example: Example) -> Judgment:
    judgment: Judgment = reranker.rerank(example.query, [_document(example)])[0]
    return judgment


def _ranking(
    queries: Mapping[str, Sequence[Example]], scored: Mapping[str, Sequence[float | None]]
) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    from prism.measures.calibration import calibration_error
    from prism.measures.ranking import measure

    qrels = {q: {str(i): int(e.verdict == "yes") for i, e in enumerate(es)} for q, es in queries.items()}
    qrels = {query: labels for query, labels in qrels.items() if any(labels.values())}
    run = {query: _ranked(scored[query], labels) for query, labels in qrels.items()}
    pairs = [
        (score, example.verdict == "yes")
        for query, examples in queries.items()
        for score, example in zip(scored[query], examples, strict=True)
    ]
    kept = [(score, label) for score, label in pairs if score is not None]
    scores, labels = [score for score, _ in kept], [label for _, label in kept]
    measures = {"ndcg@10": measure(qrels, run, ["nDCG@10"])["nDCG@10"], "failed": float(len(pairs) - len(kept))}
    if len(set(labels)) == 2:
        measures["auc"] = float(roc_auc_score(labels, scores))
        measures["calibration_error"] = calibration_error(scores, labels)
    return measures


def _ranked(scores: Sequence[float | None], labels: Mapping[str, int]) -> list[str]:
    """Best first. Of equal scores the irrelevant come first: a model that scores all alike gets no credit for order."""

    def place(index: int) -> tuple[float, int]:
        score = scores[index]
        return (2.0 if score is None else -score), labels[str(index)]

    return [str(index) for index in sorted(range(len(scores)), key=place)]


def _writing(texts: Sequence[tuple[Example, Judgment]]) -> dict[str, float]:
    if not texts:
        return {}
    checks = [judgment.check for _, judgment in texts if judgment.check]
    recalls = [recall for example, judgment in texts if (recall := _gold_recall(example, judgment)) is not None]
    measures = {"parse_rate": sum(j.outcome.parsed for _, j in texts) / len(texts)}
    if checks:
        measures["fidelity"] = sum(check.written.score for check in checks) / len(checks)
    if recalls:
        measures["gold_recall"] = sum(recalls) / len(recalls)
    return measures


def _gold_recall(example: Example, judgment: Judgment) -> float | None:
    start = example.document.find(example.evidence) if example.evidence else -1
    if start < 0:
        return None
    gold = set(range(start, start + len(example.evidence or "")))
    found = {offset for span in judgment.spans for offset in range(span.start, span.end)}
    return len(gold & found) / len(gold)


def _sample(example: Example, judgment: Judgment) -> Sample:
    return Sample(
        query=example.query,
        document=example.document,
        label=example.verdict,
        gold_evidence=example.evidence,
        score=judgment.score,
        outcome=judgment.outcome,
        contribution=judgment.contribution,
        evidence=judgment.evidence,
    )
