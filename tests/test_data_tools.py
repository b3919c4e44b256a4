"""Fitting the power, balancing, mixing, splits, leakage: expected values by hand, and on real data."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prism import cli
from prism.data.balance import Cell, balance, cap_for, cell_of
from prism.data.leakage import EvaluationTexts, LeakageCheck, read_evaluation
from prism.data.mixing import mix, parse_weights
from prism.data.splits import parse_shares, query_key, split_of
from prism.data.transform import fit_power, power_of
from prism.errors import DataError, InputError
from prism.files.corpus import read_corpus
from prism.files.jsonl import Drops, read_rows, write_rows

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
needs = pytest.mark.skipif(not (DATA / "beir" / "scifact").is_dir(), reason="needs ../shared/data (README: data)")


def save(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_rows(path, rows)
    return path


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(*arguments: str) -> Any:
    return runner.invoke(cli.app, ["data", *arguments])


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_writer_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [{"n": 1}])
    with pytest.raises(ZeroDivisionError):
        write_rows(path, ({"n": 1 // n} for n in (1, 0)))
    assert load(path) == [{"n": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_hostile_text_survives_and_surrogates_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a\\u2028\\ud800\\u0000b", "meta": {"x": "\\udfff"}}\n')
    (line,) = read_rows(path, Drops())
    assert line.row["query"] == "a\u2028\ufffd\x00b"
    save(tmp_path / "b.jsonl", [line.row])
    assert load(tmp_path / "b.jsonl")[0]["meta"] == {"x": "\ufffd"}


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "x"}\n' * 5000)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read to its end"):
        list(read_corpus(tmp_path / "a.jsonl.gz", Drops()))


def test_a_corpus_is_read_in_the_usual_spellings(tmp_path: Path) -> None:
    rows = [
        {"_id": 7, "title": "T", "text": "one"},
        {"id": "page#2", "contents": "two", "headings": ["a", "b"], "source": "s"},
        {"document": "three"},
    ]
    one, two, three = read_corpus(save(tmp_path / "c.jsonl", rows), Drops())
    assert (one.id, one.title, one.text, one.source) == ("7", "T", "one", "c")
    assert (two.group, two.heading, two.source) == ("page", "b", "s")
    assert len(three.id) == 16


# --- power -----------------------------------------------------------------------------------------------------------


def test_power_puts_the_gap_at_one_half() -> None:
    """No below 0.6, yes from 0.8: the middle is 0.7 and p = ln 0.5 / ln 0.7 = 1.9434."""
    fit = fit_power([0.2, 0.4, 0.6, 0.8, 0.9], [False, False, False, True, True], list("abcde"))
    assert fit.threshold == pytest.approx(0.7)
    assert fit.power == pytest.approx(1.9433583)
    assert 0.7**fit.power == pytest.approx(0.5)
    assert fit.kappa == 1.0
    # At 0.5 one of five is wrong: observed 0.8, expected 0.4 * 0.6 + 0.6 * 0.4 = 0.48, kappa 0.32 / 0.52.
    assert fit.kappa_untransformed == pytest.approx(0.32 / 0.52)
    assert fit.interval[0] <= fit.power <= fit.interval[1]


def test_the_published_power_is_a_threshold_of_065() -> None:
    assert power_of(0.65) == pytest.approx(1.609, abs=5e-4)


@given(st.floats(0.2, 0.9), st.integers(0, 2**31))
def test_power_recovers_a_known_threshold(threshold: float, seed: int) -> None:
    """Labels made by a threshold are reproduced without error by the fitted power."""
    import random

    rng = random.Random(seed)
    scores = [rng.random() for _ in range(60)] + [threshold / 2, (1 + threshold) / 2]
    labels = [score >= threshold for score in scores]
    fit = fit_power(scores, labels, [str(n % 9) for n in range(62)], samples=10)
    assert fit.kappa == 1.0
    assert [score**fit.power >= 0.5 for score in scores] == labels


def test_ties_are_not_cut() -> None:
    fit = fit_power([0.3, 0.3, 0.9, 0.9, 0.9], [False, True, True, True, True], list("abcde"))
    assert fit.threshold == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([0.1, 0.9], [True, True], "one verdict only"),
        ([], [], "one verdict only"),
        ([0.1, 1.9], [True, False], r"in \[0, 1\]"),
        ([0.5, 0.5], [True, False], "all teacher scores are 0.5"),
        ([0.5, math.nan], [True, False], r"in \[0, 1\]"),
    ],
)
def test_what_cannot_be_fitted_says_why(scores: list[float], labels: list[bool], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_power(scores, labels, ["q"] * len(scores))


def test_fit_and_transform_commands(tmp_path: Path) -> None:
    values = [0.2, 0.4, 0.6, 0.8, 0.9]
    pairs = [{"query": f"q{n}", "document": "d"} for n in range(5)]
    scores = save(tmp_path / "s.jsonl", [{**p, "teacher_score": v} for p, v in zip(pairs, values, strict=True)])
    labels = save(tmp_path / "l.jsonl", [{**p, "label": n} for n, p in enumerate(pairs)])
    done = run("fit", str(scores), str(labels), "--yes-from", "3", "--out", str(tmp_path / "fit.json"))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("power 1.9434 (")
    assert json.loads((tmp_path / "fit.json").read_text())["pairs"] == 5
    assert run("transform", str(scores), str(tmp_path / "t.jsonl"), "--power", "2").exit_code == 0
    assert [row["teacher_score"] for row in load(tmp_path / "t.jsonl")] == [0.04, 0.16, 0.36, 0.64, 0.81]


# --- balance ---------------------------------------------------------------------------------------------------------


def test_cells() -> None:
    assert cell_of(0.0, 1) == Cell(0, 0)
    assert cell_of(0.95, 1024) == Cell(9, 10)
    assert cell_of(1.0, 1023) == Cell(9, 9)
    assert cell_of(None, 0) == Cell(-1, 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 600))
def test_the_cap_is_the_highest_that_fits(counts: list[int], total: int) -> None:
    cap = cap_for(counts, total)
    fits = sum(min(count, cap) for count in counts) <= total
    assert fits or cap == 1
    if cap < max(counts):
        assert sum(min(count, cap + 1) for count in counts) > total


def test_balancing_cuts_full_cells_and_depends_on_no_order() -> None:
    """Cells of 10, 4 and 1 down to 9 in all: a cap of 4 gives 4 + 4 + 1."""
    cells = [Cell(0, 5)] * 10 + [Cell(9, 5)] * 4 + [Cell(9, 9)]
    ids = [str(n) for n in range(15)]
    decided = balance(ids, cells, total=9)
    assert decided.cap == 4
    assert decided.after == Counter({Cell(0, 5): 4, Cell(9, 5): 4, Cell(9, 9): 1})
    assert len(decided.dropped) == 6
    turned = balance(ids[::-1], cells[::-1], total=9)
    assert {ids[::-1][n] for n in turned.dropped} == {ids[n] for n in decided.dropped}
    with pytest.raises(InputError, match="either a total or a cap"):
        balance(ids, cells)


def test_balance_command(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "document": "d" * 20, "teacher_score": 0.05 if n < 8 else 0.95} for n in range(10)]
    done = run("balance", str(save(tmp_path / "a.jsonl", rows)), str(tmp_path / "b.jsonl"), "--cap", "2")
    assert done.exit_code == 0, done.stderr
    assert Counter(row["teacher_score"] for row in load(tmp_path / "b.jsonl")) == {0.05: 2, 0.95: 2}
    report = json.loads((tmp_path / "b.jsonl.report.json").read_text())
    assert report["cells"] == {"score 0.00-0.10, 16-31 characters": [8, 2], "score 0.90-1.00, 16-31 characters": [2, 2]}
    assert report["dropped"]["its cell of score and length is full"]["count"] == 6


# --- mixing ----------------------------------------------------------------------------------------------------------


def test_mixing_keeps_proportions_everywhere(tmp_path: Path) -> None:
    a = save(tmp_path / "a.jsonl", [{"n": n} for n in range(300)])
    b = save(tmp_path / "b.jsonl", [{"n": n} for n in range(300)])
    rows = list(mix({a: 3.0, b: 1.0}, None, 7, Drops()))
    assert len(rows) == 400  # a is used up after 300, and three of four are a's
    for start in range(0, 400, 40):
        assert Counter(row["mixed_from"] for row in rows[start : start + 40])["b.jsonl"] == 10
    taken = [row["n"] for row in rows if row["mixed_from"] == "a.jsonl"]
    assert sorted(taken) == list(range(300))
    assert taken != sorted(taken)
    assert rows == list(mix({a: 3.0, b: 1.0}, None, 7, Drops()))
    assert rows != list(mix({a: 3.0, b: 1.0}, None, 8, Drops()))


def test_mixing_repeats_short_files_for_a_total(tmp_path: Path) -> None:
    a = save(tmp_path / "a.jsonl", [{"n": n} for n in range(3)])
    rows = list(mix({a: 1.0}, 7, 0, Drops()))
    assert sorted(Counter(row["n"] for row in rows).values()) == [2, 2, 3]


def test_mixing_refuses_nonsense(tmp_path: Path) -> None:
    assert parse_weights(["a=b.jsonl=2", "c.jsonl"]) == {Path("a=b.jsonl"): 2.0, Path("c.jsonl"): 1.0}
    with pytest.raises(InputError, match="expected FILE or FILE=WEIGHT"):
        parse_weights(["a.jsonl=lots"])
    with pytest.raises(DataError, match="no records to mix"):
        list(mix({save(tmp_path / "a.jsonl", []): 1.0}, None, 0, Drops()))
    (tmp_path / "b.jsonl").write_text('{"n": 1}\n{broken\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: not JSON"):
        list(mix({tmp_path / "b.jsonl": 1.0}, None, 0, Drops()))
    drops = Drops()
    assert [row["n"] for row in mix({tmp_path / "b.jsonl": 1.0}, None, 0, drops, "skip")] == [1]
    assert drops.counts == {"malformed line": 1}


# --- splits ----------------------------------------------------------------------------------------------------------


def test_splits_hold_queries_together_and_grow_consistently() -> None:
    shares = {"dev": 0.1, "train": 0.9}
    sides = {f"query {n}": split_of(f"query {n}", shares) for n in range(3000)}
    assert 240 <= Counter(sides.values())["dev"] <= 360  # 300 expected, standard deviation 16
    assert split_of("  QUERY　12?! ", shares) == sides["query 12"]
    larger = {query: split_of(query, {"dev": 0.2, "train": 0.8}) for query in sides}
    assert all(larger[query] == "dev" for query, side in sides.items() if side == "dev")
    assert any(split_of(query, shares, "other") != side for query, side in sides.items())


def test_query_keys() -> None:
    assert query_key("Does  Copper conduct?") == query_key("does copper conduct")
    assert query_key("ＡＢＣ是什么？") == query_key("abc 是什么")
    assert query_key("does copper conduct") != query_key("does copper not conduct")


@pytest.mark.parametrize("text", ["train=0.5", "train=x", "a/b=1.0", "train=-1,dev=2", ""])
def test_bad_shares(text: str) -> None:
    with pytest.raises(InputError):
        parse_shares(text)


def test_split_command(tmp_path: Path) -> None:
    rows = [{"query": f"q{n // 3}", "document": str(n)} for n in range(300)]
    done = run("split", str(save(tmp_path / "a.jsonl", rows)), str(tmp_path / "out"), "--splits", "train=0.7,dev=0.3")
    assert done.exit_code == 0, done.stderr
    train, dev = load(tmp_path / "out" / "train.jsonl"), load(tmp_path / "out" / "dev.jsonl")
    assert len(train) + len(dev) == 300
    assert {row["query"] for row in train}.isdisjoint({row["query"] for row in dev})
    # 100 queries at 0.3: 30 expected, standard deviation 4.6; three documents each.
    assert 3 * 12 <= len(dev) <= 3 * 48


# --- leakage ---------------------------------------------------------------------------------------------------------

WINTER = "The harbour at Lindau freezes only in very cold winters, most recently in the long winter of 1963."


def check(**texts: Any) -> LeakageCheck:
    return LeakageCheck(EvaluationTexts(texts.get("queries", {}), texts.get("documents", {})))


@pytest.mark.parametrize(
    ("query", "how"),
    [
        ("When does the harbour of Lindau freeze?", "exact"),
        ("when does the harbour of lindau freeze", "exact"),
        ("when does the harbor of Lindau freeze?", "near"),
        ("Of Lindau the harbour, when does it freeze?", "near"),  # the same words in another order
        ("when does the harbour of Lindau open", None),
        ("why is copper a good conductor", None),
        ("林道的港口什么时候结冰?", "exact"),
        ("林道的港口甚么时候结冰？", "near"),
        ("铜的导电性好吗？", None),
    ],
)
def test_query_leaks(query: str, how: str | None) -> None:
    index = check(queries={"e1": "When does the harbour of Lindau freeze?", "e2": "林道的港口什么时候结冰？"})
    leak = index.check(query, "nothing")
    assert (leak and leak.how) == how


@pytest.mark.parametrize(
    ("document", "how"),
    [
        (WINTER.upper(), "exact"),
        (
            "It is known to all. " + WINTER + " The lake is large and rarely freezes over, as old chronicles tell us.",
            "near",
        ),
        ("freezes only in very cold winters, most recently in the long winter", "near"),
        ("The harbour at Lindau is large. Very cold winters are rare there.", None),
        ("winters", None),
        ("", None),
    ],
)
def test_document_leaks(document: str, how: str | None) -> None:
    leak = check(documents={"d": WINTER}).check("q", document)
    assert (leak and leak.how) == how
    assert leak is None or leak.of == "d"


def test_overlap_is_containment() -> None:
    """17 words, 10 runs of 8. Sharing the first 11 words means 4 runs of the shorter text's 4: all of it."""
    words = [f"w{n}" for n in range(17)]
    index = check(documents={"d": " ".join(words)})
    leak = index.document_leak(" ".join(words[:11]))
    assert leak is not None
    assert leak.share == 1.0
    leak = index.document_leak(" ".join([*words[:11], *(f"x{n}" for n in range(6))]))  # 4 of 10
    assert leak is None
    leak = index.document_leak(" ".join([*words[:13], *(f"x{n}" for n in range(4))]))  # 6 of 10
    assert leak is not None
    assert leak.share == pytest.approx(0.6)


