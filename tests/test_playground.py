"""The playground: what is asked, what is answered, and what goes wrong."""

# ruff: noqa: F811  # fixtures are imported

from __future__ import annotations

import ast
import asyncio
import json
import shutil
import subprocess
from typing import Any

import httpx
import pytest
from browser import Browser
from http_endpoint import Server
from http_server import HttpServer, Reply, Request
from playground_page import BAD, FAIR, GOOD, QUERY, Page, SlowWriter, client, engine, page, server  # noqa: F401

from prism.errors import EngineError
from prism.reranker import Reranker
from prism.scoring import Calibration
from prism.serving.limits import Keys


def test_the_ranking_is_there_before_the_evidence(page: Page, engine: SlowWriter, server: Server) -> None:
    engine.gate = asyncio.Event()
    try:
        page.fill("query", QUERY)
        page.fill("documents", f"{BAD}\n\n# Harbour\n{GOOD}\n\n{FAIR}")
        page.press("#judge")
        page.until(lambda: len(page.texts("#ranking .number")) == 3)
        assert page.texts("#ranking h3") == ["Harbour", FAIR, BAD]
        assert page.texts("#ranking .number") == ["0.900", "0.700", "0.200"]
        assert page.texts("#ranking .verdict") == ["yes", "yes", "no"]
        assert page.texts("#ranking .waiting") == ["Reading for evidence"] * 2
        assert page.text("#judge") == "Stop"
        assert "Evidence follows" in page.text("#status")
        server.call_soon(engine.gate.set)
        page.over()
    finally:
        engine.gate = None
    assert page.texts("#ranking blockquote") == [
        "p=0.9 The harbour froze in 1963.",
        "p=0.7 Copper conducts electricity.",
    ]
    assert page.texts("#ranking .contribution") == ["It helps."] * 2
    assert page.texts("#ranking mark") == ["p=0.9 The harbour froze in 1963."], "the best is open"
    assert page.text("#found") == "2 of 3 documents say yes"
    assert "40 written" in page.text("#usage")
    assert page.texts("#wrong *") == []


def test_stop(page: Page, engine: SlowWriter, server: Server) -> None:
    engine.gate = asyncio.Event()
    try:
        page.fill("query", QUERY)
        page.fill("documents", GOOD)
        page.press("#judge")
        page.until(lambda: page.texts("#ranking .number"))
        page.press("#judge")
        page.over()
        assert page.text("#status") == "Stopped."
        assert page.texts("#ranking .number") == ["0.900"]
        assert page.texts("#ranking .waiting") == []
        page.until(lambda: server.app.state.admission.open == 0)
    finally:
        server.call_soon(engine.gate.set)
        engine.gate = None


def test_offsets_are_code_points(page: Page) -> None:
    """Emoji are two units of JavaScript and one code point; so are combining ones and old scripts."""
    text = f"\U0001f600\U0001f9ca𝔄e\u0301. {GOOD} \U0001f600 It ends."
    page.judge(QUERY, text)
    evidence = page.text("#ranking blockquote")
    assert evidence.startswith("\U0001f600\U0001f9ca𝔄")
    page.judge(QUERY, "invent \U0001f600\U0001f600\U0001f600 p=0.9 The harbour froze in 1963. Rarely.")
    shown, marked = page.text("#ranking .document"), page.texts("#ranking .document mark")
    assert shown == "invent \U0001f600\U0001f600\U0001f600 p=0.9 The harbour froze in 1963. Rarely."
    assert marked
    assert all(part in shown for part in marked)
    assert "\ufffd" not in shown, "no pair was cut in two"
    assert marked[-1].endswith("1963.")


def test_what_the_document_does_not_say_is_marked(page: Page) -> None:
    page.judge(QUERY, "p=0.9 The harbour froze in 1963, they invent.")
    assert page.texts("mark.unsupported") == ["1847 (not in the document)"]
    assert "Not in the document: 1847" in page.text("#ranking .notes")


def test_the_threshold_moves_verdicts_and_is_sent(page: Page) -> None:
    page.judge(QUERY, f"{BAD}\n\n{GOOD}\n\n{FAIR}")
    page.fill("threshold", "0.8")
    assert page.texts("#ranking .verdict") == ["yes", "no", "no"]
    assert page.text("#found") == "1 of 3 documents says yes"
    page.fill("threshold", "0.1")
    assert page.texts("#ranking .verdict") == ["yes", "yes", "yes"]
    assert "Judge again" in page.text("#threshold-hint")
    page.press("#judge")
    page.over()
    assert len(page.texts("#ranking blockquote")) == 3


