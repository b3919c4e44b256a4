"""The report on evidence quality: one table and one curve per set, judges and their agreement, and how to read them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prism.evaluation import judge
from prism.evaluation.evidence_quality import MEASURES, Extract, Measured, Summary, Value, by_length, summarise_extracts
from prism.evaluation.evidence_sets import Case
from prism.reports.blocks import Cell, Section
from prism.reports.report import Report
from studies.reader import Point, draw_curve

PUBLISHED = {"all sentences": 0.305, "TF-IDF, 3 sentences": 0.377}
"""Gold-sentence F1 on SciFact's 209 dev pairs with oracle abstracts (BEIR's test split), under this report's definition
and the abstracts' original sentence borders: what any system has to beat."""
_ENOUGH = ("sufficiency", "cut", "gain", "concision")
_COLUMNS = {
    "scifact": ("precision", "recall", "F1", *_ENOUGH),
    "qed": ("precision", "recall", "F1", *_ENOUGH),
    "covidqa": _ENOUGH,
    "cmrc2018": _ENOUGH,
}
_WRITTEN = (
    *("parse rate", "format", "fidelity", "support", "unbacked", "repeated", "conflicts", "language"),
    "contribution language",
)
_SHOWN_CHARS = 600


@dataclass
class Example:
    """One pair as a reader sees it."""

    system: str
    good: bool
    query: str
    looked_for: str
    """Right answers or the first rationale, as the document has it."""
    contribution: str | None
    evidence: str | None
    why: str


@dataclass
class SetFindings:
    """Everything found on one set."""

    pairs: int
    document_tokens: float
    systems: dict[str, Summary]
    ratings: dict[str, dict[str, dict[str, judge.Rating]]] = field(default_factory=dict)
    """System -> judge -> key of the extract -> rating."""
    points: list[Point] = field(default_factory=list)
    cut: list[Point] = field(default_factory=list)
    """Documents cut to the tokens of each system's context."""
    lengths: dict[str, dict[str, dict[str, Value]]] = field(default_factory=dict)
    """Band of document length -> system -> tokens, sufficiency, cut, gain."""
    examples: list[Example] = field(default_factory=list)


@dataclass
class Findings:
    """Everything a report tells."""

    sets: dict[str, SetFindings]
    judges: Sequence[str]
    reader: str | None


def make(findings: Findings, *, command: str, versions: Mapping[str, str], limit: int | None) -> Report:
    """The report, not written yet."""
    report = Report("Evidence quality", command=command, versions=versions)
    names = ", ".join(dict.fromkeys(name for found in findings.sets.values() for name in found.systems))
    report.lead(f"What {names} give a reader in place of a document, and whether it holds what the reader needs.")
    for name, found in findings.sets.items():
        section = report.section(f"{name}: {found.pairs} pairs")
        if limit is not None and found.pairs == limit:
            section.warn(f"Only {limit} pairs, evenly spread over the set: a quick look, with wide intervals.")
        _notes(section, name, found)
        _table(section, name, found)
        _lengths(section, found)
        _examples(section, found)
        _floors(section, name, found)
        _curve(section, name, found, findings.reader)
        _judged(section, found, findings.judges)
    _definitions(report.section("What the columns mean"))
    return report


def _notes(section: Section, name: str, found: SetFindings) -> None:
    if name in ("qed", "covidqa", "cmrc2018"):
        section.warn(
            "Prism mini is trained on documents of this set: its row shows what it does with texts it knows. SciFact is"
            " new to it."
        )
    for system, summary in found.systems.items():
        if summary.failures:
            section.warn(
                f"{system} failed on {summary.failures} of {summary.pairs} pairs, which count as nothing found."
            )
    section.text(f"Documents have {found.document_tokens:,.0f} tokens on average.")


