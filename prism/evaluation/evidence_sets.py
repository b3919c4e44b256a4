"""Pairs with known evidence or known answers, from data at hand.

scifact    claims with abstracts and gold sentences, in alternatives each of which suffices (Wadden et al. 2020)
qed        search questions with a Wikipedia paragraph, the one sentence that is the evidence, and the answer
covidqa    questions on long articles with answers; the passage that holds the answer stands for the article
cmrc2018   Chinese questions with paragraphs and answers

or a file of your own: JSONL with `query`, `document` and, as far as known, `title`, `gold` (alternatives, each of them
a list of verbatim stretches of the document) and `answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prism.errors import DataError, InputError
from prism.evidence.passages import cut
from prism.evidence.sentences import sentences
from prism.files.corpus import Text
from prism.files.jsonl import Drops, read_objects
from prism.files.lines import is_json
from prism.files.qa_sets import gather
from prism.text import clean, stable_id
from prism.types import Document, Record

PASSAGE_CHARS = 2000
"""Long articles are cut into passages of this size before anybody looks at the question."""


class Case(Record):
    """One pair, and what is known about it."""

    id: str
    """Depends on query, document and title alone."""
    set: str
    query: str
    document: str
    title: str | None = None
    gold: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Alternative rationales, each sufficient: offsets in the document, half-open code points."""
    answers: tuple[str, ...] = ()
    """Any of them is right."""

    def sentences(self) -> list[tuple[int, int]]:
        """Offsets of the document's sentences."""
        return sentences(self.document)

    def to_document(self) -> Document:
        return Document(text=self.document, title=self.title)


def make_case(set_: str, query: str, document: str, title: str | None = None, **known: Any) -> Case:
    """A case with its id."""
    query, document, title = clean(query), clean(document), clean(title) if title else None
    id_ = stable_id(query, document, title or "")
    return Case(id=id_, set=set_, query=query, document=document, title=title, **known)


def load_cases(name: str, root: Path) -> list[Case]:
    """Cases of a set by name, or of a JSONL file. Raises DataError naming file and line, InputError for the name."""
    if name in SETS:
        return list(_unique(SETS[name](root)))
    if is_json(name):
        return list(_unique(_own(Path(name))))
    raise InputError(f"no data set {name!r}: expected one of {', '.join(SETS)}, or a .jsonl file")


def _unique(cases: Iterable[Case]) -> Iterator[Case]:
    seen: set[str] = set()
    for case in cases:
        if case.id not in seen:
            seen.add(case.id)
            yield case


# --- readers ---------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise DataError(f"no file {path}: point --data at the folder that holds the sets")
    for _, place, row in read_objects(path):
        if isinstance(row, DataError):
            raise row
        yield place, row


def _field(row: Mapping[str, Any], name: str, kind: type, place: str) -> Any:
    value = row.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{place}: {name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _place(stretches: Iterable[object], document: str, place: str) -> tuple[tuple[int, int], ...]:
    """Where the document has each stretch."""
    found = []
    for stretch in stretches:
        start = document.find(stretch) if isinstance(stretch, str) and stretch else -1
        if not isinstance(stretch, str) or start < 0:
            raise DataError(f"{place}: gold {str(stretch)[:60]!r} is not in the document: copy it verbatim")
        found.append((start, start + len(stretch)))
    return tuple(found)


def _scifact(root: Path, split: str = "test") -> Iterator[Case]:
    folder = root / "beir" / "scifact"
    documents = {row["_id"]: (row["title"], row["text"]) for _, row in _rows(folder / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for _, row in _rows(folder / "queries.jsonl")}
    gold: dict[tuple[str, str], list[tuple[tuple[int, int], ...]]] = {}
    for place, row in _rows(folder / "rationales.jsonl"):
        if row["split"] != split:
            continue
        query, document = row["query_id"], row["doc_id"]
        if query not in queries or document not in documents:
            raise DataError(f"{place}: claim {query} or document {document} is not in queries.jsonl or corpus.jsonl")
        gold.setdefault((query, document), []).append(_place(row["sentences"], documents[document][1], place))
    for (query, document), alternatives in gold.items():
        title, text = documents[document]
        yield make_case("scifact", queries[query], text, title, gold=tuple(alternatives))


def _qed(root: Path) -> Iterator[Case]:
    found = gather([root / "qa" / "qed-dev.jsonl"], Drops())
    for asked in found.asked:
        text = found.texts[asked.text_id]
        start = text.text.find(asked.evidence[0])
        if start >= 0:
            gold = (((start, start + len(asked.evidence[0])),),)
            yield make_case("qed", asked.query, text.text, text.title, gold=gold, answers=asked.answers[:1])


def _covidqa(root: Path) -> Iterator[Case]:
    """Each question with the passage that holds its answer whole; an answer that a cut goes through is left out."""
    folder = root / "qa" / "covidqa"
    texts = (
        Text(row["id"], row["id"], "", "", row["text"], "covidqa") for _, row in _rows(folder / "contexts.jsonl.gz")
    )
    by_text: dict[str, list[tuple[int, str]]] = {}
    for passage in cut(texts, PASSAGE_CHARS):
        by_text.setdefault(passage.text_id, []).append((passage.offset, passage.text))
    for _, row in _rows(folder / "questions.jsonl"):
        start, answer = row["answer_starts"][0], row["answers"][0]
        for offset, text in by_text.get(row["context_id"], ()):
            if offset <= start and start + len(answer) <= offset + len(text):
                yield make_case("covidqa", row["question"], text, answers=(answer.strip(),))
                break


def _cmrc2018(root: Path) -> Iterator[Case]:
    folder = root / "qa" / "cmrc2018-dev"
    bodies = {row["id"]: row["text"] for _, row in _rows(folder / "contexts.jsonl.gz")}
    for place, row in _rows(folder / "questions.jsonl"):
        body = bodies.get(row["context_id"])
        if body is None:
            raise DataError(f"{place}: no context {row['context_id']!r} in contexts.jsonl.gz")
        yield make_case("cmrc2018", row["question"], body, row.get("title"), answers=tuple(row["answers"]))


def _own(path: Path) -> Iterator[Case]:
    for place, row in _rows(path):
        query, document = (_field(row, name, str, place) for name in ("query", "document"))
        if not query.strip() or not document.strip():
            raise DataError(f"{place}: query or document is blank")
        answers = _field(row, "answers", list, place) if "answers" in row else []
        alternatives = _field(row, "gold", list, place) if "gold" in row else []
        known: dict[str, Any] = {"answers": tuple(str(answer) for answer in answers)}
        known["gold"] = tuple(
            _place([one] if isinstance(one, str) else one, clean(document), place) for one in alternatives
        )
        yield make_case(path.stem, query, document, row.get("title"), **known)


SETS: dict[str, Callable[[Path], Iterable[Case]]] = {
    "scifact": _scifact,
    "qed": _qed,
    "covidqa": _covidqa,
    "cmrc2018": _cmrc2018,
}
