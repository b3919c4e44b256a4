"""Corpora -> passages -> queries -> pairs -> `train.jsonl`, `dev.jsonl` and a report of what was made and dropped."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from prism.data.pairs import Lexicon, Query, make_queries, negative, negatives, place_questions, positive
from prism.data.passages import cut
from prism.data.records import write_examples
from prism.data.settings import HeldOut, Pairs, Stage
from prism.data.sources import READERS, Corpus, Question, Text
from prism.errors import DataError
from prism.text import stable_id
from prism.types import Example

Say = Callable[[str], None]


def build(pairs: Pairs, folder: Path, seed: int, say: Say = lambda _: None) -> dict[str, object]:
    """Make the records of a recipe in `folder`, once: a finished build with the same settings is reused.

    `train.jsonl` keeps the order of the stages; `dev.jsonl` holds one positive and its BM25 negatives after another,
    from documents that no training record touches. Returns the report (also in `report.json`).
    """
    settings = stable_id(pairs.model_dump_json(), str(seed))
    report_path = folder / "report.json"
    if report_path.is_file():
        report: dict[str, object] = json.loads(report_path.read_text(encoding="utf-8"))
        if report.get("settings") == settings:
            say(f"reusing {folder}")
            return report
    train, dev = split(read(pairs, say), pairs.held_out.share)
    report = {"settings": settings}
    report["dev"] = _write(folder / "dev.jsonl", _dev(dev, pairs.held_out, random.Random(seed)), say)
    stages = (
        r for number, stage in enumerate(pairs.stages) for r in _stage(train, stage, random.Random(seed + number + 1))
    )
    report["train"] = _write(folder / "train.jsonl", stages, say)
    report_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def build_dev(pairs: Pairs, path: Path, seed: int, say: Say = lambda _: None) -> dict[str, object]:
    """Only the held-out groups of a recipe: what evaluation needs, in seconds."""
    _, dev = split(read(pairs, say), pairs.held_out.share)
    return _write(path, _dev(dev, pairs.held_out, random.Random(seed)), say)


def read(pairs: Pairs, say: Say) -> Corpus:
    texts: list[Text] = []
    questions: list[Question] = []
    for name in pairs.corpora:
        corpus = READERS[name](pairs.root)
        say(f"{name}: {len(corpus.texts):,} texts, {len(corpus.questions):,} questions")
        texts += corpus.texts
        questions += corpus.questions
    if not texts:
        raise DataError(f"no texts in {pairs.root}: check `data.pairs.corpora`")
    return Corpus(texts, questions)


def split(corpus: Corpus, share: float) -> tuple[Corpus, Corpus]:
    """(train, held out) by document group: all sections and versions of a document fall on one side."""
    held = {text.id for text in corpus.texts if int(stable_id("split", text.group), 16) < share * 2**64}

    def side(inside: bool) -> Corpus:
        return Corpus(
            [text for text in corpus.texts if (text.id in held) == inside],
            [question for question in corpus.questions if (question.text_id in held) == inside],
        )

    return side(False), side(True)


def _stage(corpus: Corpus, stage: Stage, rng: random.Random) -> list[Example]:
    """One stage of the curriculum, shuffled."""
    passages = cut(corpus.texts, stage.max_chars)
    lexicon = Lexicon(passages)
    human = place_questions(corpus.questions, passages, lexicon) * stage.human
    made = make_queries(passages, lexicon, rng, per_passage=2, count=max(0, stage.queries - len(human)))
    queries = [*human, *made]
    others = negatives(queries, passages, lexicon, hard=stage.hard, easy=stage.easy, rng=rng)
    records = [positive(query, passages) for query in queries]
    records += [negative(q, i, passages, lexicon) for q, found in zip(queries, others, strict=True) for i in found]
    rng.shuffle(records)
    return records


def _dev(corpus: Corpus, held_out: HeldOut, rng: random.Random) -> Iterator[Example]:
    """Groups of one positive and its BM25 negatives, as many of each kind of query as there are, up to a fair share."""
    passages = cut(corpus.texts, held_out.max_chars)
    lexicon = Lexicon(passages)
    queries = _even(make_queries(passages, lexicon, rng, per_passage=6), held_out.queries, rng)
    queries += _even(place_questions(corpus.questions, passages, lexicon), held_out.queries // 4, rng)
    found = negatives(queries, passages, lexicon, hard=held_out.negatives, easy=0, rng=rng, depth=60, quota=False)
    for query, others in zip(queries, found, strict=True):
        if len(others) == held_out.negatives:
            yield positive(query, passages)
            yield from (negative(query, index, passages, lexicon) for index in others)


def _even(queries: list[Query], count: int, rng: random.Random) -> list[Query]:
    kinds: dict[str, list[Query]] = {}
    for query in queries:
        kinds.setdefault(query.kind, []).append(query)
    share = count // max(1, len(kinds))
    return [query for of_kind in kinds.values() for query in rng.sample(of_kind, min(share, len(of_kind)))]


def _write(path: Path, examples: Iterator[Example], say: Say) -> dict[str, object]:
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Example]:
        for example in examples:
            counts[f"{example.source}/{example.verdict}"] += 1
            yield example

    total = write_examples(path, counted())
    say(f"{path.name}: {total:,} records")
    return {"records": total, "by_source": dict(sorted(counts.items()))}
