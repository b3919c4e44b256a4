"""BEIR data sets: corpus, queries and qrels from a local folder or from the hub (`mteb/<name>`).

<set>/corpus.jsonl        {"_id", "title", "text"}      or  corpus/*.parquet
<set>/queries.jsonl       {"_id", "text"}               or  queries/*.parquet
<set>/qrels/<split>.tsv   query-id  corpus-id  score    or  .jsonl, TREC's 4 columns, parquet

A corpus stays on disk: in memory are its ids and where each row begins (see `CorpusFile`).
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prism.errors import DataError
from prism.files.ids import fits_tables, id_in
from prism.files.jsonl import read_objects
from prism.files.lines import ending
from prism.files.trec import Qrel, collect_qrels, judged_row, line_with, read_qrels
from prism.types import Document, Qrels

BEIR_QA = ("nfcorpus", "scifact", "scidocs", "fiqa", "trec-covid", "touche2020", "dbpedia", "nq", "hotpotqa")
"""The nine sets a reranker for question answering is compared on."""
_OTHER_NAMES = {"touche2020": "webis-touche2020", "dbpedia": "dbpedia-entity"}
"""What BEIR's own downloads call them."""


@dataclass(frozen=True, slots=True)
class BeirSet:
    """One data set, one split. Every query has qrels; a qrels document may be missing from the corpus."""

    name: str
    split: str
    corpus: Mapping[str, tuple[str, str]]
    """Document id -> (title, text), by ascending id: positions then break ties as ids do."""
    queries: Mapping[str, str]
    """Query id -> text, in the order of the qrels; queries without qrels are left out."""
    qrels: Qrels

    def text(self, document_id: str) -> str:
        """Title and text as one: what BM25 indexes (BEIR's `flat` setting)."""
        return " ".join(self.corpus[document_id]).strip()

    def document(self, document_id: str) -> Document:
        """The document as a reranker gets it. One with a title only (many in trec-covid) has the title for its text."""
        title, text = self.corpus[document_id]
        if not text.strip():
            title, text = "", title
        return Document(id=document_id, title=title or None, text=text)


def load_beir(name: str, root: Path | None = None, split: str = "test") -> BeirSet:
    """The set `name` from `root` (a folder of sets, or the set itself), or from the hub when `root` is None."""
    folder = _download(name, split) if root is None else _folder(name, root)
    qrels, source = _read_split(folder, split)
    texts = {id_: row.get("text") for id_, row in _rows_by_id(folder, "queries", split)}
    missing = [query for query in qrels if not isinstance(texts.get(query), str)]
    if missing:
        raise DataError(
            f"{_place(source, missing[0])}: {len(missing)} of {len(qrels)} queries in the {split} qrels have no text,"
            f" first {missing[0]!r}: qrels and queries must come from the same download"
        )
    queries = {query: str(texts[query]) for query in qrels}
    corpus = CorpusFile(_rows_by_id(folder, "corpus", split))
    if not any(document in corpus for judged in qrels.values() for document in judged):
        first = next(iter(next(iter(qrels.values()))))
        raise DataError(
            f"{_place(source, first)}: document {first!r} is not in the corpus, and no other of these qrels is:"
            " qrels and corpus must come from the same download"
        )
    return BeirSet(name=name, split=split, corpus=corpus, queries=queries, qrels=qrels)


