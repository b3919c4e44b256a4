"""A document's score is its own: the same to 1e-6 in any batch, order and company, in every engine; ties keep order.

The engine that runs vLLM is held to the same in `test_engine_vllm.py`, where vLLM is.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from prism.engines.base import Engine, LabelLogits
from prism.engines.hf import HfEngine, HfOptions
from prism.engines.openai import OpenAIEngine, OpenAIOptions
from prism.engines.rounding import looks_rounded
from prism.engines.turns import TakingTurns
from prism.reranker import Reranker
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
WORDS = [
    "the",
    "harbour",
    "at",
    "Lindau",
    "freezes",
    "only",
    "in",
    "cold",
    "winters",
    "copper",
    "conducts",
    "iron",
    "yes",
]
_DRAW = random.Random(20261128)
DOCUMENTS = [" ".join(_DRAW.choices(WORDS, k=length)) for length in (1, 3, 80, 9, 200, 31, 32, 33, 5, 64, 120, 2)]


class Completions(httpx.AsyncBaseTransport):
    """Answers like vLLM, in an order of its own; log-probabilities depend on the prompt alone."""

    def __init__(self, step: float = 0.0) -> None:
        self.step = step

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "mini", "owned_by": "vllm", "max_model_len": 4096}]})
        body = json.loads(request.content)
        choices = [self._choice(index, ids, body["logprob_token_ids"]) for index, ids in enumerate(body["prompt"])]
        random.shuffle(choices)
        return httpx.Response(200, json={"choices": choices})

    def _choice(self, index: int, ids: list[int], labels: list[int]) -> dict[str, Any]:
        yes, no = (-(zlib.crc32(repr((ids, label)).encode()) % 10_000) / 1000 for label in labels)
        if self.step:
            yes, no = round(yes / self.step) * self.step, round(no / self.step) * self.step
        top = {f"token_id:{labels[0]}": yes, f"token_id:{labels[1]}": no}
        return {"index": index, "text": "", "finish_reason": "length", "logprobs": {"top_logprobs": [top]}}


def openai(template: Template, step: float = 0.0) -> OpenAIEngine:
    return OpenAIEngine(
        ["http://a/v1", "http://b/v1"],
        label_ids=template.label_ids,
        label_texts=("yes", "no"),
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        options=OpenAIOptions(transport=Completions(step)),
    )


def hf(**options: Any) -> Callable[[Template, Any], Engine]:
    def make(template: Template, model: Any) -> Engine:
        return HfEngine(
            model,
            label_ids=template.label_ids,
            stop_ids=template.stop_ids,
            stop_strings=template.stop_strings,
            pad_id=template.pad_id,
            decode=template.decode,
            options=HfOptions(**options),
        )

    return make


ENGINES: dict[str, Callable[[Template, Any], Engine]] = {
    "hf": hf(),
    "hf, prompts one by one": hf(max_batch_tokens=1, share_prefix=False),
    "hf, small batches behind a prefix": hf(max_batch_tokens=400, share_prefix=True),
    "hf, in turns": lambda template, model: TakingTurns(hf()(template, model), chunk_tokens=300),
    "openai": lambda template, _: openai(template),
}


@pytest.fixture(scope="module")
def template(tiny_tokenizer: Any) -> Template:
    return Template(PRISM, tiny_tokenizer)


@pytest.fixture(scope="module", params=ENGINES)
def reranker(request: pytest.FixtureRequest, template: Template, tiny_qwen3: Any) -> Iterator[Reranker]:
    with Reranker(template, ENGINES[request.param](template, tiny_qwen3), name=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def alone(template: Template, tiny_qwen3: Any) -> dict[str, float]:
    """What the model says to each document by itself."""
    with Reranker(template, hf()(template, tiny_qwen3), name="alone") as one:
        return {text: one.rerank(QUERY, [text], evidence=False)[0].logit or 0.0 for text in DOCUMENTS}


def logits(reranker: Reranker, documents: list[str]) -> dict[str, float]:
    result = reranker.rerank(QUERY, documents, evidence=False)
    ranks = [(-(judgment.score or 0.0), judgment.index) for judgment in result]
    assert ranks == sorted(ranks), "best first, equal scores by input index"
    found: dict[str, float] = {}
    for judgment in result:
        assert judgment.logit is not None
        assert found.setdefault(documents[judgment.index], judgment.logit) == pytest.approx(judgment.logit, abs=1e-6)
    return found


def scores(found: dict[str, float]) -> dict[str, float]:
    return {text: 1 / (1 + math.exp(-logit)) for text, logit in found.items()}


def test_in_any_order_and_company(reranker: Reranker, alone: dict[str, float]) -> None:
    known = logits(reranker, DOCUMENTS)
    if reranker.name.startswith("hf"):
        assert known == pytest.approx(alone, abs=1e-5)
        assert scores(known) == pytest.approx(scores(alone), abs=1e-6)
    draw = random.Random(7)
    for _ in range(4):
        some = draw.sample(DOCUMENTS, draw.randint(1, len(DOCUMENTS)))
        company = some + draw.choices(DOCUMENTS, k=3)
        draw.shuffle(company)
        found = logits(reranker, company)
        assert scores(found) == pytest.approx(scores({text: known[text] for text in found}), abs=1e-6)


def test_ties_keep_the_order_of_the_input(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, [DOCUMENTS[2]] * 5, evidence=False)
    assert [judgment.index for judgment in result] == [0, 1, 2, 3, 4]
    assert len({judgment.score for judgment in result}) == 1


# --- logits that were rounded before they came ---------------------------------------------------------------------


def test_a_server_that_rounds_is_told_once(template: Template, caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"{text} {number}" for number, text in enumerate(DOCUMENTS * 2)]
    for step, told in ((0.0, 0), (2**-4, 1)):
        caplog.clear()
        with Reranker(template, openai(template, step), name="remote") as remote:
            for _ in range(2):
                remote.rerank(QUERY, texts, evidence=False)
        warnings = [record.message for record in caplog.records if "rounds its logits" in record.message]
        assert len(warnings) == told
        assert all("head_dtype" in warning for warning in warnings)


def test_what_looks_rounded() -> None:
    """bfloat16 keeps 8 bits: between 8 and 16 it can tell apart 1/16, whatever the log-probabilities add to both."""
    rounded = [LabelLogits(8 + n / 16 - 11.2837465, 9.5 - 11.2837465) for n in range(16)]
    assert looks_rounded(rounded)
    assert not looks_rounded(rounded[:15]), "too few to tell"
    assert not looks_rounded([rounded[0]] * 16), "one value says nothing"
    assert not looks_rounded([*rounded, LabelLogits(8.0013, 9.0)])
