"""Evidence: sentences, alignment and the whole check, at the public seam. Expected values are derived by hand."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.evidence import SUPPORT_FLOOR, align, check
from prism.evidence.sentences import MAX_SENTENCE_CHARS, sentences
from prism.text import INVISIBLE


def cut(text: str, language: str | None = None) -> list[str]:
    return [text[start:end] for start, end in sentences(text, language)]


def backed(evidence: str, document: str) -> list[list[str]]:
    """For each evidence sentence, the document text of its spans."""
    return [[document[s.start : s.end] for s in sentence.spans] for sentence in align(evidence, document)]


# --- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("  One.  Two? \n", ["One.", "Two?"]),
        ("It costs 3.5 mg. See Dr. Smith.", ["It costs 3.5 mg.", "See Dr. Smith."]),
        ("Am 3. Mai war es so. Das ist gut.", ["Am 3. Mai war es so.", "Das ist gut."]),
        ("你好。我是！好", ["你好。", "我是！", "好"]),
        ("他走了。3天后回来。", ["他走了。", "3天后回来。"]),
        ("Он жил там. Это Москва.", ["Он жил там.", "Это Москва."]),
        ("😀 Hi there. Next one.", ["😀 Hi there.", "Next one."]),
        ("One here.\r\n\r\nTwo", ["One here.", "Two"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert cut(text) == expected


def test_given_language_overrides_detection() -> None:
    assert cut("Am 3. Mai.", "de") == ["Am 3. Mai."]
    assert cut("Am 3. Mai.", "en") == ["Am 3.", "Mai."]


def test_list_items_and_headings_are_sentences_of_their_own() -> None:
    text = "# Setup\nInstall it first\n- one item\n- another item\n1. first\n2. second\n\nDone"
    assert cut(text) == ["# Setup", "Install it first", "- one item", "- another item", "1. first", "2. second", "Done"]


def test_prose_wrapped_at_a_column_is_not_broken() -> None:
    first = "The committee met for the first time in the city of\nParis and agreed on\nthe new treaty."
    assert cut(f"{first} It was signed.") == [first, "It was signed."]


def test_code_lines_stay_apart_and_rules_join_the_sentence_before() -> None:
    assert cut("Run this\n```\nmake all\nmake test\n```\nThen stop") == [
        "Run this\n```",
        "make all",
        "make test\n```",
        "Then stop",
    ]


def test_a_very_long_word_is_cut() -> None:
    word = "a" * 10 * MAX_SENTENCE_CHARS
    assert all(end - start <= MAX_SENTENCE_CHARS for start, end in sentences(word))
    assert "".join(cut(word)) == word


# --- alignment -------------------------------------------------------------------------------------------------------

ENGLISH = (
    "Aspirin was first made in 1897 by Felix Hoffmann at Bayer. It relieves pain and fever. "
    "Low doses reduce the risk of heart attack in people at high risk. The patent ran out in 1917."
)
GERMAN = (
    "Berlin ist die Hauptstadt Deutschlands. Am 3. Mai 1945 endete dort der Krieg. "
    "Die Stadt hat rund 3,7 Millionen Einwohner und viele Parks."
)
CHINESE = "《战国无双3》是由光荣和ω-force开发的游戏。本作以三大故事为主轴。游戏于2009年12月3日发售。"
RUSSIAN = (
    "Москва является столицей России. Население города составляет около 13 миллионов человек. "
    "Он был основан в 1147 году князем Юрием Долгоруким."
)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (ENGLISH, "It relieves pain and fever."),
        (GERMAN, "Am 3. Mai 1945 endete dort der Krieg."),
        (CHINESE, "本作以三大故事为主轴。"),
        (RUSSIAN, "Москва является столицей России."),
    ],
)
def test_verbatim_is_one_span_with_support_one(document: str, sentence: str) -> None:
    (found,) = align(sentence, document)
    start = document.index(sentence)
    assert (found.text, found.start, found.end, found.support) == (sentence, 0, len(sentence), 1.0)
    assert [(s.start, s.end, s.support) for s in found.spans] == [(start, start + len(sentence), 1.0)]


def test_verbatim_ignores_whitespace_case_and_punctuation() -> None:
    document = "First. It  relieves\npain, and FEVER; always. Last."
    assert backed("it relieves pain, and fever; always.", document) == [["It  relieves\npain, and FEVER; always."]]
    (found,) = align("It relieves pain and fever always", document)
    assert found.support == 1.0
    assert document[found.spans[0].start : found.spans[0].end] == "It  relieves\npain, and FEVER; always."


@pytest.mark.parametrize(
    ("document", "edited", "source"),
    [
        (ENGLISH, "Aspirin was first synthesised in 1897 by Felix Hoffmann.", ENGLISH[:58]),
        (GERMAN, "Die Stadt hat etwa 3,7 Millionen Einwohner und viele Parks.", GERMAN[78:]),
        (CHINESE, "游戏在2009年12月3日发售。", "游戏于2009年12月3日发售。"),
        (RUSSIAN, "Москва — столица России.", "Москва является столицей России."),
    ],
)
def test_lightly_edited_snaps_to_the_sentence(document: str, edited: str, source: str) -> None:
    (found,) = align(edited, document)
    assert [document[s.start : s.end] for s in found.spans] == [source]
    assert SUPPORT_FLOOR <= found.support < 1.0
    assert found.support == found.spans[0].support


def test_support_by_hand() -> None:
    # Weights: red 3, green 5, yellow 6, purple 6, orange 6. One of five words is replaced: matched 20 of 26; the
    # span skips "purple" (6), a quarter of which counts.
    (found,) = align("red green yellow black1 orange", "red green yellow purple orange")
    assert found.support == pytest.approx(20 / (26 + 6 / 4), abs=1e-4)


def test_leaving_out_a_not_is_not_verbatim() -> None:
    (found,) = align("The treatment did improve survival.", "The treatment did not improve survival.")
    # the 3 treatment 8 did 3 improve 7 survival 8 = 29, all matched; "not" (3) skipped
    assert found.support == pytest.approx(29 / (29 + 3 / 4), abs=1e-4)


@pytest.mark.parametrize(
    ("document", "fused", "sources"),
    [
        (
            ENGLISH,
            "It relieves pain and fever, and low doses reduce the risk of heart attack in people at high risk.",
            [ENGLISH[59:86], ENGLISH[87:152]],
        ),
        (
            GERMAN,
            "Berlin ist die Hauptstadt Deutschlands und die Stadt hat rund 3,7 Millionen Einwohner und viele Parks.",
            [GERMAN[:39], GERMAN[78:]],
        ),
        (
            CHINESE,
            "本作以三大故事为主轴，游戏于2009年12月3日发售。",
            ["本作以三大故事为主轴。游戏于2009年12月3日发售。"],
        ),
        (
            RUSSIAN,
            "Москва является столицей России, он основан в 1147 году князем Юрием Долгоруким.",
            [RUSSIAN[:32], RUSSIAN[89:]],
        ),
    ],
)
def test_fused_sentences_get_their_sources(document: str, fused: str, sources: list[str]) -> None:
    (found,) = align(fused, document)
    assert [document[s.start : s.end] for s in found.spans] == sources
    assert all(s.support > 0.8 for s in found.spans)
    assert found.support > 0.8


@pytest.mark.parametrize(
    ("document", "invented"),
    [
        (ENGLISH, "The company was fined by the European Union for price fixing."),
        (GERMAN, "Der Verein gewann die Meisterschaft nicht."),
        (CHINESE, "该公司总部位于美国加利福尼亚州。"),
        (RUSSIAN, "В Париже много музеев и хороших ресторанов."),
        ("", "Anything."),
        (ENGLISH, "?!"),
    ],
)
def test_invented_gets_no_span(document: str, invented: str) -> None:
    (found,) = align(invented, document)
    assert (found.spans, found.support) == ((), 0.0)


def test_a_duplicate_is_taken_from_nearby() -> None:
    document = "Same words here. Alpha one. Beta two. Same words here. Gamma three."
    first, second = document.index("Same"), document.rindex("Same")
    assert align("Same words here.", document)[0].spans[0].start == first
    found = align("Beta two. Same words here.", document)
    assert [s.spans[0].start for s in found] == [document.index("Beta"), second]
    found = align("Alpha one. Beta two. Gamma three. Same words here.", document)
    assert found[-1].spans[0].start == second


def test_words_and_numbers_are_not_cut() -> None:
    assert backed("This costs 3", "This costs 3.5 euros. This costs 3") == [["This costs 3"]]
    assert align("This costs 3", "This costs 3.5 euros. This costs 3")[0].spans[0].start == 22
    assert align("art", "a party of artists")[0].spans == ()


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_puts_everything_together() -> None:
    evidence = "It relieves pain and fever. It was sold in Spain from 1999."
    contribution = "Explains what aspirin does for Martians and for Peter."
    found = check(evidence, ENGLISH, contribution=contribution, query="Does it help Peter?")
    assert [s.support for s in found.sentences] == [1.0, 0.0]
    assert [(s.start, s.end, s.support) for s in found.spans] == [(59, 86, 1.0)]
    assert found.support == pytest.approx(27 / (27 + 31))  # lengths of the two sentences
    assert found.compression == len(evidence) / len(ENGLISH)
    assert [(u.kind, u.text) for u in found.written.unsupported] == [
        ("number", "1999"),
        ("name", "Spain"),
        ("name", "Martians"),
    ]
    assert found.written.checked == 4  # and Peter, who is in the query


def test_the_query_does_not_excuse_the_evidence() -> None:
    found = check("It helps Peter.", "It helps.", contribution="It helps Peter.", query="Peter?")
    assert [u.text for u in found.fidelity.unsupported] == ["Peter"]
    assert found.contribution is not None
    assert found.contribution.fidelity.unsupported == ()
    assert (found.fidelity.checked, found.contribution.fidelity.checked) == (1, 1)


def test_overlapping_spans_are_merged() -> None:
    found = check("It relieves pain and fever. It relieves pain and the fever.", ENGLISH)
    assert [(s.start, s.end, s.support) for s in found.spans] == [(59, 86, 1.0)]


def test_empty_texts() -> None:
    found = check("", "")
    assert (found.sentences, found.spans, found.support, found.compression) == ((), (), 0.0, 0.0)
    assert found.fidelity.score == 1.0


def test_text_without_a_word_matches_behind_leading_space() -> None:
    assert [s.support for s in align(":?", " :?")] == [1.0]


def test_offsets_hold_with_surrogates_astral_and_nul() -> None:
    document = "\ud800😀 one. The \x00 quick brown fox. e\u0301nd"
    found = check("The \x00 quick brown fox.", document)
    assert [document[s.start : s.end] for s in found.spans] == ["The \x00 quick brown fox."]
    assert check("\ud800\udfff", "\udc00").sentences[0].text == "\ud800\udfff"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        "中" * 50_000,
        "“a. " * 5_000,
        "a" + "\u0315\u0300" * 50_000,
        "(1" * 20_000,
        "\ud800" * 50_000,
        "\x00" * 50_000,
        "```\n" * 10_000,
        " " * 100_000 + "x",
        "a " * 20_000,
    ],
    ids=repr,
)
def test_hostile_text_ends_and_matches_itself(text: str) -> None:
    found = check(text, text, contribution=text, query=text)
    assert found.compression == 1.0
    assert found.fidelity.unsupported == ()


# --- properties ------------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(), max_size=120)
PROSE = st.text(st.sampled_from("ab  cA1.,!?\n。中文“”\"'-`é\u0301ß"), max_size=120)
TEXTS = st.one_of(ANY_TEXT, PROSE, st.text(st.characters(categories=["Cs", "Ll", "Zs", "Mn"]), max_size=40))


@given(TEXTS)
def test_sentences_cover_everything_that_can_be_seen(text: str) -> None:
    last = 0
    for start, end in sentences(text):
        assert last <= start < end <= len(text)
        assert not seen(text[last:start])
        assert text[start:end] == text[start:end].strip()
        last = end
    assert not seen(text[last:])


def seen(text: str) -> str:
    return re.sub(f"[{INVISIBLE}]", "", text).strip()


@given(TEXTS, TEXTS)
def test_check_never_raises_and_spans_lie_in_the_document(evidence: str, document: str) -> None:
    found = check(evidence, document, contribution=document, query=evidence)
    for spans in (found.spans, *(sentence.spans for sentence in found.sentences)):
        assert all(s.end <= len(document) for s in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))
    for sentence in found.sentences:
        assert sentence.text == evidence[sentence.start : sentence.end]
        assert bool(sentence.spans) == (sentence.support > 0)


@given(TEXTS)
def test_a_sentence_of_the_document_aligns_with_itself(document: str) -> None:
    for found in align(document, document):
        assert found.support == 1.0
        (span,) = found.spans
        assert document[span.start : span.end].split() == found.text.split() or (
            document[span.start : span.end].lower().split() == found.text.lower().split()
        )
