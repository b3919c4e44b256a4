"""Score every document, rank, find evidence in those worth reading, check it.

    Reranker.rerank -> Template.render -> Engine.score -> scoring -> rank and select
                    -> written: Engine.write, in waves -> Template.parse
                       quoted:  Engine.score of sentences, in waves -> the best of them
                    -> evidence.check -> RerankResult

All scores are known before the first word of evidence, so only documents that are returned and pass the threshold cost
more. `astream` is the one implementation: `arerank` waits for its end, `rerank` runs that on an event loop
the reranker owns, in a thread, which is why it also works where a loop is running already (Jupyter).
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, Unpack

from anyio import to_thread

from prism.answer_check import AnswerCheck, AnswerFit
from prism.answering import Answering
from prism.comparing import compare, mark_held
from prism.engines.base import Engine
from prism.engines.loop import Home, LoopThread
from prism.engines.timed import Timed
from prism.engines.turns import CHUNK_TOKENS, in_turns, urgency
from prism.errors import TooManyTokens
from prism.evidence.tokens import ComparedText
from prism.inputs import Candidate, read_documents, read_fraction, read_thresholds
from prism.judging import Pair, cut_off, judge, prompt_limit, rank, render_pair, render_pairs, score_prompts
from prism.options import Call, Options, read_options
from prism.preflight import Preflight, foresee
from prism.query import AskedQuery, read_query
from prism.quoting import Quoter
from prism.result import Event, Ranked, RerankResult
from prism.score_version import stale
from prism.scoring import Calibration
from prism.sourcing import EvidenceMaker, EvidenceRequest
from prism.template import Template
from prism.text import language_of
from prism.types import Document, EvidenceSource, Judgment, Usage
from prism.writing import Writer

if TYPE_CHECKING:
    from prism.backends import EngineName
    from prism.checkpoint import Checkpoint
    from prism.devices import Dtype

__all__ = ["RerankResult", "Reranker"]

_RENDERED_AT_ONCE = 16
_MAKERS: Mapping[EvidenceSource, Callable[[Template, Engine, EvidenceRequest], EvidenceMaker]] = {
    "written": Writer,
    "quoted": Quoter,
}

_T = TypeVar("_T")
Documents = Iterable[str | Document | Mapping[str, Any]]
"""Texts, `Document`s, or mappings with `text` and optionally `id` and `title`."""


class _Prepared(NamedTuple):
    """A call, read and rendered; nothing has been computed."""

    query: AskedQuery
    call: Call
    pairs: list[Pair]
    warnings: list[str]
    answer_cut: float
    """`AnswerFit.cut` of the rate the caller asked for."""


class Reranker:
    """Ranks documents for a query and explains the ones that help.

    The verdict is decided in one place: `yes` if and only if score >= threshold, which the result tells. With the
    default of 0.5 that is the model's own answer; another also decides for which documents evidence is written.
    """

    def __init__(
        self,
        template: Template,
        engine: Engine,
        *,
        name: str,
        threshold: float = 0.5,
        thresholds: Mapping[str, float] | None = None,
        calibration: Calibration | None = None,
        answering: Answering | None = None,
        score_version: str | None = None,
        evidence: EvidenceSource = "written",
        notes: Sequence[str] = (),
    ) -> None:
        """`thresholds`: under queries in a language, instead of `threshold`. `calibration` and `answering` turn scores
        into probabilities; `score_version` names what comes of all that. `evidence`: what `auto` is; `notes`: warnings
        that go with every answer."""
        self.template = template
        self.name = name
        self.calibration = calibration
        self.score_version = score_version
        self._fit = AnswerFit(calibration, answering)
        self._notes = tuple(notes)
        self.evidence_source = evidence
        self.threshold = read_fraction("threshold", threshold)
        self.thresholds = read_thresholds(thresholds or {})
        self._timed = Timed(engine)
        self._engine: Engine = self._timed
        self._home = Home()
        self._lock = threading.Lock()
        self._loop: LoopThread | None = None

    @classmethod
    def load(
        cls,
        model: str = "mini",
        *,
        engine: EngineName = "auto",
        template: str | None = None,
        dtype: Dtype = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        self_test: bool = True,
        base_url: str | Sequence[str] | None = None,
        served_model: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> Reranker:
        """A reranker from a checkpoint: `mini` (bundled), a directory with weights or an adapter, a GGUF file, or a
        name on the hub.

        `template` names the prompt of a checkpoint that carries none. The self-test scores a few obvious
        pairs. `engine`: `hf` in this process, `llamacpp` too (without torch, for files of `prism export --layout gguf`,
        where it is what `auto` means), `vllm` in processes of its own, `openai` on the servers at
        `base_url`, under the name `served_model`; template and tokenizer always come from `model`. `engine_options`:
        `backends.read_engine_options`. Raises CheckpointError, TemplateError, EngineError or InputError.
        """
        from prism.backends import choose_engine, open_checkpoint, open_engine, read_engine_options

        engine = choose_engine(engine, model)
        settings = read_engine_options(engine, engine_options)
        checkpoint = open_checkpoint(
            engine, model, template=template, revision=revision, trust_remote_code=trust_remote_code
        )
        opened = open_engine(
            engine,
            checkpoint,
            dtype=dtype,
            device=device,
            base_url=base_url,
            served_model=served_model,
            options=settings,
        )
        reranker = cls._of(checkpoint, opened)
        if self_test:
            try:
                reranker._run(partial(checkpoint.self_test, reranker._engine))
            except BaseException:
                reranker.close()
                raise
        return reranker

    @classmethod
    def _of(cls, checkpoint: Checkpoint, engine: Engine) -> Self:
        config, version = checkpoint.config, checkpoint.score_version
        return cls(
            checkpoint.template,
            engine,
            name=checkpoint.name,
            threshold=config.threshold,
            thresholds=config.thresholds,
            calibration=config.calibration,
            answering=config.answering,
            score_version=version,
            evidence=config.evidence,
            notes=stale(config.score_version, version, "the calibration in prism.json was fitted"),
        )

    def rerank(self, query: str | Mapping[str, Any], documents: Documents, **options: Unpack[Options]) -> RerankResult:
        """Judge each document for the query. Interrupting it stops the work.

        `query`: a text, or several fields with budgets (`prism.query`). `documents`: texts, `Document`s, or mappings
        with `text` and optionally `id` and `title`; a mapping without `text` is read as YAML, and what is none of these
        is an `error` on its own judgment. `options`: see `prism.options.Options`.
        Raises InputError when the call itself is wrong, EngineError when the model fails.
        """
        return self._run(partial(self.arerank, query, documents, **options))

    async def arerank(
        self,
        query: str | Mapping[str, Any],
        documents: Documents,
        **options: Unpack[Options],
    ) -> RerankResult:
        """`rerank`, awaited; cancellable at any time."""
        async with aclosing(self.astream(query, documents, **options)) as events:
            async for event in events:
                last = event
        assert isinstance(last, RerankResult)  # what astream ends with
        return last

    async def astream(
        self,
        query: str | Mapping[str, Any],
        documents: Documents,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """`rerank`, told as it happens: the ranking, each document's evidence as it is found, last the whole result.

        Close the generator (`contextlib.aclosing`) to stop the work.
        """
        asked, call, rendered, warnings, cut = await self._prepare(query, documents, options)
        urgency.set(call.priority)
        pairs, usage = await self._score(rendered, call.threshold)
        held = [ComparedText(text) for text in call.against]
        if held:
            pairs = await to_thread.run_sync(mark_held, pairs, held)
        ranked = sorted((pair for pair in pairs if pair.windows), key=rank)[: call.top_n]
        judgments = [pair.judgment for pair in ranked]
        judged = [pair.judgment for pair in pairs if pair.windows]
        check = AnswerCheck(self._fit.for_query(asked.text), cut, judged, promised=call.answer_risk is not None)
        result = self._result(asked, call, pairs, judgments, usage, warnings, check)
        yield Ranked(result=result.model_copy(update=check.answer()._asdict()))
        if call.evidence:
            wanted = self._wanted(asked, call, ranked, usage)
            maker = _MAKERS[call.evidence](self.template, self._engine, wanted)
            async with aclosing(maker.events()) as events:
                async for event in events:
                    yield event
            judgments = maker.judgments
            usage += maker.usage
            warnings += maker.warnings()
        texts = {pair.judgment.index: pair.document.text for pair in ranked}
        compared = await to_thread.run_sync(compare, judgments, texts, held)
        warnings += compared.warnings
        result = self._result(asked, call, pairs, compared.judgments, usage, warnings, check)
        answer = check.answer(compared.judgments if call.evidence else None, compared.conflicts)
        found = {"same": compared.same, "conflicts": compared.conflicts, **answer._asdict()}
        yield result.model_copy(update=found)

    def preflight(self, query: str | Mapping[str, Any], documents: Documents, **options: Unpack[Options]) -> Preflight:
        """What `rerank` would take with these arguments: tokens, time, and what would be cut. Nothing is computed.

        Raises InputError where `rerank` would.
        """
        return self._run(partial(self.apreflight, query, documents, **options))

    async def apreflight(
        self, query: str | Mapping[str, Any], documents: Documents, **options: Unpack[Options]
    ) -> Preflight:
        """`preflight`, awaited."""
        asked, call, pairs, warnings, _ = await self._prepare(query, documents, options)
        limit = prompt_limit(self.template, asked.text, call)
        return await to_thread.run_sync(
            foresee, self.name, self.template, asked, call, pairs, limit, self._timed, warnings
        )

    def threshold_of(self, language: str) -> float:
        """Where a yes begins under queries in a language, as `prism.text.language_of` tells it by their letters."""
        return self.thresholds.get(language, self.threshold)

    def count_tokens(self, text: str) -> int:
        """How many tokens the model reads a text as."""
        return self.template.count(text)

    def take_turns(self, *, chunk_tokens: int = CHUNK_TOKENS) -> None:
        """Calls under way at once take turns where the engine needs it (`in_turns`); say so before the first call."""
        self._engine = in_turns(self._engine, chunk_tokens)

    def _wanted(self, asked: AskedQuery, call: Call, ranked: Sequence[Pair], spent: Usage) -> EvidenceRequest:
        return EvidenceRequest(
            asked.text,
            asked.question,
            call.instruction,
            ranked,
            threshold=max(call.threshold, call.evidence_threshold),
            top_n=call.evidence_top_n,
            budget=call.evidence_tokens,
            check=call.check,
            max_prompt_tokens=prompt_limit(self.template, asked.text, call),
            max_total_tokens=call.max_total_tokens,
            spent_tokens=spent.prompt_tokens,
        )

    def _result(
        self,
        asked: AskedQuery,
        call: Call,
        pairs: Sequence[Pair],
        judgments: Sequence[Judgment],
        usage: Usage,
        warnings: Sequence[str],
        check: AnswerCheck,
    ) -> RerankResult:
        failed = [pair.judgment for pair in pairs if not pair.windows]
        result = RerankResult(
            query=asked.text,
            query_cuts=asked.cuts,
            instruction=call.instruction,
            model=self.name,
            judgments=(*judgments, *failed),
            usage=usage,
            threshold=call.threshold,
            score_version=self.score_version,
            warnings=tuple(warnings),
        )
        return result.made_with(self.template.count, check)

    # --- the steps -------------------------------------------------------------------------------------------------

    async def _prepare(self, query: object, documents: object, options: Mapping[str, Any]) -> _Prepared:
        call = read_options(self.threshold, self.evidence_source, options)
        if call.evidence == "written":
            self.template.require_texts()
        asked = await to_thread.run_sync(read_query, query, call.max_query_tokens, self.template)
        if options.get("threshold") is None:
            call = call._replace(threshold=self.threshold_of(language_of(asked.question)))
        answer_cut = self._fit.for_query(asked.text).cut(call.answer_risk, self.name)
        read, warnings = await to_thread.run_sync(read_documents, documents)
        warnings += [*self._notes, *stale(call.score_version, self.score_version, "the thresholds were chosen")]
        pairs = await self._render(asked, read, call)
        warnings += asked.warnings()
        if cut := [pair.judgment.index for pair in pairs if pair.judgment.truncation]:
            warnings.append(cut_off("documents", cut, call.truncation_side))
        return _Prepared(asked, call, pairs, warnings, answer_cut)

    async def _render(self, asked: AskedQuery, documents: Sequence[Candidate], call: Call) -> list[Pair]:
        limit = prompt_limit(self.template, asked.text, call)
        render = partial(render_pair, self.template, asked.text, call=call, max_tokens=limit)
        pairs: list[Pair] = []
        tokens = 0
        for start in range(0, len(documents), _RENDERED_AT_ONCE):
            part = documents[start : start + _RENDERED_AT_ONCE]
            rendered = await to_thread.run_sync(render_pairs, render, start, part)
            pairs += rendered
            tokens += sum(pair.judgment.usage.prompt_tokens for pair in rendered)
            if call.max_total_tokens is not None and tokens > call.max_total_tokens:
                raise TooManyTokens(
                    f"too many tokens: the first {len(pairs)} of {len(documents)} documents take {tokens:,}, at most"
                    f" {call.max_total_tokens:,} in one call: send fewer or shorter documents"
                )
        return pairs

    async def _score(self, pairs: Sequence[Pair], threshold: float) -> tuple[list[Pair], Usage]:
        """The pairs with score and verdict, in the same order, and what judging them took."""
        output = await score_prompts(self._engine, [window.prompt.ids for pair in pairs for window in pair.windows])
        answers = iter(output.labels)
        answered = [[*islice(answers, len(pair.windows))] for pair in pairs]
        judged = [judge(pair, own, threshold) if own else pair for pair, own in zip(pairs, answered, strict=True)]
        prompt_tokens = sum(pair.judgment.usage.prompt_tokens for pair in judged)
        return judged, Usage(prompt_tokens=prompt_tokens, cached_tokens=output.cached_tokens)

    # --- lifetime --------------------------------------------------------------------------------------------------

    def _run(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        self._home.require()  # before the lock, which may have been copied while it was held
        with self._lock:
            if self._loop is None:
                self._loop = LoopThread("prism-reranker")
            loop = self._loop
        return loop.run_blocking(call)

    def close(self) -> None:
        """Free the model. Calling twice is harmless; in a process that was forked off there is nothing to free."""
        if self._home.left:
            return
        try:
            self._run(self._engine.aclose)
        finally:
            self._stop_loop()

    async def aclose(self) -> None:
        """`close`, awaited."""
        if self._home.left:
            return
        try:
            await self._engine.aclose()
        finally:
            await to_thread.run_sync(self._stop_loop)

    def _stop_loop(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
