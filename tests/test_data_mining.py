"""Pairs from any corpus and mined negatives: by hand, then on real documentation and Chinese encyclopaedia text."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prism import cli
from prism.data.contributions import echoes
from prism.data.corpus_pairs import CorpusPairs, pairs_from_corpus
from prism.data.mining import Mining, known_positives, mine
from prism.data.unspaced import is_unspaced
from prism.errors import DataError, InputError
from prism.evidence.passages import words
from prism.files.corpus import Text, read_corpus
from prism.files.jsonl import Drops, Line, write_rows

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
needs = pytest.mark.skipif(not (DATA / "corpora").is_dir(), reason="needs ../shared/data (README: data)")
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class Ranked:
    """A retriever that knows its answer."""

    def __init__(self, ranking: list[tuple[int, float]]) -> None:
        self.ranking = ranking

    def search(self, queries: Any, k: int) -> list[list[tuple[int, float]]]:
        return [self.ranking[:k] for _ in queries]


def text(number: int, body: str | None = None) -> Text:
    return Text(f"d{number}", f"d{number}", f"T{number}", "", body or f"text number {number}", "made")


DOCUMENTS = [text(0, "The harbour froze in 1963, as it does in very cold winters."), *(text(n) for n in range(1, 8))]
RANKING = [(1, 9.9), (0, 10.0), (2, 9.0), (3, 8.0), (4, 7.0), (5, 1.0)]


def mined(settings: Mining, *rows: dict[str, Any], drops: Drops | None = None) -> list[dict[str, Any]]:
    known = known_positives(Line(f"p:{n}", {"query": "when", **row}) for n, row in enumerate(rows, 1))
    return list(mine(known, DOCUMENTS, Ranked(RANKING), settings, "bm25", drops or Drops()))


def test_known_positives_and_what_beats_them_are_no_negatives() -> None:
    """The positive scores 10: document 1 at 9.9 is above 95 % of it, documents 2 and 3 are below."""
    rows = mined(Mining(negatives=2), {"doc_id": "d0"})
    assert [(row["doc_id"], row["rank"], row["retrieval_score"]) for row in rows] == [("d2", 3, 9.0), ("d3", 4, 8.0)]
    assert "verdict" not in rows[0]
    assert rows[0]["source"] == "made/mined-bm25"


def test_a_positive_is_known_by_its_text_too() -> None:
    nearly = "The harbour froze in 1963 as it does in very cold winters"
    assert [row["doc_id"] for row in mined(Mining(), {"document": nearly})] == ["d2", "d3", "d4", "d5"]


def test_a_labelled_no_is_no_positive() -> None:
    rows = mined(Mining(negatives=9), {"doc_id": "d3", "verdict": "no"})
    assert [row["doc_id"] for row in rows] == ["d1", "d0", "d2", "d3", "d4", "d5"]


def test_skip_depth_share_and_verdict() -> None:
    rows = mined(Mining(skip=1, depth=4, max_share=None, assume_no=True), {"doc_id": "d0"})
    assert [row["doc_id"] for row in rows] == ["d2", "d3"]
    assert {row["verdict"] for row in rows} == {"no"}
    with pytest.raises(InputError, match="depth beyond skip"):
        Mining(skip=5, depth=5)


def test_a_query_without_negatives_is_reported() -> None:
    drops = Drops()
    assert mined(Mining(max_share=0.05), {"doc_id": "d0"}, drops=drops) == []
    assert drops.report() == {"no negative found for the query": {"count": 1, "first": ["p:1"]}}


def test_dense_mining_ranks_by_cosine(tmp_path: Path) -> None:
    """A static embedding of four words, so cosines are known: 'a b' is nearest to itself, then to 'a', not to 'c'."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 3}, unk_token="d"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=torch.eye(4))], device="cpu")
    model.save(str(tmp_path / "model"))
    corpus, queries, out = (tmp_path / name for name in ("c.jsonl", "q.jsonl", "out.jsonl"))
    write_rows(corpus, [{"id": str(n), "text": body} for n, body in enumerate(("a b", "a", "c", "a c c"))])
    write_rows(queries, [{"query": "a b", "doc_id": "0", "document": "a b"}])
    done = runner.invoke(
        cli.app,
        ["data", "mine", *map(str, (queries, corpus, out)), "--method", "dense", "--model", str(tmp_path / "model")],
    )
    assert done.exit_code == 0, done.stderr
    # cosines with (1, 1, 0)/sqrt 2: 'a' 1/sqrt 2, 'a c c' 1/sqrt 10, 'c' 0
    found = [(row["doc_id"], row["retrieval_score"]) for row in load(out)]
    assert found == [("1", pytest.approx(0.70711, abs=1e-4)), ("3", pytest.approx(0.31623, abs=1e-4)), ("2", 0.0)]


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_scripts_are_told_apart() -> None:
    assert is_unspaced("铜的导电性比铁好，而银比两者都好。")
    assert is_unspaced("銅は鉄よりも電気をよく通し、銀は両方よりもよく通す。")
    assert not is_unspaced("Copper (铜) conducts electricity better than iron.")
    assert not is_unspaced("Медь проводит электричество лучше, чем железо.")


