"""`prism write-targets`: contributions and evidence for the pairs labelled yes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism.cli.writers import (
    CONTEXT_TOKENS,
    StartLocal,
    api_provider,
    api_writer,
    require_writer,
    served_writer,
    writer_identity,
)
from prism.errors import InputError
from prism.outputs import require_folder, writable_file
from prism.reports.bar import progress

if TYPE_CHECKING:
    from prism.evaluation.judge import Rating
    from prism.files.jsonl import Drops, Line, OnBad
    from prism.labeling.write_targets import TargetWriter
    from prism.llm.allowance import Provider
    from prism.llm.asking import Asked
    from prism.llm.chat import ChatClient

Labels = Annotated[Path, typer.Argument(help="JSONL with query, document and verdict (or label): labels.jsonl.")]
Out = Annotated[
    Path,
    typer.Argument(help="Where the targets go; answers are kept in OUT.state beside it.", callback=writable_file),
]
Model = Annotated[str, typer.Option(help="The writing model, as its API calls it.")]
BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible API, up to and including /v1.")]
ContextTokens = Annotated[int, typer.Option(min=256, help="With --start-local: longest prompt and answer together.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds the key, if any.")]
PriceOption = Annotated[str, typer.Option(help="US dollars per million tokens, INPUT:OUTPUT.")]
BudgetUsd = Annotated[float | None, typer.Option(min=0, help="Hard stop, earlier runs included.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests under way at once; --start-local: one.")]
Attempts = Annotated[int, typer.Option(min=1, help="Answers asked for at most before a pair is dropped.")]
MinSupport = Annotated[float, typer.Option(min=0, max=1, help="Least support of an evidence.")]
MaxCompression = Annotated[float, typer.Option(min=0.05, help="Longest evidence, over the document.")]
MaxUnsupported = Annotated[int, typer.Option(min=0, help="Facts that the document may lack.")]
YesFrom = Annotated[int | None, typer.Option(help="Labels from here on mean yes. Default: the verdict.")]
Judge = Annotated[str | None, typer.Option(help="Model that grades what passed the checks, 1 to 5.")]
JudgeUrl = Annotated[
    str | None, typer.Option(help="The judge's API, if not that of the writer; needed with --start-local.")
]
JudgeKeyEnv = Annotated[str | None, typer.Option(help="The judge's key, if not that of the writer.")]
JudgeMin = Annotated[int, typer.Option(min=1, max=5, help="Any grade below this drops the pair.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first pairs labelled yes.")]
OnBadOption = Annotated[Literal["fail", "skip"], typer.Option("--on-bad", help="What a malformed line does.")]


def write_targets(
    labels: Labels,
    out: Out,
    model: Model,
    base_url: BaseUrl = None,
    start_local: StartLocal = False,
    context_tokens: ContextTokens = CONTEXT_TOKENS,
    key_env: KeyEnv = None,
    price: PriceOption = "0:0",
    budget_usd: BudgetUsd = None,
    concurrency: Concurrency = 8,
    attempts: Attempts = 3,
    min_support: MinSupport = 0.7,
    max_compression: MaxCompression = 0.8,
    max_unsupported: MaxUnsupported = 0,
    yes_from: YesFrom = None,
    judge: Judge = None,
    judge_url: JudgeUrl = None,
    judge_key_env: JudgeKeyEnv = None,
    judge_min: JudgeMin = 3,
    limit: Limit = None,
    on_bad: OnBadOption = "fail",
) -> None:
    """Have an LLM write contribution and evidence for each pair labelled yes, and keep what passes the checks.

    Checked: form, names and numbers against the document, a span of the document for every sentence, length, language.
    A text with faults is asked for again, naming them; what fails to the end is dropped, with the reason in
    OUT.report.json. Every answer is on disk before it counts: stop the command however you like and run it again.

    --start-local needs no key and no account: the server starts at the first question, its log is in OUT.state, and it
    ends with this command.

    Example: prism write-targets labels/labels.jsonl targets.jsonl --model small --base-url https://api.example.com/v1
    --key-env EXAMPLE_API_KEY --price 0.1:0.4 --budget-usd 5
    """
    read = _Reading(labels, yes_from, limit, on_bad)
    limits = (attempts, min_support, max_compression, max_unsupported)
    if start_local == (base_url is not None):
        raise InputError("say where the model is: --base-url of an API, or --start-local to serve it on this machine")
    if start_local:
        require_writer(model)
        if key_env or budget_usd is not None or _price(price) != _price("0:0"):
            raise InputError("--start-local has no account: leave out --key-env, --budget-usd and --price")
        if judge and judge_url is None:
            raise InputError("--start-local serves the writer alone: say --judge-url of the judge's API")
    with _alone(out):
        client: Callable[[Decimal], ChatClient] = partial(_served, model, out, context_tokens)
        if base_url is not None:
            client = partial(api_writer, api_provider(base_url, key_env, concurrency, budget_usd), model)
        grades_at = (judge_url or base_url) if judge else None
        grading = api_provider(grades_at, judge_key_env or key_env, concurrency) if grades_at else None
        kept_for = writer_identity(model) if start_local else model
        writer = _writer(client, model, kept_for, out, limits, _price(price))
        asked = _write(writer, read)
        judged = _judge(writer, read, grading, judge, judge_min, out) if judge and grading and not asked.stopped else {}
        _report(writer, read, out, asked, judged)


def _served(model: str, out: Path, context_tokens: int, _spent_usd: Decimal) -> ChatClient:
    return served_writer(model, out.with_name(out.name + ".state") / "server.log", context_tokens)


def _writer(
    client: Callable[[Decimal], ChatClient],
    model: str,
    kept_for: str,
    out: Path,
    limits: tuple[int, float, float, int],
    price: Any,
) -> TargetWriter:
    """Goes on where an earlier run stood, its cost included. Limits: attempts, support, compression, unsupported."""
    from prism.labeling.write_targets import TargetLimits, TargetWriter, open_kept

    kept = open_kept(out, kept_for, _echo)
    spent_usd = sum((attempt.cost_usd for attempt in kept.read().values()), Decimal(0))
    attempts, support, compression, unsupported = limits
    kept_to = TargetLimits(
        attempts=attempts, min_support=support, max_compression=compression, max_unsupported=unsupported
    )
    return TargetWriter(client(spent_usd), model, kept, limits=kept_to, price=price)


def _echo(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two commands on one file would both pay for the same answers."""
    from filelock import FileLock, Timeout

    state = out.with_name(out.name + ".state")
    require_folder(state)
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another command is writing {out}: wait for it, or choose another file") from error


