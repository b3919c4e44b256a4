"""Reranked BEIR sets: systems measured, kept, and reported; what `eval/beir_qa.py` runs."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prism.devices import Dtype
from prism.errors import DataError, InputError
from prism.evaluation.reranking import QueryReranker
from prism.files.beir import BEIR_QA, BeirSet, load_beir, local_sets
from prism.files.trec import read_run, write_run
from prism.measures.ranking import MEASURES, measure
from prism.outputs import write_text
from prism.reports.blocks import plain
from prism.reports.report import command_line, versions
from prism.types import Record, Run
from studies import beir_report
from studies.chance import shuffled_ndcg
from studies.fusion import parse_fusion
from studies.rerankers import open_reranker
from studies.specs import Spec, parse_fields, parse_spec
from studies.systems import (
    Reranking,
    Say,
    System,
    bm25_system,
    dense_system,
    fitted_weight,
    fuse,
    kept_before,
    open_state,
    percentiles,
    rerank_rest,
    reranked_system,
    run_system,
    unfinished,
)

MIN_DEPTH = 100
"""Candidates kept per query even when fewer are reranked, so that Recall@100 means the same for every top-k."""
_DISTRIBUTIONS = ("bm25s", "ir-measures", "numpy", "scipy", "torch", "transformers", "sentence-transformers")
Load = Callable[[str, "Options"], QueryReranker]


class Options(Record):
    """What the command line says."""

    models: tuple[str, ...] = ()
    data: Path | None = None
    datasets: tuple[str, ...] = ()
    split: str = "test"
    first: str = "bm25"
    run: Path | None = None
    baseline: tuple[str, ...] = ()
    fuse: tuple[str, ...] = ()
    tune_queries: int = Field(default=200, ge=2)
    top_k: int = Field(default=100, ge=1)
    limit: int | None = Field(default=None, ge=1)
    engine: Literal["hf", "vllm", "openai"] = "hf"
    base_url: tuple[str, ...] = ()
    template: str | None = None
    dtype: Dtype = "auto"
    instruction: str | None = None
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    query_batch: int = Field(default=1, ge=1)
    api_fields: str = "{}"
    price: tuple[str, ...] = ()
    resume: bool = True
    out: Path = Path("eval/results/beir_qa")


def load_reranker(name: str, options: Options) -> QueryReranker:
    """The reranker behind a name of `--model`: see studies.rerankers."""
    return open_reranker(
        parse_spec(name),
        engine=options.engine,
        dtype=options.dtype,
        base_url=options.base_url,
        template=options.template,
        cache=options.out / "cache" / "services.sqlite",
        fields=parse_fields(options.api_fields),
    )


def evaluate(options: Options, say: Say, load: Load = load_reranker) -> Path:
    """Measure the first stage and every model on every data set; returns the path of report.json."""
    datasets = _datasets(options)
    _check(options, datasets[0])
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
            _measure(data, options, loader, say)
    finally:
        for reranker in loaded.values():
            reranker.close()
    return options.out / "report.json"


def _measure(data: BeirSet, options: Options, load: Callable[[str], QueryReranker], say: Say) -> None:
    """All systems of one data set, each in report.json as soon as it is there; then the report for people."""
    changed = not (options.out / "report.html").is_file()

    def keep(system: System) -> None:
        nonlocal changed
        changed |= record(data, system, options, say)

    systems = _ranked(data, options, load, say, keep)
    tuned: dict[str, System] = {}
    for text in options.fuse:
        method, names = parse_fusion(text)
        weight: float | None = None
        if method != "rrf":
            train = _limited(load_beir(data.name, options.data, "train"), options.tune_queries)
            tuned = tuned or _ranked(train, options, load, say, lambda _: None)
            weight = fitted_weight(train, [tuned[name] for name in names], method, options.top_k)
            say(f"{data.name} {text}: weight {weight:.2f} on {names[0]}, from {len(train.queries)} train queries")
        keep(fuse([systems[name] for name in names], method, options.top_k, "-".join((method, *names)), weight))
    if changed:
        _publish(data, options)
    else:
        say(f"{data.name}: finished before, nothing changed")


def _ranked(
    data: BeirSet, options: Options, load: Callable[[str], QueryReranker], say: Say, keep: Callable[[System], None]
) -> dict[str, System]:
    """First stage, baselines and reranked systems by name; `keep` gets each as soon as it is finished."""
    first = first_stage(data, options)
    found = {first.name: first}
    keep(first)
    for text in options.baseline:
        baseline = _retrieve(data, text, options)
        found[baseline.name] = baseline
        keep(baseline)
    for model in options.models:
        plan = _plan(model, options)
        state = open_state(data, plan, options.out / "state", options.resume, say)
        finished = kept_before(data, first, plan, state, say)
        if unfinished(first, finished):
            rerank_rest(data, first, plan, state, finished, load(model))
        found[plan.system] = reranked_system(first, plan, finished)
        keep(found[plan.system])
    return found


def first_stage(data: BeirSet, options: Options) -> System:
    """Candidates for each query, best first."""
    if options.run is None:
        return _retrieve(data, options.first, options)
    decided = {"split": data.split, "limit": options.limit}
    return run_system(data, _first_name(options, data.name), options.run, decided)


def _retrieve(data: BeirSet, text: str, options: Options) -> System:
    depth, decided = max(options.top_k, MIN_DEPTH), {"split": data.split, "limit": options.limit}
    if text == "bm25":
        return bm25_system(data, depth, decided)
    spec = _dense(text)
    return dense_system(data, spec.system, spec.name, depth, options.out / "cache" / "dense", decided)


def _dense(text: str) -> Spec:
    spec = parse_spec(text)
    if spec.kind != "dense":
        raise InputError(f"cannot retrieve with {text!r}: expected bm25 or dense:PATH-OR-NAME")
    return spec


def _plan(model: str, options: Options) -> Reranking:
    decides = options.model_dump(include={"top_k", "engine", "dtype", "instruction", "max_prompt_tokens"})
    if options.template is not None:
        decides["template"] = options.template
    if parse_spec(model).is_service:
        decides["api_fields"] = parse_fields(options.api_fields)
    return Reranking(
        system=parse_spec(model).system,
        model=model,
        top_k=options.top_k,
        instruction=options.instruction,
        max_prompt_tokens=options.max_prompt_tokens,
        at_once=options.query_batch,
        decides=decides,
    )


# --- what was asked --------------------------------------------------------------------------------------------------


def _check(options: Options, dataset: str) -> None:
    """Everything that can be wrong with the words, before anything is computed."""
    names = [
        _first_name(options, dataset),
        *("bm25" if text == "bm25" else _dense(text).system for text in options.baseline),
    ]
    names += [parse_spec(model).system for model in options.models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"system {name!r} is taken: rename one of the models or give it another --out")
    for text in options.fuse:
        method, fused = parse_fusion(text)
        if strange := [name for name in fused if name not in names]:
            raise InputError(f"--fuse {text!r}: no system {strange[0]!r}: this run has {', '.join(names)}")
        if method != "rrf" and options.run is not None:
            raise InputError(f"--fuse {text!r}: a run file has no train queries to fit a weight on: use rrf")
        if method != "rrf" and options.split == "train":
            raise InputError(f"--fuse {text!r}: the weight is fitted on train and cannot be measured there: use rrf")
    for text in options.price:
        if (system := beir_report.price(text)[0]) not in names:
            raise InputError(f"--price {text!r}: no system {system!r}: this run has {', '.join(names)}")
    parse_fields(options.api_fields)
    if bool(options.base_url) != (options.engine == "openai"):
        raise InputError("--engine openai and --base-url go together: pass both, or none")
    if secret := next((url for url in options.base_url if "@" in url), None):
        raise InputError(f"--base-url ...{secret.rpartition('@')[2]}: a key does not belong in an address")


def _first_name(options: Options, dataset: str) -> str:
    if options.run is not None:
        return options.run.stem.removeprefix(f"{dataset}.")
    return "bm25" if options.first == "bm25" else _dense(options.first).system


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


# --- report ----------------------------------------------------------------------------------------------------------


def record(data: BeirSet, system: System, options: Options, say: Say) -> bool:
    """Write the system's run and put its measures into report.json, next to what is there already.

    Returns whether anything changed: a system that was finished before keeps what is known of the run that made it.
    """
    names = list(dict.fromkeys((*MEASURES, f"Recall@{options.top_k}")))
    measures = {name: round(value, 6) for name, value in measure(data.qrels, system.run, names).items()}
    same = write_run(_run_file(options, data.name, system.name), system.run, tag=system.name)
    report = _read_report(options.out / "report.json")
    known = report["meta"].get(data.name, {}).get(system.name)
    meta = _meta(data, system, options)
    facts = ("options", "failures", "usd", "tokens", "requests")
    same = same and options.resume and known is not None and all(known.get(fact) == meta[fact] for fact in facts)
    meta = known if same else meta
    if known is not None and known["options"] != meta["options"]:
        say(f"{data.name} {system.name}: replaces the result of an earlier run with other options")
    report["datasets"].setdefault(data.name, {})[system.name] = measures
    report["meta"].setdefault(data.name, {})[system.name] = meta
    if not same:
        write_text(options.out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    figures = ", ".join(f"{name} {measures[name]:.4f}" for name in ("nDCG@10", f"Recall@{options.top_k}", "MRR@10"))
    say(f"{data.name} {system.name}: {figures}")
    if system.failures:
        total, reason = sum(system.failures.values()), max(system.failures, key=system.failures.__getitem__)
        say(f"{data.name} {system.name}: {total} documents could not be judged, most often: {reason}")
    return not same


def _run_file(options: Options, dataset: str, system: str) -> Path:
    return options.out / f"{dataset}.{system}.run"


def _publish(data: BeirSet, options: Options) -> None:
    """Compare the systems that were measured on these queries, and write the report."""
    report = _read_report(options.out / "report.json")
    runs: dict[str, Run] = {}
    for name, meta in report["meta"][data.name].items():
        path, same = _run_file(options, data.name, name), {"split": data.split, "limit": options.limit}
        if path.is_file() and same == {key: meta["options"].get(key) for key in same}:
            runs[name] = read_run(path) if path.stat().st_size else {}
    report["comparisons"][data.name] = beir_report.compare(data.qrels, runs)
    beir_report.build(report, command_line(), versions(*_DISTRIBUTIONS)).write(options.out, report)


def _meta(data: BeirSet, system: System, options: Options) -> dict[str, Any]:
    meta = {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(system.seconds, 2),
        **dict(percentiles(system.latencies)),
        "tokens": system.tokens,
        "requests": system.requests,
        "usd": beir_report.dollars(options.price, system.name, system.tokens, system.requests),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "queries": len(data.qrels),
        "queries_without_candidates": sum(not system.run.get(query) for query in data.qrels),
        "failures": dict(sorted(system.failures.items())),
        "options": plain(system.options),
        "versions": versions(*_DISTRIBUTIONS),
    }
    if "candidates" not in system.options:
        meta["shuffled_ndcg10"] = round(shuffled_ndcg(data.qrels, system.run, options.top_k), 6)
    return meta


def _read_report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"datasets": {}, "meta": {}, "comparisons": {}}
    try:
        report = json.loads(path.read_bytes())
    except ValueError:
        report = None
    if not (isinstance(report, dict) and all(isinstance(report.get(part), dict) for part in ("datasets", "meta"))):
        raise DataError(f"{path}: not a report of this program: move it away, or choose another --out")
    return {part: report.get(part, {}) for part in ("datasets", "meta", "comparisons")}
