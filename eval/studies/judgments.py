"""Judges' labels against people's; what `eval/judgments.py` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from rich.console import Console
from rich.progress import Progress

from prism.errors import InputError
from prism.evaluation import reranking
from prism.evaluation.judge import ChatModel
from prism.files.beir import BeirSet, load_beir
from prism.files.label_files import read_labels
from prism.files.ledger import Kept
from prism.labeling.rubrics import RUBRICS, Rubric
from prism.llm.asking import ask_all
from prism.llm.failures import BadAnswer
from prism.reports.blocks import Section
from prism.reports.report import Report
from prism.text import stable_id
from prism.types import Record
from studies import audit
from studies.chat_models import ChatSpec
from studies.label_baselines import embedded, lsa
from studies.label_quality import (
    MEASURES,
    Judged,
    JudgeReport,
    Pairs,
    draw_confusions,
    draw_ndcg,
    grade,
    judge_report,
)
from studies.recorded import as_pairs, read_recorded
from studies.systems import identity

CUTS = (0.25, 0.5, 0.75)
RUBRIC_NAMES = ("graded-basic", "graded-reasoning")
DRAWN = 6
"""Confusion matrices in the figure."""
_CONSOLE = Console(stderr=True)


class Candidates(NamedTuple):
    """What is judged."""

    human: dict[tuple[str, str], int]
    """Every candidate pair with people's label."""
    top: int
    data: BeirSet | None
    """Texts; None for recorded labels."""


class Answer(Record):
    """One chat judge's answer: a label, or why there is none."""

    label: int | None
    failure: str | None = None


# --- recorded labels -------------------------------------------------------------------------------------------------


def recorded(
    folder: Path | None, human: Path | None, model: Sequence[Path], top: int, limit: int | None, section: Section
) -> tuple[Candidates, list[Judged]]:
    """People's labels and those of recorded judges; labels off the scale are failures of the judge."""
    if folder is None and (human is None or not model):
        raise InputError("no judge: pass --labels FOLDER, --human with --model, or --beir with --reranker or --judge")
    found = read_recorded(folder, human, model, top, limit)
    for warning in found.warnings():
        section.warn(warning)
    judges = []
    for file in found.judges:
        kept = as_pairs(file)
        judges.append(Judged(file.name, {pair: float(label) for pair, label in kept.items()}, kept, top))
    return Candidates(as_pairs(found.people), top, None), judges


# --- candidates with texts -------------------------------------------------------------------------------------------


def with_texts(folder: Path, split: str, depth: int, limit: int | None) -> tuple[Candidates, list[Judged]]:
    """BM25's best and all labelled documents of each query, and the baselines on them: BM25 and LSA similarity."""
    from prism.retrieval.bm25 import Bm25

    data = load_beir(folder.resolve().name, folder, split)
    queries, ids = list(data.queries)[:limit], list(data.corpus)
    hits = Bm25(map(data.text, ids)).search([data.queries[q] for q in queries], len(ids))
    human: dict[tuple[str, str], int] = {}
    bm25: dict[tuple[str, str], float] = {}
    for query, found in zip(queries, hits, strict=True):
        scores = {ids[position]: score for position, score in found}
        chosen = [*list(scores)[:depth], *(d for d in data.qrels[query] if d in data.corpus)]
        for document in dict.fromkeys(chosen):
            human[query, document] = data.qrels[query].get(document, 0)
            bm25[query, document] = scores.get(document, 0.0)
    top = max(1, max(human.values()))
    baselines = [Judged("BM25", bm25, None, top), Judged("LSA similarity", lsa(data, human), None, top)]
    return Candidates(human, top, data), baselines