class _Reading:
    """The pairs labelled yes, read again for each round."""

    def __init__(self, labels: Path, yes_from: int | None, limit: int | None, on_bad: OnBad) -> None:
        self.labels = labels
        self._yes_from, self._limit, self._on_bad = yes_from, limit, on_bad

    def lines(self, drops: Drops) -> Iterator[Line]:
        from itertools import islice

        from prism.files.jsonl import read_pairs
        from prism.labeling.write_targets import is_yes

        lines = read_pairs(self.labels, drops, self._on_bad)
        yield from islice((line for line in lines if is_yes(line.row, self._yes_from)), self._limit)

    def rows(self) -> Iterator[dict[str, Any]]:
        from prism.files.jsonl import Drops

        return (line.row for line in self.lines(Drops()))


def _price(text: str) -> Any:
    from pydantic import ValidationError

    from prism.llm.money import Price

    into, _, out = text.partition(":")
    try:
        return Price.model_validate({"input": into, "output": out})
    except ValidationError as error:
        raise InputError(f"--price {text!r}: expected INPUT:OUTPUT in dollars, such as 0.1:0.4") from error


def _write(writer: TargetWriter, read: _Reading) -> Asked:
    new = [writer.is_new(row) for row in read.rows()]
    if not new:
        raise InputError(f"{read.labels} has no pair labelled yes: expected `verdict` yes, or `label` with --yes-from")

    async def go() -> Asked:
        async with writer.client:
            with progress("answers", sum(new)) as advance:  # where texts have faults they are more
                return await writer.write(read.rows, lambda: advance(1))

    return asyncio.run(go())


