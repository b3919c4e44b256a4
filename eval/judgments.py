"""How good are a judge's relevance labels? Against people's, next to BM25 and embedding similarity.

    python eval/judgments.py --labels ../shared/data/labels/llmjudge --out eval/results/judgments/llmjudge
    python eval/judgments.py --beir ../shared/data/beir/scifact --reranker nano --out eval/results/judgments/scifact
    python eval/judgments.py --beir DATA --judge gpt-x --url https://api.example.com/v1 --key-env EXAMPLE_KEY --out DIR
    python eval/judgments.py --human human.qrels --apply-decisions DIR/decisions.csv --patch-out patched.qrels

Labels come from recorded files (--labels, --model), from a reranker whose score is cut into grades 0 to 3 (--reranker,
--cuts), or from a chat model that says a grade, with and without reasoning (--judge). With --beir the candidates are
BM25's best and everything people labelled; what people did not label counts as 0. A stopped run goes on where it stood.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import typer
from rich.console import Console
from rich.progress import Progress
from typer import Option

from prism.errors import InputError, PrismError
from prism.evaluation import audit, ranking
from prism.evaluation.beir import BeirSet, load_beir
from prism.evaluation.columns import identity
from prism.evaluation.judging import (
    MEASURES,
    Judged,
    JudgeReport,
    Pairs,
    draw_confusions,
    draw_ndcg,
    grade,
    judge_report,
)
from prism.evaluation.report import Report, Section, command_line, versions
from prism.labeling.asking import Kept, ask_all
from prism.labeling.chat import ChatClient, Provider
from prism.labeling.failures import BadAnswer
from prism.labeling.label_files import read_labels
from prism.labeling.rubrics import RUBRICS, Rubric
from prism.text import stable_id
from prism.types import Record

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
    if folder is not None:
        human = human or folder / "human.qrels"
        model = [*model, *sorted((folder / "submissions").glob("*.qrels"))]
    if human is None or not model:
        raise InputError("no judge: pass --labels FOLDER, --human with --model, or --beir with --reranker or --judge")
    people = read_labels(human, (0, top))
    pairs: dict[tuple[str, str], int] = {tuple(place): label for place, label in people.labels.items()}  # type: ignore[misc]
    judges = []
    for path in model[:limit]:
        file = read_labels(path)
        if off := file.outside((0, top)):
            where = f"{path.name}:{file.lines[off[0]]}"
            section.warn(f"{where}: label off the scale 0 to {top} ({len(off)} in all): a failure")
        kept: dict[tuple[str, str], int] = {tuple(p): v for p, v in file.labels.items() if 0 <= v <= top}  # type: ignore[misc]
        judges.append(Judged(file.name, {pair: float(label) for pair, label in kept.items()}, kept, top))
    return Candidates(pairs, top, None), judges


# --- candidates with texts -------------------------------------------------------------------------------------------


def with_texts(folder: Path, split: str, depth: int, limit: int | None) -> tuple[Candidates, list[Judged]]:
    """BM25's best and all labelled documents of each query, and the baselines on them: BM25 and LSA similarity."""
    from prism.evaluation.bm25 import Bm25

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
    baselines = [Judged("BM25", bm25, None, top), Judged("LSA similarity", _lsa(data, human), None, top)]
    return Candidates(human, top, data), baselines


def _lsa(data: BeirSet, human: Pairs, dimensions: int = 200) -> dict[tuple[str, str], float]:
    """Cosine in latent semantic space (Deerwester et al. 1990): an embedding that needs no download."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    ids = list(data.corpus)
    tfidf = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2)
    weights = tfidf.fit_transform(data.text(id_) for id_ in ids)
    svd = TruncatedSVD(min(dimensions, weights.shape[1] - 1, weights.shape[0] - 1), random_state=0).fit(weights)
    documents, place = normalize(svd.transform(weights)), {id_: number for number, id_ in enumerate(ids)}
    queries = list(dict.fromkeys(query for query, _ in human))
    asked = normalize(svd.transform(tfidf.transform([data.queries[query] for query in queries])))
    row = {query: number for number, query in enumerate(queries)}
    return {(q, d): float(asked[row[q]] @ documents[place[d]]) for q, d in human}


def embedded(data: BeirSet, human: Pairs, model: str) -> Judged:
    """Cosine similarity under a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model)
    documents, queries = sorted({d for _, d in human}), sorted({q for q, _ in human})
    ours = dict(
        zip(documents, encoder.encode([data.text(d) for d in documents], normalize_embeddings=True), strict=True)
    )
    asked = dict(
        zip(queries, encoder.encode([data.queries[q] for q in queries], normalize_embeddings=True), strict=True)
    )
    return Judged(Path(model).name, {(q, d): float(asked[q] @ ours[d]) for q, d in human}, None, 1)