def _table(section: Section, name: str, found: SetFindings) -> None:
    columns = ("tokens", "spent", "compression", *_COLUMNS.get(name, ("F1", *_ENOUGH)))
    columns = tuple(c for c in columns if any(s[c] is not None for s in found.systems.values()))
    rows: list[Sequence[Cell]] = [(system, *(s[c] for c in columns)) for system, s in found.systems.items()]
    best: dict[str, Literal["max", "min"]] = {"F1": "max"} if "F1" in columns else {}
    digits = dict.fromkeys({"tokens", "spent"}.intersection(columns), 0)
    section.table(["system", *columns], rows, caption="What is kept, at what length", digits=digits, best=best)
    main = next((c for c in ("F1", "sufficiency") if c in columns), None)
    if main:
        _bars(section, name, main, {system: s.measures[main] for system, s in found.systems.items()})
    written = {system: s for system, s in found.systems.items() if s.outcomes or s["support"] not in (None, 1.0)}
    if written:
        rows = [(system, *(s[c] for c in _WRITTEN)) for system, s in written.items()]
        section.table(["system", *_WRITTEN], rows, caption="Whether written texts are in form and true to the document")
        for system, summary in written.items():
            if summary.outcomes:
                counts = ", ".join(f"{key} {n}" for key, n in sorted(summary.outcomes.items()))
                section.text(f"{system}: {counts}; {summary.seconds:,.0f} s for {summary.pairs} pairs.")


def measured_by_length(texts: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, dict[str, Value]]]:
    """Each system's sufficiency and what it costs, by length of the document."""
    found: dict[str, dict[str, dict[str, Value]]] = {}
    for system, measured in texts.items():
        for band, pairs in by_length(measured).items():
            figures = summarise_extracts(pairs).measures
            found.setdefault(band, {})[system] = {name: figures[name] for name in ("tokens", *_ENOUGH)}
    return found


def _lengths(section: Section, found: SetFindings) -> None:
    columns = ["documents", "system", "pairs", "tokens", *_ENOUGH]
    rows = [
        [band, system, figures["tokens"].pairs, *(figures[c].value for c in columns[3:])]
        for band, systems in found.lengths.items()
        for system, figures in systems.items()
        if figures["sufficiency"].value is not None
    ]
    if rows:
        section.table(columns, rows, caption="By length of the document", digits={"tokens": 0})


def draw_examples(
    system: str, cases: Sequence[Case], extracts: Sequence[Extract], measured: Sequence[Measured], each: int, seed: int
) -> list[Example]:
    """`each` good and `each` bad pairs of a system, drawn by `seed` from all that are good or bad."""
    drawn = random.Random(f"{seed} {system}")
    known = [at for at, m in enumerate(measured) if m.sufficient is not None]
    found = []
    for good in (True, False):
        pool = [at for at in known if _faults(measured[at]) == "" or not good]
        pool = [at for at in pool if good or _faults(measured[at])]
        for at in sorted(drawn.sample(pool, min(each, len(pool)))):
            case, extract = cases[at], extracts[at]
            found.append(
                Example(
                    system=system,
                    good=good,
                    query=case.query,
                    looked_for=_looked_for(case),
                    contribution=extract.contribution,
                    evidence=extract.evidence,
                    why=_faults(measured[at]),
                )
            )
    return found


def _faults(measured: Measured) -> str:
    said = {
        "nothing written": not measured.written,
        "not enough": measured.written and not measured.sufficient,
        "facts that the document lacks": measured.unsupported > 0,
        "says something again": bool(measured.repeated),
        "contradicts the document": bool(measured.conflicts),
        "not in form": measured.generated and not measured.outcome.parsed,
    }
    return ", ".join(fault for fault, found in said.items() if found)


def _looked_for(case: Case) -> str:
    if case.answers:
        return " / ".join(case.answers)
    return " … ".join(case.document[low:high] for low, high in case.gold[0])


def _examples(section: Section, found: SetFindings) -> None:
    rows = [
        [
            f"{example.system}, {'good' if example.good else 'bad'}",
            *(_clipped(text) for text in (example.query, example.looked_for, example.contribution, example.evidence)),
            example.why or "nothing",
        ]
        for example in found.examples
    ]
    if rows:
        columns = ["system", "query", "looked for", "contribution", "evidence", "at fault"]
        section.table(columns, rows, caption="Examples, drawn by a fixed seed from the good and from the bad")


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} …"


def _bars(section: Section, name: str, measure: str, values: Mapping[str, Value]) -> None:
    known = {system: v for system, v in values.items() if v.value is not None}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        names = list(known)[::-1]
        heights = [known[n].value or 0.0 for n in names]
        low = [h - (known[n].low or 0.0) for n, h in zip(names, heights, strict=True)]
        high = [(known[n].high or h) - h for n, h in zip(names, heights, strict=True)]
        axes.barh(names, heights, xerr=[[max(0.0, x) for x in low], [max(0.0, x) for x in high]], capsize=3)
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"{measure}, with 95 % interval over pairs")

    alt = f"{measure} by system: " + ", ".join(f"{n} {v.value:.3f}" for n, v in known.items()) + "."
    section.figure(f"{_slug(name)}-{measure.lower()}", draw, alt=alt, caption=f"{name}: {MEASURES[measure]}")


