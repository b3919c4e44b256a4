"""Score every document, rank, write for those worth reading, check what was written.

    Reranker.rerank -> Template.render -> Engine.score -> scoring -> rank and select
                    -> Engine.write, in waves -> Template.parse -> evidence.check -> RerankResult

All scores are known before the first word is written, so only documents that are returned and pass the threshold cost
written tokens. `arerank` is the one implementation; `rerank` runs it on an event loop the reranker owns, in a thread,
which is why it also works where a loop is running already (Jupyter).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple, Self, TypeVar

from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from prism.engines.base import Engine, LabelLogits, WriteRequest
from prism.errors import DocumentError, EngineError, InputError
from prism.inputs import read_count, read_documents, read_fraction, read_text
from prism.result import CountTokens, RerankResult
from prism.scoring import score
from prism.template import Prompt, Template
from prism.types import Document, Judgment, Outcome, Usage, clean

__all__ = ["MIN_WRITE_TOKENS", "RerankResult", "Reranker"]

MIN_WRITE_TOKENS = 32
"""What is left of an evidence budget below this buys no passage worth reading."""

_T = TypeVar("_T")


class _Pair(NamedTuple):
    """One document on its way through a call."""

    document: Document
    prompt: Prompt | None
    """None when the document cannot be judged; then `judgment.error` says why."""
    judgment: Judgment


class Reranker:
    """Ranks documents for a query and explains the ones that help.

    The verdict is decided in one place: `yes` if and only if score >= threshold. With the default of 0.5 that is the
    model's own answer; another threshold also decides for which documents evidence is written.
    """

    def __init__(self, template: Template, engine: Engine, *, name: str, threshold: float = 0.5) -> None:
        self.template = template
        self.name = name
        self.threshold = read_fraction("threshold", threshold)
        self._engine = engine
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._stack = ExitStack()

    @classmethod
    def load(
        cls,
        model: str = "nano",
        *,
        engine: Literal["hf"] = "hf",
        template: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        self_test: bool = True,
    ) -> Reranker:
        """A reranker from a checkpoint: `nano` (bundled), a directory, or a name on the hub.

        `template` names the prompt of a checkpoint that carries none. The self-test scores one obvious yes and one
        obvious no. Raises CheckpointError or TemplateError.
        """
        if engine != "hf":
            raise InputError(f"no engine {engine!r}: expected 'hf'")
        from prism.checkpoint import Checkpoint

        checkpoint = Checkpoint.load(model, template=template, revision=revision, trust_remote_code=trust_remote_code)
        hf = _hf_engine(checkpoint.template, checkpoint.load_model(dtype=dtype, device=device))
        reranker = cls(checkpoint.template, hf, name=checkpoint.name, threshold=checkpoint.config.threshold)
        if self_test:
            try:
                reranker._run(partial(checkpoint.self_test, hf))
            except BaseException:
                reranker.close()
                raise
        return reranker

    def rerank(
        self,
        query: str,
        documents: Iterable[str | Document | Mapping[str, Any]],
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        threshold: float | None = None,
        evidence: bool = True,
        evidence_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> RerankResult:
        """`arerank`, waited for. Interrupting it stops the work."""
        return self._run(
            partial(
                self.arerank,
                query,
                documents,
                instruction=instruction,
                top_n=top_n,
                threshold=threshold,
                evidence=evidence,
                evidence_tokens=evidence_tokens,
                max_prompt_tokens=max_prompt_tokens,
            )
        )

    async def arerank(
        self,
        query: str,
        documents: Iterable[str | Document | Mapping[str, Any]],
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        threshold: float | None = None,
        evidence: bool = True,
        evidence_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> RerankResult:
        """Judge each document for the query.

        `documents`: texts, `Document`s, or mappings with `text` and optionally `id` and `title`. `top_n`: how many
        judgments to return (documents with an error come on top). `evidence_tokens`: how many tokens may be written in
        all. `max_prompt_tokens`: where documents are cut, if not at the template's limit; each cut is reported.
        Raises InputError when the call itself is wrong, EngineError when the model fails; cancellable at any time.
        """
        query = read_text("query", query)
        instruction = None if instruction is None else read_text("instruction", instruction)
        limit = None if max_prompt_tokens is None else read_count("max_prompt_tokens", max_prompt_tokens)
        top_n = None if top_n is None else read_count("top_n", top_n)
        budget = None if evidence_tokens is None else read_count("evidence_tokens", evidence_tokens, least=0)
        threshold = self.threshold if threshold is None else read_fraction("threshold", threshold)
        read, warnings = read_documents(documents)

        render = partial(self._render, query, instruction=instruction, max_tokens=limit)
        pairs = [await to_thread.run_sync(render, index, document) for index, document in enumerate(read)]
        pairs, cached_tokens = await self._score(pairs, threshold)
        ranked = sorted((pair for pair in pairs if pair.prompt), key=_rank)[:top_n]
        if evidence:
            ranked = await self._write(query, ranked, budget)
            warnings += _budget_warnings(ranked, budget)
        return self._result(query, pairs, ranked, cached_tokens, warnings)

    def _result(
        self, query: str, pairs: Sequence[_Pair], ranked: Sequence[_Pair], cached_tokens: int, warnings: Sequence[str]
    ) -> RerankResult:
        failed = [pair for pair in pairs if not pair.prompt]
        usage = Usage(
            prompt_tokens=sum(pair.judgment.usage.prompt_tokens for pair in pairs),
            cached_tokens=cached_tokens,
            written_tokens=sum(pair.judgment.usage.written_tokens for pair in ranked),
        )
        judgments = tuple(pair.judgment for pair in [*ranked, *failed])
        result = RerankResult(query=query, model=self.name, judgments=judgments, usage=usage, warnings=tuple(warnings))
        return result.counting_with(_counter(self.template))

    # --- the steps -------------------------------------------------------------------------------------------------

    def _render(
        self, query: str, index: int, document: Document, *, instruction: str | None, max_tokens: int | None
    ) -> _Pair:
        judgment = Judgment(index=index, id=document.id, title=document.title, score=None, verdict=None)
        if not document.text.strip():
            return _failed(document, judgment, "the document is blank: send its text, or leave it out")
        try:
            prompt = self.template.render(query, document, instruction=instruction, max_tokens=max_tokens)
        except DocumentError as error:
            return _failed(document, judgment, str(error))
        if prompt.truncation and prompt.truncation.read_chars == 0:
            reason = "query, instruction and title leave no room for its text: shorten them or raise max_prompt_tokens"
            return _failed(document, judgment, reason)
        usage = Usage(prompt_tokens=len(prompt.ids))
        return _Pair(document, prompt, judgment.model_copy(update={"truncation": prompt.truncation, "usage": usage}))

    async def _score(self, pairs: Sequence[_Pair], threshold: float) -> tuple[list[_Pair], int]:
        """The pairs with score and verdict, in the same order, and how many prompt tokens were not computed again."""
        prompts = [pair.prompt.ids for pair in pairs if pair.prompt]
        if not prompts:
            return list(pairs), 0
        output = await self._engine.score(prompts)
        if len(output.labels) != len(prompts):
            raise EngineError(f"the engine answered {len(output.labels)} of {len(prompts)} prompts: report this engine")
        answers = iter(output.labels)
        scored = [_judge(pair, next(answers), threshold) if pair.prompt else pair for pair in pairs]
        return scored, output.cached_tokens

    async def _write(self, query: str, ranked: Sequence[_Pair], budget: int | None) -> list[_Pair]:
        """The pairs with evidence where the verdict is yes, in rank order, until the budget is spent.

        A wave holds as many documents as the budget surely covers; what a wave leaves over pays for the next.
        """
        done = list(ranked)
        waiting = [rank for rank, pair in enumerate(done) if pair.judgment.verdict == "yes"]
        most = self.template.spec.max_written_tokens
        while waiting and (budget is None or budget >= MIN_WRITE_TOKENS):
            cap = most if budget is None else min(most, budget)
            size = len(waiting) if budget is None else max(1, budget // cap)
            wave, waiting = waiting[:size], waiting[size:]
            for rank, written in zip(wave, await self._write_wave([done[rank] for rank in wave], cap), strict=True):
                done[rank] = await to_thread.run_sync(self._read_written, query, done[rank], written)
                budget = None if budget is None else budget - written.tokens
        return done

    async def _write_wave(self, pairs: Sequence[_Pair], max_tokens: int) -> list[_Text]:
        label = self.template.yes_id
        requests = [WriteRequest([*pair.prompt.ids, label], max_tokens) for pair in pairs if pair.prompt]
        texts = [_Text() for _ in requests]
        async for piece in self._engine.write(requests):
            text = texts[piece.index]
            texts[piece.index] = _Text(text.text + piece.text, text.tokens + piece.tokens, piece.finish or text.finish)
        if any(text.finish is None for text in texts):
            raise EngineError("the engine stopped in the middle of a text without saying why: try again")
        return texts

    def _read_written(self, query: str, pair: _Pair, written: _Text) -> _Pair:
        from prism import evidence as checks

        parsed = self.template.parse(written.text, written.finish or "stop")
        judgment, document = pair.judgment, pair.document
        check = None
        if parsed.evidence:
            read_chars = judgment.truncation.read_chars if judgment.truncation else len(document.text)
            read = clean(document.text[:read_chars])
            title = document.title and clean(document.title)
            check = checks.check(parsed.evidence, read, contribution=parsed.contribution, query=query, title=title)
        update = {
            "outcome": parsed.outcome,
            "contribution": parsed.contribution,
            "evidence": parsed.evidence,
            "check": check,
            "usage": judgment.usage + Usage(written_tokens=written.tokens),
        }
        return pair._replace(judgment=judgment.model_copy(update=update))

    # --- lifetime --------------------------------------------------------------------------------------------------

    def _run(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        with self._lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal(name="prism-reranker"))
        future: Future[_T] = self._portal.start_task_soon(call)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Free the model. Calling twice is harmless."""
        try:
            self._run(self._engine.aclose)
        finally:
            self._stop_portal()

    async def aclose(self) -> None:
        """`close`, awaited."""
        try:
            await self._engine.aclose()
        finally:
            await to_thread.run_sync(self._stop_portal)

    def _stop_portal(self) -> None:
        with self._lock:
            self._portal = None
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Text(NamedTuple):
    """A written text so far."""

    text: str = ""
    tokens: int = 0
    finish: Literal["stop", "length"] | None = None


