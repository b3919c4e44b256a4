"""Pairs without an LLM: evidence is verbatim, splits are by document, negatives do not answer and have no prior."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from prism.data.build import build, split

from prism.data.pairs import Lexicon, make_queries, negative, negatives, place_questions, positive
from prism.data.passages import cut, words
from prism.data.records import read_examples
from prism.data.settings import HeldOut, Pairs, Stage
from prism.data.sources import Corpus, Question, Text, techdocs
from prism.errors import DataError

NOUNS = [
    "harbour",
    "lantern",
    "copper",
    "valley",
    "engine",
    "ledger",
    "orchard",
    "signal",
    "turbine",
    "glacier",
    "archive",
    "bridge",
]
VERBS = ["guides", "heats", "carries", "measures", "repairs", "records", "filters", "lifts"]


def corpus(documents: int = 60) -> list[Text]:
    rng = random.Random(1)
    made = []
    for number in range(documents):
        name = f"{rng.choice(NOUNS)}{number}"
        lines = [
            f"The {name} {rng.choice(VERBS)} the {rng.choice(NOUNS)} near the {rng.choice(NOUNS)} every {number} days."
            for _ in range(6)
        ]
        made.append(
            Text(
                f"doc{number}#0", f"doc{number}", f"About {name} things", f"Using {name} well", " ".join(lines), "made"
            )
        )
    return made


def test_passages_are_windows_of_whole_sentences():
    texts = corpus()
    passages = cut(texts, 200)
    assert passages
    for passage in passages:
        source = next(text for text in texts if text.id == passage.text_id)
        assert source.text[passage.offset : passage.offset + len(passage.text)] == passage.text
        assert passage.text[0] == "T"
        assert passage.text[-1] == "."
        assert passage.sentences[0][0] == 0
        assert passage.sentences[-1][1] == len(passage.text)
    assert len({passage.text for passage in passages}) == len(passages)


def test_repeated_passages_are_dropped():
    twice = [*corpus(5), *[text._replace(id=f"v2/{text.id}") for text in corpus(5)]]
    assert len(cut(twice, 200)) == len(cut(corpus(5), 200))


def test_words_compare_across_case_and_plural():
    assert words("Access Keys, in S3-buckets!") == ["access", "key", "in", "s3-bucket"]
    assert words("class access") == ["class", "access"]


def test_positives_hold_their_evidence_verbatim():
    passages = cut(corpus(), 300)
    lexicon = Lexicon(passages)
    queries = make_queries(passages, lexicon, random.Random(2), per_passage=4)
    assert {query.kind for query in queries} >= {"keyword", "question", "heading", "title"}
    for query in queries:
        example = positive(query, passages)
        assert example.evidence in example.document
        assert example.verdict == "yes"
        assert example.contribution.endswith(".")
        if query.kind == "keyword":
            assert set(words(query.text)) <= set(words(example.evidence))


def test_a_share_of_what_stands_under_a_heading_comes_first():
    passages = cut(corpus(), 300)
    lexicon = Lexicon(passages)

    def headed(share: float) -> int:
        queries = make_queries(passages, lexicon, random.Random(2), per_passage=2, count=40, headed=share)
        assert len(queries) == 40
        return sum(passages[query.passage].first for query in queries)

    assert all(passage.title and passage.heading for passage in passages)
    assert headed(1.0) == 40 > headed(0.2) > headed(0.0)


def test_negatives_do_not_answer_and_passages_have_no_prior():
    passages = cut(corpus(), 300)
    lexicon = Lexicon(passages)
    queries = make_queries(passages, lexicon, random.Random(2), per_passage=2)
    found = negatives(queries, passages, lexicon, hard=2, easy=1, rng=random.Random(3))
    as_positive = Counter(query.passage for query in queries)
    as_negative = Counter(index for others in found for index in others)
    for query, others in zip(queries, found, strict=True):
        assert len(set(others)) == len(others)
        assert query.passage not in others
        for index in others:
            assert lexicon.coverage(words(query.text), index)[0] <= 0.95
            example = negative(query, index, passages, lexicon)
            assert example.verdict == "no"
            assert example.evidence is None
            assert 0.0 < example.teacher_score <= 0.3
    assert all(as_negative[index] <= 3 * as_positive[index] for index in as_negative)
    assert sum(as_negative.values()) > 2.5 * len(queries)  # nearly every place is filled


def test_human_questions_are_placed_on_the_passage_with_the_answer():
    text = Text("t", "t", "", "", "Filler comes first here. " * 20 + "The bridge opened in 1963. It is long.", "made")
    start = text.text.index("The bridge opened")
    question = Question("when did the bridge open", "t", start, start + len("The bridge opened in 1963."), "1963")
    passages = cut([text], 200)
    placed = place_questions([question], passages, Lexicon(passages))
    assert len(placed) == 1
    example = positive(placed[0], passages)
    assert example.evidence == "The bridge opened in 1963."
    assert example.contribution == "It covers bridge."  # not 1963: nano would learn to name some number


@pytest.mark.parametrize(
    ("asked", "evidence", "contribution"),
    [
        ("北大西洋公约是哪一年签订的？", "该组织在华盛顿签订北大西洋公约。", "文中讲到北大西洋公约和签订。"),
        ("前肛鳗以什么为食？", "属于底栖鱼类，以小型鱼类为食。", "文中说明：前肛鳗以什么为食。"),
        ("Debian 的 Bruce 何时离开？", "Bruce 依然和 Debian 保持联系。", "文中讲到Debian和Bruce。"),
    ],
)
def test_chinese_contributions_name_what_query_and_sentence_share(asked: str, evidence: str, contribution: str) -> None:
    text = Text("t", "t", "", "", evidence, "made", "zh")
    placed = place_questions([Question(asked, "t", 0, len(evidence), "1949年")], cut([text], 200, 5), Lexicon([]))
    assert [positive(query, cut([text], 200, 5)).contribution for query in placed] == [contribution]


def test_split_is_by_document_group():
    texts = [Text(f"v{v}/{n}", f"page{n}", "", "", "x", "made") for n in range(200) for v in (1, 2)]
    train, held = split(Corpus(texts, []), 0.2)
    assert {t.group for t in train.texts}.isdisjoint({t.group for t in held.texts})
    assert len(train.texts) + len(held.texts) == 400
    assert 40 <= len(held.texts) <= 130


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "shared" / "corpora"
    folder.mkdir(parents=True)
    rows = [
        {"id": t.id, "title": t.title, "headings": [t.heading], "text": t.text, "source": t.source, "license": "CC0"}
        for t in corpus(120)
    ]
    with gzip.open(folder / "techdocs.jsonl.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return folder.parent


def test_build_is_reproducible_reused_and_keeps_documents_apart(root, tmp_path):
    pairs = Pairs(
        root=root,
        corpora=("techdocs",),
        stages=(Stage(max_chars=200, queries=60, hard=1, easy=1), Stage(max_chars=300, queries=30, hard=2)),
        held_out=HeldOut(share=0.2, queries=40, negatives=4, max_chars=200),
    )
    build(pairs, tmp_path / "a", 5)
    build(pairs, tmp_path / "b", 5)
    first = (tmp_path / "a" / "train.jsonl").read_bytes()
    assert first == (tmp_path / "b" / "train.jsonl").read_bytes()
    trained = {example.doc_id.split("#")[0] for example in read_examples(tmp_path / "a" / "train.jsonl")}
    held = list(read_examples(tmp_path / "a" / "dev.jsonl"))
    assert held
    assert trained.isdisjoint({example.doc_id.split("#")[0] for example in held})
    said: list[str] = []
    build(pairs, tmp_path / "a", 5, said.append)
    assert said == [f"reusing {tmp_path / 'a'}"]


def test_malformed_and_missing_corpora_name_file_and_line(root, tmp_path):
    with gzip.open(root / "corpora" / "techdocs.jsonl.gz", "at", encoding="utf-8") as out:
        out.write("{broken\n")
    with pytest.raises(DataError, match=r"techdocs\.jsonl\.gz:121: not JSON"):
        techdocs(root)
    with pytest.raises(DataError, match="no corpus file"):
        techdocs(tmp_path)
