"""The remote engine against made-up servers: what it asks, what it makes of answers, what it does when servers fail.

The servers answer in the shapes vLLM 0.32, SGLang and llama.cpp document; `test_parity.py` asks a real vLLM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest

from prism.backends import open_engine
from prism.checkpoint import Checkpoint
from prism.engines.base import LabelLogits, WriteRequest
from prism.engines.openai import OpenAIEngine, OpenAIOptions
from prism.engines.replicas import PROBE_S
from prism.errors import DocumentError, EngineError, InputError, LabelMissing

YES, NO, STOP = 30, 40, 2
A, B = "http://a:1/v1", "http://b:2/v1"
TEXT = "\n<contribution>It helps.</contribution>\n<evidence>So it is.</evidence>"


class Servers(httpx.AsyncBaseTransport):
    """Made-up servers by host. The label log-probabilities of a prompt are -sum and -1 for yes and no."""

    def __init__(self, owner: str = "vllm", shape: str = "vllm") -> None:
        self.owner, self.shape = owner, shape
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.down: set[str] = set()
        self.status: dict[str, list[int]] = {}
        """Statuses a host answers before it works."""
        self.breaks_after: dict[str, int] = {}
        """Pieces of a text after which a host hangs up."""
        self.held: dict[str, asyncio.Event] = {}
        self.open = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.down:
            raise httpx.ConnectError("connection refused")
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "mine", "owned_by": self.owner, "max_model_len": 100}]})
        body = json.loads(request.content)
        self.asked.append((host, body))
        if self.status.get(host):
            return httpx.Response(self.status[host].pop(0), text="try later")
        if body.get("stream"):
            return httpx.Response(200, stream=Pieces(self, host, body))
        self.open += 1
        try:
            if host in self.held:
                await self.held[host].wait()
        finally:
            self.open -= 1
        choices = [self._choice(index, ids) for index, ids in enumerate(body["prompt"])]
        usage = {"prompt_tokens_details": {"cached_tokens": 3 * len(choices)}}
        return httpx.Response(200, json={"choices": choices[::-1], "usage": usage})  # in any order

    def _choice(self, index: int, ids: Sequence[int]) -> dict[str, Any]:
        yes, no = -float(sum(ids)), -1.0
        if self.shape == "vllm":
            logprobs: Any = {"top_logprobs": [{f"token_id:{YES}": yes, f"token_id:{NO}": no}]}
        elif self.shape == "sglang":
            logprobs = {"top_logprobs": [{"yes": yes, "no": no, "maybe": -9.0}]}
        elif self.shape == "llama.cpp":
            top = [{"id": NO, "token": "no", "logprob": no}, {"id": YES, "token": "yes", "logprob": yes}]
            logprobs = {"content": [{"id": NO, "logprob": no, "top_logprobs": top}]}
        else:
            logprobs = {"top_logprobs": [{"maybe": -0.1, "yes": yes}]}
        return {"index": index, "logprobs": logprobs}


class Pieces(httpx.AsyncByteStream):
    """A streamed text: one character and one token at a time; tokens are the characters' code points."""

    def __init__(self, servers: Servers, host: str, body: dict[str, Any]) -> None:
        self.servers, self.host, self.body = servers, host, body
        self.servers.open += 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        begun = "".join(chr(id_ - 1000) for id_ in self.body["prompt"] if id_ >= 1000)
        stops = self.body.get("stop", [])
        text = TEXT[len(begun) :] + ("" if stops else "\nand so on, for the server was told no stop string")
        left = self.body["max_tokens"]
        for count, character in enumerate(text):
            if count == self.servers.breaks_after.get(self.host):
                raise httpx.ReadError("connection reset")
            ended = "stop" if count == len(text) - 1 else "length" if count == left - 1 else None
            choice: dict[str, Any] = {"index": 0, "text": character, "finish_reason": ended}
            if self.servers.owner == "vllm":
                choice["token_ids"] = [1000 + ord(character)] + ([STOP] if ended == "stop" and not stops else [])
            yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
            await (self.servers.held[self.host].wait() if self.host in self.servers.held else asyncio.sleep(0))
            if ended:
                break
        yield b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n'

    async def aclose(self) -> None:
        self.servers.open -= 1


def make(servers: Servers, *urls: str, probe_s: float = PROBE_S, **given: Any) -> OpenAIEngine:
    return OpenAIEngine(
        urls or (A,),
        label_ids=(YES, NO),
        label_texts=("yes", "no"),
        stop_ids={STOP},
        stop_strings=("</evidence>",),
        options=OpenAIOptions(transport=servers, probe_s=probe_s),
        **given,
    )


