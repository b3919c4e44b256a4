"""Question-passage sets -> windows -> negatives and teacher scores -> `train.jsonl`, `dev.jsonl` and a report.

    gather -> caps, limit -> windows -> places -> first stages -> teacher -> negatives -> records

Precautions, so that no model scores well with nothing learnt: windows are cut without a look at the question, the same
way for all; a window is a negative no more often than it is a positive, in proportion; splits are by document, and no
query stands on both sides. What people labelled stands; what nobody labelled is scored by the teacher, and left out
where it may well be relevant.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from prism.data.leakage import LeakageCheck, read_evaluation
from prism.data.pairs import Lexicon, make_queries
from prism.data.placing import AnswerPlace, Overlap, cut_texts, holds_answer, nearest, place_answer
from prism.data.qa_records import Made, QaQuery, Records, informative_answers, is_held, same_document
from prism.data.qa_search import Retrieved, SearchQuery, search
from prism.data.qa_teacher import LabelledPassage, Teacher, window_of
from prism.data.queries import keywords
from prism.data.splits import query_key
from prism.errors import DataError
from prism.evidence.passages import Passage, without_repeats
from prism.files.corpus import Text
from prism.files.examples import write_examples
from prism.files.jsonl import Drops
from prism.files.qa_sets import Gathered, QaQuestion, gather
from prism.files.qa_settings import Qa
from prism.outputs import write_text
from prism.parallel import ordered
from prism.records import first_problem
from prism.reports.bar import progress
from prism.retrieval.dense import Encoder
from prism.text import stable_id
from prism.types import Example

Say = Callable[[str], None]
Report = dict[str, Any]
FORMAT = 1
"""Raised when the same settings would make other records: a build of another format is not reused."""
_TEXTS_AT_ONCE = 200
_NEAR_FOR_TEACHER = 2


def build(settings: Qa, folder: Path, seed: int, say: Say = lambda _: None, encoder: Encoder | None = None) -> Report:
    """Make the records of a recipe in `folder`, once: a finished build with the same settings and files is reused.

    `dev.jsonl` holds one positive and its negatives after another, from documents that no training record touches.
    `encoder` stands in for the model that `settings.dense` names. Returns the report (also in `report.json`).
    """
    key = stable_id(str(FORMAT), settings.model_dump_json(), str(seed), *_digests((*settings.files, *settings.exclude)))
    report_path = folder / "report.json"
    if report_path.is_file():
        stored: Report = json.loads(report_path.read_text(encoding="utf-8"))
        if stored.get("key") == key:
            say(f"reusing {folder}")
            return stored
    drops = Drops()
    made = _made(settings, seed, drops, say)
    ranked = _ranked(made, settings, folder, seed, encoder)
    teacher = Teacher(list(_labelled(made, ranked)))
    say("teacher: " + ", ".join(f"{name} {value}" for name, value in teacher.figures.items()))
    records = Records(made, ranked, teacher, settings, seed, drops)
    dev = list(records.dev())
    train = records.train({query_key(example.query) for example in dev})
    report: Report = {"key": key, "settings": settings.model_dump(mode="json"), "seed": seed}
    report["teacher"] = teacher.figures
    report["dev"] = _write(folder / "dev.jsonl", dev, say)
    report["train"] = _write(folder / "train.jsonl", train, say)
    report["dropped"] = drops.report()
    write_text(report_path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def read_settings(path: Path | None, files: Sequence[Path], options: Mapping[str, Any]) -> Qa:
    """Settings out of a YAML file, with the files and options of a command on top.

    Raises DataError: one line naming the file and the key.
    """
    try:
        raw = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise DataError(f"{path}: expected keys and values at the top level, got {type(raw).__name__}")
        return Qa.model_validate({**raw, "files": list(files), **options})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot read settings {path}: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise DataError(f"{path or 'settings'}: {first_problem(error)}") from error


def _digests(paths: Iterable[Path]) -> Iterator[str]:
    """SHA-256 of every file, so that a build over changed files is not taken for the same."""
    for path in paths:
        for file in sorted(path.rglob("*.jsonl*")) if path.is_dir() else [path]:
            if not file.is_file():
                raise DataError(f"no file {file}: check data.qa in the recipe, or the command's arguments")
            with file.open("rb") as content:
                yield hashlib.file_digest(content, "sha256").hexdigest()


# --- queries and windows ---------------------------------------------------------------------------------------------


def _made(settings: Qa, seed: int, drops: Drops, say: Say) -> Made:
    found = gather(settings.files, drops)
    say(f"{len(found.asked):,} questions on {len(found.texts):,} texts, {len(found.sections):,} sections without")
    asked = _capped(_without_leaks(found, settings, drops), settings, drops)
    texts = [found.texts[key] for key in dict.fromkeys(one.text_id for one in asked)]
    rules = settings.rule_queries if settings.limit is None else min(settings.rule_queries, settings.limit // 4)
    sections = sorted(found.sections, key=lambda text: stable_id("section", text.id))[: 3 * rules]
    windows: list[Passage] = []
    with progress("cutting", len(texts) + len(sections)) as advance:
        for some in ordered(cut_texts, settings.windows, chain(texts, sections), chunk=_TEXTS_AT_ONCE):
            windows += some
            advance(_TEXTS_AT_ONCE)
    windows = without_repeats(windows)
    overlap = Overlap(windows)
    queries = [*_placed(asked, windows, overlap, settings, drops), *_by_rule(windows, sections, rules, seed)]
    groups = {passage.group for passage in windows}
    held = {group for group in groups if int(stable_id("split", group), 16) < settings.held_out.share * 2**64}
    say(f"{len(queries):,} queries on {len(windows):,} windows; {len(held):,} of {len(groups):,} documents held out")
    return Made(windows, overlap, queries, held)


def _without_leaks(found: Gathered, settings: Qa, drops: Drops) -> list[QaQuestion]:
    """The questions that touch no evaluation set, and whose texts do not; sections that do are taken out in place."""
    if not settings.exclude:
        return found.asked
    check = LeakageCheck(read_evaluation(settings.exclude, drops, judged_only=False))
    bodies = [*found.texts.values(), *found.sections]
    touched = {id_ for some in ordered(_touched, check, bodies, chunk=_TEXTS_AT_ONCE) for id_ in some}
    found.sections[:] = [text for text in found.sections if text.id not in touched]
    kept = []
    for asked in found.asked:
        if asked.text_id in touched:
            drops.add(f"{asked.set}: its passage touches an evaluation set", asked.query)
        elif check.query_leak(asked.query):
            drops.add(f"{asked.set}: the question touches an evaluation set", asked.query)
        else:
            kept.append(asked)
    return kept


def _touched(check: LeakageCheck, texts: list[Text]) -> list[str]:
    return [text.id for text in texts if check.document_leak(text.text)]


def _capped(found: Sequence[QaQuestion], settings: Qa, drops: Drops) -> list[QaQuestion]:
    """Repeats left out, caps of the sets kept, `limit` questions in all; whichever they are is decided by a hash."""
    if unknown := set(settings.caps) - {asked.set for asked in found}:
        raise DataError(f"caps: no set {sorted(unknown)[0]!r}: there are {', '.join(sorted({a.set for a in found}))}")
    kept: list[QaQuestion] = []
    seen: set[tuple[str, str]] = set()
    answered = {(query_key(one.query), one.text_id) for one in found if one.relevant}
    of_set: Counter[str] = Counter()
    of_passage: Counter[tuple[str, str]] = Counter()
    for asked in sorted(found, key=lambda one: stable_id("question", one.set, one.query, one.text_id)):
        cap = settings.caps.get(asked.set)
        passage = (asked.set, asked.text_id)
        pair = (query_key(asked.query), asked.text_id)
        if pair in seen:
            drops.add(f"{asked.set}: asked before on the same text", asked.query)
        elif not asked.relevant and pair in answered:
            drops.add(f"{asked.set}: people disagree, and others found the answer", asked.query)
        elif cap and cap.questions is not None and of_set[asked.set] >= cap.questions:
            drops.add(f"{asked.set}: over the cap of questions", asked.query)
        elif cap and cap.per_passage is not None and of_passage[passage] >= cap.per_passage:
            drops.add(f"{asked.set}: over the cap of questions on a passage", asked.query)
        else:
            seen.add(pair)
            of_set[asked.set] += 1
            of_passage[passage] += 1
            kept.append(asked)
    if settings.limit is not None:
        kept = sorted(kept, key=lambda one: stable_id("limit", one.query, one.text_id))[: settings.limit]
    return kept


def _placed(
    found: Sequence[QaQuestion], windows: Sequence[Passage], overlap: Overlap, settings: Qa, drops: Drops
) -> Iterator[QaQuery]:
    by_text: defaultdict[str, list[int]] = defaultdict(list)
    for index, passage in enumerate(windows):
        by_text[passage.text_id].append(index)
    for asked in found:
        own = by_text.get(asked.text_id)
        if not own:
            drops.add(f"{asked.set}: its passage makes no window: too short, or a repeat", asked.query)
        elif not asked.relevant:
            yield QaQuery(asked.query, asked.kind, asked, nearest(asked, own, overlap), None)
        elif (where := place_answer(asked, windows, own, overlap)) is None:
            drops.add(f"{asked.set}: no window is known to answer", asked.query)
        else:
            text, kind = _worded(asked, settings)
            yield QaQuery(text, kind, asked, where.window, where)


def _worded(asked: QaQuestion, settings: Qa) -> tuple[str, str]:
    """The question, or its keywords for a share of the questions."""
    if asked.kind == "question" and int(stable_id("worded", asked.query), 16) < settings.keywords * 2**64:
        rewritten = keywords(asked.query, asked.language).keywords
        if rewritten:
            return rewritten, "keyword"
    return asked.query, asked.kind


def _by_rule(windows: Sequence[Passage], sections: Sequence[Text], count: int, seed: int) -> Iterator[QaQuery]:
    """Queries for windows nobody asked about."""
    ids = {text.id for text in sections}
    places = [index for index, passage in enumerate(windows) if passage.text_id in ids]
    passages = [windows[index] for index in places]
    made = make_queries(passages, Lexicon(passages), random.Random(seed), per_passage=1, count=count) if count else []
    for query in made:
        index = places[query.passage]
        own = windows[index]
        asked = QaQuestion(query.text, own.text_id, True, (), (), None, query.kind, own.source, own.language)
        yield QaQuery(query.text, query.kind, asked, index, AnswerPlace(index, query.evidence, "marked"))


# --- first stages and teacher ----------------------------------------------------------------------------------------


def _ranked(made: Made, settings: Qa, folder: Path, seed: int, encoder: Encoder | None) -> list[Retrieved]:
    """The first stages of every query, over the windows of its side of the split."""
    found: dict[int, Retrieved] = {}
    for name, held in (("train", False), ("dev", True)):
        numbers = [n for n, query in enumerate(made.queries) if is_held(made, query) == held]
        wanted = [
            SearchQuery(query.text, query.asked.language, (query.window,))
            for query in (made.queries[n] for n in numbers)
        ]
        # Windows that answer nothing would be negatives only: a prior that needs no reading.
        pool = sorted({made.queries[n].window for n in numbers if made.queries[n].place is not None})
        with progress(f"{name}: vectors", len(pool)) as advance_vectors, progress(name, len(wanted)) as advance:
            done = [0]

            def encoded(total: int, done: list[int] = done, advance: Callable[[int], None] = advance_vectors) -> None:
                advance(max(0, total - done[0]))
                done[0] = total

            overlap = Overlap(made.windows)
            results = search(
                wanted,
                made.windows,
                pool,
                overlap,
                settings,
                folder / "vectors" / name,
                seed,
                encoded,
                advance,
                encoder,
            )
        found.update(zip(numbers, results, strict=True))
    return [found[n] for n in range(len(made.queries))]


def _labelled(made: Made, ranked: Sequence[Retrieved]) -> Iterator[LabelledPassage]:
    """What the teacher learns from: people's labels, random windows, and near ones that lack the answer of the set."""
    for number, (query, found) in enumerate(zip(made.queries, ranked, strict=True)):
        yield LabelledPassage(number, found.known[0], query.place is not None)
        if query.place is None:
            continue
        answers = informative_answers(query)
        lacking = (
            one for one in found.near if answers and not holds_answer(made.windows[window_of(one)].text, answers)
        )
        for candidates, count in ((lacking, _NEAR_FOR_TEACHER), (iter(found.far), 1)):
            others = (one for one in candidates if not same_document(made, query, one))
            yield from (LabelledPassage(number, one, False) for one in islice(others, count))


def _write(path: Path, examples: Iterable[Example], say: Say) -> Report:
    kinds: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    written = 0

    def counted() -> Iterator[Example]:
        nonlocal written
        for example in examples:
            kinds[f"{example.source}/{example.verdict}"] += 1
            languages[f"{example.language}/{example.verdict}"] += 1
            written += example.evidence is not None
            yield example

    total = write_examples(path, counted())
    say(f"{path.name}: {total:,} records, {written:,} with texts")
    return {
        "records": total,
        "written": written,
        "by_source": dict(sorted(kinds.items())),
        "by_language": dict(sorted(languages.items())),
    }