def test_the_slider_stands_where_the_models_yes_begins_under_this_query(page: Page) -> None:
    page.judge("港口什么时候结冰的", f"{GOOD}\n\np=0.95 {FAIR}")
    assert page.texts("#ranking .verdict") == ["yes", "no"]
    assert page.text("#threshold-says") == "0.93, default"
    page.judge(QUERY, GOOD)
    assert page.texts("#ranking .verdict") == ["yes"], "the other query's threshold is not sent"
    assert page.text("#threshold-says") == "0.50, default"
    page.fill("threshold", "0.95")
    page.judge(QUERY, GOOD)
    assert page.texts("#ranking .verdict") == ["no"]
    assert page.text("#threshold-says") == "0.95", "what the reader chose stays"
    page.fill("threshold", "0.5")
    assert page.text("#threshold-says") == "0.50, default"
    page.judge("港口什么时候结冰的", GOOD)
    assert page.texts("#ranking .verdict") == ["no"], "and is given back"


def test_the_budget_bounds_what_is_written(page: Page, engine: SlowWriter) -> None:
    page.fill("budget", "0")
    assert page.text("#budget-says") == "scores only"
    page.judge(QUERY, GOOD)
    assert page.texts("#ranking blockquote") == []
    assert page.texts("#ranking .number") == ["0.900"]
    page.fill("budget", "1")
    assert page.text("#budget-says") == "at most 50"
    engine.requests.clear()
    page.press("#judge")
    page.over()
    assert [request.max_tokens for request in engine.requests] == [50]


def test_what_it_would_take_is_said_without_judging(page: Page, engine: SlowWriter) -> None:
    page.fill("query", QUERY)
    page.fill("documents", f"{GOOD * 20}\n\n{BAD}")
    page.fill("each", "30")
    engine.calls.clear()
    page.press("#weigh")
    page.until(lambda: page.text("#weighed"))
    assert engine.calls == []
    said = page.text("#weighed")
    assert "to judge 2 documents" in said
    assert "documents longer than the model reads, whose end was not read: 0" in said
    page.press("#judge")
    page.over()
    assert page.text("#usage").startswith(said.partition(" ")[0]), "as many tokens"
    assert page.text("#weighed") == ""


def test_a_query_with_reason_and_conversation(page: Page) -> None:
    page.fill("reason", "to plan a trip")
    page.fill("talk", "user: hello")
    page.fill("side", "left")
    page.judge(QUERY, GOOD)
    sent = page.js("return run.body")
    assert sent["query"] == {"question": QUERY, "reason": "to plan a trip", "conversation": "user: hello"}
    assert sent["truncation_side"] == "left"
    assert page.texts("#ranking .number") == ["0.900"]


@pytest.mark.parametrize(
    ("budget", "source", "asked"),
    [
        (7, "", {}),
        (7, "quoted", {"evidence": "quoted"}),
        (2, "written", {"evidence": {"source": "written", "max_tokens": 100}}),
        (0, "quoted", {"evidence": False}),
    ],
)
def test_where_evidence_comes_from(page: Page, budget: int, source: str, asked: dict[str, Any]) -> None:
    page.fill("budget", str(budget))
    page.fill("source", source)
    assert page.js("return request('q', ['d'].map(text => ({text})))") == {"query": "q", "documents": ["d"], **asked}


def test_quotes_are_told_from_writing(page: Page) -> None:
    page.fill("source", "quoted")
    page.judge(QUERY, GOOD)
    assert page.text("#ranking blockquote") == "p=0.9 The harbour froze in 1963."
    assert page.texts("#ranking .contribution") == []
    assert page.texts("#ranking .notes li") == ["Quoted from the document."]


