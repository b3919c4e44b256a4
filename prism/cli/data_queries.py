"""`prism data keywords`, `queries` and `search`: the queries of agents, and documents for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism.cli.data import Bad, CorpusFile, Out, Seed, app, count_lines, finish
from prism.cli.writers import StartLocal, api_provider, api_writer, require_writer, served_writer, writer_identity
from prism.errors import ChatError, InputError
from prism.files.corpus import read_corpus
from prism.files.jsonl import Drops, OnBad, read_queries, write_rows, write_stage_report
from prism.outputs import writable_file
from prism.reports.bar import progress

if TYPE_CHECKING:
    from prism.data.websearch import WebSearch
    from prism.files.ledger import Attempt, Ledger
    from prism.llm.asking import Asked, Question
    from prism.llm.chat import ChatClient

QueriesFile = Annotated[
    Path, typer.Argument(help="JSONL with query (or question, or BEIR's text) on each line; the rest is kept.")
]
By = Annotated[Literal["rule", "llm"], typer.Option(help="By rule, or by a model behind an OpenAI-compatible API.")]
Model = Annotated[str | None, typer.Option(help="For llm: the model's name at the API, or the one to serve here.")]
BaseUrl = Annotated[str | None, typer.Option(help="For llm: the API's address, up to /v1; or --start-local.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the key.")]
PriceIn = Annotated[float, typer.Option(min=0, help="US dollars per million prompt tokens.")]
PriceOut = Annotated[float, typer.Option(min=0, help="US dollars per million written tokens.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Hard stop in US dollars, over all runs on one store.")]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Requests under way at once; --start-local: one.")]
Rate = Annotated[float | None, typer.Option(min=0.001, help="Requests per minute, at most.")]
Store = Annotated[
    Path, typer.Option(help="SQLite file that keeps every answer: never paid twice.", callback=writable_file)
]


KeepOriginal = Annotated[bool, typer.Option("--keep-original", help="Also keep each question as it was.")]


@app.command()
def keywords(
    questions: QueriesFile,
    out: Out,
    by: By = "rule",
    keep_original: KeepOriginal = False,
    model: Model = None,
    base_url: BaseUrl = None,
    start_local: StartLocal = False,
    key_env: KeyEnv = None,
    price_input: PriceIn = 0.0,
    price_output: PriceOut = 0.0,
    budget_usd: Budget = None,
    concurrency: Concurrency = 8,
    requests_per_minute: Rate = None,
    store: Store = Path("answers.sqlite"),
    on_bad: Bad = "fail",
) -> None:
    """Rewrite questions as the keywords an agent would type.

    Questions whose meaning would be lost are skipped and counted: negations, comparisons, choices, conversions. Rules
    know English, German, Chinese and Russian.
    """
    _require_by(by, start_local)
    if by == "rule":
        _rewrite_by_rule(questions, out, on_bad, keep_original=keep_original)
        return
    price = {"input": Decimal(str(price_input)), "output": Decimal(str(price_output))}
    account = _Account(key_env, price, budget_usd, requests_per_minute)
    llm = _Llm.of(model, base_url, out if start_local else None, account, concurrency)
    _rewrite_by_llm(questions, out, on_bad, llm, store, keep_original=keep_original)


def _require_by(by: str, start_local: bool) -> None:
    if by == "rule" and start_local:
        raise InputError("--start-local serves a model: say --by llm, or leave it out")


def _rewrite_by_rule(questions: Path, out: Path, on_bad: OnBad, *, keep_original: bool) -> None:
    from prism.data.queries import read_keyword_questions, rewrite_rows

    drops = Drops()
    written = write_rows(out, rewrite_rows(read_keyword_questions(questions, drops, on_bad), drops, keep_original))
    finish(write_stage_report(out, "keywords", [questions], drops, records=written.records, by="rule"), out, written)


def _rewrite_by_llm(questions: Path, out: Path, on_bad: OnBad, llm: _Llm, store: Path, *, keep_original: bool) -> None:
    from prism.data.llm_queries import rewrite_question, rewritten_rows
    from prism.data.queries import read_keyword_questions
    from prism.files.ledger import Ledger

    drops = Drops()
    lines = read_keyword_questions(questions, drops, on_bad)
    unread = read_keyword_questions(questions, Drops(), on_bad)
    with Ledger(store, cure="name another file with --store") as kept:
        asked = (rewrite_question(llm.kept_for, row["query"]) for _, row in unread)
        failures = llm.ask_all(asked, kept, 200, count_lines(questions))
        written = write_rows(out, rewritten_rows(lines, llm.kept_for, kept, failures, drops, keep_original))
        paid = {"by": llm.model, "cost": {"usd": str(kept.spent_usd())}}
    finish(write_stage_report(out, "keywords", [questions], drops, records=written.records, **paid), out, written)


Count = Annotated[int, typer.Option(min=1, max=20, help="Queries per text, at most.")]
Limit = Annotated[int | None, typer.Option(min=1, help="For llm: only this many texts, sampled.")]
Total = Annotated[int, typer.Option(min=1, help="For rule: this many queries in all, at most.")]
MaxChars = Annotated[int, typer.Option(min=100, help="For llm: how much of a text is shown.")]


@app.command()
def queries(
    corpus: CorpusFile,
    out: Out,
    by: By = "rule",
    count: Count = 3,
    limit: Limit = None,
    total: Total = 10_000,
    max_chars: MaxChars = 4_000,
    model: Model = None,
    base_url: BaseUrl = None,
    start_local: StartLocal = False,
    key_env: KeyEnv = None,
    price_input: PriceIn = 0.0,
    price_output: PriceOut = 0.0,
    budget_usd: Budget = None,
    concurrency: Concurrency = 8,
    requests_per_minute: Rate = None,
    store: Store = Path("answers.sqlite"),
    seed: Seed = 0,
    on_bad: Bad = "fail",
) -> None:
    """Make up queries that the texts of a corpus answer. The pairs carry no verdict: have them labelled."""
    _require_by(by, start_local)
    if by == "rule":
        _queries_by_rule(corpus, out, on_bad, total, count, seed)
        return
    price = {"input": Decimal(str(price_input)), "output": Decimal(str(price_output))}
    account = _Account(key_env, price, budget_usd, requests_per_minute)
    llm = _Llm.of(model, base_url, out if start_local else None, account, concurrency)
    _queries_by_llm(corpus, out, on_bad, llm, store, count=count, limit=limit, max_chars=max_chars)


def _queries_by_rule(corpus: Path, out: Path, on_bad: OnBad, total: int, per_text: int, seed: int) -> None:
    from prism.data.corpus_pairs import CorpusPairs, pairs_from_corpus

    drops = Drops()
    settings = CorpusPairs(queries=total, per_passage=per_text, hard=0, easy=0)
    examples = pairs_from_corpus(read_corpus(corpus, drops, on_bad), settings, seed, drops)
    names = {"query", "query_id", "document", "doc_id", "title", "source", "language"}
    written = write_rows(out, (example.model_dump(include=names, exclude_none=True) for example in examples))
    finish(write_stage_report(out, "queries", [corpus], drops, records=written.records, by="rule"), out, written)


def _queries_by_llm(
    corpus: Path, out: Path, on_bad: OnBad, llm: _Llm, store: Path, *, count: int, limit: int | None, max_chars: int
) -> None:
    from prism.data.llm_queries import first_texts, query_question, query_rows
    from prism.files.ledger import Ledger

    drops = Drops()
    texts = first_texts(list(read_corpus(corpus, drops, on_bad)), limit)
    with Ledger(store, cure="name another file with --store") as kept:
        asked = (query_question(llm.kept_for, text, count, max_chars) for text in texts)
        failures = llm.ask_all(asked, kept, 60 * count, len(texts))
        written = write_rows(out, query_rows(texts, llm.kept_for, count, max_chars, kept, failures, drops))
        paid = {"by": llm.model, "cost": {"usd": str(kept.spent_usd())}}
    finish(write_stage_report(out, "queries", [corpus], drops, records=written.records, **paid), out, written)


@app.command()
def search(
    queries: QueriesFile,
    out: Out,
    engine: Annotated[Literal["exa", "tavily", "brave", "searxng"], typer.Option(help="Which search API.")],
    url: Annotated[str | None, typer.Option(help="Your SearXNG instance, or another server of that API.")] = None,
    key_env: KeyEnv = None,
    results: Annotated[int, typer.Option(min=1, max=100, help="Pages per query.")] = 10,
    max_chars: Annotated[int, typer.Option(min=100, help="Of each page's text.")] = 4_000,
    concurrency: Concurrency = 4,
    requests_per_minute: Rate = None,
    store: Store = Path("searches.sqlite"),
    on_bad: Bad = "fail",
) -> None:
    """Find web documents for open queries. Each keeps its address, its date, and when it was found."""
    from prism.data.websearch import WebSearch, found_rows
    from prism.files.ledger import Ledger

    asked = WebSearch.from_environment(engine, url, key_env, results=results, max_chars=max_chars)
    drops = Drops()
    with Ledger(store, cure="name another file with --store") as kept:
        with progress("searching", count_lines(queries)) as advance:
            failures = _searched(asked, queries, on_bad, kept, concurrency, requests_per_minute, partial(advance, 1))
        written = write_rows(out, found_rows(read_queries(queries, drops, on_bad), asked, kept, failures, drops))
    finish(write_stage_report(out, "search", [queries], drops, records=written.records, engine=engine), out, written)


def _searched(
    search: WebSearch,
    queries: Path,
    on_bad: Any,
    store: Ledger,
    concurrency: int,
    rate: float | None,
    told: Callable[[], None],
) -> dict[str, str]:
    import anyio
    import httpx
    from aiolimiter import AsyncLimiter

    from prism.data.websearch import questions
    from prism.llm.asking import ask_all

    async def run() -> Asked:
        limiter = AsyncLimiter(1, 60.0 / rate) if rate else None
        async with httpx.AsyncClient(timeout=60.0) as client:
            return await ask_all(
                store.missing(questions(read_queries(queries, Drops(), on_bad), search), told),
                lambda query: search.search(client, query, limiter),
                store.put,
                at_once=concurrency,
                progress=told,
            )

    return _failures(anyio.run(run))


def _failures(asked: Asked) -> dict[str, str]:
    """Why questions have no answer. Raises ChatError when nothing more could be asked."""
    if asked.stopped:
        raise ChatError(asked.stopped)
    return asked.failures


@dataclass(frozen=True, slots=True)
class _Account:
    """What an API is paid, and how fast it may be asked."""

    key_env: str | None
    price: dict[str, Decimal]
    budget_usd: float | None
    requests_per_minute: float | None

    @property
    def unused(self) -> bool:
        limits = (self.key_env, self.budget_usd, self.requests_per_minute)
        return not any(self.price.values()) and all(limit is None for limit in limits)


@dataclass(frozen=True, slots=True)
class _Llm:
    """A model that writes: behind an OpenAI-compatible API, or served on this machine."""

    model: str
    kept_for: str
    """What its answers are kept under: the name at the API, or what is served here."""
    at_once: int
    price: dict[str, Decimal]
    open: Callable[[Decimal], ChatClient]
    """Takes what was spent before, in US dollars."""

    @classmethod
    def of(
        cls, model: str | None, base_url: str | None, served_for: Path | None, account: _Account, concurrency: int
    ) -> _Llm:
        """`served_for`: the file that a model served here writes for; None: the API at `base_url`."""
        if not model or (served_for is None) == (not base_url):
            raise InputError(
                "--by llm needs --model and either --base-url, such as https://api.example.com/v1, or --start-local"
            )
        if served_for is not None:
            require_writer(model)
            if not account.unused:
                raise InputError("--start-local has no account: leave out keys, prices, budgets and rates")
            log = served_for.with_name(served_for.name + ".server.log")
            return cls(model, writer_identity(model), 1, account.price, lambda _: served_writer(model, log))
        if account.budget_usd is not None and not any(account.price.values()):
            raise InputError("a budget needs a price: give --price-input and --price-output")
        limits = (account.budget_usd, account.requests_per_minute)
        provider = api_provider(str(base_url), account.key_env, concurrency, *limits)
        return cls(model, model, concurrency, account.price, partial(api_writer, provider, model))

    def ask_all(
        self, questions: Iterator[Question], store: Ledger, max_tokens: int, total: int | None
    ) -> dict[str, str]:
        """Have every question answered; answers go into the store."""
        import anyio

        from prism.llm.asking import ask_all
        from prism.llm.money import Price

        price = Price(**self.price)

        async def run(told: Callable[[], None]) -> Asked:
            async with self.open(store.spent_usd()) as client:

                async def ask(messages: Any) -> tuple[str, Decimal, Attempt]:
                    log = store.attempt()
                    found = await client.complete(
                        messages, model=self.model, max_tokens=max_tokens, price=price, log=log
                    )
                    return found.text, found.cost_usd, log

                return await ask_all(
                    store.missing(questions, told),
                    ask,
                    lambda key, answer: store.put(key, *answer),
                    at_once=self.at_once,
                    progress=told,
                )

        with progress("asking", total) as advance:
            return _failures(anyio.run(run, partial(advance, 1)))
