"""Rerank BEIR data sets and measure the result.

    python eval/beir_qa.py --model nano --data ../shared/data/beir --datasets scifact --top-k 20

    load_beir -> BM25 or --run -> rerank the top k, one query after another -> TREC run -> report.json, report.md

Every finished query is kept in `<out>/state`, so a run that was stopped, however rudely, goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Option

import prism
from prism.errors import DataError, InputError, PrismError
from prism.evaluation import ranking
from prism.evaluation.beir import BEIR_QA, BeirSet, load_beir, local_sets
from prism.evaluation.ranking import QueryReranker, Run
from prism.types import Record

MIN_DEPTH = 100
"""Candidates kept per query even when fewer are reranked, so that Recall@100 means the same for every top-k."""
Say = Callable[[str], None]


class Options(Record):
    """What the command line says."""

    models: tuple[str, ...] = ()
    data: Path | None = None
    datasets: tuple[str, ...] = ()
    split: str = "test"
    run: Path | None = None
    top_k: int = Field(default=100, ge=1)
    limit: int | None = Field(default=None, ge=1)
    engine: str = "hf"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    instruction: str | None = None
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    query_batch: int = Field(default=1, ge=1)
    resume: bool = True
    out: Path = Path("eval/results/beir_qa")


class Column(NamedTuple):
    """One column of the report for one data set."""

    name: str
    run: Run
    seconds: float
    """Time spent per query, summed over all queries, those of earlier, stopped runs included."""
    failures: Mapping[str, int]
    """Why documents could not be judged -> how many. They stand below the judged ones and count as ranked there."""
    options: Mapping[str, Any]
    """What decided it."""


def load_reranker(name: str, options: Options) -> QueryReranker:
    from prism.reranker import Reranker

    settings: dict[str, Any] = {"engine": options.engine, "dtype": options.dtype}
    return Reranker.load(name, **settings)


def evaluate(options: Options, say: Say, load: Callable[[str, Options], QueryReranker] = load_reranker) -> Path:
    """Measure the first stage and every model on every data set; returns the path of the report."""
    datasets = _datasets(options)
    columns = _columns(options.models, _first_name(options, datasets[0]))
    try:
        (options.out / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make a folder in {options.out} ({error.strerror}): choose another --out") from error
    loaded: dict[str, QueryReranker] = {}

    def loader(name: str) -> QueryReranker:
        if name not in loaded:
            loaded[name] = load(name, options)
        return loaded[name]

    try:
        for name in datasets:
            data = _limited(load_beir(name, options.data, options.split), options.limit)
            say(f"{name}: {len(data.corpus):,} documents, {len(data.queries):,} queries")
            first = first_stage(data, options)
            record(data, first, options, say)
            for column, model in columns.items():
                made = rerank_column(data, first, column, model, options, loader, say)
                record(data, made, options, say)
    finally:
        for reranker in loaded.values():
            reranker.close()
    return options.out / "report.json"


def _columns(models: Sequence[str], first: str) -> dict[str, str]:
    """Column name -> model: the last part of a path or hub name."""
    columns: dict[str, str] = {}
    for model in models:
        name = Path(model).resolve().name
        if name in columns or name == first:
            raise InputError(f"column {name!r} is taken: rename one of the models or give it another --out")
        columns[name] = model
    return columns


def _datasets(options: Options) -> tuple[str, ...]:
    datasets = options.datasets
    if not datasets and options.data is not None:
        datasets = tuple(local_sets(options.data))
        if not datasets:
            raise DataError(f"no data set in {options.data}: expected folders with corpus.jsonl, queries.jsonl, qrels/")
    datasets = tuple(dict.fromkeys(datasets)) or BEIR_QA
    if options.run is not None and len(datasets) != 1:
        raise InputError(f"--run holds the candidates of one data set, got {len(datasets)}: name it with --datasets")
    return datasets


def _limited(data: BeirSet, limit: int | None) -> BeirSet:
    """The first `limit` queries of the qrels; the measures are then over those."""
    kept = list(data.queries)[:limit]
    return replace(data, queries={q: data.queries[q] for q in kept}, qrels={q: data.qrels[q] for q in kept})


# --- first stage -----------------------------------------------------------------------------------------------------


def first_stage(data: BeirSet, options: Options) -> Column:
    """Candidates for each query, best first: BM25 over title and text, or what `--run` says."""
    start = time.perf_counter()
    name, depth = _first_name(options, data.name), max(options.top_k, MIN_DEPTH)
    decided: dict[str, Any] = {"split": data.split, "limit": options.limit}
    if options.run is None:
        from prism.evaluation.bm25 import Bm25

        ids = list(data.corpus)
        found = Bm25(map(data.text, ids), k1=0.9, b=0.4).search(list(data.queries.values()), depth)
        run = {q: [ids[position] for position, _ in hits] for q, hits in zip(data.queries, found, strict=True)}
        return Column(name, run, time.perf_counter() - start, {}, {**decided, "k1": 0.9, "b": 0.4, "depth": depth})
    given = ranking.read_run(options.run)
    run = {query: given.get(query, []) for query in data.queries}
    strange = next((d for ranked in run.values() for d in ranked if d not in data.corpus), None)
    if strange is not None or not any(run.values()):
        what = f"document {strange!r}" if strange is not None else f"query {next(iter(given))!r}"
        raise DataError(f"{options.run}: {what} is not in {data.name} {data.split}: is the run of another data set?")
    return Column(name, run, time.perf_counter() - start, {}, {**decided, "run": shown(options.run)})


def _first_name(options: Options, dataset: str) -> str:
    return "bm25" if options.run is None else options.run.stem.removeprefix(f"{dataset}.")


# --- reranking -------------------------------------------------------------------------------------------------------


def rerank_column(
    data: BeirSet,
    first: Column,
    column: str,
    model: str,
    options: Options,
    load: Callable[[str], QueryReranker],
    say: Say,
) -> Column:
    """The candidates with their first `top_k` reranked, as far as the state file does not have them already."""
    state = open_state(data, column, model, options, say)
    kept = state.read()
    tasks = (_task(data, query, ranked, options.top_k) for query, ranked in first.run.items() if ranked)
    finished = {task.id: kept[task.id] for task in tasks if task.id in kept and kept[task.id].digest == task.digest()}
    todo = [query for query, ranked in first.run.items() if ranked and query not in finished]
    if finished:
        say(f"{data.name} {column}: {len(finished)} queries were finished before, {len(todo)} to go")
    if todo:
        work = (_task(data, query, first.run[query], options.top_k) for query in todo)
        settings: dict[str, Any] = options.model_dump(include={"instruction", "max_prompt_tokens"})
        with _progress() as progress:
            bar = progress.add_task(f"{data.name} {column}", completed=len(finished), total=len(finished) + len(todo))
            for done in ranking.rerank(work, load(model), **settings, at_once=options.query_batch):
                state.append(done)
                finished[done.id] = done
                progress.advance(bar)
    failures = Counter(reason for done in finished.values() for reason in done.failures.values())
    decided = {**first.options, "candidates": first.name, "model": shown(model), **_decides(options)}
    seconds = sum(done.seconds for done in finished.values())
    return Column(column, ranking.put_on_top(first.run, finished), seconds, failures, decided)


def _task(data: BeirSet, query: str, ranked: Sequence[str], top_k: int) -> ranking.Task:
    documents = tuple(data.document(id_) for id_ in ranked[:top_k])
    return ranking.Task(id=query, query=data.queries[query], documents=documents)


def open_state(data: BeirSet, column: str, model: str, options: Options, say: Say) -> ranking.State:
    """The state file; its name hashes whatever decides scores, except the texts: those are in each line's digest."""
    decides = json.dumps([prism.__version__, _identity(model), data.name, data.split, _decides(options)])
    key = hashlib.sha256(decides.encode()).hexdigest()[:12]
    path = options.out / "state" / f"{data.name}.{column}.{key}.jsonl"
    if not options.resume:
        path.unlink(missing_ok=True)
    elif not path.exists() and any(path.parent.glob(f"{data.name}.{column}.*.jsonl")):
        say(f"{data.name} {column}: the model or the options differ from earlier runs, whose state is not used")
    return ranking.State(path, say)


