"""One classifier of failures, one reader of replies: what servers say, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from chat_server import ChatServer
from http_server import HttpServer, Reply, Request
from hypothesis import given
from hypothesis import strategies as st

from prism.data.teacher_store import TeacherStore
from prism.data.teachers import ApiLimits, score_with_api
from prism.errors import InputError
from prism.files.jsonl import Line
from prism.labeling.rubrics import RUBRICS
from prism.labeling.write_targets import parse
from prism.llm.allowance import Provider
from prism.llm.chat import ChatClient
from prism.llm.classify import Caller, asked_wait_s, read_error
from prism.llm.failures import (
    Broken,
    Filtered,
    KeyRefused,
    OutOfCredit,
    RateLimited,
    Rejected,
    Stop,
    Unavailable,
    Undelivered,
    WrongEndpoint,
)
from prism.llm.replies import as_shown, own_words
from prism.llm.rerank_api import ApiTeacher, rerank_url
from prism.types import Document
from studies.services import ServiceReranker
from studies.specs import parse_spec

CALLER = Caller("acme", "s3cret", "ACME_KEY", max_wait_s=120)
GOOGLE = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"},
        ],
    }
}
OPENAI_BROKE = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "code": "insufficient_quota",
    }
}
PAGE = b"<!doctype html><title>Access denied</title><p>Your account, key or subscription may not do this. Billing.</p>"


def error(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Stop | Undelivered:
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return read_error(CALLER, status, headers or {}, content)


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, **more}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "sure"),
    [
        (401, None, KeyRefused, True),
        (401, PAGE, KeyRefused, True),
        (402, None, OutOfCredit, True),
        (404, None, WrongEndpoint, True),
        (400, message("Incorrect API key provided", code="invalid_api_key"), KeyRefused, True),
        (400, message("API key not valid. Please pass a valid API key."), KeyRefused, False),
        (403, message("You do not have permission to use this model"), KeyRefused, False),
        (403, message("Country, region, or territory not supported"), KeyRefused, False),
        (403, message("Forbidden"), Rejected, None),
        (403, PAGE, Rejected, None),
        (403, message("Your input was flagged", metadata={"reasons": ["violence"]}), Filtered, None),
        (400, message("The response was filtered", code="content_filter"), Filtered, None),
        (400, message("maximum context length is 8192 tokens"), Rejected, None),
        (413, None, Rejected, None),
        (422, {"detail": "Input cannot contain empty strings"}, Rejected, None),
        (400, message("Your credit balance is too low"), OutOfCredit, False),
        (400, message("model acme-9 does not exist"), WrongEndpoint, False),
        (429, OPENAI_BROKE, OutOfCredit, True),
        (429, message("billing hard limit", code="billing_hard_limit_reached"), OutOfCredit, True),
        (429, message("You exceeded your current quota, see billing"), OutOfCredit, False),
        (429, GOOGLE, Unavailable, None),
        (429, [GOOGLE], Unavailable, None),
        (429, message("Rate limit on tokens per minute (TPM). Upgrade at https://x/billing"), Unavailable, None),
        (429, message("Allocated quota exceeded", code="insufficient_quota"), Unavailable, None),
        (429, message("add a payment method in the billing page, or stay at 3 RPM"), Unavailable, None),
        *[(status, PAGE, Unavailable, None) for status in (408, 409, 425, 500, 502, 503, 504, 529)],
    ],
)
def test_what_a_status_means(status: int, body: Any, kind: type[Exception], sure: bool | None) -> None:
    found = error(status, body)
    assert type(found) is kind
    assert getattr(found, "sure", None) == sure


def test_a_named_wait_is_no_debt_and_a_long_one_stops() -> None:
    assert type(error(429, OPENAI_BROKE, {"retry-after": "2"})) is Unavailable
    assert type(error(429, OPENAI_BROKE, {"retry-after": "121"})) is RateLimited
    found = error(429, GOOGLE)
    assert isinstance(found, Unavailable)
    assert found.retry_after_s == 17.0


def test_the_key_is_in_no_message() -> None:
    assert "s3cret" not in str(error(401, message("s3cret is wrong\x1b[2J")))
    assert "\x1b" not in str(error(401, message("s3cret is wrong\x1b[2J")))


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({"retry-after-ms": "250"}, {}, 0.25),
        ({"retry-after": "1m30s"}, {}, 90.0),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0",
          "x-ratelimit-reset-tokens": "20ms", "x-ratelimit-remaining-tokens": "900"}, {}, 360.0),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "250ms"}, {}, 0.25),
        ({"x-ratelimit-reset": "12"}, {}, 12.0),
        ({"ratelimit-reset": "3.5"}, {}, 3.5),
        ({}, {"error": {"details": [{"retryDelay": "1.5s"}]}}, 1.5),
        ({}, {"error": {"message": "Please try again in 1m2.5s. Need more? See billing"}}, 62.5),
        ({}, {"error": {"message": "Please retry in 250ms."}}, 0.25),
        ({}, {"message": "Rate limited, retry after 20 seconds"}, 20.0),
        ({}, {"retry_after": 4}, 4.0),
        ({"retry-after": "5"}, {"error": {"details": [{"retryDelay": "60s"}]}}, 5.0),
        ({"retry-after": "soon"}, {"message": "later"}, None),
        ({"retry-after": "inf"}, {}, None),
    ],
)  # fmt: skip
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], body: Any, seconds: float | None) -> None:
    assert asked_wait_s(headers, json.dumps(body).encode()) == (seconds and pytest.approx(seconds))


@pytest.mark.parametrize("header", ["retry-after", "x-ratelimit-reset", "anthropic-ratelimit-tokens-reset"])
def test_moments_are_waits(header: str) -> None:
    then = datetime.now(UTC) + timedelta(seconds=90)
    texts = [
        format_datetime(then, usegmt=True),
        then.isoformat(),
        f"{then.timestamp():.0f}",
        f"{then.timestamp() * 1e3:.0f}",
    ]
    for text in texts:
        assert asked_wait_s({header: text}, b"") == pytest.approx(90, abs=5)


@given(st.integers(0, 20), st.integers(0, 59), st.integers(0, 59), st.integers(1, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    total = 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
    for text in (
        f"{hours}h{minutes}m{seconds}s{milliseconds}ms",
        f"{hours} hours, {minutes} min {seconds}.{milliseconds:03}s",
    ):
        assert asked_wait_s({"retry-after": text}, b"") == pytest.approx(total)


@given(st.text(max_size=60), st.binary(max_size=60), st.sampled_from([400, 403, 429, 500]))
def test_nothing_a_server_says_is_a_traceback(header: str, body: bytes, status: int) -> None:
    assert isinstance(read_error(CALLER, status, {"retry-after": header, "x-ratelimit-reset": header}, body), Exception)


# --- one text or the account -----------------------------------------------------------------------------------------


def ask_in_turn(server: ChatServer, texts: list[str]) -> list[Any]:
    """What becomes of questions asked one after another."""

    async def work() -> list[Any]:
        found: list[Any] = []
        limits = Provider(base_url=server.url, max_attempts=2, backoff_s=0.001, concurrency=1)
        async with ChatClient(limits, name="acme") as client:
            for text in texts:
                try:
                    found.append(
                        (await client.complete([{"role": "user", "content": text}], model="m", max_tokens=4)).text
                    )
                except (Stop, Undelivered) as failure:
                    found.append(type(failure))
        return found

    return anyio.run(work)


FORBIDDEN = (403, {}, message("Forbidden"))
KEY_WORDS = (403, {}, message("your key has no permission"))


def test_a_refusal_of_one_text_fails_that_text_alone() -> None:
    with ChatServer([FORBIDDEN, "1", FORBIDDEN, FORBIDDEN, "1"]) as server:
        assert ask_in_turn(server, ["a", "b", "c", "d", "e"]) == [Rejected, "1", Rejected, Rejected, "1"]
        assert len(server.requests) == 5  # nothing harmless was asked


def test_a_text_that_echoes_words_about_keys_costs_one_harmless_question() -> None:
    with ChatServer([KEY_WORDS, "1", "1"]) as server:
        assert ask_in_turn(server, ["a", "b"]) == [Rejected, "1"]
        assert [request["messages"][0]["content"][:5] for request in server.requests] == ["a", "Reply", "b"]


def test_a_whole_block_of_refused_texts_does_not_end_a_run() -> None:
    schedule = [FORBIDDEN, FORBIDDEN, FORBIDDEN, "1", FORBIDDEN, "1"]
    with ChatServer(schedule) as server:
        assert ask_in_turn(server, list("abcde")) == [Rejected] * 4 + ["1"]
        assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("refusal", "asked", "found"),
    [
        (KEY_WORDS, 2, [KeyRefused] * 4),
        (FORBIDDEN, 4, [Rejected, Rejected, Broken, Broken]),
        ((401, {}, {}), 1, [KeyRefused] * 4),
        ((429, {}, OPENAI_BROKE), 1, [OutOfCredit] * 4),
        ((400, {}, message("Your credit balance is too low")), 2, [OutOfCredit] * 4),
    ],
)
def test_what_refuses_the_harmless_refuses_everything(refusal: Any, asked: int, found: list[Any]) -> None:
    with ChatServer(default=refusal) as server:
        assert ask_in_turn(server, list("abcd")) == found
        assert len(server.requests) == asked


def test_credit_that_runs_out_after_answers_stops_at_once() -> None:
    with ChatServer(["1", "1"], default=(429, {}, OPENAI_BROKE)) as server:
        assert ask_in_turn(server, list("abcd")) == ["1", "1", OutOfCredit, OutOfCredit]
        assert len(server.requests) == 4  # the refusal, and the harmless question


# --- rerank services -------------------------------------------------------------------------------------------------


def rerank(request: Request, refuse: str, status: int, results: str = "results") -> Reply:
    if any(refuse in text or not text for text in request.body["documents"]):
        return Reply({"detail": "Forbidden: no permission"}, status)
    scores = [{"index": index, "relevance_score": 0.25} for index, _ in enumerate(request.body["documents"])]
    return Reply({results: scores, "usage": {"total_tokens": 3}})


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_document_the_service_refuses_or_an_empty_one_fails_alone(tmp_path: Path, status: int) -> None:
    texts = ["one", "", "WAF here", "four", " \n", "six"]
    with HttpServer(lambda request: rerank(request, "WAF", status)) as server:
        service = ServiceReranker(
            parse_spec(f"jina:m@{server.url}"), tmp_path / "s", environment={}, sleep=lambda _: None
        )
        reply = service.rerank("q", [Document(text=text) for text in texts])
        again = service.rerank("q", [Document(text=text) for text in texts[3:]])
        service.close()
        assert {request.path for request in server.requests} == {"/v1/rerank"}
        assert not any("" in request.body["documents"] for request in server.requests)
    assert [judgment.score for judgment in reply.judgments] == [0.25, None, None, 0.25, None, 0.25]
    errors = [judgment.error for judgment in reply.judgments if judgment.error]
    assert errors[0] == errors[2] == "the document is empty"
    assert str(status) in errors[1]
    assert [judgment.score for judgment in again.judgments] == [0.25, None, 0.25]


def test_nothing_is_sent_when_all_documents_are_empty(tmp_path: Path) -> None:
    with HttpServer(lambda request: Reply({}, 500)) as server:
        service = ServiceReranker(parse_spec(f"jina:m@{server.url}"), tmp_path / "s", environment={})
        reply = service.rerank("q", [Document(text=" ")])
        service.close()
        assert server.requests == []
    assert [judgment.error for judgment in reply.judgments] == ["the document is empty"]


def test_a_query_that_is_refused_fails_with_its_documents_and_no_other(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply({"detail": "no"}, 400) if request.body["query"] == "bad" else rerank(request, "WAF", 400)

    with HttpServer(answer) as server:
        service = ServiceReranker(
            parse_spec(f"jina:m@{server.url}"), tmp_path / "s", environment={}, sleep=lambda _: None
        )
        documents = [Document(text=f"text {number}") for number in range(16)]
        bad, good = (service.rerank(query, documents) for query in ("bad", "good"))
        service.close()
        assert len(server.requests) < 16  # far fewer than halving to the end: 31
    assert all(judgment.error for judgment in bad.judgments)
    assert [judgment.score for judgment in good.judgments] == [0.25] * 16


def test_a_service_that_refuses_everything_ends_it(tmp_path: Path) -> None:
    with HttpServer(lambda request: Reply({"detail": "Forbidden"}, 403)) as server:
        service = ServiceReranker(
            parse_spec(f"jina:m@{server.url}"), tmp_path / "s", environment={}, sleep=lambda _: None
        )
        with pytest.raises(InputError, match="even a harmless question is refused"):
            service.rerank("q", [Document(text=f"text {number}") for number in range(8)])
        service.close()


def teach(server: HttpServer, tmp_path: Path, count: int) -> tuple[dict[str, str], dict[str, float]]:
    texts = [f"WAF {number}" if number % 5 == 2 else f"text {number}" for number in range(count)]
    rows = [{"id": str(number), "query": "q", "document": text} for number, text in enumerate(texts)]
    teacher = ApiTeacher("jina", "m", server.url, None, attempts=2, longest_wait_s=0.01)
    with TeacherStore(tmp_path / "teacher", teacher.name) as store:
        failures = score_with_api(
            lambda: (Line(f"p:{number}", row) for number, row in enumerate(rows)),
            teacher,
            store,
            ApiLimits(),
            lambda _: None,
        )
        spent = store.spent()
    return failures, {"pairs": spent.pairs, "calls": spent.calls}


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_pair_the_teacher_refuses_fails_alone_and_is_asked_again(tmp_path: Path, status: int) -> None:
    words = ["WAF"]
    with HttpServer(lambda request: rerank(request, words[0], status)) as server:
        failures, spent = teach(server, tmp_path, 20)
        assert len(failures) == 4
        assert all(str(status) in reason for reason in failures.values())
        assert spent["pairs"] == 16
        words[0] = "nothing"
        failures, spent = teach(server, tmp_path, 20)
    assert failures == {}
    assert spent["pairs"] == 20


def test_a_teacher_that_refuses_everything_stops_the_run(tmp_path: Path) -> None:
    with HttpServer(lambda request: Reply({"detail": "Forbidden"}, 403)) as server:
        with pytest.raises(Stop, match=r"even a harmless question is refused.*0 scores are kept"):
            teach(server, tmp_path, 20)
        assert len(server.requests) < 20


@pytest.mark.parametrize(
    ("dialect", "url", "expected"),
    [
        ("jina", None, "https://api.jina.ai/v1/rerank"),
        ("cohere", None, "https://api.cohere.com/v2/rerank"),
        ("jina", "http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/rerank"),
        ("cohere", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v2/rerank"),
        ("voyage", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/rerank"),
        ("jina", "http://127.0.0.1:8000/v1/rerank/", "http://127.0.0.1:8000/v1/rerank"),
        ("jina", "https://gateway/acme/v1", "https://gateway/acme/v1/rerank"),
    ],
)
def test_a_url_is_a_base_url_or_that_of_rerank(dialect: str, url: str | None, expected: str) -> None:
    assert rerank_url(dialect, url) == expected


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/v1", "https://key@x/v1", "https://x/v1?key=1"])
def test_what_is_no_url_is_said_at_once(url: str) -> None:
    with pytest.raises(InputError, match="the base URL, up to /v1"):
        rerank_url("jina", url)


# --- replies ---------------------------------------------------------------------------------------------------------

WRAPPED = [
    "{}",
    "\ufeff{}",
    "\u200b{}\u200b",
    " \n{}\n",
    "<think>hm, 0?</think>{}",
    "<thinking>\nhm\n</thinking>\n\n{}",
    "It is useful, I think 0.\n</think>\n\n{}",
    "[THINK]hm[/THINK]{}",
    "hm 0[/THINK]{}",
    "◁think▷hm◁/think▷{}",
    "<seed:think>hm</seed:think>{}",
    "{}<|im_end|>",
    "{}<|eot_id|>",
    "{}</s>",
    "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
    "{}<end_of_turn>\n",
    "<|channel|>analysis<|message|>maybe 0<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "<think></think>\u2060{}\u200d<|im_end|>\n",
]
TARGETS = "<contribution>It says when.</contribution>\n<evidence>It froze in 1963.</evidence>"


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_labels_and_targets_are_read_alike(wrapped: str) -> None:
    for words in ("1", TARGETS, "two words"):
        assert own_words(wrapped.replace("{}", words)) == words
    reading = RUBRICS["binary"].read(wrapped.replace("{}", "1"), "stop")
    assert (reading.label, reading.failure) == (1, None)
    assert parse(wrapped.replace("{}", TARGETS)) == ("It says when.", "It froze in 1963.")


@pytest.mark.parametrize(
    "answer", ["<think>so it is 1", "[THINK]1", "<|channel|>analysis<|message|>1", "1 because</think>", "</think>"]
)
def test_a_thought_is_no_answer(answer: str) -> None:
    assert RUBRICS["binary"].read(answer, "stop")[:2] == (None, "unparseable")


@given(
    st.text(st.characters(exclude_characters="<[｜|◁", exclude_categories=("Cf", "Zs", "Zl", "Zp", "Cc")), min_size=1)
)
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert own_words(text) == text
    assert own_words(f"<think>{text}</think>\n{text}<|im_end|>") == text


# --- escapes of the JSON that texts are shown in ---------------------------------------------------------------------

SHOWN = st.text(st.characters(exclude_characters=["\\"], exclude_categories=["Cc", "Cs"]) | st.sampled_from('"\n\r\t'))


@pytest.mark.parametrize(
    ("written", "document", "expected"),
    [
        (r"It is called \"the lake\".", 'They call it "the lake".', 'It is called "the lake".'),
        (r"One.\nTwo.\tThree.", "One.\nTwo.\tThree.", "One.\nTwo.\tThree."),
        (r"Open C:\\temp\\new.", r"Open C:\temp\new.", r"Open C:\temp\new."),
        (r"Open C:\temp\new.", r"Open C:\temp\new.", r"Open C:\temp\new."),
        (r"print(\"a\")", r'say "print(\"a\")"', r"print(\"a\")"),
        (r"A \d stays, and so does \u0041.", "", r"A \d stays, and so does \u0041."),
        ("ends with \\", "", "ends with \\"),
    ],
)
def test_escapes_of_the_json_are_read(written: str, document: str, expected: str) -> None:
    assert as_shown(written, ["a query", document]) == expected


@given(SHOWN, SHOWN)
def test_what_is_copied_from_the_json_is_the_text(text: str, more: str) -> None:
    assert as_shown(json.dumps(text, ensure_ascii=False)[1:-1], [text + more]) == text


@given(st.text(), st.text(), st.text())
def test_what_is_copied_from_the_text_stays(before: str, text: str, after: str) -> None:
    assert as_shown(text, ["query", before + text + after]) == text
    hard = text.replace("a", "\\").replace("b", "n").replace("c", '"')
    assert as_shown(hard, [before + hard + after]) == hard
