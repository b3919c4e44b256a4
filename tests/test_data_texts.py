"""`prism data corpus` and `sample`: Markdown cut at its headings, pairs without what a labeller must not see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prism.cli import app
from prism.data.sections import markdown_sections

PAGE = """Before any heading.

# Backups #

They are kept.

```sh
# a comment, no heading
prism
```

## Restoring

###Not a heading
Ask an operator.

# Empty
# Limits
~~~
# still code
"""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def test_sections_by_hand() -> None:
    assert list(markdown_sections(PAGE)) == [
        ((), "Before any heading."),
        (("Backups",), "They are kept.\n\n```sh\n# a comment, no heading\nprism\n```"),
        (("Backups", "Restoring"), "###Not a heading\nAsk an operator."),
        (("Empty",), ""),
        (("Limits",), "~~~\n# still code"),
    ]


@given(st.text(alphabet="# `~ab\n", max_size=60))
def test_no_letter_is_lost_or_kept_twice(text: str) -> None:
    kept = "".join(part for headings, body in markdown_sections(text) for part in (*headings[-1:], body))
    assert [kept.count(letter) for letter in "ab`~"] == [text.count(letter) for letter in "ab`~"]


def test_a_folder_becomes_a_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "handbook"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text("hidden")
    (folder / "a.md").write_text(PAGE, encoding="utf-8")
    (folder / "deep" / "b.txt").write_text("# no heading here\n", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    said = run("corpus", tmp_path / "corpus.jsonl", folder)
    found = rows(tmp_path / "corpus.jsonl")
    assert [(row["id"], row["title"]) for row in found] == [
        ("a.md#0", "a"),
        ("a.md#1", "Backups"),
        ("a.md#2", "Restoring"),
        ("a.md#4", "Limits"),
        ("deep/b.txt#0", "b"),
    ]
    assert found[2]["headings"] == ["Backups", "Restoring"]
    assert "5 records" in said
    assert "dropped 1: no text under the heading (first: a.md#3)" in said


@pytest.mark.parametrize("what", ["absent", "empty folder", "twice", "latin"])
def test_what_is_no_corpus_is_said_in_one_line(tmp_path: Path, what: str) -> None:
    one, other = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    other.mkdir()
    sources, words = {
        "absent": ([tmp_path / "none.md"], "no file"),
        "empty folder": ([one], "no text file"),
        "twice": ([one, other], "would both be a.md"),
        "latin": ([one / "l.md"], "l.md:1"),
    }[what]
    if what == "twice":
        for folder in (one, other):
            (folder / "a.md").write_text("text")
    if what == "latin":
        sources[0].write_bytes("Käse".encode("latin-1"))
    done = CliRunner().invoke(app, ["data", "corpus", str(tmp_path / "out.jsonl"), *map(str, sources)])
    assert (done.exit_code, len(done.output.strip().splitlines())) == (2, 1)
    assert words in done.output
    assert not (tmp_path / "out.jsonl").exists()


def test_a_sample_shows_no_verdict(tmp_path: Path) -> None:
    made = [
        {
            "query": f"q{n}",
            "document": "d",
            "title": "t",
            "votes": {"mini": 1},
            "verdict": "yes",
            "label": 1,
            "score": 0.9,
        }
        for n in range(30)
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*made, made[0]]))
    run("sample", tmp_path / "labels.jsonl", tmp_path / "mine.jsonl", "--count", "20")
    drawn = rows(tmp_path / "mine.jsonl")
    assert len({row["query"] for row in drawn}) == 20
    assert {tuple(row) for row in drawn} == {("id", "query", "document", "title", "label")}
    assert {row["label"] for row in drawn} == {None}
    run("sample", tmp_path / "labels.jsonl", tmp_path / "again.jsonl", "--count", "20")
    assert rows(tmp_path / "again.jsonl") == drawn
    run("sample", tmp_path / "labels.jsonl", tmp_path / "all.jsonl")
    assert len(rows(tmp_path / "all.jsonl")) == 30, "a repeated pair once"
