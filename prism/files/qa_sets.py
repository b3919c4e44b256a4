"""Question-passage sets as one stream of passages and questions, whatever their files look like.

What a file is shows in its first record:

    passage        question-passage pairs: question, passage, label, lang, [evidence, answers, title, answer]
    contexts       an abstract in sections with its question and conclusion (PubMedQA)
    paragraph      a search question with its paragraph and evidence sentence (QED)
    text           sections without questions: title, headings, source; queries are made by rule
    a folder       contexts.jsonl.gz and questions.jsonl, answers by offset (COVID-QA, CMRC 2018)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prism.errors import DataError
from prism.files.corpus import Text
from prism.files.jsonl import Drops, Line, Row, read_rows, require_text
from prism.text import language_of, stable_id

EVALUATION_SETS = ("beir", "scifact", "xquad")
"""Names in a path that mark what must never be trained on."""
_SHORT_ANSWER = 80
"""Characters; what is longer is a statement, not an answer to be named."""
_VERSION = re.compile(r"/v?\d+(\.\d+)*/")
_DETOKENIZE = (
    (re.compile(r" (n't|'s|[.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r" - "), "-"),
)


class QaQuestion(NamedTuple):
    """One question about one text."""

    query: str
    text_id: str
    relevant: bool
    """What people said."""
    evidence: tuple[str, ...]
    """Sentences or stretches of the text that people marked."""
    answers: tuple[str, ...]
    """Short answers, as the text has them."""
    verdict: bool | None
    """The answer to a question that takes yes or no."""
    kind: str
    """question or claim."""
    set: str
    language: str


class Gathered(NamedTuple):
    """Everything read from the files."""

    texts: dict[str, Text]
    """By id: equal texts are one, however many sets have them."""
    asked: list[QaQuestion]
    sections: list[Text]
    """Texts without questions."""


def set_name(path: Path) -> str:
    """`squad-dev` for `squad-dev.en.jsonl.gz`."""
    return path.name.partition(".")[0]


def gather(paths: Sequence[Path], drops: Drops) -> Gathered:
    """Read all files. Raises DataError for an evaluation set, a missing file, or one of no known shape."""
    found = Gathered({}, [], [])
    names: dict[str, Path] = {}
    for path in paths:
        _refuse_evaluation(path)
        if (other := names.setdefault(set_name(path), path)) != path:
            raise DataError(f"{path} and {other} are both the set {set_name(path)!r}: rename one of them")
        before = len(found.asked) + len(found.sections)
        if path.is_dir():
            _read_folder(path, found)
        else:
            _read_file(path, found, drops)
        if len(found.asked) + len(found.sections) == before:
            raise DataError(f"{path}: nothing in it could be used: expected questions with passages, or sections")
    return found


def _refuse_evaluation(path: Path) -> None:
    parts = {part for name in path.resolve().parts for part in re.split(r"[^a-z0-9]+", name.lower())}
    if taken := parts & set(EVALUATION_SETS):
        raise DataError(
            f"{path}: {sorted(taken)[0]} is for evaluation only: take it out of the files, name it in exclude"
        )


def _read_file(path: Path, found: Gathered, drops: Drops) -> None:
    reader: Callable[[Line, str, Gathered], None] | None = None
    for line in read_rows(path, drops):
        if reader is None:
            shape = next((name for name in _SHAPES if name in line.row), None)
            if shape is None:
                raise DataError(
                    f"{line.place}: expected one of {', '.join(_SHAPES)} among the fields,"
                    f" got {', '.join(line.row)[:80]}"
                )
            reader = _SHAPES[shape]
        try:
            reader(line, set_name(path), found)
        except _Unusable as why:
            drops.add(f"{set_name(path)}: {why}", line.place)


class _Unusable(Exception):
    """Why a well-formed record is left out."""


def _add_text(found: Gathered, text: str, title: str, group: str, source: str, language: str) -> str:
    """The text's id. The first to bring a text decides its group, so that it never stands on two sides of a split."""
    key = stable_id(" ".join(text.split()))
    title = title.replace("_", " ").strip()
    found.texts.setdefault(key, Text(key, group or key, title, "", text, source, language))
    return key


# --- shapes ----------------------------------------------------------------------------------------------------------