def _decides(options: Options) -> dict[str, Any]:
    return options.model_dump(include={"top_k", "engine", "dtype", "instruction", "max_prompt_tokens"})


def _identity(model: str) -> object:
    """What tells one state of a model from another: its files with size and time of change, or its name on the hub."""
    folder = Path(prism.__file__).parent / "nano" if model == "nano" else Path(model)
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in files] or model


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


# --- report ----------------------------------------------------------------------------------------------------------


def record(data: BeirSet, column: Column, options: Options, say: Say) -> None:
    """Write the column's run and put its measures into the report, next to what is there already."""
    names = list(dict.fromkeys((*ranking.MEASURES, f"Recall@{options.top_k}")))
    measures = {name: round(value, 6) for name, value in ranking.measure(data.qrels, column.run, names).items()}
    ranking.write_run(options.out / f"{data.name}.{column.name}.run", column.run, tag=column.name)
    report = _read_report(options.out / "report.json")
    known = report["meta"].get(data.name, {}).get(column.name)
    meta = _meta(data, column, options)
    if known is not None and known["options"] != meta["options"]:
        say(f"{data.name} {column.name}: replaces the column of an earlier run with other options")
    report["datasets"].setdefault(data.name, {})[column.name] = measures
    report["meta"].setdefault(data.name, {})[column.name] = meta
    _write(options.out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _write(options.out / "report.md", "\n".join(markdown(report)) + "\n")
    figures = ", ".join(f"{name} {measures[name]:.4f}" for name in ("nDCG@10", f"Recall@{options.top_k}", "MRR@10"))
    say(f"{data.name} {column.name}: {figures}")
    if column.failures:
        total, reason = sum(column.failures.values()), max(column.failures, key=column.failures.__getitem__)
        say(f"{data.name} {column.name}: {total} documents could not be judged, most often: {reason}")


def _meta(data: BeirSet, column: Column, options: Options) -> dict[str, Any]:
    return {
        "command": command(options),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(column.seconds, 2),
        "queries": len(data.qrels),
        "queries_without_candidates": sum(not column.run.get(query) for query in data.qrels),
        "failures": dict(sorted(column.failures.items())),
        "options": dict(column.options),
        "versions": dict(_versions()),
    }


def command(options: Options) -> str:
    """The command that makes this report again, with no path of this machine in it."""
    words = ["python", "eval/beir_qa.py"]
    for model in options.models or ("none",):
        words += ["--model", shown(model)]
    for name, value in options.model_dump(exclude_defaults=True, exclude={"models", "resume"}).items():
        text = shown(value) if isinstance(value, Path) else ",".join(value) if name == "datasets" else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


def shown(path: str | Path) -> str:
    """A path as given if relative, relative to here if near, else its last part."""
    if not Path(path).is_absolute():
        return str(path)
    near = Path(path).is_relative_to(Path.cwd().parent) and Path.cwd().parent != Path(Path.cwd().anchor)
    return os.path.relpath(path) if near else Path(path).name


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", sys.version.split()[0]
    yield "prism", prism.__version__
    for name in ("bm25s", "ir-measures", "torch", "transformers"):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _read_report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"datasets": {}, "meta": {}}
    try:
        report = json.loads(path.read_bytes())
    except ValueError:
        report = None
    if not (isinstance(report, dict) and all(isinstance(report.get(part), dict) for part in ("datasets", "meta"))):
        raise DataError(f"{path}: not a report of this program: move it away, or choose another --out")
    return report