class CorpusFile(Mapping[str, tuple[str, str]]):
    """Document id -> (title, text), in the order of ids, read from disk whenever asked for.

    Rows are copied once into an unnamed temporary file. In memory stay the ids and 12 bytes a document, so millions
    of documents fit whatever their length. Reading is safe from several threads.
    """

    def __init__(self, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> None:
        ids: list[str] = []
        starts, sizes = array("q"), array("i")
        with tempfile.TemporaryFile() as file:
            for id_, row in rows:
                line = json.dumps([row.get("title") or "", row.get("text") or ""], ensure_ascii=True).encode()
                ids.append(id_)
                starts.append(file.tell())
                sizes.append(len(line))
                file.write(line)
            file.flush()
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self._ids = [ids[i] for i in order]
        self._starts, self._sizes = array("q", (starts[i] for i in order)), array("i", (sizes[i] for i in order))

    def __getitem__(self, id_: str) -> tuple[str, str]:
        place = bisect_left(self._ids, id_)
        if place == len(self._ids) or self._ids[place] != id_:
            raise KeyError(id_)
        title, text = json.loads(os.pread(self._file, self._sizes[place], self._starts[place]))
        return title, text

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def local_sets(root: Path) -> list[str]:
    """Names of the data sets in a folder, or of the folder itself if it is one."""
    if not root.is_dir():
        raise DataError(f"no folder {root}: expected a folder of BEIR sets, such as the parent of scifact/")
    if _is_set(root):
        return [root.resolve().name]
    return sorted(folder.name for folder in root.iterdir() if _is_set(folder))


def _folder(name: str, root: Path) -> Path:
    present = local_sets(root)
    for candidate in (name, _OTHER_NAMES.get(name, name)):
        if candidate in present:
            return root if _is_set(root) else root / candidate
    found = ", ".join(present) or "no data set (a folder with corpus.jsonl, queries.jsonl and qrels/)"
    raise DataError(f"no data set {name!r} in {root}: it holds {found}")


def _is_set(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("corpus.jsonl", "corpus.jsonl.gz", "corpus"))


def _download(name: str, split: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["corpus*", "queries*", f"*{split}*"]
    try:
        return Path(snapshot_download(f"mteb/{name}", repo_type="dataset", allow_patterns=wanted))
    except (OSError, HFValidationError) as error:  # offline, no such repository, no access; not a repository name
        raise DataError(
            f"cannot get mteb/{name} from the hub ({type(error).__name__}): check the name ({', '.join(BEIR_QA)})"
            " and the connection, or point --data at a folder of BEIR sets"
        ) from error


# --- qrels -----------------------------------------------------------------------------------------------------------


def _read_split(folder: Path, split: str) -> tuple[Qrels, Path]:
    """The qrels, and the file or folder they stand in."""
    places = [folder / "qrels", folder / "default", folder / "data", folder]
    for place in places:
        for suffix in ("tsv", "trec", "qrels", "txt", "tsv.gz"):
            if (place / f"{split}.{suffix}").is_file():
                path = place / f"{split}.{suffix}"
                return read_qrels(path), path
        rows = [
            *place.glob(f"{split}.jsonl"),
            *place.glob(f"{split}.jsonl.gz"),
            *sorted(place.glob(f"{split}-*.parquet")),
            *place.glob(f"{split}.parquet"),
        ]
        if rows:
            return collect_qrels(chain.from_iterable(_judged(_read(path)) for path in rows)), place
    here = sorted({path.name.split(".")[0].split("-")[0] for path in (folder / "qrels").glob("*.*")})
    raise DataError(f"no qrels for split {split!r} in {folder}: {', '.join(here) or 'no split at all'} found in qrels/")


def _place(source: Path, id_: str) -> str:
    return line_with(source, id_) if source.is_file() else str(source)


def _judged(rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Qrel]]:
    return ((where, judged) for where, row in rows if (judged := judged_row(row, where)) is not None)


# --- corpus and queries ----------------------------------------------------------------------------------------------


def _rows_by_id(folder: Path, table: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(id, row) for each row of `corpus` or `queries`; ids are unique."""
    seen: set[str] = set()
    for path in _table_files(folder, table, split):
        for where, row in _read(path):
            id_ = id_in(row, ("_id", "id"), where)
            if id_ is None:
                raise DataError(f"{where}: no `_id`: expected a row with _id and text")
            if not fits_tables(id_):
                raise DataError(f"{where}: id {id_!r} holds a tab or line end, which no run can: give it another")
            if id_ in seen:
                raise DataError(f"{where}: id {id_!r} stands twice in the {table}: keep one row of the two")
            for field in ("title", "text"):
                if not isinstance(row.get(field), str | None):
                    raise DataError(
                        f"{where}: `{field}` is {type(row[field]).__name__}, expected a string: fix the row"
                    )
            seen.add(id_)
            yield id_, row


def _table_files(folder: Path, table: str, split: str) -> list[Path]:
    """Files of one table. The hub has them per table, and where a table is cut by split, the asked split counts."""
    patterns = (
        f"{table}.jsonl",
        f"{table}.jsonl.gz",
        f"{table}/{split}*.parquet",
        f"{table}/{table}*.parquet",
        f"{table}/*.parquet",
        f"{table}/*.jsonl",
        f"data/{table}-*.parquet",
        f"{table}*.parquet",
    )
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found
    raise DataError(f"no {table} in {folder}: expected {table}.jsonl or {table}/*.parquet")


def _read(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`file:line`, row) of a JSONL or parquet file."""
    return _read_parquet(path) if ending(path) == ".parquet" else _read_json(path)


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for _, place, row in read_objects(path):
        if isinstance(row, DataError):
            raise row
        yield place, row


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: is the download complete?") from error