def _hf_engine(template: Template, model: Any) -> Engine:
    from prism.engines.hf import HfEngine

    pad_id = template.tokenizer.pad_token_id
    return HfEngine(
        model,
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        pad_id=min(template.stop_ids) if pad_id is None else pad_id,
        decode=template.decode,
    )


def _judge(pair: _Pair, answer: LabelLogits | DocumentError, threshold: float) -> _Pair:
    """The one place where a score becomes a verdict."""
    if isinstance(answer, DocumentError):
        return _failed(pair.document, pair.judgment, str(answer))
    try:
        value = score(*answer)
    except ValueError as error:
        return _failed(pair.document, pair.judgment, f"{error}: the weights are broken or the dtype overflows")
    verdict = "yes" if value >= threshold else "no"
    return pair._replace(judgment=pair.judgment.model_copy(update={"score": value, "verdict": verdict}))


def _failed(document: Document, judgment: Judgment, reason: str) -> _Pair:
    return _Pair(document, None, judgment.model_copy(update={"error": reason, "usage": Usage()}))


def _rank(pair: _Pair) -> tuple[float, int]:
    """Best score first; equal scores keep the caller's order."""
    return -(pair.judgment.score or 0.0), pair.judgment.index


def _counter(template: Template) -> CountTokens:
    """Counts tokens as the model does, without keeping the model alive."""
    tokenizer = template.tokenizer
    return lambda text: len(tokenizer.encode(clean(text), add_special_tokens=False, verbose=False))


def _budget_warnings(ranked: Sequence[_Pair], budget: int | None) -> list[str]:
    """Says how many documents the budget left without evidence."""
    wanted = [pair.judgment.outcome for pair in ranked if pair.judgment.verdict == "yes"]
    missed = wanted.count(Outcome.NOT_WRITTEN)
    if not missed:
        return []
    return [
        f"evidence_tokens={budget} was spent: {missed} of {len(wanted)} documents with verdict yes have no evidence"
    ]
