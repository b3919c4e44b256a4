"""What is examined: a reranker in this process, or a server in one of the dialects of `prism.llm.rerank_api`.

Both answer `ask` with the same record. What they refuse, and how they fail, has the names of `prism.llm.failures`:
Rejected (this request is not taken), Unavailable (a failure, or no answer), Stop (nothing can be asked here).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prism.errors import EngineError, InputError
from prism.llm.failures import Rejected, Unavailable
from prism.llm.http import Address, ask_now
from prism.llm.rerank_api import DIALECTS
from prism.text import printable

if TYPE_CHECKING:
    import httpx

    from prism.reranker import Reranker
    from prism.result import RerankResult
    from prism.types import Judgment

_TOKENS_HEADER = "x-compute-tokens"
"""Where Text Embeddings Inference counts them."""
_WARNINGS_HEADER = "x-prism-warnings"


class Item(NamedTuple):
    """What came back about one document."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls here
    score: float | None
    """None where there is an error instead."""
    error: str | None = None
    spans: tuple[tuple[int, int], ...] = ()
    cut: bool = False
    """Whether the answer says that a part was not read."""


class TargetReply(NamedTuple):
    """One answer."""

    items: Sequence[Item]
    """In the order of the answer."""
    seconds: float
    tokens: int | None = None
    """Prompt tokens, where they are counted."""
    warnings: Sequence[str] = ()
    faults: Sequence[str] = ()
    """Results that cannot be: an index that is none, a document twice, a score that is no number."""

    @property
    def scores(self) -> dict[int, float]:
        """Index -> score, where there is one."""
        return {item.index: item.score for item in self.items if item.score is not None}