def _write(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half a report."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    sets: dict[str, dict[str, dict[str, float]]] = report["datasets"]
    columns = list(dict.fromkeys(column for rows in sets.values() for column in rows))
    yield from ("# BEIR: ranking", "", "nDCG@10; every query in the qrels counts.", "")
    rows = {name: [_cell(measured.get(column, {}), "nDCG@10") for column in columns] for name, measured in sets.items()}
    if len(sets) > 1:
        rows["mean"] = [_mean([measured.get(column, {}) for measured in sets.values()]) for column in columns]
    yield from _table("data set", columns, rows)
    for name, measured in sets.items():
        names = dict.fromkeys(measure for values in measured.values() for measure in values)
        yield from ("", f"## {name}", "")
        yield from _table("measure", list(measured), {n: [_cell(v, n) for v in measured.values()] for n in names})
        yield ""
        facts = {column: _facts(report["meta"][name][column]) for column in measured}
        yield from _table("how", ["queries", "top k", "failed documents", "seconds", "date (UTC)", "command"], facts)


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join((corner, *columns))} |"
    yield f"|{'---|' * (1 + len(columns))}"
    for name, cells in rows.items():
        yield f"| {' | '.join((name, *cells))} |"


def _cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.4f}" if name in values else "–"


def _mean(values: Sequence[Mapping[str, float]]) -> str:
    """Over the data sets, unless one is missing."""
    return f"{sum(v['nDCG@10'] for v in values) / len(values):.4f}" if all(values) else "–"