def _floors(section: Section, name: str, found: SetFindings) -> None:
    if name != "scifact":
        return
    here = {"all sentences": found.systems.get("whole document"), "TF-IDF, 3 sentences": found.systems.get("tfidf 3")}
    rows = [(floor, value, s["F1"] if (s := here[floor]) else None) for floor, value in PUBLISHED.items()]
    section.table(["floor", "F1 to expect", "F1 here"], rows, caption="Floors with oracle abstracts", digits=3)


def _curve(section: Section, name: str, found: SetFindings, reader: str | None) -> None:
    if not found.points:
        return
    if reader is None:
        section.warn(
            "No reader answered. The curve shows the share of contexts that hold a right answer word for word: an upper"
            " bound of what a reader that copies can score, not an answer score. --reader MODEL@BASE_URL gives the real"
            " one."
        )

    def score(point: Point) -> Value:
        return point.f1 if reader is not None and point.f1 is not None else point.holds

    what = f"token F1 of {reader}" if reader else "share of contexts that hold an answer"
    shown = [(p, score(p)) for p in found.points if score(p).value is not None]
    alt = f"{what} against context tokens: " + ", ".join(f"{p.name} {v.value:.3f} at {p.tokens:.0f}" for p, v in shown)
    drawing = draw_curve(found.points, found.cut, score)
    section.figure(f"{_slug(name)}-curve", drawing, alt=alt or what, caption=f"{name}: {what} against context tokens")
    cut = {p.name: p for p in found.cut}
    columns = ["context", "tokens", "holds answer", "cut document holds"]
    columns += ["F1", "cut document F1", "exact match", "not read"] if reader else []
    rows = [_point_row(p, cut.get(p.name), reader) for p in found.points]
    section.table(columns, rows, caption="Answers from each context, and from the document cut to as many tokens",
                  digits={"tokens": 0})  # fmt: skip


def _point_row(point: Point, cut: Point | None, reader: str | None) -> Sequence[Cell]:
    row: list[Cell] = [point.name, point.tokens, point.holds.value, cut.holds.value if cut else None]
    if reader is not None:
        row += [point.f1.value if point.f1 else None, cut.f1.value if cut and cut.f1 else None]
        row += [point.exact.value if point.exact else None, point.failures]
    return row


def _judged(section: Section, found: SetFindings, judges: Iterable[str]) -> None:
    if not found.ratings:
        return
    columns = ["system", "judge", *judge.CRITERIA, "graded", "failures"]
    rows: list[Sequence[Cell]] = []
    for system, by_judge in found.ratings.items():
        for name in judges:
            summary = judge.summarise_ratings(list(by_judge.get(name, {}).values()))
            means = [summary.means[criterion].value for criterion in judge.CRITERIA]
            failed = sum(summary.failures.values())
            rows.append([system, name, *means, summary.asked - failed, failed])
    section.table(columns, rows, caption="Judges' grades, 1 to 5; failures are in no mean", digits=2)
    pooled: list[dict[str, judge.Rating]] = [
        {key: rating for by_judge in found.ratings.values() for key, rating in by_judge.get(name, {}).items()}
        for name in judges
    ]
    if len(pooled) > 1:
        alphas = judge.agreement(pooled)
        section.table(
            ["criterion", "Krippendorff's alpha (ordinal)"],
            list(alphas.items()),
            caption="Agreement of the judges",
            digits=3,
        )


def _definitions(section: Section) -> None:
    section.table(["column", "meaning"], list(MEASURES.items()))
    section.text(
        "Gold sentences: a document sentence is chosen when spans of the evidence cover at least half of its"
        " characters. It is correct when it belongs to a rationale whose sentences are all chosen; several rationales"
        " of a pair are alternatives. Precision and recall are over the sums of all pairs (SciFact, Wadden et al. 2020:"
        " sentence-level, selection only). Pairs without evidence count as nothing chosen and not enough; they have no"
        " fidelity, support or language. Language: by script, else by py3langid; texts too short to tell are left out."
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.rpartition("/")[2].removesuffix(".jsonl"))