def _pairs(line: Line, name: str, found: Gathered) -> None:
    row, place = line.row, line.place
    question, passage = require_text(row, "question", place), _tidy(require_text(row, "passage", place))
    if row.get("label") not in (0, 1):
        raise DataError(f"{place}: label: expected 1 (the passage answers) or 0, got {row.get('label')!r}")
    marked, answers = _strings(row, "evidence", place), _strings(row, "answers", place)
    if not any(mark.endswith((".", "!", "?", "。", "”", '"', ")")) or len(mark) > _SHORT_ANSWER for mark in marked):
        answers, marked = (*answers, *marked), ()  # quoted spans: they are the answer, their sentence the evidence
    language = str(row.get("lang") or language_of(passage))
    title = str(row.get("title") or "")
    group = f"title/{title.replace('_', ' ').casefold()}" if title else ""
    found.asked.append(
        QaQuestion(
            query=" ".join(question.split()),
            text_id=_add_text(found, passage, title, group, name, language),
            relevant=row["label"] == 1,
            evidence=tuple(_tidy(mark) for mark in marked),
            answers=_short(answers),
            verdict=row["answer"] if isinstance(row.get("answer"), bool) else None,
            kind="question",
            set=name,
            language=language,
        )
    )


def _abstract(line: Line, name: str, found: Gathered) -> None:
    row, place = line.row, line.place
    body = " ".join(_strings(row, "contexts", place))
    key = _add_text(found, body, "", "", name, "en")
    decided = {"yes": True, "no": False}.get(str(row.get("decision") or row.get("final_decision")))
    asked = QaQuestion(require_text(row, "question", place), key, True, (), (), decided, "question", name, "en")
    found.asked.append(asked)
    conclusion = str(row.get("long_answer") or "")
    # One sentence: a conclusion of several claims several things, and the abstract may back only some of them.
    claim = re.match(r"[^.!?]{30,250}[.!?](?=\s|$)", conclusion)
    if claim:
        found.asked.append(asked._replace(query=claim[0], kind="claim", verdict=None))


def _paragraph(line: Line, name: str, found: Gathered) -> None:
    row, place = line.row, line.place
    body, evidence = require_text(row, "paragraph", place), str(row.get("evidence_sentence") or "")
    answers = _strings(row, "answers", place)
    for pattern, to in _DETOKENIZE:
        body, evidence = pattern.sub(to, body), pattern.sub(to, evidence)
        answers = tuple(pattern.sub(to, answer) for answer in answers)
    if not evidence:
        raise _Unusable("no evidence sentence marked")
    title = str(row.get("title") or "")
    key = _add_text(found, body, title, f"title/{title.casefold()}" if title else "", name, "en")
    question = require_text(row, "question", place)
    found.asked.append(
        QaQuestion(question, key, True, (evidence.strip(),), _short(answers), None, "question", name, "en")
    )


def _section(line: Line, name: str, found: Gathered) -> None:
    row = line.row
    key = str(row.get("id") or stable_id(str(row.get("text"))))
    page, hash_, _ = key.rpartition("#")
    headings = row.get("headings") or [""]
    body = require_text(row, "text", line.place)
    found.sections.append(
        Text(
            id=key,
            group=_VERSION.sub("/", page if hash_ else key),  # one page in several product versions is one document
            title=str(row.get("title") or ""),
            heading=str(headings[-1]),
            text=body,
            source=name,
            language=str(row.get("language") or language_of(body)),
        )
    )


_SHAPES: dict[str, Callable[[Line, str, Gathered], None]] = {
    "passage": _pairs,
    "contexts": _abstract,
    "paragraph": _paragraph,
    "text": _section,
}


def _read_folder(folder: Path, found: Gathered) -> None:
    name, drops = set_name(folder), Drops()
    for needed in ("contexts.jsonl.gz", "questions.jsonl"):
        if not (folder / needed).is_file():
            raise DataError(f"{folder}: no {needed} in it: expected contexts.jsonl.gz and questions.jsonl")
    keys: dict[str, str] = {}
    for place, row in read_rows(folder / "contexts.jsonl.gz", drops):
        body = require_text(row, "text", place)
        keys[str(row.get("id"))] = _add_text(found, body, str(row.get("title") or ""), "", name, language_of(body))
    for place, row in read_rows(folder / "questions.jsonl", drops):
        if (key := keys.get(str(row.get("context_id")))) is None:
            raise DataError(f"{place}: no context {row.get('context_id')!r} in {folder / 'contexts.jsonl.gz'}")
        answers = _strings(row, "answers", place)
        evidence = tuple(answer for answer in answers[:1] if len(answer) > _SHORT_ANSWER)
        question = " ".join(require_text(row, "question", place).split())
        language = found.texts[key].language
        found.asked.append(QaQuestion(question, key, True, evidence, _short(answers), None, "question", name, language))


def _strings(row: Row, name: str, place: str) -> tuple[str, ...]:
    value = row.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f"{place}: {name}: expected a list of texts, got {str(value)[:60]!r}")
    return tuple(one for one in value if one.strip())


def _short(answers: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer.strip() for answer in answers if len(answer.strip()) <= _SHORT_ANSWER))


def _tidy(text: str) -> str:
    """Runs of spaces as one, empty lines kept: white space of mark-up is no text."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