def reranked(
    data: BeirSet,
    human: Pairs,
    name: str,
    cuts: Sequence[float],
    state: Path,
    load: Callable[[str], ranking.QueryReranker],
) -> Judged:
    """The reranker's scores, and grades from the cuts. Finished queries are kept in `state`."""
    tasks: dict[str, list[str]] = {}
    for query, document in human:
        tasks.setdefault(query, []).append(document)
    todo = [
        ranking.Task(id=q, query=data.queries[q], documents=tuple(map(data.document, found)))
        for q, found in tasks.items()
    ]
    kept = ranking.State(state, _CONSOLE.print)
    state.parent.mkdir(parents=True, exist_ok=True)
    done = kept.read()
    finished = {task.id: done[task.id] for task in todo if task.id in done and done[task.id].digest == task.digest()}
    left = [task for task in todo if task.id not in finished]
    if left:
        reranker = load(name)
        try:
            with Progress(console=_CONSOLE) as progress:
                bar = progress.add_task(name, total=len(todo), completed=len(finished))
                for result in ranking.rerank(left, reranker):
                    kept.append(result)
                    finished[result.id] = result
                    progress.advance(bar)
        finally:
            reranker.close()
    scores = {(q, d): score for q, row in finished.items() for d, score in row.ranked if score is not None}
    return Judged(Path(name).name, scores, {pair: grade(score, cuts) for pair, score in scores.items()}, len(cuts))


def _state_name(model: str) -> str:
    """Changes with the model: scores of another state of it are not taken over."""
    return f"{Path(model).name}.{stable_id(repr(identity(model)))}"


def load_reranker(name: str) -> ranking.QueryReranker:
    from prism.reranker import Reranker

    return Reranker.load(name)


# --- a chat model as a judge -----------------------------------------------------------------------------------------