def test_what_documents_have_to_do_with_each_other(page: Page) -> None:
    """Two say the same, one contradicts them, and one says what is held already: it goes behind the others."""
    again, other = "p=0.6 The harbour froze in 1963. Boats lay still.", "p=0.6 The harbour froze in 1971. It was cold."
    page.fill("held", "p=0.7 Copper conducts electricity. So does silver.\n\nSomething else is held.")
    page.fill("source", "quoted")
    page.judge(
        QUERY, "\n\n".join((f"# Copper\n{FAIR}", f"# First\n{again}", f"# Again\n{again} Ice.", f"# Other\n{other}"))
    )
    assert page.texts("#ranking h3") == ["First", "Again", "Other", "Copper"]
    assert page.texts("#ranking .rank") == ["1", "2", "3", "4"]
    notes = " ".join(page.texts("#ranking .notes li"))
    for said in ("Said again by 1 document: document=2.", "Says no more than: First", "You have this already."):
        assert said in notes
    assert page.texts("#conflicts strong")[:2] == ["1963", "1971"]
    assert "First: p=0.6 The harbour froze in 1963." in page.text("#conflicts li")
    assert page.text("#output").count("The harbour froze in 1963.") == 1, "one of the two is enough"


def test_budgets_promises_and_versions_are_sent(page: Page) -> None:
    fields = {"asked": "20", "priority": "-2", "version": "abc", "held": "one\n \n two \n", "risk": "0.1"}
    for name, value in fields.items():
        page.fill(name, value)
    page.js("document.getElementById('logits').checked = true")
    sent = page.js("return request('q', ['d'].map(text => ({text})))")
    assert {key: sent[key] for key in sent if key not in ("query", "documents")} == {
        "max_tokens_per_query": 20,
        "priority": -2,
        "score_version": "abc",
        "against": ["one", "two"],
        "answer_risk": 0.1,
        "return_logits": True,
    }
    page.fill("risk", "")
    page.judge(QUERY, GOOD)
    assert page.texts("#ranking .number") == ["0.900 (2.20)"], "ln(0.9 / 0.1)"
    assert ("version abc" in page.text("#notes"), page.text("#usage")[-9:]) == (True, "scores v1")


def test_what_can_be_taken_along(page: Page, client: httpx.Client, engine: SlowWriter) -> None:
    documents = [
        {"title": 'Say "harbour"', "text": GOOD},
        "p=0.7 It's \u202edlo\u2028 'quoted' $HOME `x` \\n \U0001f600.",
    ]
    page.judge(QUERY, f'# Say "harbour"\n{GOOD}\n---\n{documents[1]}')
    expected = Reranker(engine.template, engine, name="fake").rerank(QUERY, documents)
    assert page.text("#output") == expected.context()
    page.press("#tab-json")
    answered = client.post("/v1/rerank", json={"query": QUERY, "documents": documents}).json()
    shown = json.loads(page.text("#output"))
    assert shown["results"] == answered["results"]
    assert shown["usage"] == answered["usage"]
    page.press("#tab-python")
    snippet = page.text("#output")
    call = next(node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call) and len(node.keywords) == 2)
    sent = ast.literal_eval(next(keyword.value for keyword in call.keywords if keyword.arg == "json"))
    assert sent == {"query": QUERY, "documents": documents}
    page.press("#tab-curl")
    command = page.text("#output")
    assert "\u202e" not in command
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["results"] == answered["results"]


def test_copy_takes_what_is_shown(page: Page) -> None:
    page.window.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.judge(QUERY, GOOD)
    page.press("#copy")
    page.until(lambda: page.text("#copy") == "Copied")
    assert page.js("return navigator.clipboard.readText()") == page.text("#output")


def test_one_bad_document_is_shown_in_its_place(page: Page, client: httpx.Client) -> None:
    page.judge(QUERY, f"{GOOD}\n\nplease refuse this one")
    assert page.texts("#ranking .verdict") == ["yes", "error"]
    assert "this one is too long for the model" in page.text("#ranking .failed .wrong")
    assert page.texts("#wrong *") == []


def test_what_is_missing_is_said_at_its_field(page: Page) -> None:
    page.press("#judge")
    assert "no document" in page.text("#documents-wrong")
    assert "blank" in page.text("#query-wrong")
    assert page.js("return document.activeElement.id") == "query"
    assert page.js("return document.getElementById('query').getAttribute('aria-invalid')") == "true"


