"""One checkpoint, every way to score it: the same scores. Against real vLLM on the CPU, in process and as a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import torch
from vllm_support import (
    SMALL,
    VLLM_WARNINGS,
    alive,
    eventually,
    needs_vllm,
    pairs,
    save_float32,
    serveable_qwen3,
    vllm_server,
)

from prism.backends import open_engine
from prism.checkpoint import Checkpoint
from prism.engines.base import WriteRequest
from prism.export import export
from prism.reranker import Reranker
from prism.scoring import score
from studies.server_process import descendants, prism_serve, server

pytestmark = [pytest.mark.filterwarnings(line) for line in VLLM_WARNINGS]
PAIRS, MOST_TOKENS = 200, 1500
EXACT, ROUNDED = 1e-3, 2e-2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Checkpoint:
    return Checkpoint.load(save_float32(tmp_path_factory.mktemp("tiny"), serveable_qwen3(600), tiny_tokenizer))


@pytest.fixture(scope="module")
def sample(checkpoint: Checkpoint) -> list[Any]:
    made = pairs(checkpoint.template, PAIRS, MOST_TOKENS)
    lengths = [len(ids) for _, _, ids in made]
    assert max(lengths) == MOST_TOKENS
    assert len({query for query, _, _ in made}) == 4
    return made


async def scores_of(engine: Any, sample: list[Any]) -> list[float]:
    try:
        output = await engine.score([ids for _, _, ids in sample])
    finally:
        await engine.aclose()
    return [score(*labels) for labels in output.labels]


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, sample: list[Any]) -> list[float]:
    """The transformers engine in float32; scores that all lie together would prove nothing."""
    found = asyncio.run(scores_of(open_engine("hf", checkpoint, dtype="float32", device="cpu"), sample))
    assert max(found) - min(found) > 0.5
    return found


@pytest.fixture(scope="module")
def remote(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with vllm_server(
        checkpoint.path, log, "--dtype", "float32", "--block-size", "32", "--enable-prompt-tokens-details"
    ) as url:
        yield url


@needs_vllm
def test_vllm_in_process_scores_as_transformers_does(checkpoint, sample, expected):
    engine = open_engine("vllm", checkpoint, dtype="float32", options={"options": SMALL})
    assert asyncio.run(scores_of(engine, sample)) == pytest.approx(expected, abs=EXACT)


@needs_vllm
def test_a_remote_vllm_scores_and_writes_as_transformers_does(checkpoint, sample, expected, remote):
    engine = open_engine("openai", checkpoint, base_url=f"{remote}/v1")
    output = asyncio.run(engine.score([ids for _, _, ids in sample]))
    assert [score(*labels) for labels in output.labels] == pytest.approx(expected, abs=EXACT)

    async def written(writer: Any) -> list[tuple[str, str | None]]:
        texts: list[tuple[str, str | None]] = [("", None)] * 4
        requests = [WriteRequest([*ids, checkpoint.template.yes_id], 20) for _, _, ids in sample[8:12]]
        async for piece in writer.write(requests):
            text, finish = texts[piece.index]
            texts[piece.index] = (text + piece.text, piece.finish or finish)
        await writer.aclose()
        return texts

    reference = open_engine("hf", checkpoint, dtype="float32", device="cpu")
    assert asyncio.run(written(engine)) == asyncio.run(written(reference))


@needs_vllm
def test_a_dead_replica_does_not_stop_a_remote_engine(checkpoint, sample, expected, remote):
    engine = open_engine("openai", checkpoint, base_url=["http://127.0.0.1:9/v1", f"{remote}/v1"])
    found = asyncio.run(scores_of(engine, sample[:20]))
    assert found == pytest.approx(expected[:20], abs=EXACT)


def test_cross_encoder_on_the_export_scores_as_prism_does(checkpoint, sample, expected, tmp_path):
    from sentence_transformers import CrossEncoder

    path = export(checkpoint.path, tmp_path / "st", "sentence-transformers")
    found = CrossEncoder(str(path), device="cpu").predict(
        [(query, document.text) for query, document, _ in sample], batch_size=8
    )
    assert found.tolist() == pytest.approx(expected, abs=EXACT)


@needs_vllm
def test_plain_vllm_reranks_the_classifier_export_alike(checkpoint, sample, expected, tmp_path):
    """The trap: a head that vLLM does not find scores a constant 0.5."""
    path = export(checkpoint.path, tmp_path / "classifier", "sequence-classification")
    template = str(path / "score_template.jinja")
    arguments = ("--dtype", "float32", "--runner", "pooling", "--chat-template", template)
    found = {}
    with vllm_server(path, tmp_path / "log", *arguments) as url:
        for query in dict.fromkeys(query for query, _, _ in sample):
            asked = [index for index, pair in enumerate(sample) if pair[0] == query]
            body = {"query": query, "documents": [sample[index][1].text for index in asked]}
            answer = httpx.post(f"{url}/rerank", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
            for result in answer.json()["results"]:
                found[asked[result["index"]]] = result["relevance_score"]
    scores = [found[index] for index in range(len(sample))]
    assert max(scores) - min(scores) > 0.5
    assert scores == pytest.approx(expected, abs=EXACT)


@needs_vllm
def test_qwen35_in_bfloat16_agrees_but_for_rounding(tmp_path, tiny_tokenizer):
    """vLLM serves Qwen3.5 through its multimodal model, whose processor imports torchvision."""
    pytest.importorskip("torchvision", reason="vLLM's Qwen3.5 needs torchvision, whose CPU build is not installed")
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=600,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    torch.manual_seed(20260104)
    model = Qwen3_5ForCausalLM(config).eval()
    from prism.template import PRISM, Template

    Checkpoint.save(tmp_path / "tiny", model=model, template=Template(PRISM, tiny_tokenizer), name="tiny")
    checkpoint = Checkpoint.load(tmp_path / "tiny")
    sample = pairs(checkpoint.template, 20, 400)
    reference = asyncio.run(scores_of(open_engine("hf", checkpoint, dtype="bfloat16", device="cpu"), sample))
    engine = open_engine("vllm", checkpoint, dtype="bfloat16", options={"options": SMALL})
    assert asyncio.run(scores_of(engine, sample)) == pytest.approx(reference, abs=ROUNDED)


@needs_vllm
@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_prism_serve_answers_over_vllm_as_it_does_over_transformers(engine, tmp_path):
    """The two commands of serve/README.md, with mini: scores, evidence, a stream, and nothing left behind."""
    query = "How are access keys rotated?"
    documents = ["Create a second key, switch every client to it, then delete the first key.", "Panels stand in rows."]
    with Reranker.load("mini", dtype="float32", device="cpu") as reranker:
        expected = {found.index: found for found in reranker.rerank(query, documents, threshold=0.0)}
    with ExitStack() as stack:
        if engine == "openai":
            log = tmp_path / "log"
            url = stack.enter_context(vllm_server(Checkpoint.load("mini").path, log, "--dtype", "float32"))
            options = ["--base-url", f"{url}/v1"]
        else:
            options = [f"--engine-option={name}={json.dumps(value)}" for name, value in SMALL.items()]
        running = stack.enter_context(server(prism_serve("--engine", engine, "--dtype", "float32", *options)))
        body = {"query": query, "documents": documents, "threshold": 0.0}
        results = httpx.post(f"{running.url}/v1/rerank", json=body, timeout=300).raise_for_status().json()["results"]
        stream = httpx.post(f"{running.url}/v1/rerank", json={**body, "stream": True}, timeout=300).text
        started = descendants(running.pid)
    assert len(results) == len(documents)
    for result in results:
        found = expected[result["index"]]
        assert result["relevance_score"] == pytest.approx(found.score, abs=EXACT)
        assert (result["contribution"], result["evidence"]) == (found.contribution, found.evidence)
    assert stream.startswith("event: ranking\n")
    assert "\nevent: done\n" in stream
    assert eventually(lambda: not alive(started))
