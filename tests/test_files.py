"""One reader for one format: JSON lines and arrays, labels, runs and tables, whatever their packing and encoding."""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
import tomllib
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism.errors import DataError, InputError
from prism.files.examples import read_examples
from prism.files.ids import id_in, read_id
from prism.files.jsonl import Drops, JsonlWriter, dumps, read_pairs, read_rows, write_rows
from prism.files.label_files import read_labels
from prism.files.ledger import Kept, Ledger
from prism.files.lines import likely_encoding
from prism.files.shipped import shipped
from prism.files.trec import judged_lines, read_label, read_qrels, read_run, write_run
from prism.labeling.label_pairs import LabelPair, read_label_pairs
from prism.labeling.panel import load_panel
from prism.labeling.recorded import read_recorded
from prism.outputs import made_whole, require_file, require_folder, write_text
from prism.text import clean, stable_id
from prism.training.recipe import load_recipe
from prism.types import Record
from studies.audit import patch, read_decisions
from studies.tables import read_table

ROOT = Path(__file__).parents[1]
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
ROW = {"query": "wie heißt der See", "document": "Der See heißt\u2028Bodensee.\x85", "query_id": 0, "doc_id": "a b"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [line.row for line in read_rows(path, Drops())]


# --- JSON ------------------------------------------------------------------------------------------------------------

TEXT = json.dumps(ROW, ensure_ascii=False)
FORMS = {
    "plain.jsonl": TEXT.encode() + b"\n",
    "no-end.ndjson": TEXT.encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + TEXT.encode() + b"\r\n\r\n",
    "upper.JSONL": TEXT.encode() + b"\r\n",
    "packed.jsonl.gz": gzip.compress(TEXT.encode() + b"\n"),
    "packed.ndjson": gzip.compress(TEXT.encode() + b"\n"),
    "array.json": f" [\n{TEXT}\n]\n".encode(),
    "array.jsonl": b"\xef\xbb\xbf[" + TEXT.encode() + b"]",
    "object.json": json.dumps(ROW, indent=2).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_command_reads_every_form_alike(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name])
    assert rows(path) == [ROW]
    [pair] = [line.row for line in read_pairs(path, Drops())]
    assert (pair["query_id"], pair["doc_id"]) == ("0", "a b")
    [labelled] = read_label_pairs(path)
    assert isinstance(labelled, LabelPair)
    assert (labelled.id, labelled.query_id, labelled.doc_id) == (pair["id"], "0", "a b")
    path.write_bytes(FORMS[name])
    trained = {**ROW, "verdict": "yes"}
    (tmp_path / "t.jsonl").write_text(json.dumps(trained), encoding="utf-8-sig")
    [example] = read_examples(tmp_path / "t.jsonl")
    assert (example.document, example.query_id, example.doc_id) == (ROW["document"], "0", "a b")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
records = st.lists(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), values, max_size=4), max_size=5)


@same_folder
@given(records, st.sampled_from(["lines", "packed", "array", "mark"]))
def test_what_is_written_is_read_again(tmp_path: Path, made: list[dict[str, Any]], form: str) -> None:
    path = tmp_path / "r.jsonl"
    write_rows(path, made)
    written = path.read_bytes()
    assert len(written.decode().splitlines()) == len(made)  # also for readers that take U+2028 for the end of a line
    if form == "packed":
        path.write_bytes(gzip.compress(written))
    elif form == "array":
        path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    elif form == "mark":
        path.write_bytes(b"\xef\xbb\xbf" + written.replace(b"\n", b"\r\n"))
    assert rows(path) == made


def test_lone_surrogates_become_replacements_everywhere(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(
        '{"query": "a\\ud800b", "votes": {"\\udc00": ["\\uDFFF"]}, "ok": "\\ud83d\\ude00"}'
    )
    assert rows(tmp_path / "s.jsonl") == [{"query": "a\ufffdb", "votes": {"\ufffd": ["\ufffd"]}, "ok": "\U0001f600"}]
    assert dumps({"a": "\ud800"}) == '{"a": "\ufffd"}'


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "[1, NaN]"])
def test_what_is_no_number_is_refused_where_it_enters(tmp_path: Path, number: str) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text(f'{{"query": "q", "document": "d"}}\n{{"query": "q", "document": "d", "score": {number}}}\n')
    with pytest.raises(DataError, match=r"n\.jsonl:2: not JSON: .*(no JSON number|too large)"):
        rows(path)
    drops = Drops()
    assert len(list(read_rows(path, drops, "skip"))) == 1
    assert drops.counts == {"malformed line": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, [{"deep": -math.inf}]])
