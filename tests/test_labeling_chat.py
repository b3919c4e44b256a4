from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import anyio
import pytest
from chat_server import ChatServer, reply

from prism.llm.allowance import Account, Provider
from prism.llm.chat import ChatClient, Completion, most_tokens
from prism.llm.classify import Caller, read_error
from prism.llm.failures import (
    BadAnswer,
    KeyRefused,
    OutOfCredit,
    OverBudget,
    RateLimited,
    Rejected,
    Unavailable,
    WrongEndpoint,
)
from prism.llm.money import Budget, Price, from_pico, to_pico
from prism.types import Usage

KEY = "sk-very-secret-0123456789"
PRICE = Price(input=Decimal("0.15"), output=Decimal("0.6"), cached_input=Decimal("0.075"))
HELLO = [{"role": "user", "content": "hello"}]


class Log:
    def __init__(self) -> None:
        self.heard: list[tuple[str, Decimal]] = []

    async def sent(self, most_usd: Decimal) -> None:
        self.heard.append(("sent", most_usd))

    async def failed(self, kind: str, charged_usd: Decimal) -> None:
        self.heard.append((kind, charged_usd))


def provider(server: ChatServer, **more: Any) -> Provider:
    return Provider(**{"base_url": server.url, "backoff_s": 0.001, "max_attempts": 3, **more})


def ask(server: ChatServer, log: Log | None = None, **more: Any) -> Completion:
    async def work() -> Completion:
        async with ChatClient(provider(server, **more), name="acme") as client:
            return await client.complete(HELLO, model="m", price=PRICE, max_tokens=16, log=log)

    return anyio.run(work)


def test_a_completion_and_its_exact_cost() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 40}}
    with ChatServer([{**reply("2"), "usage": usage}]) as server:
        completion = ask(server)
        request = server.requests[0]
    assert (completion.text, completion.finish, completion.counted) == ("2", "stop", True)
    assert (completion.usage.prompt_tokens, completion.usage.written_tokens) == (100, 2)
    # By hand: 60 x 0.15 + 40 x 0.075 + 2 x 0.6 = 13.2 millionths of a dollar.
    assert completion.cost_usd == Decimal("0.0000132")
    assert (request["model"], request["max_tokens"], request["messages"]) == ("m", 16, HELLO)


def test_tokens_written_unseen_are_billed() -> None:
    """Where the total exceeds prompt and completion, the difference was written before the answer."""
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 152}
    with ChatServer([{**reply("2"), "usage": usage}]) as server:
        assert ask(server).usage.written_tokens == 52


def test_without_counts_tokens_are_estimated_and_it_says_so() -> None:
    body = reply("four")
    del body["usage"]
    with ChatServer([body]) as server:
        completion = ask(server)
    assert not completion.counted
    assert completion.usage.written_tokens == 1  # four bytes
    assert completion.cost_usd == (completion.usage.prompt_tokens * Decimal("0.15") + Decimal("0.6")) / 1_000_000


@pytest.mark.parametrize(
    ("step", "kind", "charged"),
    [
        (429, "rate_limited", False),
        ((429, {"retry-after": "0"}, {}), "rate_limited", False),
        (500, "server_error", False),
        (503, "server_error", False),
        ("cut", "cut_body", True),
        ("drop", "connection", True),
        ("slow", "timeout", True),
    ],
)
def test_passing_trouble_is_retried_and_every_try_is_on_record(step: Any, kind: str, charged: bool) -> None:
    log = Log()
    with ChatServer([step]) as server:
        assert ask(server, log, timeout_s=5 if step == "slow" else 60).text == "1"
        assert len(server.requests) == 2
    most = PRICE.cost(Usage(prompt_tokens=most_tokens(HELLO), written_tokens=16))
    lost = (kind, most if charged else Decimal(0))
    assert log.heard == [("sent", most), lost, ("sent", most)]


def test_trouble_that_does_not_pass_is_given_up() -> None:
    with ChatServer(default=500) as server:
        with pytest.raises(Unavailable, match="acme answered 500: status 500") as caught:
            ask(server)
        assert len(server.requests) == 3
    assert caught.value.kind == "server_error"


def test_nobody_listens() -> None:
    with ChatServer() as server:
        pass
    with pytest.raises(Unavailable, match="cannot connect") as caught:
        ask(server)
    assert (caught.value.kind, caught.value.paid) == ("connection", False)