def reranked(
    data: BeirSet,
    human: Pairs,
    name: str,
    cuts: Sequence[float],
    state: Path,
    load: Callable[[str], reranking.QueryReranker],
) -> Judged:
    """The reranker's scores, and grades from the cuts. Finished queries are kept in `state`."""
    tasks: dict[str, list[str]] = {}
    for query, document in human:
        tasks.setdefault(query, []).append(document)
    todo = [
        reranking.Task(id=q, query=data.queries[q], documents=tuple(map(data.document, found)))
        for q, found in tasks.items()
    ]
    kept = Kept(state, reranking.Reranked, _CONSOLE.print)
    state.parent.mkdir(parents=True, exist_ok=True)
    done = kept.read()
    finished = {task.id: done[task.id] for task in todo if task.id in done and done[task.id].digest == task.digest()}
    left = [task for task in todo if task.id not in finished]
    if left:
        reranker = load(name)
        try:
            with Progress(console=_CONSOLE) as progress:
                bar = progress.add_task(name, total=len(todo), completed=len(finished))
                for result in reranking.rerank(left, reranker):
                    kept.append(result.id, result)
                    finished[result.id] = result
                    progress.advance(bar)
        finally:
            reranker.close()
    scores = {(q, d): score for q, row in finished.items() for d, score in row.ranked if score is not None}
    return Judged(Path(name).name, scores, {pair: grade(score, cuts) for pair, score in scores.items()}, len(cuts))


def _state_name(model: str) -> str:
    """Changes with the model: scores of another state of it are not taken over."""
    return f"{Path(model).name}.{stable_id(repr(identity(model)))}"


def load_reranker(name: str) -> reranking.QueryReranker:
    from prism.reranker import Reranker

    return Reranker.load(name)


# --- a chat model as a judge -----------------------------------------------------------------------------------------


async def asked(
    data: BeirSet, human: Pairs, model: str, rubric: Rubric, client: ChatModel, state: Path, at_once: int
) -> Judged:
    """Grades said by a chat model. Answers that are no grade, and none at all, are failures; both are counted."""
    kept = Kept(state, Answer, _CONSOLE.print)
    done = kept.read()

    async def ask(pair: tuple[str, str]) -> Answer:
        messages = rubric.messages(data.queries[pair[0]], data.document(pair[1]))
        try:
            said = await client.complete(
                messages, model=model, max_tokens=rubric.max_answer_tokens, params={"temperature": 0}
            )
        except BadAnswer as error:
            return Answer(label=None, failure=error.kind)
        reading = rubric.read(said.text, said.finish)
        return Answer(label=reading.label, failure=reading.failure)

    todo = [(f"{rubric.key} {model} {stable_id(data.queries[q], data.text(d))}", (q, d)) for q, d in human]
    left = [(key, pair) for key, pair in todo if key not in done]
    with Progress(console=_CONSOLE) as progress:
        bar = progress.add_task(rubric.name, total=len(todo), completed=len(todo) - len(left))
        result = await ask_all(left, ask, kept.append, at_once=at_once, progress=partial(progress.advance, bar))
    if result.stopped:
        raise InputError(f"{model}: {result.stopped}; run the same command again to go on")
    done = kept.read()
    labels = {pair: done[key].label for key, pair in todo if key in done}
    said = {pair: label for pair, label in labels.items() if label is not None}
    name = f"{model}, {'with' if rubric.answer == 'last-line' else 'without'} reasoning"
    return Judged(name, {pair: float(label) for pair, label in said.items()}, said, rubric.labels[-1])


# --- report ----------------------------------------------------------------------------------------------------------