def test_what_is_no_number_is_never_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="NaN and Infinity"):
        write_rows(tmp_path / "o.jsonl", [{"a": 1}, {"a": value}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ('[{"a": 1},\n{"b": }]', 2, "not JSON"),
        ('[{"a": 1}\n{"b": 2}]', 2, "comma"),
        ('[{"a": 1}]\n\n{"b": 2}', 3, "something follows the array"),
        ('[\n{"a": 1},\n\n7]', 4, "expected an object, got int"),
        ('[{"a": NaN}]', 1, "no JSON number"),
        ('{\n"a": 1\n}\n{"a": 2}', 4, "something follows the object"),
        ("{", 1, "not JSON"),
        ('{"a": 1}\n[1]', 2, "expected an object, got list"),
        ("[" * 100_000, 1, "not JSON"),
    ],
)
def test_what_is_wrong_in_json_is_told_with_its_line(tmp_path: Path, content: str, place: int, words: str) -> None:
    path = tmp_path / "w.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"w\.json:{place}: .*{words}"):
        rows(path)


# --- encodings -------------------------------------------------------------------------------------------------------

FIRST = '{"query": "q", "document": "d", "verdict": "no"}'
GERMAN = "Die Äpfel im Süden schmecken süßer als die Birnen aus Österreich."
FOREIGN = {
    "CP1252": GERMAN,
    "SHIFT-JIS": "銅は鉄よりも電気をよく通し、銀は両方よりもよく通す。",
    "EUC-JP": "銅は鉄よりも電気をよく通し、銀は両方よりもよく通す。",
    "GB18030": "铜的导电性比铁好，而银比两者都好。港口只在非常寒冷的冬天结冰。",
    "CP1251": "Медь проводит электричество лучше, чем железо.",
    "KOI8-R": "медь проводит электричество лучше, чем железо.",
    "UTF-16": GERMAN,
    "UTF-16LE": GERMAN,
    "UTF-32": GERMAN,
}


@pytest.mark.parametrize("encoding", FOREIGN)
def test_another_encoding_is_named_with_file_and_line(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"query": FOREIGN[encoding], "document": "d"}, ensure_ascii=False)
    assert likely_encoding(text.encode(encoding)) == encoding
    path = tmp_path / "e.jsonl"
    wide = encoding.startswith("UTF")
    path.write_bytes((text if wide else f"{FIRST}\n{text}\n").encode(encoding))
    with pytest.raises(
        DataError, match=rf"e\.jsonl:{1 if wide else 2}: not UTF-8 text, it looks like {encoding}: .*iconv"
    ):
        rows(path)
    with pytest.raises(DataError, match="not UTF-8 text"):
        list(read_examples(path))
    (tmp_path / "t.csv").write_bytes(f"query,document,decision\n{FOREIGN[encoding]},d,1\n".encode(encoding))
    with pytest.raises(DataError, match=r"t\.csv:\d: not UTF-8 text"):
        list(read_table(tmp_path / "t.csv", ["query"]).rows)
    (tmp_path / "q.qrels").write_bytes(f"q 0 d 1\n{FOREIGN[encoding].replace(' ', '')} 0 d 1\n".encode(encoding))
    with pytest.raises(DataError, match=r"q\.qrels:\d: not UTF-8 text"):
        read_qrels(tmp_path / "q.qrels")


@pytest.mark.parametrize("size", [3, 20, -4])
def test_a_packed_file_that_was_cut_off_is_told_in_one_line(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 50)[:size])
    with pytest.raises(DataError, match="cannot be read to its end"):
        rows(path)


# --- ids and labels --------------------------------------------------------------------------------------------------


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_whole_numbers_are_ids_however_they_are_written(number: int) -> None:
    assert {read_id(value, "id", "f:1") for value in (number, float(number), str(number), f"{number}.0")} == {
        str(number)
    }


@pytest.mark.parametrize("value", [True, False, 1.5, math.nan, math.inf, [], {}, None, "", "  ", 2.0**60])
def test_what_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"f:1: doc_id"):
        read_id(value, "doc_id", "f:1")


