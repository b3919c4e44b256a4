"""Recorded labels: read strictly, written and read back, between the scripts that use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prism.errors import DataError, InputError
from studies.label_quality import Judged
from studies.recorded import as_pairs, read_labelled_run, read_recorded, write_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "submissions").mkdir()
    (tmp_path / "human.qrels").write_text("q 0 a 3\nq 0 b 0\n")
    (tmp_path / "submissions" / "fair.qrels").write_text("q 0 a 2\nq 0 b 1\n")
    (tmp_path / "submissions" / "odd.qrels").write_text("q 0 a 9\nq 0 b 0\n")
    return tmp_path


def test_labels_off_the_scale_are_failures_and_named(folder: Path) -> None:
    found = read_recorded(folder, None, [], 3)
    assert [judge.name for judge in found.judges] == ["fair", "odd"]
    assert as_pairs(found.judges[1]) == {("q", "b"): 0}
    assert found.warnings() == ["odd.qrels:1: label off the scale 0 to 3 (1 in all): a failure"]
    assert len(read_recorded(folder, None, [], 3, limit=1).judges) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "submissions/odd",
            "q 0 a 7\nq 0 b 9\n",
            r"odd.qrels:1: label 7 is off the scale 0 to 3, and so are all others",
        ),
        ("submissions/odd", "z 0 y 1\n", r"odd.qrels:1: query 'z' document 'y' is not in .*human.qrels"),
        ("submissions/odd", "q 0 a 1\nq\t0\tb\t1\n", r"odd.qrels:2: separated by tabs"),
        ("human", "q 0 a 1\nq 0 b 4\n", r"human.qrels:2: label 4 is off the scale 0 to 3"),
        ("human", "q,0,a,1\n", r"human.qrels:1: got 1 columns"),
    ],
)
def test_files_that_cannot_be_meant_are_named_by_line(folder: Path, name: str, text: str, message: str) -> None:
    (folder / f"{name}.qrels").write_text(text)
    with pytest.raises(DataError, match=message):
        read_recorded(folder, None, [], 3)


def test_there_must_be_somebody_to_compare(folder: Path) -> None:
    with pytest.raises(InputError, match="no labels: pass --labels"):
        read_recorded(None, folder / "human.qrels", [], 3)


def test_a_run_of_other_queries_is_named_by_line(folder: Path) -> None:
    people = read_recorded(folder, None, [], 3).people
    (folder / "a.run").write_text("q Q0 b 1 2 t\nq Q0 a 2 1 t\n")
    assert read_labelled_run(folder / "a.run", people) == {"q": ["b", "a"]}
    (folder / "a.run").write_text("\nz Q0 b 1 2 t\n")
    with pytest.raises(DataError, match=r"a.run:2: query 'z' is not in .*human.qrels"):
        read_labelled_run(folder / "a.run", people)


def test_labels_are_written_as_they_are_read(tmp_path: Path) -> None:
    people = {("q", "a"): 1, ("q", "b"): 0}
    said = {("q", "a"): 3}
    judges = [Judged("a/model, with reasoning", {}, said, 3), Judged("BM25", {("q", "a"): 1.5}, None, 1)]
    write_labels(tmp_path, people, judges)
    found = read_recorded(tmp_path, None, [], 3)
    assert as_pairs(found.people) == people
    assert {judge.name: as_pairs(judge) for judge in found.judges} == {"a-model-with-reasoning": said}
    with pytest.raises(DataError, match="'a b' has a space"):
        write_labels(tmp_path, {("q", "a b"): 1}, [])