def test_the_servers_wait_goes_before_ours() -> None:
    """Our own first wait would be up to an hour."""
    with ChatServer([(429, {"retry-after": "0"}, {}), (503, {"retry-after-ms": "1"}, {})]) as server:
        assert ask(server, backoff_s=3600, max_wait_s=3600).text == "1"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "2500", "retry-after": "9"}, 2.5),
        ({"retry-after": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    error = read_error(Caller("acme"), 429, headers, b"")
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == seconds


def test_a_pause_holds_back_the_whole_provider() -> None:
    async def work() -> list[str]:
        limits = Account(Provider(base_url="http://x"))
        done: list[str] = []

        async def other() -> None:
            await limits.turn(Usage())
            done.append("other")

        limits.pause(0.05)
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        done.append("first")
        await task
        return done

    assert anyio.run(work) == ["first", "other"]


@pytest.mark.parametrize(
    ("step", "failure", "words"),
    [
        (401, KeyRefused, "refused the key"),
        ((403, {}, {"error": {"code": "invalid_api_key", "message": "no"}}), KeyRefused, "ACME_KEY"),
        (402, OutOfCredit, "out of credit"),
        ((429, {}, {"error": {"code": "insufficient_quota", "message": "quota"}}), OutOfCredit, "top it up"),
        (404, WrongEndpoint, "base_url and model"),
        ((429, {"retry-after": "86400"}, {}), RateLimited, "86,400 s"),
        ((400, {}, {"error": {"message": "maximum context length"}}), Rejected, "maximum context length"),
        ((200, {}, {"error": {"message": "no money", "code": 402}}), OutOfCredit, "out of credit"),
    ],
)
def test_what_waiting_does_not_mend_is_told_at_once(
    step: Any, failure: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", KEY)
    log = Log()
    with ChatServer([step]) as server:
        with pytest.raises(failure, match=words):
            ask(server, log, key_env="ACME_KEY")
        assert len(server.requests) == 1
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert [charged for kind, charged in log.heard if kind != "sent"] == [Decimal(0)]


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "schlüssel"])
def test_no_key_no_request(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("ACME_KEY", value)
    with ChatServer() as server:
        with pytest.raises(KeyRefused, match="ACME_KEY"):
            ask(server, key_env="ACME_KEY")
        assert server.requests == []


def test_a_server_that_echoes_the_key_does_not_leak_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", KEY)
    echo = (401, {}, {"error": {"message": f"bad key {KEY}\x1b[2J"}})
    with ChatServer([echo]) as server, pytest.raises(KeyRefused) as caught:
        ask(server, key_env="ACME_KEY")
    assert KEY not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"choices": []}, "empty"),
        ({"choices": None}, "empty"),
        (reply(""), "empty"),
        (reply(None), "empty"),
        (reply(None, "length"), "cut_off"),
        (reply("no", "content_filter"), "refused"),
        ({"choices": [{"message": {"content": None, "refusal": "I will not"}}]}, "refused"),
    ],
)
def test_an_answer_without_content_is_paid_for_and_not_asked_again(body: dict[str, Any], kind: str) -> None:
    with ChatServer([{"usage": {"prompt_tokens": 10, "completion_tokens": 0}, **body}]) as server:
        with pytest.raises(BadAnswer) as caught:
            ask(server)
        assert len(server.requests) == 1
    assert caught.value.kind == kind
    # By hand, in millionths: 100 x 0.15 + 2 x 0.6 where `reply` counts, else 10 x 0.15.
    assert caught.value.cost_usd == Decimal("0.0000162" if "usage" in body else "0.0000015")


def many(server: ChatServer, times: int, **more: Any) -> tuple[Account, list[Any]]:
    async def work() -> tuple[Account, list[Any]]:
        account = Account(provider(server, **more))
        async with ChatClient(account.provider, name="acme", allowance=account) as client:
            asks = [client.complete(HELLO, model="m", price=PRICE, max_tokens=16) for _ in range(times)]
            return account, await asyncio.gather(*asks, return_exceptions=True)

    return anyio.run(work)


def test_no_more_at_once_than_allowed() -> None:
    with ChatServer(delay_s=0.02) as server:
        many(server, 12, concurrency=3)
        assert server.most_at_once == 3


def test_the_budget_is_never_exceeded_and_used_as_far_as_it_goes() -> None:
    # By hand: an answer costs 100 x 0.15 + 2 x 0.6 = 16.2 millionths. A request may cost (5 + 16) x 0.15 + 16 x 0.6
    # = 12.75 millionths as reckoned before, so with 50 the third request fits (32.4 + 12.75) and the fourth does not.
    with ChatServer(delay_s=0.02) as server:
        account, answers = many(server, 8, concurrency=1, budget_usd=Decimal("0.00005"))
        assert len(server.requests) == 3
    assert account.budget.spent_usd == Decimal("0.0000486")
    assert sum(isinstance(answer, OverBudget) for answer in answers) == 5


def test_money_set_aside_counts() -> None:
    async def work() -> list[str]:
        budget, order = Budget(Decimal(10)), []

        async def second() -> None:
            await budget.set_aside(Decimal(6))
            order.append("second")

        await budget.set_aside(Decimal(6))
        task = asyncio.create_task(second())
        await asyncio.sleep(0)
        order.append("settled")
        budget.settle(Decimal(6), Decimal(1))
        await task
        with pytest.raises(OverBudget):
            await budget.set_aside(Decimal("9.5"))
        return order

    assert anyio.run(work) == ["settled", "second"]


def test_money_is_stored_exactly() -> None:
    assert to_pico(PRICE.cost(Usage(prompt_tokens=1))) == 150_000
    assert to_pico(Decimal("1e-13")) == 1
    assert from_pico(to_pico(Decimal("12.345678901234"))) == Decimal("12.345678901234")


@pytest.mark.parametrize(
    "url", ["api.example.com", "ftp://x/v1", "https://key@x/v1", "https://x/v1?key=1", "https://u:p@x"]
)
def test_an_address_without_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Provider(base_url=url)


def test_lone_surrogates_are_sent_as_replacements() -> None:
    with ChatServer() as server:

        async def work() -> None:
            async with ChatClient(provider(server), name="acme") as client:
                await client.complete([{"role": "user", "content": "a\ud800b"}], model="m", max_tokens=4)

        anyio.run(work)
        assert server.requests[0]["messages"][0]["content"] == "a\ufffdb"