async def texts(engine: OpenAIEngine, requests: Sequence[WriteRequest]) -> list[tuple[str, str | None, int]]:
    written: list[tuple[str, str | None, int]] = [("", None, 0)] * len(requests)
    async for piece in engine.write(requests):
        text, finish, tokens = written[piece.index]
        written[piece.index] = (text + piece.text, piece.finish or finish, tokens + piece.tokens)
    return written


def score(engine: OpenAIEngine, prompts: Sequence[Sequence[int]]) -> Any:
    return asyncio.run(engine.score(prompts))


@pytest.fixture
def closing() -> Any:
    """Engines made in a test are closed after it."""
    made: list[OpenAIEngine] = []

    def keep(engine: OpenAIEngine) -> OpenAIEngine:
        made.append(engine)
        return engine

    yield keep
    for engine in made:
        asyncio.run(engine.aclose())


@pytest.mark.parametrize("shape", ["vllm", "sglang", "llama.cpp"])
def test_labels_are_read_in_every_servers_shape(shape, closing):
    servers = Servers(shape=shape)
    output = score(closing(make(servers)), [[1, 2], [], [3], [9] * 100])
    first, empty, second, long = output.labels
    assert (first, second) == (LabelLogits(-3.0, -1.0), LabelLogits(-3.0, -1.0))
    assert isinstance(empty, DocumentError)
    assert isinstance(long, DocumentError)  # the server says it reads 100, one of them is the sampled one
    assert output.cached_tokens == 6
    body = servers.asked[0][1]
    assert (body["model"], body["prompt"], body["logprob_token_ids"]) == ("mine", [[1, 2], [3]], [YES, NO])


def test_a_missing_label_raises(closing):
    with pytest.raises(LabelMissing, match="label 'no'"):
        score(closing(make(Servers(shape="without no"))), [[1]])


def test_prompts_are_answered_in_order_over_several_servers(closing):
    servers = Servers()
    prompts = [[count] for count in range(100)]
    labels = score(closing(make(servers, A, B)), prompts).labels
    assert [label.yes for label in labels] == [-float(count) for count in range(100)]
    assert {host for host, _ in servers.asked} == {"a", "b"}


def test_the_server_with_less_to_do_is_asked(closing):
    servers = Servers()
    engine = closing(make(servers, A, B))

    async def two_calls() -> None:
        servers.held = {"a": asyncio.Event(), "b": asyncio.Event()}
        first = engine.score([[1]] * 16)
        second = engine.score([[2]])
        third = engine.score([[3]])
        work = [asyncio.create_task(one) for one in (first,)]
        await reached(lambda: servers.open == 1)
        work += [asyncio.create_task(one) for one in (second, third)]
        await reached(lambda: servers.open == 3)
        await engine._loop.run(lambda: release(servers))
        await asyncio.gather(*work)

    asyncio.run(two_calls())
    # sixteen prompts lie on the first server, so both single ones go to the other
    assert sorted(host for host, _ in servers.asked) == ["a", "b", "b"]


def test_a_dead_server_is_left_alone_until_it_answers_again(closing):
    servers = Servers()
    engine = closing(make(servers, A, B, probe_s=0.05))
    servers.down = {"a"}
    assert len(score(engine, [[1]] * 40).labels) == 40
    servers.asked.clear()
    assert len(score(engine, [[1]] * 40).labels) == 40
    assert {host for host, _ in servers.asked} == {"b"}
    servers.down = set()

    async def recovered() -> None:
        await reached(lambda: all(replica.alive for replica in engine._replicas))

    asyncio.run(recovered())
    servers.asked.clear()
    score(engine, [[1]] * 40)
    assert {host for host, _ in servers.asked} == {"a", "b"}


def test_a_broken_server_is_replaced_and_a_busy_one_waited_for(closing):
    servers = Servers()
    engine = closing(make(servers, A, B))
    servers.status = {"a": [500]}
    assert score(engine, [[1]]).labels == [LabelLogits(-1.0, -1.0)]
    assert [host for host, _ in servers.asked] == ["a", "b"]
    alone = closing(make(servers, B))
    servers.status = {"b": [429, 503]}
    servers.asked.clear()
    assert score(alone, [[1]]).labels == [LabelLogits(-1.0, -1.0)]
    assert [host for host, _ in servers.asked] == ["b", "b", "b"]