def test_zero_is_an_id_and_a_blank_is_none() -> None:
    assert id_in({"query_id": 0}, ("query_id",), "f:1") == "0"
    assert id_in({"query_id": " ", "qid": 7}, ("query_id", "qid"), "f:1") == "7"
    assert id_in({"query_id": None}, ("query_id",), "f:1") is None


@pytest.mark.parametrize("bad", ["true", "1.5", "[1]", '{"a": 1}'])
def test_what_is_no_id_is_refused_at_the_first_stage(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"query": "q", "document": "d", "doc_id": {bad}}}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:1: doc_id: expected a string or a whole number"):
        list(read_pairs(path, Drops()))
    [item] = read_label_pairs(path)
    assert "doc_id" in getattr(item, "problem", "")


@pytest.mark.parametrize(("value", "label"), [(1, 1), (1.0, 1), ("1", 1), ("+1", 1), ("2.", 2), ("0.00", 0), (-2, -2)])
def test_labels_are_whole_numbers_however_they_are_written(value: object, label: int) -> None:
    assert read_label(value, "f:1") == label


@pytest.mark.parametrize("value", [True, 0.5, math.nan, "nan", "1e1", "1_0", "١", "", None, [1]])
def test_what_is_no_label_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"f:1: label .* is not a whole number"):
        read_label(value, "f:1")


