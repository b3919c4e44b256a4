"""`prism agree` as a user meets it, and how label files are read: every complaint is one line that names the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prism import cli
from prism.errors import DataError, InputError
from prism.files.label_files import PairIds, line_up, read_labels

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/labels"
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """People, and a model that agrees on 4 of 5 pairs, knows one more, and lacks one."""
    people = tmp_path / "people.qrels"
    people.write_text("q1 0 a 0\nq1 0 b 1\nq1 0 c 1\nq2 0 a 2\nq2 0 b 0\nq2 0 c 0\n")
    model = tmp_path / "model.tsv"
    model.write_text("query-id\tcorpus-id\tscore\nq1\ta\t0\nq1\tb\t1\nq1\tc\t0\nq2\ta\t2\nq2\tb\t0\nq3\tz\t1\n")
    return [str(people), str(model)]


def run(*arguments: str) -> Any:
    return runner.invoke(cli.app, ["agree", *arguments])


def fails(words: str, *arguments: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *warnings, error = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert all(line.startswith("warning: ") for line in warnings)
    assert words in error


# --- the command -----------------------------------------------------------------------------------------------------


def test_json_holds_the_whole_comparison(files: list[str]) -> None:
    result = run(*files, "--json", "--samples", "20")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (judged,) = found["compared"]
    assert (found["reference"], found["names"], found["labels"]) == ("people", ["people", "model"], [0, 1, 2])
    assert (judged["pairs"], judged["unlabelled"], judged["left_out"]) == (5, 1, 1)
    assert judged["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 0, 1]]
    # observed 4/5; expected (2*3 + 2*1 + 1*1) / 25 = 9/25: (20 - 9) / (25 - 9)
    assert judged["kappa"]["value"] == pytest.approx(11 / 16)
    assert judged["exact"]["value"] == pytest.approx(0.8)
    assert judged["within_one"]["value"] == 1
    assert set(judged["kappa_binary"]) == {"1", "2"}
    assert found["rankings"] == []
    assert "1 of 6 pairs of the reference have no label here" in result.stderr
    assert "1 pairs are not in" in result.stderr


def test_tables_for_people(files: list[str]) -> None:
    result = run(*files, "--samples", "0")
    assert result.exit_code == 0, result.output
    for words in ("6 pairs of 2 queries", "0.688", "Krippendorff's alpha", "Rows: people, columns: model"):
        assert words in result.stdout
    assert "Fleiss" not in result.stdout  # two judges: nothing to add
    assert "Fleiss' kappa" in run(*files, files[0], "--samples", "0").stdout


def test_narrow_terminals_lose_nothing(files: list[str]) -> None:
    result = CliRunner(env={"COLUMNS": "60", "TERM": "dumb"}).invoke(cli.app, ["agree", *files, "--samples", "0"])
    assert result.exit_code == 0
    assert "…" not in result.stdout


def test_plots_are_pictures(files: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    result = run(*files, "--samples", "0", "--plots", str(folder))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["confusion.png", "kappa.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert str(folder / "kappa.png") in result.stderr


def test_hostile_names_steer_neither_terminal_nor_picture(tmp_path: Path) -> None:
    names = ["$\\frac{1}$", "a\x1b[31mred", "日本\u202e語", "[bold]x"]
    paths = [tmp_path / f"{name}.qrels" for name in names]
    for path in paths:
        path.write_text("q 0 a 0\nq 0 b 1\nq 0 c 5\n" if path == paths[-1] else "q 0 a 0\nq 0 b 1\n")
    arguments = [*map(str, paths), "--samples", "0", "--plots", str(tmp_path / "plots")]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "[bold]x" in result.stdout
    assert "\x1b" not in run(*arguments, "--json").output


def test_rankings_of_systems(files: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    # under both label files `good` puts the relevant documents first in every query, `bad` last
    (folder / "good.run").write_text("q1 Q0 b 1 3 x\nq1 Q0 c 2 2 x\nq1 Q0 a 3 1 x\nq2 Q0 a 1 2 x\nq2 Q0 b 2 1 x\n")
    (folder / "bad.run").write_text("q1 Q0 a 1 3 x\nq1 Q0 c 2 2 x\nq1 Q0 b 3 1 x\nq2 Q0 b 1 2 x\nq2 Q0 a 2 1 x\n")
    result = run(*files, "--runs", str(folder), "--samples", "20", "--json")
    assert result.exit_code == 0, result.output
    (ranking,) = json.loads(result.stdout)["rankings"]
    assert (ranking["systems"], ranking["queries"]) == (2, 2)
    assert ranking["tau"]["value"] == pytest.approx(1)
    assert ranking["rho"]["value"] == pytest.approx(1)
    assert ranking["scores"]["good"][0] == pytest.approx(1)
    assert "Kendall's tau-b" in run(*files, "--runs", str(folder), "--samples", "0").stdout
    fails("at least two run files, got 1", *files, "--runs", str(folder / "good.run"))
    fails("two run files are named 'good'", *files, "--runs", str(folder), "--runs", str(folder / "good.run"))
    fails("no measure 'x'", *files, "--runs", str(folder), "--measure", "x")


def test_labels_off_the_scale(files: list[str], tmp_path: Path) -> None:
    stray = tmp_path / "stray.qrels"
    stray.write_text("q1 0 a 0\nq1 0 b 10\nq2 0 a 2\n")
    result = run(files[0], str(stray), "--samples", "0", "--json")
    assert f"{stray}:2: label 10 is outside 0 to 2" in result.stderr
    assert json.loads(result.stdout)["labels"] == [0, 1, 2, 10]
    fails(f"{stray}:2: label 10 is off the scale 0 to 2", files[0], str(stray), "--scale", "0:2")
    for scale in ("3:0", "0-3", "a:b", "0:0", ""):
        fails("expected LOW:HIGH", *files, "--scale", scale)


def test_wrong_calls_end_in_one_line(files: list[str], tmp_path: Path) -> None:
    fails("at least two label files", files[0])
    fails("no file", files[0], str(tmp_path / "absent.qrels"))
    fails("cannot read", files[0], str(tmp_path))
    other = tmp_path / "other.qrels"
    other.write_text("q9 0 a 1\n")
    fails("have no pair in common", files[0], str(other))


# --- reading ---------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, content: str | bytes, **options: Any) -> dict[tuple[str, str], int]:
    path = tmp_path / "labels.qrels"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return dict(read_labels(path, **options).labels)


@pytest.mark.parametrize(
    "content",
    [
        "q 0 a 1\nq 0 b 0\n",
        "q Q0  a   1\n\n  q Q0 b 0",
        "q\t0\ta\t1\nq\t0\tb\t0\n",
        "q a 1\nq b 0\n",
        "query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t0\n",
        "query document label\r\nq a 1\r\nq b 0\r\n",
        b"\xef\xbb\xbfq 0 a 1.0\nq 0 b +0\n",
    ],
)
def test_layouts_that_are_read(tmp_path: Path, content: str | bytes) -> None:
    assert read(tmp_path, content) == {("q", "a"): 1, ("q", "b"): 0}


def test_tabs_keep_spaces_inside_ids(tmp_path: Path) -> None:
    assert read(tmp_path, "q one\t0\tdoc 1\t-2\n") == {("q one", "doc 1"): -2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q 0 a 1\nq 0 b\t1\n", ":2: tabs and spaces are mixed"),
        ("q 0 a 1\nq\t0\tb\t1\n", ":2: separated by tabs, the lines above by spaces"),
        ("q\t0\ta\t1\nq 0 b 1\n", ":2: separated by spaces, the lines above by tabs"),
        ("q 0\ta 1\n", ":1: tabs and spaces are mixed"),
        ("q 0 a 1\nq b 1\n", ":2: 3 columns, the lines above have 4"),
        ("q 0 a 1\nq 0 b 1 x\n", ":2: got 5 columns"),
        ("q a\n", ":1: got 2 columns"),
        ("q\t\ta\t1\n", ":1: column 2 is empty"),
        ("q 0 a 1\nq 0 b yes\n", ":2: label 'yes' is not a whole number"),
        ("q 0 a 1.5\n", "label '1.5' is not a whole number"),
        ("q 0 a nan\n", "label 'nan' is not a whole number"),
        ("q 0 a 1e1\n", "label '1e1' is not a whole number"),
        ("q 0 a ١\n", "is not a whole number"),
        ("q 0 a 1_0\n", "label '1_0' is not a whole number"),
        ("q 0 a 3659\n", "label 3659 is off the scale -10 to 100"),
        ("q 0 a 99999999999999999999\n", "is not a whole number"),
        ("q 0 a 1\nq 0 b 0\nq 0 a 1\n", ":3: query 'q' document 'a' stands twice, first in line 1"),
        ("", "no labels"),
        ("query document label\n", "no labels"),
        (b"q 0 a 1\nq 0 \xff 1\n", ":2: not UTF-8 text"),
        ("q 0 a 1\n".encode("utf-16"), ":1: not UTF-8 text"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(DataError) as refused:
        read(tmp_path, content)
    message = str(refused.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


def test_scale_is_checked_line_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":2: label 4 is off the scale 0 to 3"):
        read(tmp_path, "q 0 a 3\nq 0 b 4\n", scale=(0, 3))


IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.tuples(IDS, IDS), st.integers(0, 4), min_size=1, max_size=10), st.sampled_from(["\t", " "]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, labels: dict[tuple[str, str], int], separator: str
) -> None:
    path = tmp_path_factory.mktemp("written") / "x.qrels"
    lines = [separator.join((query, "0", document, str(label))) for (query, document), label in labels.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert dict(read_labels(path).labels) == labels


def test_lined_up_by_the_reference(files: list[str]) -> None:
    people, model = (read_labels(Path(path)) for path in files)
    table = line_up([people, model])
    assert table.queries == ("q1", "q2")
    assert table.query_of.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(table.votes, [[0, 0], [1, 1], [1, 0], [2, 2], [0, 0], [0, np.nan]])
    assert table.left_out == (0, 1)
    assert table.limited(1).votes.shape == (3, 2)
    with pytest.raises(InputError, match="leaves nothing"):
        table.limited(0)
    with pytest.raises(InputError, match="no judge 'x'"):
        table.columns(["x"])
    with pytest.raises(InputError, match="no label files"):
        line_up([])


def test_records_of_prism_label(tmp_path: Path) -> None:
    """The panel and its jurors against people; null is a vote that failed, not a label."""
    rows = [
        {"query_id": "q1", "doc_id": "d1", "label": 1, "votes": {"a": 1, "b": 1}},
        {"query_id": "q1", "doc_id": "d2", "label": 0, "votes": {"a": 1, "b": 0}},
        {"query_id": "q2", "doc_id": "d1", "label": 0, "votes": {"b": 0}, "failures": {"a": "refused"}},
        {"query_id": "q2", "doc_id": "d2", "label": None, "votes": {}},
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "mine.qrels").write_text("q1 0 d1 1\nq1 0 d2 0\nq2 0 d1 0\nq2 0 d2 1\n", encoding="utf-8")
    given = [str(tmp_path / "mine.qrels"), str(tmp_path / "labels.jsonl")]
    alone = json.loads(run(*given, "--json", "--samples", "0").stdout)
    assert [(judge["name"], judge["pairs"]) for judge in alone["compared"]] == [("labels", 3)]
    found = json.loads(run(*given, "--json", "--samples", "0", "--jurors").stdout)["compared"]
    assert [(judge["name"], judge["pairs"]) for judge in found] == [("labels", 3), ("a", 2), ("b", 3)]
    assert [judge["exact"]["value"] for judge in found] == [1, 0.5, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"query_id": "q", "doc_id": "d", "label": "1.5"}', r":1: label '1.5' is not a whole number"),
        ('{"query_id": "q", "doc_id": "d", "label": true}', r":1: label True is not a whole number"),
        ('{"query_id": "q", "doc_id": "d", "label": 1, "votes": {"a": 400}}', r":1: label 400 is off the scale"),
        ('{"label": 1}', r":1: no pair named"),
        ('{"query": "q", "document": "d"}', "no labels"),
        ("not json", r":1: not JSON"),
    ],
)
def test_records_that_are_refused(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "labels.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_labels(tmp_path / "labels.jsonl")


def test_judges_of_one_name_stay_apart(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    twin = tmp_path / "b" / "people.qrels"
    twin.write_text(Path(files[0]).read_text())
    names = line_up([read_labels(Path(path)) for path in (files[0], str(twin), files[0])]).names
    assert len(set(names)) == 3
    assert names[1] == "b/people"


@pytest.mark.skipif(not (SHARED / "llmjudge").is_dir(), reason="no ../shared/data/labels/llmjudge")
def test_the_stray_label_of_llmjudge_is_named() -> None:
    path = SHARED / "llmjudge" / "submissions" / "h2oloo-zeroshot2.qrels"
    assert read_labels(path).outside((0, 3)) == [PairIds("q2", "p8028")]
    with pytest.raises(DataError, match=r"h2oloo-zeroshot2.qrels:3187: label 10 is off the scale 0 to 3"):
        read_labels(path, (0, 3))
