"""Corpora -> passages -> queries -> pairs -> `train.jsonl`, `dev.jsonl` and a report of what was made and dropped."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prism.data.pairs import Lexicon, Query, make_queries, negative, negatives, place_questions, positive
from prism.data.passages import Passage, cut
from prism.data.records import write_examples
from prism.data.settings import HeldOut, Pairs, Stage
from prism.data.sources import READERS, Corpus, Question, Text, own_texts
from prism.data.unspaced import is_unspaced, unspaced_groups
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


def build_dev(
    pairs: Pairs, path: Path, seed: int, say: Say = lambda _: None, *, language: str = "en"
) -> dict[str, object]:
    """Only the held-out groups of a recipe in one language: what evaluation needs, in seconds."""
    if language == "en":  # is in the corpora themselves: files of further texts may be absent
        pairs = pairs.model_copy(update={"texts": ()})
    _, dev = split(read(pairs, say), pairs.held_out.share)
    return _write(path, _dev(dev, pairs.held_out, random.Random(seed), language), say)


def read(pairs: Pairs, say: Say) -> Corpus:
    texts: list[Text] = []
    questions: list[Question] = []
    read_all: dict[str, tuple[Callable[[Path], Corpus], Path]] = {
        name: (READERS[name], pairs.root) for name in pairs.corpora
    }
    read_all |= {path.name: (own_texts, path) for path in pairs.texts}
    for name, (reader, place) in read_all.items():
        corpus = reader(place)
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


def _having(corpus: Corpus, wanted: Callable[[Text], bool]) -> Corpus:
    """The texts that are wanted, and the questions on them."""
    texts = [text for text in corpus.texts if wanted(text)]
    kept = {text.id for text in texts}
    return Corpus(texts, [question for question in corpus.questions if question.text_id in kept])


def _stage(corpus: Corpus, stage: Stage, rng: random.Random) -> list[Example]:
    """One stage of the curriculum, shuffled."""
    records = _spaced(_having(corpus, lambda text: text.language == "en"), stage, stage.queries, rng)
    if stage.foreign:
        foreign = _having(corpus, lambda text: text.language != "en")
        half = stage.foreign // 2
        records += _spaced(_having(foreign, lambda text: not is_unspaced(text.text)), stage, half, rng)
        records += _unspaced(_having(foreign, lambda text: is_unspaced(text.text)), stage, half, rng)
    rng.shuffle(records)
    return records


def _unspaced(corpus: Corpus, stage: Stage, count: int, rng: random.Random) -> list[Example]:
    """Half of the queries are people's questions, as far as there are. A character is about a token there, and says
    as much as three letters: passages are a third as long."""
    passages = cut(corpus.texts, max(100, stage.max_chars // 3), min_chars=30)
    if not passages:
        return []
    lexicon = Lexicon(passages)
    human = place_questions(corpus.questions, passages, lexicon)
    human = rng.sample(human, min(len(human), count // 2))
    records = _paired(human, passages, lexicon, stage, rng)
    made = count - len(human)
    groups = unspaced_groups(passages, rng, count=made, per_passage=2, hard=stage.hard, easy=stage.easy)
    return records + [record for group in groups for record in group]


def _spaced(corpus: Corpus, stage: Stage, count: int, rng: random.Random) -> list[Example]:
    passages = cut(corpus.texts, stage.max_chars)
    lexicon = Lexicon(passages)
    human = place_questions(corpus.questions, passages, lexicon) * stage.human
    made = make_queries(passages, lexicon, rng, per_passage=2, count=max(0, count - len(human)), headed=stage.headed)
    return _paired([*human, *made], passages, lexicon, stage, rng)


def _paired(
    queries: Sequence[Query], passages: Sequence[Passage], lexicon: Lexicon, stage: Stage, rng: random.Random
) -> list[Example]:
    """Every query with its passage and its negatives."""
    if not queries:
        return []
    others = negatives(queries, passages, lexicon, hard=stage.hard, easy=stage.easy, rng=rng)
    records = [positive(query, passages) for query in queries]
    records += [negative(q, i, passages, lexicon) for q, found in zip(queries, others, strict=True) for i in found]
    return records


def _dev(corpus: Corpus, held_out: HeldOut, rng: random.Random, language: str = "en") -> Iterator[Example]:
    """Groups of one positive and its BM25 negatives, as many of each kind of query as there are, up to a fair share.

    In scripts without spaces: people's questions only, on passages a third as long.
    """
    corpus = _having(corpus, lambda text: text.language == language)
    unspaced = any(is_unspaced(text.text) for text in corpus.texts)
    shape = {"max_chars": held_out.max_chars // 3, "min_chars": 30} if unspaced else {"max_chars": held_out.max_chars}
    passages = cut(corpus.texts, **shape)
    lexicon = Lexicon(passages)
    made = [] if unspaced else make_queries(passages, lexicon, rng, per_passage=6)
    queries = _even(made, held_out.queries, rng)
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
