"""Keyword rewriting, queries from texts, web search: by rule and through real local HTTP servers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from http_server import HttpServer, Reply, Request
from typer.testing import CliRunner

from prism import cli
from prism.data.llm_queries import queries_in, read_rewrite
from prism.data.queries import keywords
from prism.errors import InputError
from prism.files.jsonl import write_rows

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
needs = pytest.mark.skipif(not (DATA / "qa").is_dir(), reason="needs ../shared/data (README: data)")
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def save(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_rows(path, rows)
    return path


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(*arguments: str) -> Any:
    return runner.invoke(cli.app, ["data", *arguments])


# --- keywords by rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "question", "expected"),
    [
        ("en", "What is the boiling point of copper at 2 atm?", "boiling point copper 2 atm"),
        ("en", "How do I enable versioning for an S3 bucket?", "enable versioning S3 bucket"),
        ("en", 'who sang "the house of the rising sun" in 1964', 'sang "the house of the rising sun" 1964'),
        ("en", "When did the U.S. join NATO?", "U.S join NATO"),
        ("de", "Wann friert der Hafen von Lindau zu?", "friert Hafen Lindau"),
        ("ru", "Когда замерзает гавань Линдау?", "замерзает гавань Линдау"),
        ("en", "how many episodes are there in War and Peace", "number episodes War and Peace"),
        ("zh", "《三国志13》是由哪家公司开发的？", "三国志13 公司开发"),
        ("zh", "林道的港口什么时候结冰？", "林道 港口 结冰"),
        ("zh", "如何更换路由器？", "更换路由器"),
        ("zh", "什么是机器学习？", "机器学习"),
        ("zh", "谁发明了电话？", "发明 电话"),
        ("zh", "光合作用在什么地方发生？", "光合作用 发生"),
        ("zh", "非洲有多少个国家？", "非洲 国家"),
        ("zh", "最近的地铁站在哪里？", "最近 地铁站"),
        ("zh", "任何人都可以申请吗？", "任何人都可以申请"),
    ],
)
def test_keywords(language: str, question: str, expected: str) -> None:
    assert keywords(question, language).keywords == expected


@pytest.mark.parametrize(
    ("language", "question", "why"),
    [
        ("en", "Which sorting algorithms are not stable?", "negation"),
        ("en", "Why doesn't the container start?", "negation"),
        ("en", "how to deploy without downtime", "negation"),
        ("en", "Is copper a better conductor than iron?", "comparison or choice"),
        ("en", "What is the difference between TCP and UDP?", "comparison or choice"),
        ("en", "Should I use Redis or Memcached?", "comparison or choice"),
        ("en", "How do I convert a PDF to Word?", "direction"),
        ("en", "flights from Rome to Oslo in May", "direction"),
        ("en", "What is copper?", "too little would be left"),
        ("en", "copper boiling point", "already keywords"),
        ("de", "Welche Metalle leiten nicht?", "negation"),
        ("de", "Leitet Kupfer besser als Eisen?", "comparison or choice"),
        ("ru", "Почему медь не магнитится?", "negation"),
        ("zh", "为什么铜不生锈？", "negation"),
        ("zh", "铜和铁有什么区别？", "comparison or choice"),
        ("zh", "铜比铁更贵吗？", "comparison or choice"),
        ("zh", "最大的城市是哪个？", "comparison or choice"),
        ("zh", "数据从北京传到上海要多久？", "comparison or choice"),
        ("fr", "Quand le port gèle-t-il ?", "no rules for language fr"),
    ],
)
def test_meaning_is_not_thrown_away(language: str, question: str, why: str) -> None:
    assert keywords(question, language) == (None, why)


WORDS = [
    "路由器",
    "更换",
    "更新",
    "变更",
    "比特币",
    "比赛",
    "比例",
    "目的地",
    "了解",
    "几何学",
    "存在主义",
    "和平",
    "关于",
    "其他",
    "正在进行",
    "被子植物",
    "无线电",
    "未来学",
    "非洲",
    "特别",
    "级别",
    "不锈钢",
    "酒吧",
    "区块链",
    "自由",
    "理由",
    "由来",
    "在线",
    "现在",
    "具有",
    "是非题",
    "最新版",
    "最终版",
    "较劲",
    "或许",
    "与会者",
    "于是",
    "这里",
    "那达慕",
    "他人",
    "我国",
]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("asked", ["如何使用{}？", "{}的作用是什么？", "请问{}在哪里可以找到？", "谁提出了{}理论？"])
def test_chinese_words_are_never_cut(word: str, asked: str) -> None:
    made = keywords(asked.format(word), "zh")
    assert made.keywords is not None, made.skipped
    assert any(word in chunk for chunk in made.keywords.split()), made.keywords


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a#1", "title": "Access", "text": "Keys are rotated."},
        {"_id": "a", "text": "Copper conducts. Iron does, too. Silver is better than both of them."},
        {"text": "word " * 100},
    ],
)
def test_a_corpus_is_no_file_of_questions(tmp_path: Path, row: dict[str, str]) -> None:
    questions = save(tmp_path / "c.jsonl", [{"_id": "q", "text": "What is the boiling point of copper?"}, row])
    failed = run("keywords", str(questions), str(tmp_path / "k.jsonl"))
    assert failed.exit_code == 2
    assert "c.jsonl:2: a question is expected, this looks like a corpus" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_keywords_command_counts_what_it_skips(tmp_path: Path) -> None:
    rows = [
        {"query": "What is the boiling point of copper?", "document": "d", "doc_id": "1"},
        {"question": "Is copper better than iron?"},
    ]
    questions = save(tmp_path / "q.jsonl", rows)
    done = run("keywords", str(questions), str(tmp_path / "k.jsonl"))
    assert done.exit_code == 0, done.stderr
    (row,) = load(tmp_path / "k.jsonl")
    assert row["query"] == "boiling point copper"
    assert row["original_query"] == "What is the boiling point of copper?"
    assert row["doc_id"] == "1"
    assert "dropped 1: not rewritten: comparison or choice (first: " in done.stderr
    assert run("keywords", str(questions), str(tmp_path / "k.jsonl"), "--keep-original").exit_code == 0
    assert len(load(tmp_path / "k.jsonl")) == 3


@needs
@pytest.mark.parametrize(
    ("file", "language", "share"), [("qed-dev.jsonl", "en", 0.6), ("cmrc2018-dev/questions.jsonl", "zh", 0.6)]
)
def test_most_real_questions_become_shorter_and_keep_their_numbers(file: str, language: str, share: float) -> None:
    found = [
        json.loads(line)["question"] for line in (DATA / "qa" / file).read_text(encoding="utf-8").split("\n")[:800]
    ]
    rewritten = [(question, made) for question in found if (made := keywords(question, language).keywords)]
    assert len(rewritten) > share * len(found)
    for question, made in rewritten:
        assert len(made) <= len(question)
        assert [c for c in made if c.isdigit()] == [c for c in question if c.isdigit()]


# --- by LLM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "keywords_", "why"),
    [
        ("copper boiling point 2 atm\n", "copper boiling point 2 atm", None),
        ("`copper boiling point 2 atm`", "copper boiling point 2 atm", None),
        ("SKIP", None, "the model saw a loss of meaning"),
        ("copper boiling point", None, "a number was lost, such as 2"),
        ("Sure! Here you go:\ncopper 2", None, "the answer is not one line"),
        (
            "What is the boiling point of copper at 2 atm, please, in detail?",
            None,
            "the answer is no shorter than the question",
        ),
    ],
)
def test_rewrites_are_checked(answer: str, keywords_: str | None, why: str | None) -> None:
    assert read_rewrite("What is the boiling point of copper at 2 atm?", answer) == (keywords_, why)


def test_made_queries_are_checked() -> None:
    lines = ["1. when does Lindau freeze?", "- Lindau harbour ice", "", "When does Lindau freeze"]
    answer = "\n".join([*lines, "What does this text say?", '"x"', "!!", "* y"])
    queries, problems = queries_in(answer, 3)
    assert queries == ["when does Lindau freeze?", "Lindau harbour ice", "x"]
    assert Counter(problems) == {"it repeats another": 1, "it speaks of the text itself": 1, "it is no query": 1}


def chat(text: str) -> Reply:
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Reply({"id": "x", "object": "chat.completion", "model": "m", "choices": [message], "usage": usage})


def test_queries_by_llm_are_paid_once(tmp_path: Path) -> None:
    corpus = save(tmp_path / "c.jsonl", [{"id": str(n), "title": "T", "text": f"text {n} on ice"} for n in range(4)])

    def answer(request: Request) -> Reply:
        shown = request.body["messages"][-1]["content"]
        return chat(f"ice {shown.split('text ')[-1][0]}\nhow cold is ice {shown.split('text ')[-1][0]}?")

    with HttpServer(answer) as server:
        command = ["queries", str(corpus), str(tmp_path / "q.jsonl"), "--by", "llm", "--model", "m", "--count", "2"]
        command += ["--base-url", f"{server.url}/v1", "--store", str(tmp_path / "s"), "--price-input", "10000"]
        done = run(*command)
        assert done.exit_code == 0, done.stderr
        again = run(*command)
        assert again.exit_code == 0, again.stderr
        assert len(server.requests) == 4
        assert server.requests[0].path == "/v1/chat/completions"
    rows = load(tmp_path / "q.jsonl")
    assert [(row["query"], row["doc_id"]) for row in rows[:2]] == [("ice 0", "0"), ("how cold is ice 0?", "0")]
    assert len(rows) == 8
    assert {row["source"] for row in rows} == {"c/llm"}
    report = json.loads((tmp_path / "q.jsonl.report.json").read_text())
    assert Decimal(report["cost"]["usd"]) == 4  # 4 calls of 100 tokens at 10,000 a million, once


def test_keywords_by_llm_stop_at_a_wrong_key_and_go_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = save(tmp_path / "q.jsonl", [{"query": f"what is the point of number {n} here?"} for n in range(5)])
    good = {"Bearer right"}

    def answer(request: Request) -> Reply:
        if request.headers["authorization"] not in good:
            return Reply({"error": {"message": "bad key"}}, 401)
        return chat(f"point number {request.body['messages'][-1]['content'].split()[-2]}")

    with HttpServer(answer) as server:
        command = ["keywords", str(questions), str(tmp_path / "k.jsonl"), "--by", "llm", "--model", "m"]
        command += ["--base-url", f"{server.url}/v1", "--store", str(tmp_path / "s"), "--key-env", "MY_KEY"]
        monkeypatch.setenv("MY_KEY", "wrong")
        failed = run(*command)
        assert failed.exit_code == 2
        assert "key" in failed.stderr
        assert "wrong" not in failed.stderr.replace("missing or wrong", "").replace("wrong, or", "")
        assert not (tmp_path / "k.jsonl").exists()
        monkeypatch.setenv("MY_KEY", "right")
        done = run(*command)
        assert done.exit_code == 0, done.stderr
    assert [row["query"] for row in load(tmp_path / "k.jsonl")] == [f"point number {n}" for n in range(5)]


def test_queries_by_rule(tmp_path: Path) -> None:
    texts = [f"The engine number {n} heats the valley near the copper bridge every winter." * 2 for n in range(20)]
    corpus = save(tmp_path / "c.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    done = run("queries", str(corpus), str(tmp_path / "q.jsonl"), "--count", "1", "--total", "15")
    assert done.exit_code == 0, done.stderr
    rows = load(tmp_path / "q.jsonl")
    assert len(rows) == 15
    assert all(row["document"] and "verdict" not in row for row in rows)


def test_llm_options_are_asked_for(tmp_path: Path) -> None:
    questions = save(tmp_path / "q.jsonl", [{"query": "q"}])
    failed = run("keywords", str(questions), str(tmp_path / "k.jsonl"), "--by", "llm")
    assert failed.exit_code == 2
    assert "--by llm needs --model and either --base-url" in failed.stderr
    command = ["keywords", str(questions), str(tmp_path / "k.jsonl"), "--by", "llm", "--model", "m"]
    failed = run(*command, "--base-url", "ftp://127.0.0.1/v1")
    assert failed.exit_code == 2
    assert failed.stderr.startswith("error: --base-url 'ftp://127.0.0.1/v1': ")
    assert failed.stderr.count("\n") == 1


# --- web search ------------------------------------------------------------------------------------------------------

TEXT = "The harbour froze in 1963."
SHAPES: dict[str, Any] = {
    "exa": lambda: {
        "requestId": "r",
        "results": [
            {
                "title": "Ice",
                "url": "https://a/1",
                "publishedDate": "2024-01-02T00:00:00.000Z",
                "id": "x",
                "text": TEXT,
            },
            {"title": None, "url": "https://a/2", "text": ""},
            {"title": "Copy", "url": "https://a/3", "text": TEXT},
        ],
    },
    "tavily": lambda: {
        "query": "q",
        "results": [
            {
                "title": "Ice",
                "url": "https://a/1",
                "content": "short",
                "raw_content": TEXT,
                "published_date": "2024-01-02",
            },
            {"title": "B", "url": "https://a/2", "content": "only a snippet", "raw_content": None, "score": 0.5},
        ],
    },
    "brave": lambda: {
        "type": "search",
        "web": {
            "results": [
                {"title": "<b>Ice</b>", "url": "https://a/1", "description": "The <strong>harbour</strong> &amp; ice"}
                | {"page_age": "2024-01-02T03:04:05", "extra_snippets": ["more"]}
            ]
        },
    },
    "searxng": lambda: {
        "query": "q",
        "results": [{"title": "Ice", "url": "https://a/1", "content": TEXT, "publishedDate": "2024-01-02T00:00:00"}],
    },
}
KEYS = {
    "exa": ("EXA_API_KEY", "x-api-key", "k"),
    "tavily": ("TAVILY_API_KEY", "authorization", "Bearer k"),
    "brave": ("BRAVE_SEARCH_API_KEY", "x-subscription-token", "k"),
}
FIRST = {"brave": "The harbour & ice\nmore"}


@pytest.mark.parametrize("engine", ["exa", "tavily", "brave", "searxng"])
def test_each_search_api_is_spoken(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = save(tmp_path / "q.jsonl", [{"query": "harbour ice", "language": "en"}, {"query": "harbour ice"}])
    with HttpServer(lambda request: Reply(SHAPES[engine]())) as server:
        if engine in KEYS:
            monkeypatch.setenv(KEYS[engine][0], "k")
        command = ["search", str(queries), str(tmp_path / "w.jsonl"), "--engine", engine, "--url", server.url]
        command += ["--store", str(tmp_path / "s"), "--results", "5"]
        for _ in range(2):
            done = run(*command)
            assert done.exit_code == 0, done.stderr
        (request,) = server.requests  # twice the query, twice the command: one search
    asked = parse_qs(urlsplit(request.path).query)
    if engine in ("brave", "searxng"):
        assert (request.method, asked["q"]) == ("GET", ["harbour ice"])
        assert asked.get("format") == (["json"] if engine == "searxng" else None)
        assert asked.get("count") == (["5"] if engine == "brave" else None)
    else:
        assert request.method == "POST"
        assert request.body["query"] == "harbour ice"
        assert request.body["numResults" if engine == "exa" else "max_results"] == 5
    if engine in KEYS:
        _, header, value = KEYS[engine]
        assert request.headers[header] == value
    else:
        assert urlsplit(request.path).path == "/search"
    row = load(tmp_path / "w.jsonl")[0]
    assert row["document"] == FIRST.get(engine, TEXT)
    assert (row["title"], row["url"], row["doc_id"], row["rank"]) == ("Ice", "https://a/1", "https://a/1", 1)
    assert row["published"].startswith("2024-01-02")
    assert row["retrieved_at"].startswith("20")
    assert row["source"] == f"web/{engine}"
    documents = [r["document"] for r in load(tmp_path / "w.jsonl") if r.get("language") == "en"]
    assert len(documents) == len(set(documents))


def test_searches_need_a_key_or_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from prism.data.websearch import WebSearch

    monkeypatch.delenv("EXA_API_KEY", raising=False)
    with pytest.raises(InputError, match="set EXA_API_KEY"):
        WebSearch.from_environment("exa")
    with pytest.raises(InputError, match="pass --url with your instance"):
        WebSearch.from_environment("searxng")


def test_a_search_that_fails_is_dropped_and_one_that_stops_is_said(tmp_path: Path) -> None:
    queries = save(tmp_path / "q.jsonl", [{"query": "bad"}, {"query": "good"}, {"query": "empty"}])

    def answer(request: Request) -> Reply:
        query = parse_qs(urlsplit(request.path).query)["q"][0]
        if query == "bad":
            return Reply({"message": "too odd"}, 422)
        return Reply(SHAPES["searxng"]() if query == "good" else {"results": []})

    base = ["search", str(queries), str(tmp_path / "w.jsonl"), "--engine", "searxng", "--store", str(tmp_path / "s")]
    with HttpServer(answer) as server:
        done = run(*base, "--url", server.url)
        assert done.exit_code == 0, done.stderr
    assert [row["query"] for row in load(tmp_path / "w.jsonl")] == ["good"]
    assert "rejected the request (422): too odd" in done.stderr
    assert "dropped 1: nothing found" in done.stderr
    with HttpServer(lambda request: Reply("no", 401)) as server:
        failed = run(*base, "--url", server.url)
        assert failed.exit_code == 2
        assert "refused the key (401)" in failed.stderr
