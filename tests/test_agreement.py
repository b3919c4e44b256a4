"""Agreement coefficients, intervals, rankings of systems. Expected values are worked out here or published."""

from __future__ import annotations

import math
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as fleiss_of_statsmodels

from prism.errors import InputError
from prism.files.label_files import LabelFile, LabelTable, PairIds, line_up, read_labels
from prism.labeling.comparison import binary_kappa, compare_judges, pair_alpha
from prism.labeling.rankings import compare_rankings, kendall_tau_b, spearman_rho
from prism.measures.agreement import (
    Estimate,
    agreement_rate,
    binarise,
    categories,
    cohen_kappa,
    coincidence_tables,
    confusion_tables,
    cuts,
    estimate,
    fleiss_kappa,
    interval,
    krippendorff_alpha,
    resample,
    resampled,
    spread,
)

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/labels"
needs_llmjudge = pytest.mark.skipif(not (SHARED / "llmjudge").is_dir(), reason="no ../shared/data/labels/llmjudge")
needs_rag25 = pytest.mark.skipif(not (SHARED / "rag25").is_dir(), reason="no ../shared/data/labels/rag25")
NAN = math.nan


def one_table(a: list[float], b: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(confusion table of two judges, its labels), all pairs in one query."""
    votes = np.array([a, b], dtype=float)
    values = categories(votes)
    return confusion_tables(votes[0], votes[1], np.zeros(len(a), dtype=np.int64), values)[0], values


def one_coincidence(*judges: list[float]) -> tuple[np.ndarray, np.ndarray]:
    votes = np.array(judges, dtype=float).T
    values = categories(votes)
    return coincidence_tables(votes, np.zeros(len(votes), dtype=np.int64), values)[0], values


# --- Cohen -----------------------------------------------------------------------------------------------------------

# Five pairs. Judge a: 0 twice, 1 once, 2 twice; judge b: 0 twice, 1 twice, 2 once.
A = [0, 0, 1, 2, 2]
B = [0, 1, 1, 2, 0]


def test_kappa_of_two_labels_by_hand() -> None:
    # observed (20 + 15) / 50 = 0.7; expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa = 0.2 / 0.5
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]]), np.array([0.0, 1.0])) == pytest.approx(0.4)


def test_weighted_kappas_by_hand() -> None:
    table, values = one_table(A, B)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    # nominal: observed 3/5, expected (2*2 + 1*2 + 2*1) / 25 = 8/25: (15 - 8) / (25 - 8) = 7/17
    assert cohen_kappa(table, values) == pytest.approx(7 / 17)
    # linear: observed distances 1 + 2 = 3. Expected, margins multiplied: 0-1: 2*2*1, 0-2: 2*1*2, 1-0: 1*2*1,
    # 1-2: 1*1*1, 2-0: 2*2*2, 2-1: 2*2*1 = 4+4+2+1+8+4 = 23, over 5 pairs: 1 - 3 * 5 / 23 = 8/23
    assert cohen_kappa(table, values, "linear") == pytest.approx(8 / 23)
    # quadratic: observed 1 + 4 = 5; expected 4+8+2+1+16+4 = 35: 1 - 5 * 5 / 35 = 2/7
    assert cohen_kappa(table, values, "quadratic") == pytest.approx(2 / 7)


def test_binarised_kappas_by_hand() -> None:
    table, values = one_table(A, B)
    assert cuts(values) == [1, 2]
    # >= 1: a 0 0 1 1 1, b 0 1 1 1 0: observed 3/5, expected (2*2 + 3*3) / 25 = 13/25: (15 - 13) / (25 - 13) = 1/6
    assert binarise(table, values, 1).tolist() == [[1, 1], [1, 2]]
    assert binary_kappa(table, values, 1) == pytest.approx(1 / 6)
    # >= 2: a 0 0 0 1 1, b 0 0 0 1 0: observed 4/5, expected (3*4 + 2*1) / 25 = 14/25: (20 - 14) / (25 - 14) = 6/11
    assert binary_kappa(table, values, 2) == pytest.approx(6 / 11)


def test_rates_by_hand() -> None:
    table, values = one_table(A, B)
    assert agreement_rate(table, values) == pytest.approx(3 / 5)
    assert agreement_rate(table, values, within=1) == pytest.approx(4 / 5)  # only 2 against 0 is further apart


def test_distances_are_between_labels_not_positions() -> None:
    # labels 0, 1, 10; pairs (0, 0), (1, 1), (10, 1): observed 9; margins a 1 1 1, b 1 2 0:
    # expected 0-1: 2*1, 1-0: 1, 10-0: 10, 10-1: 2*9 = 31, over 3: 1 - 9 * 3 / 31 = 4/31
    table, values = one_table([0, 1, 10], [0, 1, 1])
    assert cohen_kappa(table, values, "linear") == pytest.approx(4 / 31)
    assert agreement_rate(table, values, within=1) == pytest.approx(2 / 3)


def test_undefined_is_nan_never_a_number() -> None:
    table, values = one_table([1, 1, 1], [1, 1, 1])
    assert np.isnan(cohen_kappa(table, values))
    assert np.isnan(krippendorff_alpha(table, values))
    assert np.isnan(fleiss_kappa(table))
    assert np.isnan(cohen_kappa(np.zeros((2, 2)), np.array([0.0, 1.0])))
    assert np.isnan(agreement_rate(np.zeros((2, 2)), np.array([0.0, 1.0])))
    # one judge constant, the other not: agreement is what chance gives
    assert cohen_kappa(*one_table([0, 0, 0, 0], [0, 1, 0, 1])) == pytest.approx(0)


def test_missing_labels_are_left_out_pairwise() -> None:
    table, values = one_table([0, 1, NAN, 1], [0, NAN, 1, 1])
    assert table.tolist() == [[1, 0], [0, 1]]
    assert cohen_kappa(table, values) == 1


# --- Krippendorff, Fleiss --------------------------------------------------------------------------------------------


def test_alpha_of_two_observers_as_published() -> None:
    # Krippendorff (2011), section A: 10 units, 4 of them disagree; 14 zeros and 6 ones in all:
    # 1 - (20 - 1) * 4 / (14 * 6) = 1 - 76/84 = 0.095
    a, b = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(*one_coincidence(a, b)) == pytest.approx(1 - 76 / 84)
    table, values = one_table(a, b)
    for level in ("nominal", "ordinal", "interval"):  # two labels: one distance
        assert pair_alpha(table, values, level) == pytest.approx(1 - 76 / 84)


def test_alpha_with_missing_labels_as_published() -> None:
    # Krippendorff (2011), section C: four observers, twelve units, nominal 0.743, ordinal 0.815, interval 0.849
    observers = (
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    )
    coincidences, values = one_coincidence(*observers)
    assert coincidences.sum() == pytest.approx(40)  # 41 labels, one of them alone on its unit
    for level, published in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert krippendorff_alpha(coincidences, values, level) == pytest.approx(published, abs=5e-4)


def test_fleiss_by_hand() -> None:
    # two pairs, three judges: (1, 1, 0) agrees in 1 of 3 couples, (0, 0, 0) in 3 of 3: P = 2/3.
    # shares 4/6 and 2/6: Pe = 5/9; kappa = (6/9 - 5/9) / (4/9) = 1/4
    coincidences, _ = one_coincidence([1, 0], [1, 0], [0, 0])
    assert fleiss_kappa(coincidences) == pytest.approx(1 / 4)


LABELS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=4, max_size=25)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(LABELS)
def test_the_usual_packages_agree(rows: list[tuple[int, int, int]]) -> None:
    votes = np.array(rows, dtype=float)
    coincidences, values = one_coincidence(*votes.T.tolist())
    table = confusion_tables(votes[:, 0], votes[:, 1], np.zeros(len(rows), dtype=np.int64), values)[0]
    if len(set(votes[:, 0])) > 1:
        positions = np.searchsorted(values, votes)  # scikit-learn weighs positions: so compare on adjacent labels
        for weights, name in (("nominal", None), ("linear", "linear"), ("quadratic", "quadratic")):
            theirs = cohen_kappa_score(positions[:, 0], positions[:, 1], weights=name, labels=range(len(values)))
            assert cohen_kappa(table, np.arange(len(values), dtype=float), weights) == pytest.approx(theirs)
    if len(values) > 1:
        for level in ("nominal", "ordinal", "interval"):
            theirs = krippendorff.alpha(votes.T, level_of_measurement=level)
            assert krippendorff_alpha(coincidences, values, level) == pytest.approx(theirs)
        counts = (votes[:, :, None] == values).sum(axis=1)
        assert fleiss_kappa(coincidences) == pytest.approx(fleiss_of_statsmodels(counts))


# --- bootstrap and spread --------------------------------------------------------------------------------------------


def test_bootstrap_is_what_drawing_the_pairs_again_gives() -> None:
    """The weighted sum of tables equals the statistic of the pairs of the drawn queries, repeated as often as drawn."""
    generator = np.random.default_rng(5)
    query = np.sort(generator.integers(0, 6, 80))
    a, b = generator.integers(0, 4, (2, 80)).astype(float)
    values = np.arange(4.0)
    tables = confusion_tables(a, b, query, values)
    drawn = resample(6, samples=20, seed=1)
    fast = resampled(tables, drawn, lambda t: cohen_kappa(t, values, "quadratic"))
    for times, value in zip(drawn.astype(int), fast, strict=True):
        pairs = np.repeat(np.arange(80), times[query])
        slow = cohen_kappa_score(a[pairs], b[pairs], weights="quadratic", labels=range(4))
        assert value == pytest.approx(slow)


def test_draws_keep_the_number_of_queries_and_the_seed_decides() -> None:
    drawn = resample(7, samples=50, seed=3)
    assert drawn.shape == (50, 7)
    assert set(drawn.sum(axis=1)) == {7}
    assert (drawn == resample(7, samples=50, seed=3)).all()
    assert (drawn != resample(7, samples=50, seed=4)).any()
    with pytest.raises(InputError, match="0 queries"):
        resample(0)


def test_interval_of_one_query_is_its_value() -> None:
    table, values = one_table(A, B)
    found = estimate(table[None], lambda t: cohen_kappa(t, values), resample(1, samples=10))
    assert (found.value, found.low, found.high) == pytest.approx((7 / 17, 7 / 17, 7 / 17))
    assert str(found) == "0.412 [0.412, 0.412]"


def test_interval_quantiles_by_hand() -> None:
    # of 0, 1, ..., 40 the 2.5 % quantile is 40 * 0.025 = 1, the 97.5 % quantile 39; undefined samples do not count
    assert interval(np.array([*map(float, range(41)), NAN])) == pytest.approx((1, 39))
    assert interval(np.array([NAN, NAN])) == (None, None)


def test_undefined_estimates_say_so() -> None:
    table, values = one_table([1, 1], [1, 1])
    assert estimate(table[None], lambda t: cohen_kappa(t, values), resample(1, samples=3)) == Estimate(value=None)
    assert str(Estimate(value=None)) == "undefined"


def test_spread_over_queries_by_hand() -> None:
    values = np.array([0.0, 1.0])
    tables = np.array(
        [[[2, 0], [0, 2]], [[1, 1], [1, 1]], [[0, 2], [2, 0]], [[4, 0], [0, 0]]], dtype=float
    )  # kappa 1, 0, -1, undefined
    found = spread(tables, lambda t: cohen_kappa(t, values), ["a", "b", "c", "d"])
    assert (found.lowest, found.median, found.highest) == (-1, 0, 1)
    assert (found.quartile1, found.quartile3) == (-0.5, 0.5)
    assert (found.lowest_query, found.highest_query, found.undefined) == ("c", "a", 1)
    nothing = spread(tables[3:], lambda t: cohen_kappa(t, values), ["d"])
    assert (nothing.median, nothing.lowest_query, nothing.undefined) == (None, None, 1)


# --- the whole comparison --------------------------------------------------------------------------------------------


def table_of(votes: list[list[float]], query: list[int]) -> LabelTable:
    names = tuple(f"judge{index}" for index in range(len(votes[0])))
    queries = tuple(f"q{index}" for index in range(max(query) + 1))
    return LabelTable(names, queries, np.array(query), np.array(votes, dtype=float), (0,) * len(names))


def test_comparison_of_three_judges() -> None:
    votes = [[0, 0, 0], [1, 1, 1], [1, 0, NAN], [2, 2, 1], [0, 0, 0], [2, 2, 2]]
    found = compare_judges(table_of(votes, [0, 0, 0, 1, 1, 1]), samples=50)
    assert (found.pairs, found.queries, found.labels) == (6, 2, (0, 1, 2))
    first, second = found.compared
    assert (first.pairs, first.unlabelled, second.pairs, second.unlabelled) == (6, 0, 5, 1)
    assert first.confusion == ((2, 0, 0), (1, 1, 0), (0, 0, 2))
    # observed 5/6, expected (2*3 + 2*1 + 2*2) / 36 = 12/36: (30 - 12) / (36 - 12) = 3/4
    assert first.kappa.value == pytest.approx(3 / 4)
    assert first.kappa.low is not None
    assert first.kappa.low <= 3 / 4 <= (first.kappa.high or 0)
    assert set(first.kappa_binary) == {1, 2}
    assert found.kappa_matrix[0][1] == found.kappa_matrix[1][0] == first.kappa.value
    assert found.kappa_matrix[2][2] == 1
    assert (found.group.judges, found.group.complete_pairs) == (3, 5)
    full = [row for row in votes if not any(map(math.isnan, row))]
    counts = [[row.count(label) for label in range(3)] for row in full]
    assert found.group.fleiss.value == pytest.approx(fleiss_of_statsmodels(np.array(counts)))
    assert found.group.alpha["nominal"].value == pytest.approx(
        krippendorff.alpha(np.array(votes).T, level_of_measurement="nominal")
    )


def test_comparison_without_samples_has_no_intervals() -> None:
    heard: list[int] = []
    found = compare_judges(table_of([[0, 0], [1, 1], [1, 0]], [0, 0, 0]), samples=0, progress=heard.append)
    assert found.samples == 0
    assert (found.compared[0].kappa.low, found.group.fleiss.high) == (None, None)
    assert heard == [1]


def test_no_complete_pair_leaves_fleiss_undefined() -> None:
    found = compare_judges(table_of([[0, 0, NAN], [1, NAN, 1], [1, 0, NAN]], [0, 0, 0]), samples=5)
    assert found.group.complete_pairs == 0
    assert found.group.fleiss.value is None


# --- rankings of systems ---------------------------------------------------------------------------------------------


def test_rank_correlations_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 4.0])
    # of 6 couples 5 are concordant, one ties in a: 5 / sqrt(5 * 6)
    assert kendall_tau_b(a, b) == pytest.approx(5 / math.sqrt(30))
    # ranks 1 2.5 2.5 4 and 1 3 2 4: 4.5 / sqrt(4.5 * 5)
    assert spearman_rho(a, b) == pytest.approx(4.5 / math.sqrt(22.5))
    assert np.isnan(kendall_tau_b(np.ones(3), a[:3]))
    assert np.isnan(spearman_rho(np.ones(3), a[:3]))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_rank_correlations_are_those_of_scipy(rows: list[tuple[int, int]]) -> None:
    a, b = np.array(rows, dtype=float).T
    if len(set(a)) > 1 and len(set(b)) > 1:
        stacked = kendall_tau_b(np.stack([a, b]), np.stack([b, b]))
        assert stacked[0] == pytest.approx(stats.kendalltau(a, b).statistic)
        assert stacked[1] == pytest.approx(1)
        assert spearman_rho(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def file_of(name: str, labels: dict[str, dict[str, int]]) -> LabelFile:
    flat = {PairIds(query, document): label for query, judged in labels.items() for document, label in judged.items()}
    return LabelFile(name, Path(name), flat, dict.fromkeys(flat, 1))


def test_systems_ranked_by_two_sets_of_labels() -> None:
    # nDCG@1 with one relevant document a query: 1 if it stands first, else 0; -2 (junk) counts as 0
    people = file_of("people", {"q1": {"a": 1, "b": 0}, "q2": {"a": 1, "b": -2}})
    model = file_of("model", {"q1": {"a": 1, "b": 0}, "q2": {"a": 0, "b": 1}, "q9": {"a": 1}})
    runs = {
        "both": {"q1": ["a", "b"], "q2": ["a", "b"]},
        "first": {"q1": ["a", "b"], "q2": ["b", "a"]},
        "second": {"q1": ["b", "a"], "q2": ["a", "b"]},
    }
    (found,) = compare_rankings([people, model], runs, "nDCG@1", samples=20)
    assert found.scores == {"both": (1, 0.5), "first": (0.5, 1), "second": (0.5, 0)}
    # couples: both-first discordant, both-second concordant, first-second ties for people: tau-b = 0
    assert found.tau.value == pytest.approx(0)
    # ranks 3 1.5 1.5 and 2 3 1: deviations 1 -.5 -.5 and 0 1 -1: 0
    assert found.rho.value == pytest.approx(0)
    assert (found.systems, found.queries) == (3, 2)
    with pytest.raises(InputError, match="at least two run files, got 1"):
        compare_rankings([people, model], {"both": runs["both"]})


# --- published figures -----------------------------------------------------------------------------------------------


@needs_llmjudge
def test_llmjudge_as_published() -> None:
    folder = SHARED / "llmjudge"
    rows = [line.split("\t") for line in (folder / "published.tsv").read_text().splitlines()[1:]]
    paths = [folder / "submissions" / f"{row[0]}.qrels" for row in rows]
    found = compare_judges(line_up([read_labels(path) for path in (folder / "human.qrels", *paths)]), samples=0)
    assert (found.pairs, found.queries, len(found.compared)) == (4423, 25, 17)
    for judged, (name, kappa, alpha, *binary) in zip(found.compared, rows, strict=True):
        assert judged.name == name
        assert judged.kappa.value == pytest.approx(float(kappa), abs=1e-4)
        assert judged.alpha["ordinal"].value == pytest.approx(float(alpha), abs=3e-4)
        for cut, published in zip((1, 2, 3), binary, strict=True):
            assert judged.kappa_binary[cut].value == pytest.approx(float(published), abs=1e-4)


@needs_rag25
def test_rag25_has_labels_0_to_4() -> None:
    found = compare_judges(
        line_up([read_labels(SHARED / "rag25" / f"{name}.qrels", (0, 4)) for name in ("human", "llm")])
    )
    judged = found.compared[0]
    assert (found.labels, found.pairs, found.queries, judged.pairs) == ((0, 1, 2, 3, 4), 5163, 11, 5163)
    assert [sum(row) for row in judged.confusion] == [1804, 799, 1850, 645, 65]
    assert [sum(column) for column in zip(*judged.confusion, strict=True)] == [1456, 1158, 1836, 585, 128]
    assert set(judged.kappa_binary) == {1, 2, 3, 4}
