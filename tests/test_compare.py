"""Passages compared: what says the same, what contradicts. Every expectation was derived by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism.evidence.compare import clashes, said_by, same, says_all
from prism.evidence.tokens import MAX_SENTENCES, ComparedText

WARRANTY = "The warranty covers defects in material for two years from the date of purchase."
LONGER = f"{WARRANTY} Batteries are covered for six months."


def kinds(left: str, right: str) -> list[tuple[str, str, str]]:
    return [(c.kind, c.left_value, c.right_value) for c in clashes(ComparedText(left), ComparedText(right))]


@pytest.mark.parametrize(
    "other",
    [
        "the WARRANTY covers defects in material, for 2 years from the date of purchase",
        "The warranty covers — from the date of purchase — defects in material for two years.",
        "The warranty covers defects in material\nfor two years from the purchase date of purchase.",
    ],
)
def test_another_dress_says_the_same(other: str) -> None:
    assert same(ComparedText(WARRANTY), ComparedText(other))
    assert kinds(WARRANTY, other) == []


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("It weighs 1,500 kg and came out on 5 March 2020.", "It weighs 1500 kg and came out on 2020-03-05."),
        ("Mehr als 50% der Fälle traten im Januar 2019 auf.", "mehr als 50 % der fälle traten im januar 2019 auf"),
        ("该保修期为2年，自购买之日起计算。", "该保修期为２年, 自购买之日起计算｡"),
        ("A first fact is here. Then comes the other one.", "Then comes the other one. A first fact is here."),
    ],
)
def test_formats_and_order_do_not_matter(left: str, right: str) -> None:
    assert same(ComparedText(left), ComparedText(right))


@pytest.mark.parametrize(
    "other",
    [
        "The warranty covers defects in material for three years from the date of purchase.",
        "The warranty does not cover defects in material for two years from the date of purchase.",
        "The guarantee of Acme covers defects in material for two years from the date of purchase.",
        "The warranty covers dents and scratches for two years from the date of purchase.",
        LONGER,
    ],
)
def test_what_says_something_else_is_not_the_same(other: str) -> None:
    assert not same(ComparedText(WARRANTY), ComparedText(other))


def test_the_longer_says_all_of_the_shorter_and_not_the_other_way_round() -> None:
    assert says_all(ComparedText(LONGER), ComparedText(WARRANTY))
    assert not says_all(ComparedText(WARRANTY), ComparedText(LONGER))
    assert said_by(ComparedText(WARRANTY), [ComparedText("Something else."), ComparedText(LONGER)]) == 1
    assert said_by(ComparedText(LONGER), [ComparedText(WARRANTY)]) is None


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        (WARRANTY, WARRANTY.replace("two", "3"), ("number", "two", "3")),
        (WARRANTY, WARRANTY.replace("covers", "does not cover"), ("negation", "", "not")),
        (
            "The bridge was opened in 1932 by the mayor.",
            "The bridge was opened in 1935 by the mayor.",
            ("date", "1932", "1935"),
        ),
        ("Yes, the fee is paid back in full.", "No, the fee is paid back in full.", ("answer", "Yes", "No")),
        (
            "Die Garantie deckt alle Mängel für zwei Jahre.",
            "Die Garantie deckt alle Mängel für 5 Jahre.",
            ("number", "zwei", "5"),
        ),
        (
            "Гарантия на аккумулятор действует два года.",
            "Гарантия на аккумулятор действует 3 года.",
            ("number", "два", "3"),
        ),
        ("这座桥于1932年由市长宣布通车。", "这座桥于1935年由市长宣布通车。", ("date", "1932", "1935")),
        ("この橋は1932年に市長によって開通した。", "この橋は1935年に市長によって開通した。", ("date", "1932", "1935")),
    ],
)
def test_one_value_of_two_kinds_is_a_conflict(left: str, right: str, found: tuple[str, str, str]) -> None:
    assert kinds(left, right) == [found]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Type 1 diabetes affects children and adults.", "Type 2 diabetes affects children and adults."),
        ("Anna Maier was born in 1920 in Hamburg.", "Karl Huber was born in 1931 in Hamburg."),
        ("In 2019 the town had 3,000 inhabitants.", "In 2020 the town had 3,200 inhabitants."),
        ("The album was released in June 2017 by the band.", "The album was released on June 16, 2017 by the band."),
        (
            "The annual registration fee for every ox cart standing outside municipal buildings is 10 euros.",
            "The annual registration fee for every ad pillar standing outside municipal buildings is 12 euros.",
        ),
        ("The train needs 2 hours to the coast.", "The train needs 120 minutes to the coast."),
        ("Anna Maier wrote it. She died in 1990 in Hamburg.", "Karl Huber wrote it. She died in 1991 in Hamburg."),
        ("Size S costs 5 euros here. Size M costs 6 euros here.", "Size S costs 5 euros here."),
        ("Row one has 4 seats in it. Row one has 5 seats in it.", "Row one has 6 seats in it."),
    ],
)
def test_other_things_and_other_conditions_are_none(left: str, right: str) -> None:
    assert kinds(left, right) == []


def test_spans_are_code_points_of_the_texts_as_sent() -> None:
    left = "😀 Ｆｅｅｓ first. The fee for a new card is 10 euros."
    right = "The fee for a new card is 12 euros."
    (clash,) = clashes(ComparedText(left), ComparedText(right))
    assert left[slice(*clash.left)] == "The fee for a new card is 10 euros."
    assert right[slice(*clash.right)] == right


def test_a_passage_too_long_to_be_read_whole_is_never_held() -> None:
    long = " ".join(f"The fee for card number {n} is paid in the office." for n in range(2 * MAX_SENTENCES))
    assert said_by(ComparedText(long + " So is that."), [ComparedText(long)]) is None
    assert said_by(ComparedText(long), [ComparedText(long)]) == 0


# --- properties ------------------------------------------------------------------------------------------------------

SOME = "the warranty covers 2 two 3 years not no Acme 1932 in % . , 保修 年 不 い ない yes type"
WORDS = [*SOME.split(), "\n"]
texts = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join) | st.text(max_size=60)


@settings(max_examples=300)
@given(texts)
def test_every_passage_is_the_same_as_itself_and_never_contradicts_itself(text: str) -> None:
    assert same(ComparedText(text), ComparedText(text))
    assert said_by(ComparedText(text), [ComparedText(text)]) == 0
    assert clashes(ComparedText(text), ComparedText(text)) == ()


@settings(max_examples=300)
@given(texts, texts)
def test_both_are_symmetric(left: str, right: str) -> None:
    one, other = ComparedText(left), ComparedText(right)
    assert same(one, other) == same(other, one)
    assert {clash.turned() for clash in clashes(one, other)} == set(clashes(other, one))


@settings(max_examples=300)
@given(texts, texts)
def test_what_contradicts_is_never_the_same_and_spans_lie_in_the_texts(left: str, right: str) -> None:
    one, other = ComparedText(left), ComparedText(right)
    for clash in clashes(one, other):
        assert not same(one, other)
        assert 0 <= clash.left[0] < clash.left[1] <= len(left)
        assert 0 <= clash.right[0] < clash.right[1] <= len(right)