def _judge(
    writer: TargetWriter, read: _Reading, provider: Provider, model: str, least: int, out: Path
) -> dict[str, str]:
    """Pair id -> why the judge drops it. A pair without grades is kept: that is the judge's failure, and said."""
    from prism.evaluation.evidence_quality import Extract
    from prism.evaluation.evidence_sets import Case, make_case
    from prism.evaluation.judge import RUBRIC_ID, Rating, RubricJudge
    from prism.files.ledger import Kept
    from prism.labeling.write_targets import Texts
    from prism.llm.asking import ask_all
    from prism.llm.chat import ChatClient

    client = ChatClient(provider, name=model)
    rater = RubricJudge(client, model)
    name = f"judge.{RUBRIC_ID}.{''.join(c if c.isalnum() else '-' for c in model)}.sqlite"
    kept = Kept(out.with_name(out.name + ".state") / name, Rating, _echo)
    pairs: dict[str, tuple[str, tuple[Case, Extract]]] = {}
    for row in read.rows():
        found = writer.outcome(row)
        if isinstance(found, Texts):
            case = make_case("targets", row["query"], row["document"], row.get("title"))
            extract = Extract(evidence=found.evidence, contribution=found.contribution, generated=True)
            pairs[row["id"]] = (rater.key(case, extract), (case, extract))
    done = kept.read()
    todo = {key: pair for key, pair in pairs.values() if key not in done}

    async def go() -> Asked:
        async with client:
            with progress("grades", len(todo)) as advance:
                at_once = provider.concurrency
                return await ask_all(
                    todo.items(), rater.rate, kept.append, at_once=at_once, progress=lambda: advance(1)
                )

    asked = asyncio.run(go())
    if asked.stopped:
        _echo(f"the judge stopped: {asked.stopped}")
    return _graded_low({id_: key for id_, (key, _) in pairs.items()}, kept.read(), least)


def _graded_low(keys: dict[str, str], ratings: Mapping[str, Rating], least: int) -> dict[str, str]:
    """Pair id -> its grades under `least`."""
    from prism.evaluation.judge import CRITERIA, grade

    dropped, ungraded = {}, 0
    for id_, key in keys.items():
        grades = {criterion: grade(ratings.get(key), criterion) for criterion in CRITERIA}
        low = [f"{criterion} {value}" for criterion, value in grades.items() if value is not None and value < least]
        ungraded += all(value is None for value in grades.values())
        if low:
            dropped[id_] = ", ".join(low)
    if ungraded:
        _echo(f"the judge gave no grades for {ungraded} of {len(keys)} texts: they are kept ungraded")
    return dropped


def _report(writer: TargetWriter, read: _Reading, out: Path, asked: Asked, judged: dict[str, str]) -> None:
    from prism.cli.data import finish as echo_report
    from prism.files.jsonl import Drops, WrittenFile, write_stage_report
    from prism.labeling.write_targets import RUBRIC_ID, finish
    from prism.llm.asking import Asked

    drops = Drops()
    finished = finish(writer, read.lines(drops), out, drops, judged)
    facts = finished.model_dump(mode="json", exclude={"unchanged"})
    if finished.unchanged and asked == Asked():  # the report of the run that made it stays
        report: dict[str, Any] = {"records": finished.records, "dropped": drops.report()}
    else:
        report = write_stage_report(
            out, "write-targets", [read.labels], drops, model=writer.model, rubric=RUBRIC_ID,
            limits=writer.limits.model_dump(mode="json"), asked=asked.model_dump(mode="json"), **facts,
        )  # fmt: skip
    echo_report(report, out, WrittenFile(finished.records, finished.unchanged))
    typer.echo(f"{finished.answers:,} answers, ${finished.cost_usd:.4f}", err=True)
    if finished.no_answer_yet or asked.stopped:
        why = f": {asked.stopped}" if asked.stopped else f" {asked.undelivered or ''}"
        typer.echo(
            f"{finished.no_answer_yet:,} pairs have no usable answer yet{why}: run the same command again", err=True
        )
        raise typer.Exit(1)