def test_without_a_server_calls_fail_and_say_so(closing):
    servers = Servers()
    servers.down = {"a"}
    with pytest.raises(EngineError, match=r"no server answers: http://a:1/v1"):
        make(servers)
    servers.down = set()
    engine = closing(make(servers))
    servers.down = {"a"}
    with pytest.raises(EngineError, match="none of 1 servers"):
        score(engine, [[1]])
    with pytest.raises(EngineError, match="expected other"):
        make(Servers(), model="other")
    for url in ("nonsense", "ftp://a/v1", ""):
        with pytest.raises(InputError, match="not an address"):
            make(Servers(), url)


def test_what_a_server_refuses_is_not_tried_elsewhere(closing):
    servers = Servers()
    engine = closing(make(servers, A, B))
    servers.status = {"a": [400], "b": [400]}
    with pytest.raises(EngineError, match="answered 400: try later"):
        score(engine, [[1]])
    assert len(servers.asked) == 1


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_texts_end_with_the_closing_tag(owner, closing):
    """vLLM is told the stop string; llama.cpp would cut it off, so there the text is cut here."""
    servers = Servers(owner=owner)
    engine = closing(make(servers))
    assert asyncio.run(texts(engine, [WriteRequest([1], 90)])) == [(TEXT, "stop", len(TEXT))]
    assert ("stop" in servers.asked[0][1]) is (owner == "vllm")
    assert asyncio.run(texts(engine, [WriteRequest([1], 5)])) == [(TEXT[:5], "length", 5)]
    assert asyncio.run(texts(engine, [WriteRequest([1] * 100, 5)])) == [("", "length", 0)]
    assert servers.open == 0
    with pytest.raises(InputError, match="write request 0"):
        asyncio.run(texts(engine, [WriteRequest([], 5)]))


def test_a_text_goes_on_where_its_server_died(closing):
    servers = Servers()
    engine = closing(make(servers, A, B))
    servers.breaks_after = {"a": 7}
    assert asyncio.run(texts(engine, [WriteRequest([1], 90)])) == [(TEXT, "stop", len(TEXT))]
    (_, first), (_, second) = servers.asked
    assert second["prompt"] == [1, *(1000 + ord(character) for character in TEXT[:7])]
    assert (first["max_tokens"], second["max_tokens"]) == (90, 83)


def test_a_text_that_cannot_be_continued_fails(closing):
    """llama.cpp tells no token ids: what was shown cannot be taken up elsewhere."""
    servers = Servers(owner="llamacpp")
    engine = closing(make(servers, A, B))
    servers.breaks_after = {"a": 7}
    with pytest.raises(EngineError, match="cannot be continued elsewhere"):
        asyncio.run(texts(engine, [WriteRequest([1], 90)]))


def test_leaving_closes_the_requests(closing):
    servers = Servers()
    servers.held = {"a": asyncio.Event()}  # answers, and pieces after the first, that nobody waits for
    engine = closing(make(servers))

    async def leave() -> None:
        async for _ in engine.write([WriteRequest([1], 90)] * 5):
            assert servers.open > 0
            break
        await reached(lambda: servers.open == 0)

    async def cancel() -> None:
        task = asyncio.create_task(engine.score([[1]] * 40))
        await reached(lambda: servers.open == 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await reached(lambda: servers.open == 0)

    asyncio.run(leave())
    asyncio.run(cancel())


def test_a_closed_engine_says_so():
    engine = make(Servers())
    asyncio.run(engine.aclose())
    asyncio.run(engine.aclose())
    with pytest.raises(EngineError, match="closed"):
        score(engine, [[1]])


def test_the_key_is_sent_and_nowhere_else(caplog):
    seen: list[str | None] = []

    class Listening(Servers):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("authorization"))
            return await super().handle_async_request(request)

    engine = make(Listening(), api_key="secret-key")
    score(engine, [[1]])
    asyncio.run(engine.aclose())
    assert set(seen) == {"Bearer secret-key"}
    assert "secret-key" not in caplog.text
    assert "secret-key" not in repr(vars(engine))


def test_load_takes_template_and_tokenizer_from_the_checkpoint(monkeypatch):
    checkpoint = Checkpoint.load("mini")
    with pytest.raises(InputError, match="no engine 'tgi'"):
        open_engine("tgi", checkpoint)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one"):
        open_engine("openai", checkpoint)
    with pytest.raises(InputError, match="belongs to engine 'openai'"):
        open_engine("hf", checkpoint, base_url=A)
    monkeypatch.setenv("PRISM_ENGINE_API_KEY", "from the environment")
    servers = Servers()
    engine = open_engine("openai", checkpoint, base_url=A, options={"transport": servers})
    asyncio.run(engine.aclose())


async def reached(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def release(servers: Servers) -> None:
    for event in servers.held.values():
        event.set()
