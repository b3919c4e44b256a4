"""BM25, runs, qrels, measures, BEIR loading, resumable reranking. Expected figures are worked out by hand."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import DataError, EngineError, InputError
from prism.evaluation.reranking import Reranked, Task, put_on_top, rerank
from prism.files.beir import load_beir, local_sets
from prism.files.trec import read_qrels, read_run, write_run
from prism.measures.ranking import MEASURES, measure, measure_queries
from prism.retrieval.bm25 import Bm25
from prism.types import Document, Judgment
from studies.systems import State

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/beir"


# --- measures --------------------------------------------------------------------------------------------------------

QRELS = {"q1": {"a": 2, "b": 1, "c": 1, "d": 0}, "q2": {"a": 1}, "q3": {"z": 1}}
RUN = {"q1": ["d", "a", "x", "b"], "q2": ["a"]}  # q1: relevant at ranks 2 (label 2) and 4 (label 1); q3 is missing


def test_measures_by_hand() -> None:
    # q1: DCG = 2/log2(3) + 1/log2(5) = 1.261860 + 0.430677 = 1.692536
    #     ideal 2, 1, 1: 2/log2(2) + 1/log2(3) + 1/log2(4) = 2 + 0.630930 + 0.5 = 3.130930; nDCG = 0.540586
    #     RR = 1/2; 2 of 3 relevant found: R = 2/3; AP = (1/2 + 2/4) / 3 = 1/3; P@1 = 0
    # q2: every measure 1.  q3: not in the run, every measure 0.  Means over three queries.
    ndcg = (2 / math.log2(3) + 1 / math.log2(5)) / (2 + 1 / math.log2(3) + 1 / 2)
    assert ndcg == pytest.approx(0.540586, abs=1e-6)
    expected = {
        "nDCG@10": (ndcg + 1) / 3,
        "nDCG@5": (ndcg + 1) / 3,
        "nDCG@1": (0 + 1) / 3,
        "nDCG": (ndcg + 1) / 3,
        "Recall@100": (2 / 3 + 1) / 3,
        "MRR@10": (1 / 2 + 1) / 3,
        "MRR": (1 / 2 + 1) / 3,
        "MAP": (1 / 3 + 1) / 3,
        "P@1": 1 / 3,
    }
    assert measure(QRELS, RUN) == pytest.approx(expected)
    assert tuple(expected) == MEASURES


def test_cutoffs_cut() -> None:
    run = {"q2": [f"x{i}" for i in range(10)] + ["a"]}  # the relevant document stands at rank 11
    qrels = {"q2": {"a": 1}}
    values = measure(qrels, run, ["MRR@10", "MRR", "nDCG@10", "Recall@10", "Recall@11"])
    assert values == pytest.approx({"MRR@10": 0, "MRR": 1 / 11, "nDCG@10": 0, "Recall@10": 0, "Recall@11": 1})


@pytest.mark.parametrize("name", [*MEASURES, "Recall@20", "nDCG", "Success@5"])
def test_every_query_counts_whatever_the_measure(name: str) -> None:
    """Providers behind ir-measures differ on queries without results; here each is 0 and in the mean."""
    qrels = {"found": {"a": 1}, "absent": {"a": 1}, "empty": {"a": 1}, "nothing relevant": {"a": 0}}
    run = {"found": ["a"], "empty": [], "nothing relevant": ["a"], "not in the qrels": ["a"]}
    values = measure_queries(qrels, run, [name])[name]
    assert values == {"found": 1.0, "absent": 0.0, "empty": 0.0, "nothing relevant": 0.0}
    assert measure(qrels, run, [name]) == {name: 0.25}


def test_an_empty_run_is_zero_everywhere() -> None:
    assert set(measure(QRELS, {}).values()) == {0.0}


def test_negative_labels_are_not_relevant() -> None:
    # touche2020 has -2 for spam. DCG = 0 + 1/log2(3), ideal = 1.
    values = measure({"q": {"spam": -2, "good": 1}}, {"q": ["spam", "good"]}, ["nDCG@10", "MRR@10"])
    assert values == pytest.approx({"nDCG@10": 1 / math.log2(3), "MRR@10": 0.5})


def test_the_order_given_is_the_order_measured() -> None:
    """Also for ids that a measuring program would order the other way round on equal scores, and for long runs."""
    ids = [f"d{i:05}" for i in range(3000)]
    for ranked in (ids, ids[::-1]):
        relevant = ranked[1234]
        assert measure({"q": {relevant: 1}}, {"q": ranked}, ["MRR"]) == pytest.approx({"MRR": 1 / 1235})


@given(st.permutations("abcdef"), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_measures_agree_with_their_definitions(ranked: Sequence[str], relevant: set[str]) -> None:
    ranks = [rank for rank, document in enumerate(ranked, start=1) if document in relevant]
    dcg = sum(1 / math.log2(1 + rank) for rank in ranks)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, len(ranks) + 1))
    precision = sum(count / rank for count, rank in enumerate(ranks, start=1)) / len(ranks)
    values = measure({"q": dict.fromkeys(relevant, 1)}, {"q": list(ranked)}, ["nDCG@10", "MRR@10", "MRR", "MAP"])
    expected = {"nDCG@10": dcg / ideal, "MRR@10": 1 / ranks[0], "MRR": 1 / ranks[0], "MAP": precision}
    assert values == pytest.approx(expected)


def test_measure_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(InputError, match="no measure 'nDGC@10': expected one like nDCG@10"):
        measure(QRELS, RUN, ["nDGC@10"])
    with pytest.raises(InputError, match="no qrels"):
        measure({}, RUN)
    with pytest.raises(InputError, match="'q1' ranks document 'a' more than once"):
        measure(QRELS, {"q1": ["a", "b", "a"]})


def test_two_names_of_one_measure_both_get_its_value() -> None:
    assert measure(QRELS, RUN, ["MRR", "RR"]) == pytest.approx({"MRR": 0.5, "RR": 0.5})


# --- files -----------------------------------------------------------------------------------------------------------


def test_run_round_trip(tmp_path: Path) -> None:
    run = {"q1": ["b", "a", "c"], "q2": ["z"]}
    write_run(tmp_path / "r.run", run, tag="my model")
    assert read_run(tmp_path / "r.run") == run
    assert (tmp_path / "r.run").read_text() == (
        "q1 Q0 b 1 3 my_model\nq1 Q0 a 2 2 my_model\nq1 Q0 c 3 1 my_model\nq2 Q0 z 1 1 my_model\n"
    )


def test_run_is_ordered_by_score_then_by_document_id(tmp_path: Path) -> None:
    path = tmp_path / "r.run"
    path.write_text("q Q0 c 1 0.5 t\nq Q0 b 2 0.5 t\nq Q0 a 3 0.1 t\n\nq Q0 d 4 7e-1 t\n")
    assert read_run(path) == {"q": ["d", "b", "c", "a"]}


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        ("q Q0 a 2 0.5 t", r"r.run:2: document 'a' stands twice for query 'q'"),
        ("q Q0 b 2 0.5", r"r.run:2: got 5 columns, expected `query Q0 document rank score tag`"),
        ("q Q0 b 2 high t", r"r.run:2: score 'high' is not a finite number"),
        ("q Q0 b 2 nan t", r"r.run:2: score 'nan' is not a finite number"),
        (b"q Q0 \xff 2 1 t", r"r.run:2: not UTF-8"),
    ],
)
def test_malformed_run_names_file_and_line(tmp_path: Path, second_line: str | bytes, message: str) -> None:
    path = tmp_path / "r.run"
    path.write_bytes(b"q Q0 a 1 1 t\n" + (second_line if isinstance(second_line, bytes) else second_line.encode()))
    with pytest.raises(DataError, match=message):
        read_run(path)


def test_missing_and_empty_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*nope.run"):
        read_run(tmp_path / "nope.run")
    (tmp_path / "r.run").write_text("\n")
    with pytest.raises(DataError, match="the run is empty"):
        read_run(tmp_path / "r.run")


def test_a_run_whose_ids_hold_spaces_is_separated_by_tabs(tmp_path: Path) -> None:
    run = {"how to.txt": ["a b", "c"]}
    write_run(tmp_path / "r.run", run, "t")
    assert (tmp_path / "r.run").read_text() == "how to.txt\tQ0\ta b\t1\t2\tt\nhow to.txt\tQ0\tc\t2\t1\tt\n"
    assert read_run(tmp_path / "r.run") == run
    for id_ in ("a\tb", "a\nb"):
        with pytest.raises(DataError, match="no run can hold a tab or line end"):
            write_run(tmp_path / "r.run", {"q": [id_]}, "t")


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\ta\t1\n",
        "\ufeffquery-id\tcorpus-id\tscore\r\nq1\ta\t2\r\nq1\tb\t0\r\nq2\ta\t1.0\r\n",
        "q1 0 a 2\nq1 0 b 0\nq2 0 a 1\n",
        "q1\t0\ta\t2\nq1\t0\ta\t2\nq1\t0\tb\t0\nq2\t0\ta\t1\n",  # the same line twice is harmless
    ],
)
def test_qrels_of_beir_and_trec(tmp_path: Path, text: str) -> None:
    (tmp_path / "qrels").write_bytes(text.encode())
    assert read_qrels(tmp_path / "qrels") == {"q1": {"a": 2, "b": 0}, "q2": {"a": 1}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\tb", r"qrels:3: got 2 columns, expected 4 columns"),
        ("q1\t\t1", r"qrels:3: column 2 is empty, expected 4 columns"),
        ("q1\tb\tyes", r"qrels:3: label 'yes' is not a whole number"),
        ("q1\tb\t0.5", r"qrels:3: label '0.5' is not a whole number"),
        ("q1\tb\tinf", r"qrels:3: label 'inf'"),
        ("q1\ta\t1", r"qrels:3: 'q1' 'a' is labelled 1, but 2 above"),
        ("q1\tb\t99999", r"qrels:3: label 99999 is off the scale -10 to 100"),
        ("q1\tb\t-11", r"qrels:3: label -11 is off the scale -10 to 100"),
        ("q1 b 1", r"qrels:3: separated by spaces, the lines above by tabs"),
        ("q1\t0\tb\t1", r"qrels:3: 4 columns, the lines above have 3"),
    ],
)
def test_malformed_qrels_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "qrels").write_text(f"query-id\tcorpus-id\tscore\nq1\ta\t2\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_qrels(tmp_path / "qrels")


def test_a_header_in_another_order_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("corpus-id\tquery-id\tscore\na\tq1\t2\n")
    with pytest.raises(DataError, match=r"qrels:1: header .* expected query-id, corpus-id, score"):
        read_qrels(tmp_path / "qrels")


def test_qrels_without_a_pair(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="no labelled pair"):
        read_qrels(tmp_path / "qrels")


# --- BM25 ------------------------------------------------------------------------------------------------------------


def test_bm25_scores_by_hand() -> None:
    # Lucene's BM25 with k1 0.9, b 0.4 over 3 documents of 2, 1 and 3 words (mean 2). Query word `copper`, in 2 of 3:
    # idf = ln(1 + (3 - 2 + 0.5) / (2 + 0.5)) = ln 1.6; tf part = tf / (tf + k1 * (1 - b + b * length / mean)).
    # Document 0: tf 1, length 2: 1 / (1 + 0.9).  Document 2: tf 2, length 3: 2 / (2 + 0.9 * (0.6 + 0.6)).
    index = Bm25(["copper wire", "silver", "copper copper cable"])
    [found] = index.search(["copper"], 10)
    assert [position for position, _ in found] == [2, 0]
    assert [score for _, score in found] == pytest.approx([math.log(1.6) * 2 / 3.08, math.log(1.6) / 1.9], rel=1e-5)


def test_bm25_stems_and_drops_stop_words() -> None:
    assert Bm25(["running quickly", "the"]).search(["the runs"], 5)[0][0][0] == 0
    assert Bm25(["running quickly"], stemmer=None).search(["runs"], 5) == [[]]
    assert Bm25(["läuft schnell"], stemmer="german").search(["der laufen schnelle"], 5)[0][0][0] == 0
    with pytest.raises(InputError, match=r"no stemmer 'klingon'.*english"):
        Bm25(["a word"], stemmer="klingon")


def test_bm25_ties_break_by_position_also_at_the_cut() -> None:
    index = Bm25(["same words here"] * 50 + ["other"])
    assert [position for position, _ in index.search(["words"], 7)[0]] == list(range(7))
    # Of one length: twice the word beats once, and within each kind positions ascend.
    index = Bm25(["copper copper" if i % 3 == 0 else "copper cable" for i in range(1000)])
    expected = [*range(0, 1000, 3), *(i for i in range(1000) if i % 3)]
    assert [position for position, _ in index.search(["copper"], 1000)[0]] == expected
    assert [position for position, _ in index.search(["copper"], 500)[0]] == expected[:500]


def test_bm25_never_returns_documents_without_a_common_word() -> None:
    index = Bm25(["copper", "silver", "gold"])
    assert [len(found) for found in index.search(["copper", "zinc", "", "!?"], 3)] == [1, 0, 0, 0]
    assert index.search([], 3) == []


def test_bm25_finds_text_without_spaces() -> None:
    index = Bm25(["铜的导电性比铁好", "林道的港口只在非常寒冷的冬天结冰", "銅は鉄よりも電気をよく通し"])
    found = index.search(["港口什么时候结冰", "铜导电性", "電気を通す"], 1)
    assert [hits[0][0] for hits in found] == [1, 0, 2]


def test_bm25_takes_any_iterable_and_refuses_nonsense() -> None:
    assert Bm25(text for text in ("copper", "silver")).search(["silver"], 1)[0][0][0] == 1
    for documents in ([], ["", "the"]):
        with pytest.raises(InputError, match="at least one document"):
            Bm25(documents)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        Bm25(["copper"]).search(["copper"], 0)
    with pytest.raises(InputError, match="list of queries"):
        Bm25(["copper"]).search("copper", 1)


@pytest.mark.skipif(not (SHARED / "scifact").is_dir(), reason="needs the SciFact data beside the repository")
def test_bm25_on_scifact_as_published() -> None:
    # Anserini's flat BM25 with the same parameters: 0.679 and 0.925 (another tokenizer and stop list).
    data = load_beir("scifact", SHARED)
    assert (len(data.corpus), len(data.queries)) == (5183, 300)
    ids = list(data.corpus)
    found = Bm25(map(data.text, ids)).search(list(data.queries.values()), 100)
    run = {query: [ids[position] for position, _ in hits] for query, hits in zip(data.queries, found, strict=True)}
    values = measure(data.qrels, run)
    assert values["nDCG@10"] == pytest.approx(0.676, abs=0.005)
    assert values["Recall@100"] == pytest.approx(0.913, abs=0.005)


# --- BEIR ------------------------------------------------------------------------------------------------------------

CORPUS = [
    {"_id": "d2", "title": "Copper", "text": "It conducts."},
    {"_id": "d1", "title": "", "text": "Harbour ice."},
    {"_id": "d3", "title": "A title alone", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "what conducts"}, {"_id": "q2", "text": "ice"}, {"_id": "unused", "text": "?"}]
QRELS_TSV = "query-id\tcorpus-id\tscore\nq2\td1\t1\nq1\td2\t1\nq1\tgone\t1\n"


def jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """`<tmp>/beir/tiny` in BEIR's layout."""
    folder = tmp_path / "beir" / "tiny"
    jsonl(folder / "corpus.jsonl", CORPUS)
    jsonl(folder / "queries.jsonl", QUERIES)
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(QRELS_TSV)
    return folder