def _facts(meta: Mapping[str, Any]) -> list[str]:
    limit = meta["options"]["limit"]
    queries = f"{meta['queries']} (first {limit} only)" if limit else str(meta["queries"])
    failed = str(sum(meta["failures"].values()))
    words = "`" + " ".join(meta["command"].split()).replace("|", "\\|") + "`"
    return [queries, str(meta["options"].get("top_k", "–")), failed, str(meta["seconds"]), meta["date"][:16], words]


# --- command line ----------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0] if __doc__ else None)
def main(
    model: Annotated[list[str] | None, Option(help="nano, folder or hub name; repeatable. none: BM25 only.")] = None,
    data: Annotated[Path | None, Option(help="Folder of BEIR sets, or one set. Default: mteb/* on the hub.")] = None,
    datasets: Annotated[list[str] | None, Option(help="Comma-separated. Default: all in --data, or BEIR-QA.")] = None,
    split: Annotated[str, Option(help="Which qrels.")] = "test",
    run: Annotated[Path | None, Option(help="TREC run with the candidates, instead of BM25.")] = None,
    top_k: Annotated[int, Option(min=1, help="How many candidates to rerank.")] = 100,
    limit: Annotated[int | None, Option(min=1, help="Only the first N queries.")] = None,
    engine: Annotated[str, Option(help="What runs the model.")] = "hf",
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(help="Precision of the model.")] = "auto",
    instruction: Annotated[str | None, Option(help="Instead of the checkpoint's own.")] = None,
    max_prompt_tokens: Annotated[int | None, Option(min=1, help="Where documents are cut.")] = None,
    query_batch: Annotated[int, Option(min=1, help="Queries under way at once.")] = 1,
    resume: Annotated[bool, Option("--resume/--fresh", help="Go on with a stopped run, or start over.")] = True,
    out: Annotated[Path, Option(help="Folder for report, runs and state.")] = Path("eval/results/beir_qa"),
) -> None:
    given = {name: value for name, value in locals().items() if name not in ("model", "datasets")}
    names = tuple(name.strip() for name in ",".join(datasets or []).split(",") if name.strip())
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    try:
        options = Options(models=tuple(m for m in model or [] if m != "none"), datasets=names, **given)
        typer.echo(evaluate(options, console.print))
    except (PrismError, ModuleNotFoundError) as error:
        hint = "" if isinstance(error, PrismError) else ": pip install 'prism-reranker[eval]'"
        typer.echo(f"error: {error}{hint}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