def test_errors_of_the_request_say_what_to_do(
    window: Browser, server: Server, client: httpx.Client, engine: SlowWriter
) -> None:
    page = Page(window, server.url)
    page.judge(QUERY, "\n\n".join([GOOD] * 21))
    assert "too many documents: got 21, at most 20" in page.text("#wrong strong")
    assert "Change what is sent" in page.text("#wrong")
    engine.fails = EngineError("out of memory")
    try:
        page.judge(QUERY, GOOD)
    finally:
        engine.fails = None
    assert "out of memory" in page.text("#wrong strong")
    assert "read the server’s log" in page.text("#wrong")
    page.judge(QUERY, "p=0.9 break off. Here.")
    assert page.texts("#ranking .number") == ["0.900"], "the ranking stays"
    assert "broke off" in page.text("#wrong") + page.text("#ranking")
    page.judge(QUERY, GOOD)
    assert page.text("#wrong") == "", "an error goes when it is over"


def test_a_dead_server(window: Browser, engine: SlowWriter) -> None:
    server = Server(Reranker(engine.template, engine, name="fake"))
    with server:
        page = Page(window, server.url)
    page.judge(QUERY, GOOD)
    assert page.text("#wrong strong") == "The server does not answer."
    assert page.texts("#ranking li") == []


def test_a_connection_that_breaks_off(window: Browser, client: httpx.Client) -> None:
    """The server is one that says no more after the ranking."""
    ground = client.get("/")
    sent = client.post("/v1/rerank", json={"query": QUERY, "documents": [GOOD], "stream": True}).text
    ranking = sent.split("\n\n")[0].encode() + b"\n\n"

    def answer(request: Request) -> Reply:
        if request.method == "GET":
            return Reply(ground.content, headers={"Content-Type": "text/html; charset=utf-8"})
        return Reply(ranking, headers={"Content-Type": "text/event-stream"})

    with HttpServer(answer) as server:
        page = Page(window, server.url)
        page.judge(QUERY, GOOD)
    assert page.texts("#ranking .number") == ["0.900"]
    assert "The connection broke off." in page.text("#wrong")
    assert "judge again" in page.text("#wrong")


def test_what_is_answerable_is_shown_by_a_calibrated_model(window: Browser, engine: SlowWriter) -> None:
    calibration = Calibration(method="isotonic", prior=0.3, pairs=100, knots=((0.0, 0.0), (0.8, 0.4), (1.0, 0.8)))
    server = Server(Reranker(engine.template, engine, name="fake", calibration=calibration))
    with server:
        page = Page(window, server.url)
        page.judge(QUERY, GOOD)
        assert page.text("#answerable") == "Answerable: 60 % · the evidence suffices", "half way between 0.4 and 0.8"
        page.judge(QUERY, BAD)
    assert page.text("#answerable") == "Answerable: 10 % · no document is relevant · the evidence does not suffice"


def test_a_key_is_asked_for_and_kept_nowhere(window: Browser, engine: SlowWriter) -> None:
    server = Server(Reranker(engine.template, engine, name="fake"), keys=Keys(["sesame"]))
    with server:
        page = Page(window, server.url)
        assert page.js("return document.getElementById('key').checkVisibility()")
        page.judge(QUERY, GOOD)
        assert "no valid API key" in page.text("#wrong strong")
        assert page.js("return document.activeElement.id") == "key"
        page.window.type("#key", "sesame")
        page.judge(QUERY, GOOD)
        assert page.texts("#ranking .number") == ["0.900"]
        for tab in ("curl", "python"):
            page.press(f"#tab-{tab}")
            assert "PRISM_API_KEY" in page.text("#output")
            assert "sesame" not in page.text("#output")
        kept = page.js("return [localStorage.length, sessionStorage.length, document.cookie, location.href]")
        assert kept == [0, 0, "", f"{server.url}/"]


@pytest.mark.exhaustive
def test_the_first_click_shows_mini_at_work(window: Browser) -> None:
    server = Server(Reranker.load("mini", self_test=False))
    with server:
        page = Page(window, server.url)
        page.press("#asks button")
        page.over(within_s=500)
        assert page.text("#ranking h3") == "Rotating access keys"
        assert page.text("#ranking .verdict") == "yes"
        assert "at most two keys" in page.text("#ranking blockquote")
        assert "A user can hold at most two keys at a time." in page.text("#ranking mark")
        assert page.window.console() == []
