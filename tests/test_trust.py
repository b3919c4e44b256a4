"""Whether the harness can be believed: against trec_eval, by hand, against chance, and with planted differences."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval

from prism.errors import DataError, InputError
from prism.files.trec import read_qrels, read_run, read_scores
from prism.measures.ranking import measure, measure_queries
from prism.measures.statistics import compare_paired
from studies.beir_report import MEASURE, compare
from studies.chance import shuffled_ndcg

# --- trec_eval -------------------------------------------------------------------------------------------------------

TREC = {
    "nDCG@10": "ndcg_cut_10",
    "nDCG@5": "ndcg_cut_5",
    "nDCG@1": "ndcg_cut_1",
    "nDCG": "ndcg",
    "Recall@100": "recall_100",
    "MRR": "recip_rank",
    "MAP": "map",
    "P@1": "P_1",
}


def test_measures_agree_with_trec_eval() -> None:
    """Forty random queries with labels -1 to 3, unjudged documents and rankings of 0 to 150."""
    rng = random.Random(4)
    documents = [f"d{i}" for i in range(200)]
    qrels = {f"q{i}": {d: rng.choice([-1, 0, 0, 1, 2, 3]) for d in rng.sample(documents, 30)} for i in range(40)}
    run = {f"q{i}": rng.sample(documents, rng.randrange(0, 150)) for i in range(38)}  # q38 and q39 are missing
    scores = {query: {d: float(1000 - rank) for rank, d in enumerate(ranked)} for query, ranked in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.1,5,10", "ndcg", "recall.100", "recip_rank", "map", "P.1"}
    )
    expected = theirs.evaluate({query: of_query for query, of_query in scores.items() if of_query})
    ours = measure_queries(qrels, run, TREC)
    for name, trec in TREC.items():
        for query in qrels:
            assert ours[name][query] == pytest.approx(expected.get(query, {}).get(trec, 0.0), abs=1e-9), (name, query)


def test_gain_is_linear_and_the_ideal_has_all_judged_documents() -> None:
    # b (1), a (3): DCG = 1 + 3/log2(3) = 2.892789; ideal a, b, c (2): 3, 2, 1 -> 3 + 2/log2(3) + 1/2 = 4.761860.
    # With exponential gain 2^label - 1 it would be (1 + 7/log2(3)) / (7 + 3/log2(3) + 1/2) = 0.5765.
    labels = {"q": {"a": 3, "b": 1, "c": 2}}
    values = measure(labels, {"q": ["b", "a"]}, ["nDCG@10", "nDCG", "nDCG@1"])
    ndcg = (1 + 3 / math.log2(3)) / (3 + 2 / math.log2(3) + 0.5)
    assert ndcg == pytest.approx(0.607492, abs=1e-6)
    assert values == pytest.approx({"nDCG@10": ndcg, "nDCG": ndcg, "nDCG@1": 1 / 3})


def test_unjudged_documents_take_up_their_rank_and_gain_nothing() -> None:
    assert measure({"q": {"a": 1}}, {"q": ["new", "a"]}, ["MRR", "P@1"]) == pytest.approx({"MRR": 0.5, "P@1": 0})


def test_labels_below_zero_gain_nothing_and_harm_nothing() -> None:
    """TREC marks spam with -2; trec_eval itself writes outside its memory for labels like -7."""
    qrels = {"q": {"a": 1, "b": -7}, "r": {"a": -7}}
    measured = measure(qrels, {"q": ["b", "a"], "r": ["a"]}, ["nDCG@10", "P@1", "Recall@100"])
    assert measured["nDCG@10"] == pytest.approx(1 / math.log2(3) / 2)
    assert (measured["P@1"], measured["Recall@100"]) == (0.0, 0.5)


def test_missing_queries_and_empty_rankings_count_as_zero() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    assert measure(qrels, {"q1": ["a"], "q2": []}, ["MRR"]) == pytest.approx({"MRR": 1 / 3})
    assert measure(qrels, {}, ["MRR"]) == {"MRR": 0}


def test_ties_in_a_file_go_to_the_lower_document_id(tmp_path: Path) -> None:
    (tmp_path / "r.run").write_text("q Q0 b 1 1.0 t\nq Q0 a 2 1.0 t\n")
    assert read_run(tmp_path / "r.run") == {"q": ["a", "b"]}
    assert read_scores(tmp_path / "r.run") == {"q": {"b": 1.0, "a": 1.0}}


def test_duplicate_ids_are_refused_everywhere(tmp_path: Path) -> None:
    (tmp_path / "r.run").write_text("q Q0 a 1 2 t\nq Q0 a 2 1 t\n")
    with pytest.raises(DataError, match=r"r\.run:2: document 'a' stands twice"):
        read_run(tmp_path / "r.run")
    (tmp_path / "qrels").write_text("q 0 a 1\nq 0 a 0\n")
    with pytest.raises(DataError, match=r"qrels:2: 'q' 'a' is labelled 0, but 1 above"):
        read_qrels(tmp_path / "qrels")
    with pytest.raises(InputError, match="ranks document 'a' more than once"):
        measure({"q": {"a": 1}}, {"q": ["a", "a"]})


# --- chance ----------------------------------------------------------------------------------------------------------


def test_all_orders_of_five_documents_score_what_chance_predicts() -> None:
    """Every permutation once, so the mean is the expectation, not an estimate."""
    orders = list(itertools.permutations("abcde"))
    run = {str(i): list(order) for i, order in enumerate(orders)}
    one = measure({query: {"a": 1} for query in run}, run, ["MRR", "nDCG@2", "P@1", "Recall@3", "MAP"])
    assert one["MRR"] == pytest.approx(sum(1 / rank for rank in range(1, 6)) / 5)  # H(5) / 5
    assert one["MAP"] == one["MRR"]
    assert one["P@1"] == pytest.approx(1 / 5)
    assert one["Recall@3"] == pytest.approx(3 / 5)
    assert one["nDCG@2"] == pytest.approx((1 + 1 / math.log2(3)) / 5)
    labels = {"a": 3, "b": 1, "elsewhere": 2}
    graded = measure(dict.fromkeys(run, labels), run, ["nDCG@10", "nDCG@2"])
    for cutoff in (2, 10):
        expected = shuffled_ndcg({"q": labels}, {"q": list("edcba")}, depth=5, cutoff=cutoff)
        assert graded[f"nDCG@{cutoff}"] == pytest.approx(expected)


def test_chance_by_hand() -> None:
    # One relevant among the first two of three, shuffled: (1 + 1/log2(3)) / 2 = 0.815465; no candidates: 0.
    qrels, run = {"q": {"a": 1}, "none": {"a": 1}}, {"q": ["b", "a", "c"]}
    assert shuffled_ndcg(qrels, run, depth=2) == pytest.approx((1 + 1 / math.log2(3)) / 2 / 2)
    # Below the shuffled part the order stays: a is third for sure.
    assert shuffled_ndcg({"q": {"a": 1}}, {"q": ["b", "c", "a"]}, depth=2) == pytest.approx(0.5)


# --- planted differences ---------------------------------------------------------------------------------------------

QUERIES = 300
Labels = dict[str, dict[str, int]]
Rankings = dict[str, list[str]]


def planted(down: int, up: int, seed: int = 0) -> tuple[Labels, Rankings, Rankings]:
    """Qrels of 300 queries, a ranking, and one in which the relevant document falls (rises) by a rank in some queries.

    The relevant document is first in 60 % of the queries, second in the others: nDCG 1 and 0.630930, mean 0.852372.
    One rank is worth 0.369070, so 14 falls are 0.017223 on average: 2.02 % of 0.852372.
    """
    rng = random.Random(seed)
    qrels = {f"q{i}": {"a": 1} for i in range(QUERIES)}
    first = [f"q{i}" for i in range(QUERIES * 6 // 10)]
    second = [query for query in qrels if query not in first]
    before = {query: ["a", "b"] if query in first else ["b", "a"] for query in qrels}
    turned = {*rng.sample(first, down), *rng.sample(second, up)}
    after = {query: ranked[::-1] if query in turned else ranked for query, ranked in before.items()}
    return qrels, before, after


def compared(down: int, up: int) -> dict[str, Any]:
    qrels, before, after = planted(down, up)
    [pair] = compare(qrels, {"before": before, "after": after})["pairs"]
    return dict(pair)


def test_a_planted_regression_of_two_per_cent_is_detected() -> None:
    pair = compared(down=14, up=0)
    loss = 14 * (1 - 1 / math.log2(3)) / QUERIES
    mean = (180 + 120 / math.log2(3)) / QUERIES
    assert loss / mean == pytest.approx(0.0202, abs=1e-4)
    assert pair["difference"] == pytest.approx(-loss, abs=1e-6)
    low, high = pair["interval"]
    assert low < -loss < high < 0
    assert pair["p_holm"] < 0.01


def test_a_planted_zero_is_not_detected() -> None:
    pair = compared(down=14, up=14)
    assert pair["difference"] == pytest.approx(0, abs=1e-9)
    low, high = pair["interval"]
    assert low < 0 < high
    assert pair["p_holm"] > 0.5


def test_noise_without_a_difference_is_rarely_called_one() -> None:
    """Which 14 fall and how many of 28 swaps go each way is chance: p < 0.05 should come in about 5 % of 30 trials."""
    rng = random.Random(1)
    found = 0
    for trial in range(30):
        down = sum(rng.random() < 0.5 for _ in range(28))
        qrels, before, after = planted(down, 28 - down, trial)
        first, second = (list(measure_queries(qrels, run, [MEASURE])[MEASURE].values()) for run in (before, after))
        found += compare_paired(second, first).p_bootstrap < 0.05
    assert found <= 6  # Binomial(30, 0.05): P(more than 6) = 0.0006


def test_identical_rankings_do_not_differ() -> None:
    qrels = {f"q{i}": {"a": 1} for i in range(10)}
    run = {query: ["a"] for query in qrels}
    [pair] = compare(qrels, {"x": run, "y": run})["pairs"]
    assert (pair["difference"], pair["interval"], pair["p_holm"]) == (0, [0, 0], 1)


def test_corrections_grow_with_the_number_of_pairs() -> None:
    qrels = {f"q{i}": {"a": 1} for i in range(60)}
    best = {query: ["a", "b"] for query in qrels}
    worse = {query: ["b", "a"] if i < 4 else ["a", "b"] for i, query in enumerate(qrels)}
    alone = compare(qrels, {"x": best, "y": worse})["pairs"][0]
    among = compare(qrels, {"x": best, "y": worse, "z": best, "w": worse})["pairs"][0]
    assert alone["p"] == alone["p_holm"] == among["p"]
    assert among["p_holm"] > among["p"]


def test_one_query_says_nothing_about_the_spread() -> None:
    assert compare({"q": {"a": 1}}, {"x": {"q": ["a"]}, "y": {}})["pairs"] == []
