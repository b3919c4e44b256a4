"""`prism data pairs`, `mine` and `score`: pairs from a corpus, hard negatives, teacher scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism.cli.data import Bad, CorpusFile, Out, PairsFile, Seed, app, count_lines, finish
from prism.devices import choose_device
from prism.errors import InputError
from prism.files.corpus import read_corpus
from prism.files.jsonl import Drops, Line, OnBad, read_pairs, read_queries, write_rows, write_stage_report
from prism.outputs import require_other, writable_file
from prism.reports.bar import progress

if TYPE_CHECKING:
    from prism.data.mining import Retriever
    from prism.data.teacher_local import LocalTeacher
    from prism.data.teachers import ApiLimits, Squash
    from prism.llm.rerank_api import ApiTeacher

_Teacher = Literal["cohere", "jina", "voyage", "reranker", "cross-encoder", "embedding"]


@app.command()
def pairs(
    corpus: CorpusFile,
    out: Out,
    queries: Annotated[int, typer.Option(min=1, help="How many, in all.")] = 10_000,
    per_passage: Annotated[int, typer.Option(min=1, help="How many, at most, from one passage.")] = 2,
    hard: Annotated[int, typer.Option(min=0, help="BM25 neighbours per query, as negatives.")] = 3,
    easy: Annotated[int, typer.Option(min=0, help="Random passages per query, as negatives.")] = 1,
    max_chars: Annotated[int, typer.Option(min=100, help="Length of the passages texts are cut into.")] = 1200,
    seed: Seed = 0,
    on_bad: Bad = "fail",
) -> None:
    """Make training pairs from a corpus without any LLM: queries by rule, evidence verbatim, BM25 negatives."""
    from prism.data.corpus_pairs import CorpusPairs, pairs_from_corpus
    from prism.text import stable_id

    settings = CorpusPairs(queries=queries, per_passage=per_passage, hard=hard, easy=easy, max_chars=max_chars)
    drops = Drops()
    examples = pairs_from_corpus(read_corpus(corpus, drops, on_bad), settings, seed, drops)
    rows = ({"id": stable_id(e.query, e.document), **e.model_dump(mode="json", exclude_none=True)} for e in examples)
    written = write_rows(out, rows)
    finish(
        write_stage_report(out, "pairs", [corpus], drops, records=written.records, settings=settings.model_dump()),
        out,
        written,
    )


Method = Annotated[Literal["bm25", "dense"], typer.Option(help="How documents are ranked.")]
Model = Annotated[str | None, typer.Option(help="For dense: a sentence-transformers directory or hub name.")]
Negatives = Annotated[int, typer.Option(min=1, help="Per query, at most.")]
Skip = Annotated[int, typer.Option(min=0, help="Leave out this many of the best ranks.")]
Depth = Annotated[int, typer.Option(min=1, help="How far down the ranking to look.")]
MaxShare = Annotated[
    float, typer.Option(min=0.0, help="Leave out what scores above this share of the known positive; 0: keep it.")
]
Stemmer = Annotated[str, typer.Option(help="For BM25: english, german, russian, …, or none.")]
AssumeNo = Annotated[bool, typer.Option("--assume-no", help="Write verdict no instead of leaving it open.")]
Device = Annotated[str | None, typer.Option(help="For dense: cpu, cuda, mps.")]


@app.command()
def mine(
    pairs: PairsFile,
    corpus: CorpusFile,
    out: Out,
    method: Method = "bm25",
    model: Model = None,
    negatives: Negatives = 8,
    skip: Skip = 0,
    depth: Depth = 100,
    max_share: MaxShare = 0.95,
    stemmer: Stemmer = "english",
    assume_no: AssumeNo = False,
    device: Device = None,
    on_bad: Bad = "fail",
) -> None:
    """Find hard negatives for the queries of PAIRS in CORPUS.

    What is mined may well be relevant: have it labelled (`prism label`) or scored (`prism data score`) before training.
    """
    from prism.data.mining import Mining, known_positives, mine

    settings = Mining(negatives, skip, depth, max_share or None, assume_no)
    if device is not None:
        choose_device(device)
    if method == "dense" and model is None:
        raise InputError("dense mining needs a model: --model with a sentence-transformers directory or hub name")
    drops = Drops()
    documents = list(read_corpus(corpus, drops, on_bad))
    known = known_positives(read_queries(pairs, drops, on_bad))
    texts = (f"{document.title} {document.text}".strip() for document in documents)
    with progress("mining", len(known)) as advance:
        retriever = _dense(model, texts, device) if method == "dense" and model is not None else _bm25(texts, stemmer)
        written = write_rows(out, mine(known, documents, retriever, settings, method, drops, advance))
    finish(
        write_stage_report(out, "mine", [pairs, corpus], drops, records=written.records, queries=len(known)),
        out,
        written,
    )


def _dense(model: str, texts: Iterable[str], device: str | None) -> Retriever:
    from prism.retrieval.dense import Dense
    from prism.retrieval.sentence_models import SentenceEncoder

    return Dense(SentenceEncoder(model, device), texts)


def _bm25(texts: Iterable[str], stemmer: str) -> Retriever:
    from prism.retrieval.bm25 import Bm25

    return Bm25(texts, stemmer=None if stemmer == "none" else stemmer)


Teacher = Annotated[
    _Teacher,
    typer.Option(
        help="A rerank API's dialect; or on this machine: reranker (whatever `prism rerank --model` takes),"
        " or a sentence-transformers model."
    ),
]
ModelOption = Annotated[
    str, typer.Option(help="The API's model name; for local teachers a directory, a hub name, one of `prism pull`.")
]
Template = Annotated[
    str | None,
    typer.Option(
        help="For reranker: prompt of a model without one: prism, qwen3-reranker, instruct, instruct-label, or a file."
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option("--calibrate", help="Make its scores probabilities, by the verdicts that the pairs carry."),
]
Mix = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of this teacher; the rest is the teacher_score there was before."),
]
Store = Annotated[
    Path, typer.Option(help="SQLite file that keeps every score: never paid twice.", callback=writable_file)
]
Url = Annotated[
    str | None, typer.Option(help="Base URL of another server of that dialect, up to /v1: such as `prism serve`.")
]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the key.")]
BatchSize = Annotated[int, typer.Option(min=1, max=1000, help="Documents per call.")]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Calls under way at once.")]
RequestsPerMinute = Annotated[float | None, typer.Option(min=0.001, help="Never ask more often.")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one answer.")]
PricePerSearch = Annotated[float, typer.Option(min=0, help="Cohere's unit: a query with 100 documents.")]
PricePerMillionTokens = Annotated[float, typer.Option(min=0, help="Jina's and Voyage's unit.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Stop before this is exceeded, over all runs.")]
SquashOption = Annotated[
    Literal["none", "sigmoid", "half"], typer.Option(help="For scores outside [0, 1]: logits, cosines.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, ask nobody.")]
DeviceOption = Annotated[str | None, typer.Option(help="For local teachers: cpu, cuda, mps.")]


@app.command()
def score(
    pairs: PairsFile,
    out: Out,
    teacher: Teacher,
    model: ModelOption,
    template: Template = None,
    calibrate: Calibrate = False,
    mix: Mix = 1.0,
    store: Store = Path("teacher.sqlite"),
    url: Url = None,
    key_env: KeyEnv = None,
    batch_size: BatchSize = 32,
    concurrency: Concurrency = 4,
    requests_per_minute: RequestsPerMinute = None,
    timeout_s: TimeoutS = 60.0,
    price_per_search: PricePerSearch = 0.0,
    price_per_million_tokens: PricePerMillionTokens = 0.0,
    budget: Budget = None,
    squash: SquashOption = "none",
    dry_run: DryRun = False,
    device: DeviceOption = None,
    on_bad: Bad = "fail",
) -> None:
    """Give each pair a `teacher_score` in [0, 1].

    Interrupt it, kill it, run out of budget: the same command goes on where it stopped, and pays for no pair twice
    (except calls that were under way when it died; how many that were is in the report).

    Example, without a key: prism data score pairs.jsonl scored.jsonl --teacher reranker
    --model qwen2.5-coder-1.5b-instruct --template prism --calibrate --mix 0.5
    """
    prices = (price_per_search, price_per_million_tokens, budget)
    limits = _limits(batch_size, concurrency, requests_per_minute, timeout_s, prices)
    require_other(out, [pairs])
    asked = _asked(teacher, model, device, template, url, key_env)
    how: dict[str, Any] = {"squash": squash, "calibrate": calibrate, "mix": mix, "dry_run": dry_run, "on_bad": on_bad}
    _score(pairs, out, asked, store, limits, **how)


def _limits(
    batch_size: int,
    concurrency: int,
    requests_per_minute: float | None,
    timeout_s: float,
    prices: tuple[float, float, float | None],
) -> ApiLimits:
    from prism.data.teachers import ApiLimits

    search, tokens, budget = prices
    return ApiLimits(batch_size, concurrency, requests_per_minute, timeout_s, search, tokens, budget)


def _asked(
    teacher: _Teacher, model: str, device: str | None, template: str | None, url: str | None, key_env: str | None
) -> ApiTeacher | LocalTeacher:
    from prism.data.teacher_local import load_teacher
    from prism.llm.rerank_api import ApiTeacher

    if device is not None:
        choose_device(device)
    if template is not None and teacher != "reranker":
        raise InputError(f"--template is for --teacher reranker: a teacher of kind {teacher} has a prompt of its own")
    if teacher == "reranker" or teacher == "cross-encoder" or teacher == "embedding":
        return load_teacher(teacher, model, device, template)
    return ApiTeacher.from_environment(teacher, model, url, key_env)


def _score(
    pairs: Path,
    out: Path,
    asked: ApiTeacher | LocalTeacher,
    store: Path,
    limits: ApiLimits,
    *,
    squash: Squash,
    calibrate: bool,
    mix: float,
    dry_run: bool,
    on_bad: OnBad,
) -> None:
    from prism.data.teacher_fit import calibrated
    from prism.data.teacher_store import TeacherStore
    from prism.data.teachers import estimate_calls, score_locally, score_with_api, scored
    from prism.llm.rerank_api import ApiTeacher

    name, read = asked.name, _reader(pairs, on_bad)
    with TeacherStore(store, name) as kept:
        if dry_run:
            typer.echo(_priced(*estimate_calls(read, name, kept, limits)))
            return
        with progress("scoring", count_lines(pairs)) as advance:
            if isinstance(asked, ApiTeacher):
                failures = score_with_api(read, asked, kept, limits, advance)
            else:
                failures = score_locally(read, asked, kept, limits.batch_size, advance)
        drops = Drops()
        rows = partial(scored, teacher=name, store=kept, failures=failures, squash=squash)
        fit = calibrated(rows(read(), drops=Drops())) if calibrate else None
        written = write_rows(out, rows(read_pairs(pairs, drops, on_bad), drops=drops, fit=fit, mix=mix))
        spent = kept.spent()
    said = {"teacher": name, "cost": spent._asdict(), "calibration": fit.report() if fit else None, "mix": mix}
    finish(write_stage_report(out, "score", [pairs], drops, records=written.records, **said), out, written)


def _reader(path: Path, on_bad: OnBad) -> Callable[[], Iterator[Line]]:
    """For passes over a file whose drops are counted by another pass."""
    return lambda: read_pairs(path, Drops(), on_bad)


def _priced(pairs: int, calls: int, cost: Any) -> str:
    return f"{pairs:,} pairs without a score, {calls:,} calls, at most {cost.tokens:,} tokens, {cost.cost:.2f} in all"


@app.command()
def qa(
    files: Annotated[
        list[Path],
        typer.Argument(help="Question-passage JSONL (.gz too), QED, PubMedQA, folders of contexts, sections."),
    ],
    out_dir: Annotated[Path, typer.Argument(help="Where train.jsonl, dev.jsonl and report.json go.")],
    settings: Annotated[
        Path | None, typer.Option(help="YAML with the keys of a recipe's `data.qa`; options here come on top.")
    ] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Evaluation set (BEIR folder or JSONL) that nothing may touch.")
    ] = None,
    dense: Annotated[
        str | None, typer.Option(help="Sentence-transformers model for negatives and teacher: minilm, folder, hub id.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=10, help="So many questions in all.")] = None,
    seed: Seed = 0,
) -> None:
    """Make training records of question-passage sets: negatives by BM25 and a dense model, a calibrated teacher,
    contributions and evidence by rule, documents held out to measure on.

    A finished build over the same files and settings is left as it is.
    """
    from prism.data.qa import build, read_settings
    from prism.result import printable

    options = {"exclude": exclude or None, "dense": dense, "limit": limit}
    chosen = read_settings(settings, files, {name: value for name, value in options.items() if value is not None})
    report = build(chosen, out_dir, seed, lambda line: typer.echo(line, err=True))
    for name in ("train", "dev"):
        typer.echo(f"{out_dir / name}.jsonl: {report[name]['records']:,} records")
    for reason, found in report["dropped"].items():
        typer.echo(printable(f"{found['count']:,}: {reason} (first: {found['first'][0]})"), err=True)
