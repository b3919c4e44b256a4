"""Corpora as one stream of texts and questions, whatever their files look like.

Each reader takes the folder of a data set and yields `Text` (prose with a title and headings) and, where the set asks
questions, `Question` (a question with the answer's place in a text).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prism.errors import DataError


class Text(NamedTuple):
    """A stretch of prose."""

    id: str
    group: str
    """Texts of one group (versions or sections of one document) stay on one side of a split."""
    title: str
    heading: str
    text: str
    source: str
    language: str = "en"


class Question(NamedTuple):
    """A question people asked, and where its answer stands."""

    query: str
    text_id: str
    start: int
    end: int
    """`text[start:end]` is the answer, or a sentence that holds it; code points."""
    answer: str | None
    """A short answer, verbatim from the text, if the set gives one."""


class Corpus(NamedTuple):
    texts: list[Text]
    questions: list[Question]


class _Row(dict[str, Any]):
    """A line of a corpus; a field it lacks is told with file and line."""

    def __init__(self, fields: Any, place: str) -> None:
        if not isinstance(fields, dict):
            raise DataError(f"{place}: expected an object, got {type(fields).__name__}")
        super().__init__(fields)
        self.place = place

    def __missing__(self, field: str) -> Any:
        raise DataError(f"{self.place}: no field {field!r}, only {', '.join(sorted(self)) or 'nothing'}")


def _lines(path: Path) -> Iterator[_Row]:
    if not path.is_file():
        raise DataError(f"no corpus file {path}: check `data.pairs` in the recipe; its header says what it needs")
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _Row(json.loads(line), f"{path}:{number}")
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error


_VERSION = re.compile(r"/v?\d+(\.\d+)*/")


def techdocs(root: Path) -> Corpus:
    """Sections of technical documentation with their titles and headings."""
    texts = []
    for row in _lines(root / "corpora" / "techdocs.jsonl.gz"):
        path, _, _ = row["id"].rpartition("#")
        # One page in several product versions is one document.
        group = _VERSION.sub("/", path)
        heading = row["headings"][-1] if row["headings"] else ""
        texts.append(Text(row["id"], group, row["title"], heading, row["text"], row["source"]))
    return Corpus(texts, [])


def pubmedqa(root: Path) -> Corpus:
    """Biomedical questions with the abstract that settles them; the answer's place is not marked."""
    texts, questions = [], []
    for row in _lines(root / "qa" / "pubmedqa.jsonl"):
        body = " ".join(row["contexts"])
        key = f"pubmedqa/{row['id']}"
        texts.append(Text(key, key, "", "", body, "pubmedqa"))
        questions.append(Question(row["question"], key, 0, 0, None))
    return Corpus(texts, questions)


def covidqa(root: Path) -> Corpus:
    """Questions by biomedical experts over long articles."""
    folder = root / "qa" / "covidqa"
    bodies = {row["id"]: row["text"] for row in _lines(folder / "contexts.jsonl.gz")}
    texts = [Text(key, key, "", "", body, "covidqa") for key, body in bodies.items()]
    questions = []
    for row in _lines(folder / "questions.jsonl"):
        start, answer = row["answer_starts"][0], row["answers"][0]
        questions.append(Question(row["question"], row["context_id"], start, start + len(answer), answer.strip()))
    return Corpus(texts, questions)


_DETOKENIZE = (
    (re.compile(r" (n't|'s|[.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r" - "), "-"),
)


def qed(root: Path) -> Corpus:
    """Search questions with a Wikipedia paragraph and the one sentence that is the evidence."""
    texts: dict[str, Text] = {}
    questions = []
    for row in _lines(root / "qa" / "qed-dev.jsonl"):
        body, evidence = row["paragraph"], row.get("evidence_sentence") or ""
        answer = row["answers"][0] if row["answers"] else None
        for pattern, to in _DETOKENIZE:
            body, evidence = pattern.sub(to, body), pattern.sub(to, evidence)
            answer = pattern.sub(to, answer) if answer else None
        key = f"qed/{row['title']}/{len(body)}"
        texts[key] = Text(key, f"qed/{row['title']}", row["title"], "", body, "qed")
        start = body.find(evidence.strip())
        if evidence and start >= 0:
            questions.append(Question(row["question"], key, start, start + len(evidence.strip()), answer))
    return Corpus(list(texts.values()), questions)


def cmrc2018(root: Path) -> Corpus:
    """Chinese questions on paragraphs of Wikipedia."""
    folder = root / "qa" / "cmrc2018-dev"
    texts = [
        Text(f"cmrc2018/{row['id']}", f"cmrc2018/{row['id']}", "", "", row["text"], "cmrc2018", "zh")
        for row in _lines(folder / "contexts.jsonl.gz")
    ]
    bodies = {text.id: text.text for text in texts}
    questions = []
    for row in _lines(folder / "questions.jsonl"):
        key, answer = f"cmrc2018/{row['context_id']}", row["answers"][0]
        if key not in bodies:
            raise DataError(f"{row.place}: no context {row['context_id']!r} in {folder / 'contexts.jsonl.gz'}")
        start = bodies[key].find(answer)
        if start >= 0:
            questions.append(Question(row["question"], key, start, start + len(answer), answer))
    return Corpus(texts, questions)


def own_texts(path: Path) -> Corpus:
    """Sections in a file of one's own: JSONL of `id`, `title`, `headings`, `text`, `source` and `language`."""
    texts = []
    for row in _lines(path):
        page, _, _ = row["id"].rpartition("#")
        heading = row["headings"][-1] if row["headings"] else ""
        texts.append(Text(row["id"], page, row["title"], heading, row["text"], row["source"], row["language"]))
    return Corpus(texts, [])


READERS: dict[str, Callable[[Path], Corpus]] = {
    "techdocs": techdocs,
    "pubmedqa": pubmedqa,
    "covidqa": covidqa,
    "qed": qed,
    "cmrc2018": cmrc2018,
}
