"""Pairs without an LLM: evidence is verbatim, splits are by document, negatives do not answer and have no prior."""

from __future__ import annotations

import random
from collections import Counter

from prism.data.pairs import Lexicon, make_queries, negative, negatives, positive
from prism.evidence.passages import cut, words
from prism.files.corpus import Text

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
        assert example.contribution.endswith((".", "…"))
        assert not set(words(example.contribution)) <= set(words(query.text))
        if query.kind == "keyword":
            assert set(words(query.text)) <= set(words(example.evidence))


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