LABELS = {
    "beir.tsv": "query-id\tcorpus-id\tscore\nhow to.txt\ta b.pdf\t1.0\n0\td\t0\n",
    "mark.tsv": "\ufeffhow to.txt\ta b.pdf\t1\r\n0.0\td\t0\r\n",
    "trec.qrels": "how to.txt\t0\ta b.pdf\t1\n0\t0\td\t0\n",
    "labels.jsonl": '{"query_id": "how to.txt", "doc_id": "a b.pdf", "label": 1}\n'
    '{"query_id": 0, "doc_id": "d", "label": 0.0}',
    "labels.JSON": '[{"query-id": "how to.txt", "corpus-id": "a b.pdf", "score": 1},\n'
    '{"qid": 0.0, "docid": "d", "score": 0}]',
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_read_alike_by_every_command(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(LABELS[name].encode())
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        assert read_qrels(file) == {"how to.txt": {"a b.pdf": 1}, "0": {"d": 0}}
        assert [judged for _, judged in judged_lines(file)] == [("how to.txt", "a b.pdf", 1), ("0", "d", 0)]
        if "score" not in LABELS[name] or "tsv" in name:
            assert dict(read_labels(file).labels) == {("how to.txt", "a b.pdf"): 1, ("0", "d"): 0}
            keys = {vote.key for _, vote in read_recorded(file)}
            assert keys == {stable_id("", "how to.txt", "a b.pdf"), stable_id("", "0", "d")}


ids = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1).filter(
    lambda text: text == text.strip() and read_id(text, "id", "f:1") == text and not text.startswith("\ufeff")
)


@same_folder
@given(st.dictionaries(ids, st.lists(ids, min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
def test_runs_keep_every_id(tmp_path: Path, run: dict[str, list[str]]) -> None:
    write_run(tmp_path / "r.run", run, "tag")
    assert read_run(tmp_path / "r.run") == run


# --- tables and decisions --------------------------------------------------------------------------------------------


def test_a_table_may_hold_line_ends_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffquery, note\r\n"q 1","two\nlines\u2028, a ""quote"""\r\n\r\n2,x\x85y\r\n'.encode())
    table = read_table(path, ["query"])
    assert table.columns == ("query", "note")
    assert list(table.rows) == [
        (f"{path}:3", {"query": "q 1", "note": 'two\nlines\u2028, a "quote"'}),
        (f"{path}:5", {"query": "2", "note": "x\x85y"}),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ":1: no column 'query'"),
        ("query,document\nq,d\n", ":1: no column 'decision'"),
        ("query,document,decision\nq,d\n", ":2: expected 3 comma-separated values, got 2"),
        ('query,document,decision\n"q,d,1\n', "not a comma-separated table"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        list(read_table(path, ["query", "document", "decision"]).rows)


@pytest.mark.parametrize("name", [name for name in LABELS if name != "labels.JSON"])
def test_decisions_reach_every_kind_of_label_file(name: str, tmp_path: Path) -> None:
    path, decisions, out = tmp_path / name, tmp_path / "d.csv", tmp_path / "out" / name
    path.write_bytes(LABELS[name].encode())
    human = {(query, document): label for query, of in read_qrels(path).items() for document, label in of.items()}
    decisions.write_text("\ufeffquery,document,decision\nhow to.txt,a b.pdf,2.0\n0.0,d,\n", encoding="utf-8")
    decided = read_decisions(decisions, human, 3)
    assert decided == {("how to.txt", "a b.pdf"): 2}
    assert patch(path, decided, out) == 1
    assert read_qrels(out) == {"how to.txt": {"a b.pdf": 2}, "0": {"d": 0}}
    with pytest.raises(DataError, match="is decided, but no line of its own has it"):
        patch(path, {("q", "absent"): 1}, out)


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_written_are_found_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for check, path, words in (
        (require_file, "folder", "is a folder"),
        (require_file, "file/x.jsonl", "is a file, not a folder"),
        (require_file, "file/deeper/x.jsonl", "is a file, not a folder"),
        (require_folder, "file", "is a file, not a folder"),
        (require_folder, "file/x", "is a file, not a folder"),
    ):
        with pytest.raises(InputError, match=rf"{path} cannot be written: .*{words}"):
            check(tmp_path / path)
    require_file(tmp_path / "new" / "deeper" / "x.jsonl")
    require_folder(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "new" / ("n" * 300)):
        with pytest.raises((DataError, InputError), match="cannot"):
            write_text(path, "x")
    with pytest.raises(ZeroDivisionError), JsonlWriter(tmp_path / "o.jsonl") as out:
        out.write({"a": 1 // 0})
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "o.jsonl").exists()


def test_two_writers_of_one_file_do_not_touch_each_other_s_part(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with JsonlWriter(path) as first:
        first.write({"of": "first", "text": "long" * 5000})
        with JsonlWriter(path) as second:
            second.write({"of": "second"})
        assert path.read_text() == '{"of": "second"}\n'
        first.write({"of": "first"})
    assert [row["of"] for row in map(json.loads, path.read_text().splitlines())] == ["first", "first"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_would_not_change_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    assert write_rows(path, [{"a": 1}]) == (1, False)
    before = path.stat()
    assert write_rows(path, [{"a": 1}]) == (1, True)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write_rows(path, [{"a": 2}]) == (1, False)
    assert rows(path) == [{"a": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["o.jsonl"]


def test_special_files_are_written_as_they_are() -> None:
    assert write_rows(Path("/dev/null"), [{"a": 1}]).records == 1
    assert Path("/dev/null").is_char_device()


class Note(Record):
    """What the ledgers of these tests keep."""

    text: str


KEYS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@same_folder
@given(entries=st.lists(st.tuples(KEYS, VALUES), max_size=6))
def test_a_ledger_gives_back_what_was_last_put(tmp_path: Path, entries: list[tuple[str, Any]]) -> None:
    (tmp_path / "l.sqlite").unlink(missing_ok=True)
    clean_entries = [(clean(key), json.loads(dumps(value))) for key, value in entries]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for key, value in clean_entries:
            ledger.put(key, value)
    with Ledger(tmp_path / "l.sqlite") as again:
        assert dict(again.items()) == dict(clean_entries)
        assert again.get("a key that was never put") is None
        assert all(again.get(key) == value for key, value in dict(clean_entries).items())


def test_money_is_booked_before_it_is_spent(tmp_path: Path) -> None:
    """Two attempts, one lost with the process, one answered for less than it might have cost: 0.5 + 0.125 dollars."""

    async def spend(ledger: Ledger) -> None:
        lost, answered, refused = ledger.attempt(), ledger.attempt(), ledger.attempt()
        await lost.sent(Decimal("0.5"))
        await answered.sent(Decimal("1"))
        await refused.sent(Decimal("4"))
        await refused.failed("refused", Decimal(0))
        assert ledger.spent_usd() == Decimal("1.5")
        ledger.put("k", "text", Decimal("0.125"), answered)

    with Ledger(tmp_path / "l.sqlite") as ledger:
        anyio.run(spend, ledger)
    with Ledger(tmp_path / "l.sqlite") as again:
        assert again.spent_usd() == Decimal("0.625")


def test_answers_of_services_kept_by_an_older_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "services.sqlite"
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT, seconds REAL)")
        old.execute("INSERT INTO answers VALUES ('k', ?, 1.5)", ('{"results": [0.25, "ü"]}',))
    for _ in range(2):
        with Ledger(path) as ledger:
            assert dict(ledger.items()) == {"k": {"answer": {"results": [0.25, "ü"]}, "seconds": 1.5}}


def test_what_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "l").write_text("something else entirely, long enough to be read as a header" * 20)
    with pytest.raises(DataError, match=r"l is not a store of answers .*: name another file"):
        Ledger(tmp_path / "l")
    with Ledger(tmp_path / "other.sqlite") as other:
        other.put("k", {"words": 1})
    with pytest.raises(DataError, match=r"other.sqlite: not records of this kind: move the file away"):
        Kept(tmp_path / "other.sqlite", Note).read()


@same_folder
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=4), cut=st.integers(1, 20))
def test_lines_of_an_older_version_are_taken_over_but_for_one_that_was_cut(
    tmp_path: Path, texts: list[str], cut: int
) -> None:
    old, said = tmp_path / "l.jsonl", list[str]()
    kept = Kept(tmp_path / "l.sqlite", Note, said.append)
    kept.clear()
    assert kept.read() == {}
    lines = [dumps({"key": str(number), "value": {"text": text}}) for number, text in enumerate(texts)]
    old.write_bytes("".join(line + "\n" for line in lines).encode() + b'{"key": "x", "value": {'[:cut])
    assert {key: note.text for key, note in kept.read().items()} == {str(n): text for n, text in enumerate(texts)}
    assert said == [f"dropped line {len(texts) + 1} of l.jsonl: it was cut off; it is done again"]
    assert not old.exists()
    kept.append("0", Note(text="newer"))
    assert kept.read()["0"].text == "newer"
    assert len(said) == 1


def test_a_line_of_an_older_version_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('garbage\n{"key": "a", "value": {"text": "b"}}\n')
    with pytest.raises(DataError, match=r"l.jsonl:1: not a finished record: move the file away, or start over"):
        Kept(tmp_path / "l.sqlite", Note).read()


# --- what Prism brings -----------------------------------------------------------------------------------------------


def test_panels_and_recipes_are_found_without_the_repository(tmp_path, monkeypatch):
    """As after `pip install`: a folder without `configs/` and `recipes/`. One's own file of that name comes first."""
    monkeypatch.chdir(tmp_path)
    panel, recipe = Path("configs/panels/local-mini.yaml"), Path("recipes/4b.yaml")
    assert load_panel(panel).name == "local-mini"
    assert load_recipe(recipe) == load_recipe(ROOT / "recipes" / "4b.yaml")
    panel.parent.mkdir(parents=True)
    panel.write_text("name: mine\njurors: [{name: mini, kind: local, model: mini}]\nrubric: binary\n")
    assert load_panel(panel).name == "mine"
    missing = Path("configs/panels/none.yaml")
    assert shipped(missing) == missing


def test_what_prism_brings_is_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    given = patterns["tool"]["setuptools"]["package-data"]["prism"]
    for folder in ("panels", "recipes"):
        brought = {path for path in (ROOT / "prism" / folder).iterdir() if path.suffix == ".yaml"}
        assert brought
        assert brought <= {path for pattern in given for path in (ROOT / "prism").glob(pattern)}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made" / "here"

    def fail() -> None:
        with made_whole(target) as part:
            part.mkdir()
            (part / "first").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(target.parent.iterdir()) == []
    with made_whole(target) as part:
        part.mkdir()
        (part / "first").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["here"]
    assert (target / "first").read_text() == "1"


def test_a_file_stays_until_its_successor_is_whole(tmp_path: Path) -> None:
    """Two at once do not meet: each has a place of its own, and the last one stays."""
    target = tmp_path / "file.bin"
    with made_whole(target) as first:
        first.write_bytes(b"first")
    with made_whole(target) as second, made_whole(target) as third:
        second.write_bytes(b"second")
        third.write_bytes(b"third")
        assert target.read_bytes() == b"first"
    assert target.read_bytes() == b"second"
    with pytest.raises(FileNotFoundError), made_whole(target):
        pass  # nothing was made
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
