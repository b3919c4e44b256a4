"""Negations: what is denied in the text must be denied in the document, and the other way round. Derived by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.evidence import check

LOCKS = (
    "Normally the server locks the table against writes and builds the index in one scan."
    " While CREATE INDEX runs, writes are locked out. Reads go on."
)


def negations(text: str, document: str, *, query: str = "anything") -> list[str]:
    found = check("", document, contribution=text, query=query).contribution
    assert found is not None
    return [item.text for item in found.fidelity.unsupported if item.kind == "negation"]


def test_a_contribution_that_denies_what_the_page_says() -> None:
    query = "postgres CREATE INDEX without locking table"
    assert negations(f"It covers {query}", LOCKS, query=query) == ["without locking"]  # the query does not excuse it


@pytest.mark.parametrize(
    ("text", "document", "named"),
    [
        ("Writes are not locked out then.", LOCKS, "not locked"),
        ("CREATE INDEX doesn't lock tables.", LOCKS, "doesn't lock"),
        ("It never locks the whole table.", LOCKS, "never locks"),
        ("Der Index entsteht ohne Sperre.", "Eine Sperre hält Schreiber auf, bis der Index entsteht.", "ohne Sperre"),
        ("Gesperrt wird hier nicht.", "Die Tabelle wird hier gesperrt. Lesen geht.", "Gesperrt wird hier nicht"),
        ("Es gibt keine Gebühren.", "Es fallen Gebühren von 5 Euro an.", "keine Gebühren"),
        ("Индекс создаётся без блокировки.", "Создание индекса требует блокировки таблицы.", "без блокировки"),
        ("Таблица не блокируется.", "Таблица блокируется на запись.", "не блокируется"),
        ("创建索引时不锁定表。", "创建索引时会锁定表，写入被阻塞。", "不锁定"),
        ("作成中はロックしない。", "インデックスの作成中はテーブルをロックする。", "ロックしない"),
    ],
)
def test_a_denial_that_the_document_does_not_make(text: str, document: str, named: str) -> None:
    assert negations(text, document) == [named]


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("It builds indexes without locking tables.", "CONCURRENTLY builds an index without locking out writes."),
        ("Writes are not locked.", "Locks on writes are not taken."),
        ("It is not possible to undo this.", "Undoing it is impossible."),
        ("Retries do not help.", "Retries fail to help here."),
        ("It is not only fast, it is small.", "It is fast and small."),
        ("It describes answer no. 5 of the list.", "The list has answer no. 5 and others."),
        ("Der Schlüssel wird nicht übertragen.", "Der Schlüssel wird nie im Klartext übertragen."),
        ("Регистрации нет.", "Войти можно без регистрации."),
        ("创建索引不锁定表。", "创建索引时不会锁定表。"),
        ("ロックしない。", "テーブルはロックしません。"),
    ],
)
def test_a_denial_that_it_makes(text: str, document: str) -> None:
    assert negations(text, document) == []


@pytest.mark.parametrize(
    ("text", "document", "named"),
    [
        (
            "While the index is built, writes are allowed.",
            "While the index is built, writes are not allowed.",
            "not allowed",
        ),
        ("Die Tabelle wird dabei gesperrt.", "Die Tabelle wird dabei nicht gesperrt.", "nicht gesperrt"),
        ("Таблица при этом блокируется.", "Таблица при этом не блокируется.", "не блокируется"),
        ("创建索引时会锁定整个表。", "创建索引时不会锁定整个表。", "不会锁"),
    ],
)
def test_a_denial_left_out(text: str, document: str, named: str) -> None:
    assert negations(text, document) == [named]
    assert [u.text for u in check(text, document).fidelity.unsupported] == [named]  # in evidence as well


def test_a_word_the_document_states_and_denies_is_not_lost() -> None:
    document = "On Linux, writes are allowed. On Windows, writes are not allowed during the build."
    assert negations("During the build writes are allowed.", document) == []


def test_a_negation_counts_in_the_score() -> None:
    found = check("Writes are not locked out.", LOCKS)
    assert (found.fidelity.checked, found.fidelity.score) == (1, 0.0)


@given(st.text(max_size=80), st.text(max_size=80))
def test_nothing_raises_and_a_text_never_contradicts_itself(text: str, document: str) -> None:
    negations(text, document)
    assert negations(text, text) == []


PIECES = "not no without never kein nicht ohne не нет без 不 没有 ない locks table , . gesperrt таблица 锁定表 don't"
SAMPLE = st.lists(st.sampled_from(PIECES.split()), max_size=12)


@given(SAMPLE)
def test_a_copy_denies_what_its_source_denies(words: list[str]) -> None:
    text = " ".join(words)
    assert negations(text, f"Before it. {text} And after it.") == []