async def asked(data: BeirSet, human: Pairs, model: str, rubric: Rubric, client: ChatClient, state: Path) -> Judged:
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
        result = await ask_all(
            left, ask, kept, at_once=client.provider.concurrency, progress=partial(progress.advance, bar)
        )
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
        shown = sorted(graded, key=lambda f: -f.ndcg["nDCG@10"])[:DRAWN]
        section.figure(
            "confusion", partial(draw_confusions, found=shown), size=(8.4, 2.9 * ((len(shown) + 2) // 3)),
            alt="People's label by row, judge's label by column; shares of the row.",
            caption=f"Confusion matrices, rows sum to 1; the best {len(shown)} of {len(graded)} by nDCG@10",
        )  # fmt: skip


def run(candidates: Candidates, judges: Sequence[Judged], report: Report, audited: int, out: Path) -> Path:
    """Measures every judge and writes report and audit; returns the report's path."""
    found = [judge_report(judge, candidates.human, candidates.top) for judge in judges]
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
    best = max(found, key=lambda row: row.ndcg["nDCG@10"])
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
    labels = {tuple(place): label for place, label in read_labels(human, (0, top)).labels.items()}
    decided = audit.read_decisions(decisions, labels, top)  # type: ignore[arg-type]
    changed = audit.patch(human, decided, patch_out)
    return f"{patch_out}: {changed} of {len(labels)} labels changed, {len(decided)} decided"


def judge_texts(
    candidates: Candidates, reranker: Sequence[str], cuts: Sequence[float], embedder: str | None, judge: str | None,
    provider: Provider | None, out: Path,
) -> list[Judged]:  # fmt: skip
    """All judges that need texts."""
    data, human = candidates.data, candidates.human
    if data is None:
        return []
    judges = [embedded(data, human, embedder)] if embedder else []
    for name in reranker:
        judges.append(reranked(data, human, name, cuts, out / "state" / f"{_state_name(name)}.jsonl", load_reranker))
    if judge is not None:
        if provider is None:
            raise InputError("--judge needs --url, the API's address up to /v1")

        async def ask_both() -> list[Judged]:
            async with ChatClient(provider) as client:
                state = out / "state" / "chat.jsonl"
                return [await asked(data, human, judge, RUBRICS[name], client, state) for name in RUBRIC_NAMES]

        judges += anyio.run(ask_both)
    return judges


def main(
    labels: Annotated[Path | None, Option(help="Folder with human.qrels and submissions/*.qrels.")] = None,
    human: Annotated[Path | None, Option(help="Human labels, if not in --labels.")] = None,
    model: Annotated[list[Path] | None, Option(help="A model's recorded labels; repeatable.")] = None,
    scale_top: Annotated[int, Option(min=1, help="The best recorded label; 0 is the worst.")] = 3,
    beir: Annotated[Path | None, Option(help="A BEIR set with texts.")] = None,
    split: Annotated[str, Option(help="Its qrels.")] = "test",
    depth: Annotated[int, Option(min=1, help="BM25 candidates a query.")] = 20,
    reranker: Annotated[list[str] | None, Option(help="nano, folder or hub name, as a judge; repeatable.")] = None,
    cuts: Annotated[str, Option(help="Scores from which a reranker's grade is 1, 2, 3.")] = "0.25,0.5,0.75",
    embedder: Annotated[str | None, Option(help="sentence-transformers model, as a baseline.")] = None,
    judge: Annotated[str | None, Option(help="Chat model that says grades, with and without reasoning.")] = None,
    url: Annotated[str | None, Option(help="Its API, up to /v1.")] = None,
    key_env: Annotated[str | None, Option(help="Environment variable with the key.")] = None,
    audited: Annotated[int, Option("--audit", min=0, help="Strong disagreements to put into audit.html.")] = 50,
    apply_decisions_file: Annotated[Path | None, Option("--apply-decisions", help="Filled-in decisions.csv.")] = None,
    patch_out: Annotated[Path | None, Option(help="Where the patched qrels go.")] = None,
    limit: Annotated[
        int | None, Option(min=1, help="A quick look: first N judges, or first N queries of --beir.")
    ] = None,
    out: Annotated[Path, Option(help="Folder for the report, audit.html, decisions.csv.")] = Path(
        "eval/results/judgments"
    ),
) -> None:
    """Measure judges' labels against people's; audit strong disagreements; patch qrels."""
    try:
        if apply_decisions_file is not None:
            print(apply_decisions(human, apply_decisions_file, patch_out, scale_top))
            return
        report = Report("Relevance judgments", command=command_line(), versions=versions("ir-measures", "scikit-learn"))
        section = report.section("What is judged")
        if beir is not None:
            candidates, judges = with_texts(beir, split, depth, limit)
            provider = Provider(base_url=url, key_env=key_env) if url else None
            judges += judge_texts(candidates, reranker or [], _cuts(cuts), embedder, judge, provider, out)
            section.text(f"{beir.name} {split}: BM25's best {depth} a query and everything labelled. Grades at {cuts}.")
            section.warn(
                "What nobody labelled counts as 0 here: some of it is relevant. The audit is the way to find out."
            )
        else:
            candidates, judges = recorded(labels, human, model or [], scale_top, limit, section)
        queries = len({query for query, _ in candidates.human})
        section.text(
            f"{len(candidates.human):,} pairs of {queries} queries; people's labels run from 0 to {candidates.top}."
        )
        print(run(candidates, judges, report, audited, out))
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _cuts(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--cuts takes numbers with commas between them, got {text!r}") from None


if __name__ == "__main__":
    typer.run(main)