def test_a_corpus_without_prose_is_an_error() -> None:
    drops = Drops()
    with pytest.raises(DataError, match="no query could be made"):
        list(pairs_from_corpus([text(1), text(2)], CorpusPairs(), 0, drops))
    assert drops.counts.total() == 2


@needs
def test_pairs_from_real_documentation(tmp_path: Path) -> None:
    corpus = tmp_path / "docs.jsonl.gz"
    with gzip.open(DATA / "corpora" / "techdocs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [line for line, _ in zip(lines, range(400), strict=False)]
    with gzip.open(corpus, "wt", encoding="utf-8") as out:
        out.writelines(rows)
    done = runner.invoke(
        cli.app, ["data", "pairs", str(corpus), str(tmp_path / "p.jsonl"), "--queries", "120", "--max-chars", "500"]
    )
    assert done.exit_code == 0, done.stderr
    found = load(tmp_path / "p.jsonl")
    yes = [row for row in found if row["verdict"] == "yes"]
    assert len(yes) == 120
    written = [row for row in yes if "evidence" in row]
    assert all(row["evidence"] in row["document"] for row in written)
    assert len(written) > 0.8 * len(yes)
    assert all(row["losses"] == ["distill"] for row in yes if row not in written)  # all there is to say was asked
    assert len(found) > 3.5 * len(yes)
    as_positive = Counter(row["doc_id"] for row in yes)
    as_negative = Counter(row["doc_id"] for row in found if row["verdict"] == "no")
    assert all(as_negative[id_] <= 4 * as_positive[id_] for id_ in as_negative)  # no passage gives its label away
    again = runner.invoke(
        cli.app, ["data", "pairs", str(corpus), str(tmp_path / "q.jsonl"), "--queries", "120", "--max-chars", "500"]
    )
    assert again.exit_code == 0
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "q.jsonl").read_bytes()

    mined = runner.invoke(
        cli.app, ["data", "mine", *(str(tmp_path / name) for name in ("p.jsonl", "docs.jsonl.gz", "m.jsonl"))]
    )
    assert mined.exit_code == 0, mined.stderr
    negatives = load(tmp_path / "m.jsonl")
    assert len({row["query"] for row in negatives}) > 100
    positives = {(row["query"], row["document"]) for row in yes}
    assert not [row for row in negatives if (row["query"], row["document"]) in positives]


@needs
def test_pairs_from_chinese_paragraphs() -> None:
    texts = list(read_corpus(DATA / "qa" / "cmrc2018-dev" / "contexts.jsonl.gz", Drops()))[:150]
    found = list(pairs_from_corpus(texts, CorpusPairs(queries=60, hard=2, easy=1, max_chars=400), 3, Drops()))
    yes = [example for example in found if example.verdict == "yes"]
    assert len(yes) == 60
    for example in yes:
        if example.evidence is None:  # all there is to say was asked
            assert example.losses == ("distill",)
            continue
        assert example.evidence in example.document
        assert all(chunk in example.evidence for chunk in example.query.split())
        assert 2 <= len(example.query.split()) <= 4
        assert example.language == "zh"
        assert example.contribution.startswith("文中")
        assert not echoes(example.contribution, example.query, "zh")
    assert len(found) > 3 * len(yes)
    assert {example.teacher_score for example in yes} == {0.95}
    assert all(example.teacher_score <= 0.3 for example in found if example.verdict == "no")
    assert len(words(yes[0].query)) >= 2
