"""`POST /v1/systemone` and `POST /v1/decisions`, really served: what their clients send, by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from http_endpoint import Server
from hypothesis import given, settings
from hypothesis import strategies as st

from prism.engines.base import LabelLogits, ScoreOutput
from prism.errors import DocumentError, EngineError
from prism.reranker import Reranker
from prism.scoring import level_probabilities, option_probabilities
from prism.serving.limits import Keys
from prism.serving.questions import Option, Posed, TypedQuestion, read_question
from prism.serving.subject import Subject
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963."
BAD = "p=0.2 Nothing to see."
RELEVANT = "Document `documents.{}` is relevant to `query`: it contains information that answers it."
CRITERIA = {"true": "It answers the query.", "false": "It does not."}
LEVELS = ["Off-topic", "Tangential", "Partly answers", "Fully answers the query"]


class AskedEngine(FakeEngine):
    """`p=0.9` in the query is the score; without it, as in the document. `pairs` are the (query, document)s asked."""

    def __init__(self, template: Template) -> None:
        super().__init__(template)
        self.pairs: list[tuple[str, str]] = []

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        output = await super().score(prompts)
        labels = [self._by_query(ids, label) for ids, label in zip(prompts, output.labels, strict=True)]
        return ScoreOutput(labels, output.cached_tokens)

    def _by_query(self, ids: Sequence[int], label: LabelLogits | DocumentError) -> LabelLogits | DocumentError:
        query = self.template.decode(list(ids)).split("Query: ", 1)[1].split("\nDocument: ", 1)[0]
        self.pairs.append((query, self._document(ids)))
        found = re.search(r"p=(0\.\d+)", query)
        return LabelLogits(math.log(float(found[1])), math.log(1 - float(found[1]))) if found else label


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> AskedEngine:
    return AskedEngine(Template(PRISM.model_copy(update={"max_prompt_tokens": 512}), tiny_tokenizer))


@pytest.fixture(scope="module")
def client(engine: AskedEngine) -> Iterator[httpx.Client]:
    reranker = Reranker(engine.template, engine, name="fake")
    with Server(reranker, max_documents=20, max_body_bytes=100_000, max_tokens=3_000) as client:
        yield client


@pytest.fixture
def asked(engine: AskedEngine) -> list[tuple[str, str]]:
    engine.pairs.clear()
    return engine.pairs


def system_one(client: httpx.Client, state: Any, questions: Any, **more: Any) -> httpx.Response:
    return client.post("/v1/systemone", json={"model": "fake", "state": state, "questions": questions, **more})


def decisions(client: httpx.Client, said: Any, questions: Any, **more: Any) -> httpx.Response:
    return client.post("/v1/decisions", json={"model": "fake", "input": said, "questions": questions, **more})


def noul(instructions: Any, **more: Any) -> dict[str, Any]:
    return {"type": "noul", "instructions": instructions, **more}


def close(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6)


# --- System One ------------------------------------------------------------------------------------------------------


def test_many_documents_in_one_state(client: httpx.Client, asked: list[tuple[str, str]]) -> None:
    documents = {"D00": BAD, "D01": {"title": "Ports", "text": GOOD}}
    questions = {name: noul(RELEVANT.format(name), criteria=CRITERIA) for name in documents}
    answer = system_one(client, {"query": QUERY, "documents": documents}, questions)
    body = answer.json()
    assert body["answers"] == {
        "D00": {"type": "noul", "noul": close(0.2)},
        "D01": {"type": "noul", "noul": close(0.9)},
    }
    assert asked == [(QUERY, BAD), (QUERY, f"Ports\n{GOOD}")], "the pairs of a rerank request"
    ranked = client.post("/v1/rerank", json={"query": QUERY, "documents": [*documents.values()], "evidence": False})
    assert body["usage"] == {"input_tokens": ranked.json()["usage"]["prompt_tokens"], "output_tokens": 0}
    assert (body["model"], body["meta"]) == ("fake", {"warnings": []})
    assert answer.headers["x-typesafe-request-id"] == answer.headers["x-request-id"] == body["id"]


def test_a_score_is_the_graded_level(client: httpx.Client, asked: list[tuple[str, str]]) -> None:
    question = {"type": "score", "instructions": "How well does this passage answer the query?", "criteria": LEVELS}
    body = system_one(client, {"query": QUERY, "passage": GOOD}, {"relevance": question}).json()
    answer = body["answers"]["relevance"]
    assert answer["probabilities"] == close({"0": 0.001, "1": 0.027, "2": 0.243, "3": 0.729})  # binomial(3, 0.9)
    assert (answer["score"], answer["confidence"]) == (close(2.7), close(0.729))
    assert answer["legend"] == dict(zip("0123", LEVELS, strict=True))
    assert asked == [(QUERY, GOOD)]


def test_a_choice_is_the_best_of_independent_predicates(client: httpx.Client, asked: list[tuple[str, str]]) -> None:
    ticket = "I was charged twice."
    criteria = {"billing": "p=0.8", "technical": "p=0.5", "none": "p=0.2"}
    question = {"type": "choice", "instructions": "What is this about?", "criteria": criteria}
    answer = system_one(client, ticket, {"topic": question}).json()["answers"]["topic"]
    assert answer["choice"] == "billing"
    # odds 4, 1, 1/4 of 21/4
    assert answer["probabilities"] == close({"billing": 16 / 21, "technical": 4 / 21, "none": 1 / 21})
    assert answer["confidence"] == close(16 / 21)
    assert asked == [(f"What is this about?\n{name}: {says}", ticket) for name, says in criteria.items()]

    question["criteria"] = {"billing": "p=0.2", "technical": "p=0.1"}  # neither fits: 9/13 of what there is
    answer = system_one(client, ticket, {"topic": question}).json()["answers"]["topic"]
    assert answer["probabilities"]["billing"] == close(9 / 13)
    assert answer["confidence"] == close(0.2)


def test_a_choice_of_passages_and_one_of_yes_and_no(client: httpx.Client, asked: list[tuple[str, str]]) -> None:
    state = {"query": QUERY, "documents": {"a": GOOD, "b": BAD, "c": "p=0.5 Maybe."}}
    best = {"type": "choice", "instructions": "Which answers `query`?", "criteria": {"a": None, "b": None, "c": None}}
    answer = system_one(client, state, {"best": best}).json()["answers"]["best"]
    assert answer["probabilities"] == close({"a": 9 / 10.25, "b": 0.25 / 10.25, "c": 1 / 10.25})
    assert asked == [(QUERY, GOOD), (QUERY, BAD), (QUERY, "p=0.5 Maybe.")]
    asked.clear()
    yes = {"type": "choice", "instructions": "Does `b` answer `query`?", "criteria": {"no": None, "yes": None}}
    answer = system_one(client, state, {"yes": yes}).json()["answers"]["yes"]
    assert (answer["choice"], answer["probabilities"]) == ("no", close({"no": 0.8, "yes": 0.2}))
    assert asked == [(QUERY, BAD)]


def test_levels_that_grade_no_passage_are_predicates(client: httpx.Client) -> None:
    question = {"type": "score", "instructions": "How urgent is it?", "criteria": ["p=0.2 later", "p=0.8 now"]}
    answer = system_one(client, "Help.", {"urgency": question}).json()["answers"]["urgency"]
    assert answer["probabilities"] == close({"0": 1 / 17, "1": 16 / 17})  # odds 1/4 and 4
    assert answer["score"] == close(16 / 17)


def test_a_question_without_an_answer_spares_the_others(client: httpx.Client) -> None:
    empty = {"title": "Ports", "text": ""}
    documents = {"a": GOOD, "b": " ", "c": "refuse this", "e": empty}
    state = {"query": QUERY, "documents": documents}
    questions = {
        "good": noul("Does `documents.a` help answer `query`?"),
        "blank": noul("Does `documents.b` help answer `query`?"),
        "blank too": noul("Does `documents.e` help answer `query`?"),
        "empty": noul("Is `documents.b` polite?"),
        "failed": noul("Does `documents.c` help answer `query`?"),
        "two": noul("Does `documents.a` help answer `query` better than `documents.b`?"),
        "which": noul("Does it help answer `query`?"),
        "box": {"type": "box", "instructions": "Where is the harbour?"},
        "long": noul("Is `documents.a` so? " + "w " * 5000),
    }
    answers = system_one(client, state, questions).json()["answers"]
    assert answers["good"] == {"type": "noul", "noul": close(0.9)}
    assert answers["blank"] == answers["blank too"] == {"type": "noul", "noul": 0.0}, (
        "a passage without text answers no query"
    )
    reasons = {
        "empty": "the document is blank",
        "failed": "too long for the model",
        "two": "about 2 passages",
        "which": "names none of 4 passages: write `documents.ID`",
        "box": "a place in an image",
        "long": "leave no room",
    }
    for name, words in reasons.items():
        assert answers[name]["type"] == "refusal", name
        assert words in answers[name]["reason"], name
    assert list(answers) == list(questions)


def test_where_no_question_has_an_answer_clients_without_refusals_are_told_why(client: httpx.Client) -> None:
    state = {"query": " ", "documents": {"a": GOOD}}
    response = system_one(client, state, {"a": noul("Does `documents.a` answer `query`?"), "b": noul(" ")})
    assert response.status_code == 400
    words = "no question has an answer: 'a': query is blank: say what to look for"
    assert response.json()["detail"] == {"error_type": "invalid_request_error", "message": words}
    said = [{"role": "user", "content": [{"type": "input_json", "data": state}]}]
    asked = [{"type": "predicate", "instructions": "Does `documents.a` answer `query`?"}]
    [refusal] = decisions(client, said, asked).json()["answers"]
    assert refusal == {"type": "refusal", "name": None, "reason": "query is blank: say what to look for"}


def test_images_are_not_read(client: httpx.Client) -> None:
    response = system_one(client, "see IMAGE-1", NOUL, assets={"IMAGE-1": {"type": "image", "data_base64": ""}})
    assert response.status_code == 400
    assert "it is about an image, and this model reads text only" in response.json()["message"]


def test_what_is_not_heeded_is_said(client: httpx.Client) -> None:
    body = system_one(client, "a", {"q": noul("b")}, model="jev-latest", tone="kind").json()
    expected = ["answered by 'fake': there is no model 'jev-latest' here", "ignored fields: tone"]
    assert body["meta"]["warnings"] == expected
    long = decisions(client, "w " * 3000, [{"type": "predicate", "instructions": "c?"}]).json()
    [warning] = long["meta"]["warnings"]
    assert "whose end was not read: of questions 0" in warning


def test_an_instruction_takes_the_place_of_the_default(client: httpx.Client, engine: AskedEngine) -> None:
    plain, told = (system_one(client, "a", {"q": noul("b")}, **more).json() for more in ({}, {"instruction": "Hm?"}))
    default, own = (len(engine.template.tokenizer(text)["input_ids"]) for text in (PRISM.default_instruction, "Hm?"))
    assert plain["usage"]["input_tokens"] - told["usage"]["input_tokens"] == default - own


# --- Decisions -------------------------------------------------------------------------------------------------------


def test_decisions_about_a_query(client: httpx.Client, asked: list[tuple[str, str]]) -> None:
    ask = "Is this snippet relevant to answer the given query: {}"
    questions = [
        {"type": "predicate", "name": "d01", "instructions": ask.format(BAD)},
        {"type": "predicate", "instructions": ask.format(GOOD)},
    ]
    answer = decisions(client, QUERY, questions, safety_identifier="x")
    body = answer.json()
    assert body["answers"] == [
        {"type": "predicate", "name": "d01", "probability": close(0.2)},
        {"type": "predicate", "name": None, "probability": close(0.9)},
    ]
    assert asked == [(QUERY, BAD), (QUERY, GOOD)]
    ranked = client.post("/v1/rerank", json={"query": QUERY, "documents": [BAD, GOOD], "evidence": False}).json()
    tokens, cached = ranked["usage"]["prompt_tokens"], ranked["usage"]["cached_tokens"]
    assert body["usage"] == {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    assert body["meta"]["warnings"] == []


def test_decisions_of_every_kind_about_json(client: httpx.Client) -> None:
    data = {"query": QUERY, "documents": {"a": GOOD, "b": BAD}}
    said = [{"role": "user", "content": [{"type": "input_json", "data": data}]}]
    levels = [{"label": label} for label in ("none", "some", "all")]
    questions = [
        {"type": "predicate", "instructions": [{"type": "input_text", "text": "Does `documents.b` answer `query`?"}]},
        {"type": "choice", "instructions": "Which answers `query`?", "choices": [{"value": "a"}, {"value": "b"}]},
        {"type": "choice", "instructions": "Does `a` answer `query`?", "choices": [{"value": False}, {"value": True}]},
        {"type": "score", "name": "how", "instructions": "How well does `a` answer `query`?", "levels": levels},
        {"type": "predicate", "instructions": [{"type": "input_image", "image_url": "data:image/png;base64,"}]},
    ]
    predicate, best, yes, how, image = decisions(client, said, questions).json()["answers"]
    assert predicate["probability"] == close(0.2)
    assert (best["choice"], best["confidence"]) == ("a", close(0.9))  # 36/37 of the two, 0.9 on its own
    assert best["probabilities"] == [
        {"value": "a", "probability": close(36 / 37)},
        {"value": "b", "probability": close(1 / 37)},
    ]
    assert (yes["choice"], yes["confidence"]) == (True, close(0.9))
    assert [item["value"] for item in yes["probabilities"]] == [False, True]
    assert (how["name"], how["score"]) == ("how", close(1.8))
    assert how["probabilities"] == [
        {"value": 0, "label": "none", "probability": close(0.01)},  # binomial(2, 0.9)
        {"value": 1, "label": "some", "probability": close(0.18)},
        {"value": 2, "label": "all", "probability": close(0.81)},
    ]
    assert (image["type"], image["name"]) == ("refusal", None)


def test_decisions_about_a_conversation(client: httpx.Client, asked: list[tuple[str, str]]) -> None:
    said = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Where is it?"}]},
        {"type": "function_call", "call_id": "1", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "Lindau"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "In Lindau."}], "phase": "final_answer"},
    ]
    question = {"type": "predicate", "instructions": "p=0.7 Was the user helped?"}
    [answer] = decisions(client, said, [question]).json()["answers"]
    assert answer["probability"] == close(0.7)
    lines = "developer: Be kind.\nuser: Where is it?\nfunction_call: find\n{}\nfunction_call_output: Lindau"
    assert asked == [("p=0.7 Was the user helped?", f"{lines}\nassistant: In Lindau.")]
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/a.png"}]}]
    [answer] = decisions(client, image, [question]).json()["answers"]
    assert (answer["type"], answer["reason"]) == ("refusal", "it is about an image, and this model reads text only")


# --- what a question is read as --------------------------------------------------------------------------------------

STATE = {"query": QUERY, "documents": {"a": GOOD, "b": {"title": "t", "body": BAD}}, "rubric": {"instructions": "x"}}


@pytest.mark.parametrize(
    ("state", "text", "pairs"),
    [
        (STATE, "Does `documents.a` help answer `query`? Apply `rubric`.", [(QUERY, GOOD)]),
        (STATE, "Does `documents.b` help answer `query`?", [(QUERY, {"text": BAD, "title": "t"})]),
        (STATE, "Is `b` what the query asks for?", [(QUERY, {"text": BAD, "title": "t"})]),
        (STATE, "Is `documents.a` German?", [("Is the document German?", GOOD)]),
        ({"query": QUERY, "documents": [BAD, GOOD]}, "Does `documents[1]` answer `query`?", [(QUERY, GOOD)]),
        ({"query": QUERY, "documents": [BAD, GOOD]}, "Does `documents.0` answer `query`?", [(QUERY, BAD)]),
        ({"query": QUERY, "documents": [GOOD]}, "Does it answer `query`?", [(QUERY, GOOD)]),
        ({"query": QUERY, "title": "t", "text": BAD}, "For the query?", [(QUERY, {"text": BAD, "title": "t"})]),
        ({"query": QUERY, "a.b": GOOD}, "Does `a.b` answer `query`?", [(QUERY, GOOD)]),
        ({"question": QUERY, "passage": GOOD}, "Does `passage` answer `question`?", [(QUERY, GOOD)]),
        ({"query": QUERY}, "Is `query` about ports?", [("Is `query` about ports?", QUERY)]),
        ({"query": " ", "passage": GOOD}, "Does it answer `query`?", [(" ", GOOD)]),
        ({"subject": "Twice", "paid": [1, 2]}, "A refund?", [("A refund?", "subject: Twice\npaid: [1, 2]")]),
        (["Hi", {"a": 1}], "Polite?", [("Polite?", 'Hi\n{"a": 1}')]),
        (QUERY, "Relevant to the given query: It: froze.", [(QUERY, "It: froze.")]),
        (QUERY, "Relevant to the given query:", []),
        ("SELECT 1", "Is this a SQL query: yes or no?", [("Is this a SQL query: yes or no?", "SELECT 1")]),
    ],
)  # fmt: skip
def test_pairs_of_a_predicate(state: Any, text: str, pairs: list[tuple[str, Any]]) -> None:
    found = read_question(TypedQuestion(kind="predicate", text=text), Subject(state))
    assert [(pair.query, pair.document) for pair in found.pairs] == pairs


def test_what_many_questions_need_of_a_state_is_made_once() -> None:
    """A thousand questions about one large state must not hold it a thousand times."""
    subject = Subject({"a": ["x"] * 9, "b": {"text": "y"}})
    for text in ("Polite?", "Is `a` so?"):
        question = TypedQuestion(kind="predicate", text=text)
        [first], [second] = (read_question(question, subject).pairs for _ in range(2))
        assert first.document is second.document
    long = TypedQuestion(kind="choice", text="w" * 100_001, options=(Option(value="a", text="a"),))
    assert "at most 100,000" in (read_question(long, subject).problem or "")
    many = TypedQuestion(kind="predicate", text="".join(f"`{n}` " for n in range(51)))
    assert "more than 50 things" in (read_question(many, subject).problem or "")


NAMES = st.sampled_from(["query", "documents", "a", "b", "rubric", "text", "", "`", "a.b", "\ud800"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(QUERY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
PIECES = st.sampled_from(
    ["`", "query", "`query`", "the query: ", "documents", ".", "[0]", "a", "b", ":", " ", "\n", "\ud800"]
)
ASKED = st.lists(PIECES, max_size=12).map("".join)


@given(VALUES, ASKED, st.sampled_from(["predicate", "choice", "score"]), st.lists(ASKED, min_size=1, max_size=3))
def test_every_question_has_pairs_or_a_reason(state: Any, text: str, kind: Any, words: list[str]) -> None:
    options = tuple(Option(value=word, text=word) for word in words)
    subject = Subject(state if isinstance(state, str | dict | list) else "")
    found = read_question(TypedQuestion(kind=kind, text=text, options=options), subject)
    assert bool(found.pairs) != bool(found.problem)
    assert len(found.pairs) <= max(1, len(options))
    assert all(isinstance(pair, Posed) for pair in found.pairs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_probabilities_of_options_sum_to_one_and_rank_as_scores(scores: list[float]) -> None:
    shares = option_probabilities(scores)
    assert math.fsum(shares) == pytest.approx(1)
    assert all(shares[a] <= shares[b] for a in range(len(scores)) for b in range(len(scores)) if scores[a] < scores[b])


@given(st.floats(0, 1), st.integers(1, 12))
def test_probabilities_of_levels_have_the_score_as_their_mean(score: float, levels: int) -> None:
    found = level_probabilities(score, levels)
    assert math.fsum(found) == pytest.approx(1)
    assert math.fsum(k * p for k, p in enumerate(found)) == pytest.approx(score * (levels - 1))


# --- bad input -------------------------------------------------------------------------------------------------------

NOUL = {"q": noul("a?")}
PREDICATE = [{"type": "predicate", "instructions": "a?"}]
CHOICE_OF_21 = {"type": "choice", "criteria": {str(n): None for n in range(21)}}
TWICE = {"type": "choice", "instructions": "a?", "choices": [{"value": "true"}, {"value": True}, {"value": True}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("systemone", {"state": "a"}, 422, "questions: Field required"),
        ("systemone", {"questions": NOUL}, 422, "state: Field required"),
        ("systemone", {"state": 3, "questions": NOUL}, 422, "state: Input should"),
        ("systemone", {"state": "a", "questions": {}}, 422, "questions"),
        ("systemone", {"state": "a", "questions": {"q": noul(3)}}, 422, "should be a text, an object or an array"),
        ("systemone", {"state": "a", "questions": {"q": {"type": "choice", "criteria": {}}}}, 422, ".q.criteria: "),
        ("systemone", {"state": "a", "questions": {"q": {"type": "score"}}}, 422, ".q.criteria: Field required"),
        ("systemone", {"state": "a", "questions": {"q": {"type": "riddle"}}}, 422, "questions.q"),
        ("systemone", {"state": "a", "questions": {str(n): noul("a?") for n in range(21)}}, 400, "got 21, at most 20"),
        ("systemone", {"state": "a", "questions": {"a\nb": {"type": "riddle"}}}, 422, "questions.a b"),
        ("systemone", {"state": "a", "questions": {"q": CHOICE_OF_21}}, 400, "got 21 and more, as every option"),
        ("systemone", {"state": "a", "questions": NOUL, "instruction": " \n", "assets": []}, 422, "assets"),
        ("systemone", {"state": " ", "questions": NOUL}, 400, "state is blank"),
        ("decisions", {"input": " ", "questions": PREDICATE}, 400, "input is blank"),
        ("decisions", {"input": "a"}, 422, "questions: Field required"),
        ("decisions", {"questions": PREDICATE}, 422, "input: Field required"),
        ("decisions", {"input": 3, "questions": PREDICATE}, 422, "input: Input should"),
        ("decisions", {"input": [{"role": "user", "content": [{"type": "x"}]}], "questions": PREDICATE}, 422, "input"),
        ("decisions", {"input": "a", "questions": []}, 422, "questions"),
        ("decisions", {"input": "a", "questions": [{"type": "predicate"}]}, 422, ".0.instructions: Field required"),
        ("decisions", {"input": "a", "questions": [TWICE]}, 422, "questions.0.choices: Each choice should be unique"),
        ("decisions", {"input": "a", "questions": PREDICATE * 21}, 400, "got 21, at most 20"),
    ],
)  # fmt: skip
def test_input_errors(client: httpx.Client, path: str, body: dict[str, Any], status: int, words: str) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == status, response.text
    told = response.json()
    assert told["error"]["message"] == told["message"]
    assert words in told["message"]
    assert "\n" not in told["message"]


def test_a_request_too_large_is_told_so_that_clients_split_it(client: httpx.Client) -> None:
    state = {"query": QUERY, "documents": {str(n): "w " * 300 for n in range(12)}}
    questions = {name: noul(f"Does `documents.{name}` answer `query`?") for name in state["documents"]}
    response = system_one(client, state, questions)
    assert response.status_code == 400
    assert response.json()["detail"]["error_type"] == "max_tokens_exceeded"
    assert "too many tokens" in response.json()["detail"]["message"]
    half = dict(list(questions.items())[:4])
    assert system_one(client, state, half).status_code == 200


def test_failures_and_keys(client: httpx.Client, engine: AskedEngine) -> None:
    engine.fails = EngineError("out of memory")
    try:
        failed = system_one(client, "a", NOUL)
    finally:
        engine.fails = None
    assert (failed.status_code, failed.json()["detail"]["error_type"]) == (503, "model_unavailable")
    assert failed.headers["retry-after"] == "1"
    reranker = Reranker(engine.template, AskedEngine(engine.template), name="fake")
    with Server(reranker, keys=Keys(["secret"])) as closed:
        assert system_one(closed, "a", NOUL).status_code == 401
        assert decisions(closed, "a", PREDICATE).json()["error"]["type"] == "authentication_error"
        closed.headers["Authorization"] = "Bearer secret"
        assert decisions(closed, "a", PREDICATE).status_code == 200


def test_models_as_typesafe_lists_them(client: httpx.Client) -> None:
    [model] = client.get("/v1/models").json()["models"]
    assert model["name"] == "fake"
    assert {"description", "release_date"} < set(model)


def test_answers_say_which_scores_these_are(engine: AskedEngine) -> None:
    reranker = Reranker(engine.template, AskedEngine(engine.template), name="fake", score_version="abc")
    with Server(reranker) as client:
        assert system_one(client, "a", NOUL).json()["meta"] == {"warnings": [], "score_version": "abc"}
        assert decisions(client, "a", PREDICATE).json()["meta"]["score_version"] == "abc"
        scored = client.post("/v1/score", json={"text_1": "a", "text_2": GOOD}).json()
        assert scored["meta"] == {"warnings": [], "score_version": "abc"}


def test_the_page_shows_what_is_answered(client: httpx.Client) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "decisions.md").read_text(encoding="utf-8")
    sent, shown = map(json.loads, re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    body = client.post("/v1/systemone", json=sent).json()
    assert set(body) == set(shown)
    assert {name: set(one) for name, one in body["answers"].items()} == {
        name: set(one) for name, one in shown["answers"].items()
    }
    assert body["answers"]["both"] == shown["answers"]["both"]
    p, q = (shown["answers"][name]["noul"] for name in ("first", "second"))
    shares = dict(zip(("shipping", "warranty"), option_probabilities([p, q]), strict=True))
    assert shown["answers"]["best"]["probabilities"] == close(shares)


def test_paths_and_schema(client: httpx.Client) -> None:
    assert client.post("/systemone", json={"state": "a", "questions": NOUL}).status_code == 200
    assert client.post("/decisions", json={"input": "a", "questions": PREDICATE}).status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    for path, required in (("/v1/systemone", ["state", "questions"]), ("/v1/decisions", ["input", "questions"])):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["required"] == required
        assert "$defs" not in json.dumps(schema)
    assert "v1/systemone" in client.get("/docs").text


@settings(max_examples=25)
@given(VALUES, VALUES, ASKED)
def test_nothing_crashes_it(client: httpx.Client, state: Any, criteria: Any, text: str) -> None:
    question = {"type": "score", "instructions": text, "criteria": [criteria, "b"]}
    for path, body in (
        ("systemone", {"state": state, "questions": {"q": question, "r": noul(criteria)}}),
        ("decisions", {"input": state, "questions": [{"type": "predicate", "instructions": text}, criteria]}),
        ("decisions", {"input": [{"role": "user", "content": [{"type": "input_json", "data": state}]}],
                       "questions": [{"type": "predicate", "instructions": text}]}),
    ):  # fmt: skip
        content = json.dumps(body).encode()
        response = client.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 400, 422), response.text


def test_deep_states_are_refused_one_by_one(client: httpx.Client) -> None:
    deep = "[" * 900 + "]" * 900
    body = f'{{"state": {{"a": {deep}, "b": "p=0.9 x"}}, "questions": {{"q": {json.dumps(noul("Is `b` so?"))}}}}}'
    response = client.post("/v1/systemone", content=body.encode(), headers={"Content-Type": "application/json"})
    assert response.json()["answers"]["q"]["noul"] == close(0.9)