def show(report: Report, candidates: Candidates, found: Sequence[JudgeReport]) -> None:
    """Tables, violins and confusion matrices."""
    section = report.section("Judges against people")
    rows: list[list[Any]] = [
        [f.name, f.pairs, f.failures, *f.ndcg.values(), f.mean_label, f.human_mean, f.mean_absolute_error, f.exact]
        for f in found
    ]
    columns = ["judge", "pairs", "failures", *MEASURES, "mean label", "people's mean", "mean absolute error", "exact"]
    section.table(columns, rows, caption="Candidates ranked by the judge, measured by people's labels", digits=3,
                  best=dict.fromkeys(MEASURES, "max"))  # fmt: skip
    section.note(
        "Failed pairs rank last and count in no label figure. Equal grades rank by document id, so a judge with four"
        " grades loses nDCG to one with fine scores even when its grades are right."
    )
    section.figure(
        "ndcg", partial(draw_ndcg, found=found), size=(8.4, 0.5 * len(found) + 1.8),
        alt="Violins of nDCG, nDCG@5 and nDCG@10 over queries, one row per judge.", caption="Spread over queries",
    )  # fmt: skip
    graded = [f for f in found if f.confusion is not None]
    if graded:
        shown = graded[:DRAWN]
        section.figure(
            "confusion", partial(draw_confusions, found=shown), size=(8.4, 2.9 * ((len(shown) + 2) // 3)),
            alt="People's label by row, judge's label by column; shares of the row.",
            caption=f"Confusion matrices, rows sum to 1; the best {len(shown)} of {len(graded)} by nDCG@10",
        )  # fmt: skip


def run(candidates: Candidates, judges: Sequence[Judged], report: Report, audited: int, out: Path) -> Path:
    """Measures every judge and writes report and audit; returns the report's path."""
    found = [judge_report(judge, candidates.human, candidates.top) for judge in judges]
    found.sort(key=lambda row: -row.ndcg["nDCG@10"])
    show(report, candidates, found)
    labels = {judge.name: judge.labels for judge in judges if judge.labels is not None}
    high = max((judge.top for judge in judges if judge.labels is not None), default=0)
    rows = audit.disagreements(candidates.human, labels, 0, high)
    section = report.section("Strong disagreements")
    section.text(
        f"{len(rows)} pairs that people label 0 and a judge {high}; the first {min(audited, len(rows))} are in"
        " audit.html, with decisions.csv to fill in. --apply-decisions turns it into patched qrels."
    )
    counts = {name: sum(name in row.judges for row in rows) for name in labels}
    section.table(["judge", f"says {high} where people say 0"], [[name, count] for name, count in counts.items()])
    if candidates.data is None:
        section.warn("Recorded labels come without texts: audit.html shows ids only.")
    audit.write_audit(out, rows[:audited], partial(_texts, candidates.data), f"Labels run from 0 to {candidates.top}.")
    best = found[0]
    report.lead(
        f"{best.name} ranks best: nDCG@10 {best.ndcg['nDCG@10']:.3f} over {len(best.by_query['nDCG@10'])} queries."
    )
    return report.write(out, {"judges": found, "disagreements": [row._asdict() for row in rows]})


def _texts(data: BeirSet | None, query: str, document: str) -> tuple[str, str]:
    if data is None:
        return f"(no text) {query}", f"(no text) {document}"
    return data.queries[query], data.text(document)


def apply_decisions(human: Path | None, decisions: Path, patch_out: Path | None, top: int) -> str:
    """Write the patched qrels; says what changed."""
    if human is None or patch_out is None:
        raise InputError("--apply-decisions needs --human FILE (the qrels) and --patch-out FILE")
    labels = as_pairs(read_labels(human, (0, top)))
    decided = audit.read_decisions(decisions, labels, top)
    changed = audit.patch(human, decided, patch_out)
    return f"{patch_out}: {changed} of {len(labels)} labels changed, {len(decided)} decided"


def judge_texts(
    candidates: Candidates,
    reranker: Sequence[str],
    cuts: Sequence[float],
    embedder: str | None,
    chat: Sequence[ChatSpec],
    out: Path,
) -> list[Judged]:
    """All judges that need texts."""
    data, human = candidates.data, candidates.human
    if data is None:
        return []
    judges = [embedded(data, human, embedder, out / "cache")] if embedder else []
    for name in reranker:
        judges.append(reranked(data, human, name, cuts, out / "state" / f"{_state_name(name)}.sqlite", load_reranker))

    async def ask_all_of(endpoint: ChatSpec) -> list[Judged]:
        state = out / "state" / f"chat.{stable_id(endpoint.identity)}.sqlite"
        async with endpoint.open() as model:
            rubrics = [RUBRICS[name] for name in RUBRIC_NAMES]
            return [await asked(data, human, endpoint.model, r, model, state, endpoint.at_once) for r in rubrics]

    for endpoint in chat:
        judges += anyio.run(ask_all_of, endpoint)
    return judges