def test_load_beir(tiny: Path) -> None:
    data = load_beir("tiny", tiny.parent)
    assert list(data.corpus) == ["d1", "d2", "d3"]
    assert data.queries == {"q2": "ice", "q1": "what conducts"}
    assert data.qrels == {"q2": {"d1": 1}, "q1": {"d2": 1, "gone": 1}}
    assert data.text("d2") == "Copper It conducts."
    assert data.document("d2") == Document(id="d2", title="Copper", text="It conducts.")
    assert data.document("d1") == Document(id="d1", title=None, text="Harbour ice.")
    assert data.document("d3") == Document(id="d3", title=None, text="A title alone")
    assert load_beir("tiny", tiny) == data  # the folder itself


def test_load_beir_from_jsonl_and_parquet_as_on_the_hub(tiny: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    expected = load_beir("tiny", tiny)
    rows = [{"query-id": "q2", "corpus-id": "d1", "score": 1.0}, {"query-id": "q1", "corpus-id": "d2", "score": 1}]
    rows.append({"query-id": "q1", "corpus-id": "gone", "score": 1})
    (tiny / "qrels" / "test.tsv").unlink()
    jsonl(tiny / "qrels" / "test.jsonl", rows)
    assert load_beir("tiny", tiny) == expected

    folder = tmp_path / "cut" / "tiny"
    tables = {
        "corpus/corpus-00000-of-00002": CORPUS[:1],
        "corpus/corpus-00001-of-00002": CORPUS[1:],
        "queries/test-00000-of-00001": [{"id": row["_id"], "text": row["text"]} for row in QUERIES],
        "queries/train-00000-of-00001": [{"id": "q1", "text": "of another split"}],
        "qrels/test-00000-of-00001": [{**row, "score": float(str(row["score"]))} for row in rows],
    }
    for name, content in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(content), folder / f"{name}.parquet")
    assert load_beir("tiny", folder.parent) == expected
    (folder / "qrels" / "test-00000-of-00001.parquet").rename(folder / "test-00000-of-00001.parquet")
    assert load_beir("tiny", folder) == expected
    (folder / "corpus" / "corpus-00000-of-00002.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="not a parquet file: is the download complete"):
        load_beir("tiny", folder)


def test_beir_names_what_exists(tiny: Path) -> None:
    assert local_sets(tiny.parent) == ["tiny"]
    with pytest.raises(DataError, match=r"no data set 'scifact' in .*beir: it holds tiny"):
        load_beir("scifact", tiny.parent)
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        load_beir("scifact", tiny / "nowhere")
    with pytest.raises(DataError, match=r"no qrels for split 'dev' in .*tiny: test found"):
        load_beir("tiny", tiny, split="dev")
    (tiny / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"no queries in .*tiny: expected queries.jsonl"):
        load_beir("tiny", tiny)


def test_beir_finds_sets_under_their_other_name(tiny: Path) -> None:
    tiny.rename(tiny.parent / "webis-touche2020")
    assert load_beir("touche2020", tiny.parent).name == "touche2020"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", '{"_id": "d9", "te', r"corpus.jsonl:4: not JSON"),
        ("corpus.jsonl", "[1]", r"corpus.jsonl:4: expected an object, got list"),
        ("corpus.jsonl", '{"text": "no id"}', r"corpus.jsonl:4: no `_id`"),
        ("corpus.jsonl", '{"_id": "d1", "text": "again"}', r"corpus.jsonl:4: id 'd1' stands twice"),
        ("corpus.jsonl", '{"_id": "d9", "text": 7}', r"corpus.jsonl:4: `text` is int, expected a string"),
        ("qrels/test.tsv", "q7\td1\t1", r"1 of 3 queries in the test qrels have no text, first 'q7'"),
    ],
)
def test_malformed_beir_names_file_and_line(tiny: Path, file: str, line: str, message: str) -> None:
    with (tiny / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load_beir("tiny", tiny)


# --- reranking -------------------------------------------------------------------------------------------------------


class FakeReranker:
    """Scores by a table; `None` fails the document, a missing one is not returned. Judgments come back unordered."""

    def __init__(self, scores: Mapping[str, float | None]) -> None:
        self.scores = scores
        self.queries: list[str] = []

    def rerank(self, query: str, documents: Sequence[Document], **options: object) -> SimpleNamespace:
        assert options["evidence"] is False
        assert options["top_n"] is None
        self.queries.append(query)
        judgments = [
            Judgment(index=index, score=self.scores[str(d.id)], verdict=None, error=None)
            if self.scores[str(d.id)] is not None
            else Judgment(index=index, score=None, verdict=None, error="too long")
            for index, d in enumerate(documents)
            if str(d.id) in self.scores
        ]
        return SimpleNamespace(judgments=judgments)

    def close(self) -> None:
        pass


def task(ids: str, query: str = "copper", id_: str = "q") -> Task:
    return Task(id=id_, query=query, documents=tuple(Document(id=name, text=f"text {name}") for name in ids))


def test_rerank_orders_by_score_then_id_and_puts_failures_last() -> None:
    reranker = FakeReranker({"f": None, "c": 0.5, "b": 0.5, "a": 0.9, "n": math.nan})
    [done] = rerank([task("fmcnab")], reranker)
    assert done.ranked == (("a", 0.9), ("b", 0.5), ("c", 0.5), ("f", None), ("m", None), ("n", None))
    assert done.failures == {"f": "too long", "m": "not returned by the reranker", "n": "its score is nan"}
    run = put_on_top({"q": [*"fmcnab", "y", "x"], "other": ["y"]}, {"q": done})
    assert run == {"q": [*"abcfmn", "y", "x"], "other": ["y"]}


def test_a_blank_query_fails_and_the_others_go_on() -> None:
    reranker = FakeReranker({"a": 0.1, "b": 0.2})
    done = {each.id: each for each in rerank([task("ab", query=" "), task("ab", id_="r")], reranker)}
    assert [id_ for id_, _ in done["q"].ranked] == ["a", "b"]
    assert set(done["q"].failures.values()) == {"the query is blank"}
    assert [id_ for id_, _ in done["r"].ranked] == ["b", "a"]


def test_an_engine_error_ends_it_after_what_was_finished() -> None:
    class Breaks(FakeReranker):
        def rerank(self, query: str, documents: Sequence[Document], **options: object) -> SimpleNamespace:
            if query == "break":
                raise EngineError("out of memory")
            return super().rerank(query, documents, **options)

    made = rerank([task("a"), task("a", query="break", id_="r"), task("a", id_="s")], Breaks({"a": 1.0}))
    assert next(made).id == "q"
    with pytest.raises(EngineError):
        next(made)


def test_queries_at_once() -> None:
    barrier = threading.Barrier(3, timeout=30)

    class Meets(FakeReranker):
        def rerank(self, query: str, documents: Sequence[Document], **options: object) -> SimpleNamespace:
            barrier.wait()  # passes only when three calls are under way together
            return super().rerank(query, documents, **options)

    tasks = [task("ab", id_=f"q{number}") for number in range(6)]
    assert {done.id for done in rerank(tasks, Meets({"a": 0.1, "b": 0.2}), at_once=3)} == {t.id for t in tasks}


def test_digest_changes_with_everything_the_reranker_sees() -> None:
    one = task("ab")
    text = Task(id="q", query="copper", documents=(one.documents[0], Document(id="b", text="another text")))
    titled = Task(id="q", query="copper", documents=(one.documents[0], Document(id="b", text="text b", title="t")))
    others = [task("ba"), task("abc"), task("ab", query="zinc"), text, titled]
    assert len({each.digest() for each in [one, *others]}) == 6
    assert task("ab").digest() == one.digest()


DONE = Reranked(id="q1", digest="0", ranked=(("a", 0.25), ("ü\u2028\x85\r", None)), failures={"b": "x\ny"}, seconds=1.5)


def test_state_round_trip(tmp_path: Path) -> None:
    state = State(tmp_path / "s.sqlite", Reranked)
    assert state.read() == {}
    for done in (DONE, DONE.model_copy(update={"id": "q2"}), DONE.model_copy(update={"digest": "1"})):
        state.append(done.id, done)  # the last entry of a query counts
    assert {id_: done.digest for id_, done in state.read().items()} == {"q1": "1", "q2": "0"}
    assert state.read()["q2"].ranked == DONE.ranked


def test_a_state_of_an_older_version_goes_on(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(DONE.model_dump_json() + "\n", encoding="utf-8")
    assert State(tmp_path / "s.sqlite", Reranked).read() == {"q1": DONE}