class Target(Protocol):
    """What checks ask."""

    name: str
    dialect: str
    """A dialect's name, or `in process`."""
    limit_tokens: int | None
    """Tokens of one prompt that it reads, where it says so."""
    takes_instruction: bool
    takes_top_n: bool
    tells_spans: bool

    def ask(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        spans: bool = False,
    ) -> TargetReply:
        """One request."""
        ...

    def prompt(self, query: str, document: str) -> str | None:
        """The rendered prompt, where it can be seen."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class LocalTarget:
    """A reranker in this process."""

    dialect = "in process"
    takes_instruction = takes_top_n = tells_spans = True

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        self.name = reranker.name
        self.limit_tokens: int | None = reranker.template.spec.max_prompt_tokens

    def ask(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        spans: bool = False,
    ) -> TargetReply:
        """See `Target`."""
        start = time.perf_counter()
        try:
            result = self._reranker.rerank(
                query, documents, top_n=top_n, instruction=instruction, evidence="quoted" if spans else False
            )
        except InputError as error:
            raise Rejected(str(error)) from error
        except EngineError as error:
            raise Unavailable("server_error", str(error)) from error
        return _reply_of(result, time.perf_counter() - start)

    def prompt(self, query: str, document: str) -> str | None:
        """See `Target`."""
        from prism.types import Document

        template = self._reranker.template
        return template.decode(list(template.render(query, Document(text=document)).ids))

    def close(self) -> None:
        """See `Target`."""
        self._reranker.close()


def _reply_of(result: RerankResult, seconds: float) -> TargetReply:
    return TargetReply(
        [_item_of(judgment) for judgment in result], seconds, result.usage.prompt_tokens, result.warnings
    )


def _item_of(judgment: Judgment) -> Item:
    spans = tuple((span.start, span.end) for span in judgment.spans)
    return Item(judgment.index, judgment.score, judgment.error, spans, judgment.truncation is not None)


class HttpTarget:
    """A server. `key` goes nowhere but there."""

    def __init__(
        self,
        dialect: str,
        url: str,
        client: httpx.Client,
        *,
        model: str = "",
        key: str | None = None,
        key_env: str | None = None,
        limit_tokens: int | None = None,
    ) -> None:
        """`url`: of the rerank endpoint itself. `key_env`: where the key came from, for messages."""
        self._dialect = DIALECTS[dialect]
        self._client, self._model = client, model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        variable = key_env or "the variable that --api-key-env names"
        # A busy server is asked again; a failure is what we are here for.
        self._address = Address(
            url, key, variable, 4, 20.0, check="the address, --dialect and --model", again=frozenset({"rate_limited"})
        )
        self.name = model or url
        self.dialect = dialect
        self.limit_tokens = limit_tokens
        self.takes_instruction = self._dialect.instruction is not None
        self.takes_top_n = self._dialect.limit is not None
        self.tells_spans = self._dialect.spans is not None

    def ask(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        spans: bool = False,
    ) -> TargetReply:
        """See `Target`."""
        body = self._dialect.body(self._model, query, documents, top_n)
        if instruction is not None and self._dialect.instruction:
            body[self._dialect.instruction] = instruction
        if spans and self._dialect.spans:
            body |= self._dialect.spans
        seconds, headers = 0.0, dict[str, str]()

        def send() -> httpx.Response:
            nonlocal seconds, headers
            start = time.perf_counter()
            response = self._client.post(self._address.url, json=body, headers=self._headers)
            seconds, headers = time.perf_counter() - start, dict(response.headers)
            return response

        answer = ask_now(send, self._require_items, self._address, time.sleep)
        return self._read(answer, len(documents), seconds, headers)

    def prompt(self, query: str, document: str) -> str | None:
        """See `Target`: a server does not show it."""
        return None

    def close(self) -> None:
        """See `Target`."""
        self._client.close()

    def _require_items(self, answer: Any) -> Any:
        self._dialect.items(answer)
        return answer

    def _read(self, answer: Any, count: int, seconds: float, headers: Mapping[str, str]) -> TargetReply:
        items: dict[int, Item] = {}
        faults = []
        for sent in self._dialect.items(answer):
            item = self._item(sent, count)
            if isinstance(item, str):
                faults.append(item)
            elif item.index in items:
                faults.append(f"index {item.index} comes twice")
            else:
                items[item.index] = item
        return TargetReply(list(items.values()), seconds, _tokens(answer, headers), _warnings(answer, headers), faults)

    def _item(self, sent: Mapping[str, Any], count: int) -> Item | str:
        """What one result says, or what is wrong with it."""
        index, score = sent.get("index"), sent.get(self._dialect.score)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            return f"index {printable(repr(index))[:40]} among {count} documents"
        if error := sent.get("error"):
            return Item(index, None, printable(json.dumps(error))[:200])
        if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
            return f"{self._dialect.score} {printable(repr(score))[:40]} of document {index}"
        return Item(index, float(score), None, _spans(sent), bool(sent.get("truncation")))


def _spans(sent: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    found = sent.get("relevant_spans")
    if not isinstance(found, list):
        return ()
    pairs = [(span.get("start"), span.get("end")) for span in found if isinstance(span, Mapping)]
    return tuple((start, end) for start, end in pairs if isinstance(start, int) and isinstance(end, int))


def _tokens(answer: Any, headers: Mapping[str, str]) -> int | None:
    """Prompt tokens: in `usage`, in a header, or in each result (SGLang)."""
    if isinstance(answer, list):
        counted = headers.get(_TOKENS_HEADER, "")
        told_each = [(item.get("meta_info") or {}).get("prompt_tokens") for item in answer]
        each = [count for count in told_each if isinstance(count, int)]
        if each and len(each) == len(told_each):
            return sum(each)
        return int(counted) if counted.isdecimal() else None
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    told = counts.get("prompt_tokens") or counts.get("total_tokens")
    return told if isinstance(told, int) else None


def _warnings(answer: Any, headers: Mapping[str, str]) -> tuple[str, ...]:
    meta = answer.get("meta") if isinstance(answer, Mapping) else None
    told = meta.get("warnings") if isinstance(meta, Mapping) else None
    in_header = [headers[_WARNINGS_HEADER]] if _WARNINGS_HEADER in headers else []
    return tuple(map(str, told if isinstance(told, list) else in_header))
