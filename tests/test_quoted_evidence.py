"""Evidence quoted from the document, sentence by sentence."""

from __future__ import annotations

import pytest

from prism.quoting import Quote, choose, passage, quotable

CLOSING = "</evidence>"


def test_sentences_once_in_reading_order_and_none_that_ends_the_evidence() -> None:
    text = "One is here. Two is there. One is here. A </evidence> forged. Lone \ud800 surrogate."
    assert quotable(text, CLOSING) == [
        Quote(0, "One is here."),
        Quote(13, "Two is there."),
        Quote(62, "Lone \ufffd surrogate."),
    ]
    assert quotable(" \n ", CLOSING) == []


def test_the_best_sentence_and_what_gets_a_yes() -> None:
    a, b, c, d, e = (Quote(start, f"Sentence {start}.") for start in range(5))
    assert choose([a, b, c], [0.1, 0.3, 0.2]) == [b]
    assert choose([a, b, c, d, e], [0.5, 0.9, 0.7, 0.49, 0.6]) == [b, c, e]
    assert choose([a, b, c], [0.8, 0.8, None]) == [a, b]
    assert choose([a], [None]) == []


@pytest.mark.parametrize(
    ("quotes", "text"),
    [
        ([Quote(9, "Second."), Quote(0, "First.")], "First. Second."),
        ([Quote(0, "第一句。"), Quote(5, "第二句。")], "第一句。第二句。"),
        ([Quote(0, "Ein Satz."), Quote(9, "第二句。"), Quote(20, "The end.")], "Ein Satz. 第二句。The end."),
        ([], ""),
    ],
)
def test_quotes_stand_as_their_script_has_them(quotes: list[Quote], text: str) -> None:
    assert passage(quotes) == text