@needs
def test_leakage_on_scifact(tmp_path: Path) -> None:
    """Claims and abstracts planted among technical documentation are found, whole or cut, and nothing else is."""
    texts = read_evaluation([DATA / "beir" / "scifact"], Drops())
    assert len(texts.queries) == 300  # data/README.md
    index = LeakageCheck(texts)
    claim = next(iter(texts.queries.values()))
    abstract = max(texts.documents.values(), key=len)
    assert index.check(claim.lower().rstrip("."), "x").how == "exact"
    middle = abstract[len(abstract) // 3 : 2 * len(abstract) // 3]
    assert index.document_leak("Something else first. " + middle).how == "near"
    clean = [text.text for text in islice(read_corpus(DATA / "corpora" / "techdocs.jsonl.gz", Drops()), 1000)]
    assert [index.check("how do I list buckets", text) for text in clean if index.document_leak(text)] == []


def test_leakage_command(tmp_path: Path) -> None:
    rows = [{"query": "q one", "document": WINTER}, {"query": "q two", "document": "nothing of note here"}]
    records = save(tmp_path / "a.jsonl", rows)
    evaluation = save(tmp_path / "e.jsonl", [{"text": WINTER}])
    found = run("leakage", str(records), str(evaluation))
    assert found.exit_code == 1
    assert "dropped 1: leakage: document is one of the evaluation set" in found.stderr
    assert "a.jsonl:1 touches" in found.stderr
    cleaned = run("leakage", str(records), str(evaluation), "--out", str(tmp_path / "b.jsonl"))
    assert cleaned.exit_code == 1  # leaks are leaks, whether left out or not
    assert [row["query"] for row in load(tmp_path / "b.jsonl")] == ["q two"]
    clean_run = run("leakage", str(tmp_path / "b.jsonl"), str(evaluation), "--out", str(tmp_path / "c.jsonl"))
    assert clean_run.exit_code == 0, clean_run.stderr
    empty = run("leakage", str(records), str(save(tmp_path / "f.jsonl", [{"x": 1}])))
    assert empty.exit_code == 2
    assert "no query and no document in it" in empty.stderr


# --- outputs and reruns ----------------------------------------------------------------------------------------------


PAIRS = [{"query": "q", "document": "d", "teacher_score": 0.5, "verdict": "yes"}]
COMMANDS = {
    "transform": ["{in}", "{out}", "--power", "2"],
    "balance": ["{in}", "{out}", "--cap", "1"],
    "mix": ["{out}", "{in}"],
    "leakage": ["{in}", "{in}", "--out", "{out}"],
    "keywords": ["{in}", "{out}"],
    "queries": ["{in}", "{out}"],
    "pairs": ["{in}", "{out}"],
    "mine": ["{in}", "{in}", "{out}"],
    "score": ["{in}", "{out}", "--teacher", "jina", "--model", "m", "--url", "http://127.0.0.1:9"],
    "search": ["{in}", "{out}", "--engine", "searxng", "--url", "http://127.0.0.1:9"],
    "split": ["{in}", "{folder}"],
    "build": ["{in}", "{folder}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = save(tmp_path / "in.jsonl", PAIRS)
    (tmp_path / "folder").mkdir()
    takes_folder = "{folder}" in COMMANDS[command]
    for bad in ["in.jsonl", "in.jsonl/x"] if takes_folder else ["folder", "in.jsonl/x.jsonl"]:
        words = [
            w.replace("{in}", str(given)).replace("{out}", bad).replace("{folder}", bad) for w in COMMANDS[command]
        ]
        failed = run(command, *words)
        assert failed.exit_code == 2, failed.output
        assert failed.stdout == ""
        assert failed.stderr.startswith(f"error: {bad} cannot be written: ")
        assert failed.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.jsonl"]


def test_a_finished_command_run_again_changes_nothing_and_says_so(tmp_path: Path) -> None:
    given = save(tmp_path / "in.jsonl", [*PAIRS, {**PAIRS[0], "query": "other", "verdict": "no"}])
    out, built = tmp_path / "out.jsonl", tmp_path / "built"
    for command, words in (
        ("transform", [str(given), str(out), "--power", "2"]),
        ("mix", [str(out), str(given)]),
        ("build", [str(given), str(built), "--splits", "train=1"]),
    ):
        assert run(command, *words).exit_code == 0
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
        again = run(command, *words)
        assert again.exit_code == 0
        assert command == "build" or "2 records, unchanged" in again.stdout
        after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before


def test_a_build_without_its_labels_leaves_nothing(tmp_path: Path) -> None:
    failed = run("build", str(tmp_path / "absent.jsonl"), str(tmp_path / "built"))
    assert failed.exit_code == 2
    assert "no file" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_no_number_gets_through(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"query": "q", "document": "d", "teacher_score": 0.5, "x": NaN}\n')
    failed = run("transform", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--power", "2")
    assert failed.exit_code == 2
    assert "in.jsonl:1: not JSON: NaN is no JSON number" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_query_id_zero_reaches_the_negatives(tmp_path: Path) -> None:
    pairs = save(tmp_path / "p.jsonl", [{"query": "copper wire", "query_id": 0, "document": "copper", "doc_id": 0}])
    texts = ["copper", "copper wire is sold by the metre", "silver wire"]
    corpus = save(tmp_path / "c.jsonl", [{"id": number, "text": text} for number, text in enumerate(texts)])
    done = run("mine", str(pairs), str(corpus), str(tmp_path / "n.jsonl"), "--max-share", "0")
    assert done.exit_code == 0, done.stderr
    assert {row["query_id"] for row in load(tmp_path / "n.jsonl")} == {"0"}
    assert {row["doc_id"] for row in load(tmp_path / "n.jsonl")} == {"1", "2"}
