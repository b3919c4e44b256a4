"""Fidelity: each kind of fact, supported and not. Expected values are derived by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.evidence.fidelity import fidelity
from prism.text import language_of


def absent(text: str, document: str, query: str | None = None) -> list[tuple[str, str]]:
    return [(u.kind, u.text) for u in fidelity(text, document, query=query).unsupported]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is the end of the story.", "en"),
        ("Das ist nicht das Ende der Geschichte.", "de"),
        ("这是故事的结尾。", "zh"),
        ("これは物語の終わりです。", "ja"),
        ("Это конец истории.", "ru"),
        ("이야기의 끝입니다.", "ko"),
        ("هذه نهاية القصة", "ar"),
        ("", "en"),
    ],
)
def test_language_of(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("it was 1,000", "it was 1000"),
        ("it was 1000", "it was 1,000"),
        ("it was 10 000", "it was 10,000"),
        ("es waren 3,5", "it was 3.5"),
        ("it was 1,234.56", "es waren 1.234,56"),
        ("共１，０００人", "共1000人"),
        ("about 50%", "about 50 percent"),
        ("about 5 mg", "about 5mg"),
        ("in 2020", "am 05.01.2020"),
        ("three men", "a few"),
        ("version 1.2.3", "see 1.2.3 there"),
        ("from 5-10", "between 5 and 10"),
    ],
)
def test_numbers_found_by_value(text: str, document: str) -> None:
    assert absent(text, document) == []


@pytest.mark.parametrize(
    ("text", "document", "number"),
    [
        ("it was 1,000", "it was 1", "1,000"),
        ("it was 3.5", "it was 3 or 5", "3.5"),
        ("it was 35", "it was 3.5", "35"),
        ("about 51%", "about 50%", "51%"),
        ("共１２人", "共13人", "12"),
        ("it was 10 000", "it was 10", "10 000"),
    ],
)
def test_numbers_not_found(text: str, document: str, number: str) -> None:
    assert absent(text, document) == [("number", number)]


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("it was -5", "it was \u22125"),  # a minus sign is a hyphen
        ("it was minus 5", "it was -5"),
        ("es waren minus 5", "es waren -5 Grad"),
        ("было минус 5", "было -5"),
        ("气温零下5度", "气温-5度"),
        ("気温は-5度", "気温はマイナス5度"),
        ("a loss of -12.5", "a result of (12.5) million"),  # an accountant's parentheses
        ("a result of 12.5", "a result of (12.5) million"),  # or an author's
        ("it costs -$5", "it costs -5"),
        ("it was 5", "it was +5"),
        ("it was \u20135 °C", "it was -5 °C"),  # a dash that stands for a minus
        ("it fell by 3.5%", "change: -3.5%"),
        ("between 5 and 10", "5-10 or 5\u201310 or 5% - 10%"),  # ranges
        ("in 2020", "2019-2020"),
        ("在2020年", "2019年-2020年"),
        ("it was 19", "COVID-19"),
        ("it was 5", "word--5"),
        ("it was 0", "it was -0"),
    ],
)
def test_signs_that_agree(text: str, document: str) -> None:
    assert absent(text, document) == []


@pytest.mark.parametrize(
    ("text", "document", "number"),
    [
        ("changed by 12.5% then", "changed by -12.5% then", "12.5%"),
        ("changed by -12.5% then", "changed by 12.5% then", "-12.5%"),
        ("below 40 °C", "below \u221240 °C", "40"),
        ("it was minus 5", "it was 5", "5"),
        ("from -10", "from 5-10", "-10"),
        ("from -10", "from 5\u201310", "-10"),
        ("it was -19", "COVID-19", "-19"),
        ("是-5度", "是5度", "-5"),
        ("it was -$5", "it was $5", "-$5"),
        ("it was 5", "it was (-5)", "5"),
    ],
)
def test_signs_that_do_not(text: str, document: str, number: str) -> None:
    assert absent(text, document) == [("number", number)]


DATES = [
    "2020-01-05",
    "5 January 2020",
    "January 5, 2020",
    "5th of January 2020",
    "5. Januar 2020",
    "05.01.2020",
    "2020年1月5日",
    "5 января 2020",
]


@pytest.mark.parametrize("text", DATES)
@pytest.mark.parametrize("document", DATES)
def test_a_date_in_any_format(text: str, document: str) -> None:
    found = fidelity(f"on {text} it", f"on {document} it")
    assert (found.checked, found.unsupported) == (1, ())


def test_a_date_may_be_less_precise_never_more() -> None:
    assert absent("in January 2020 and on 5 January", "on 2020-01-05") == []
    assert absent("on 5 January 2020", "in January 2020") == [("date", "5 January 2020")]
    assert absent("on 6 January 2020", "on 5 January 2020") == [("date", "6 January 2020")]


def test_urls_and_mail() -> None:
    assert absent("see https://Example.org/a/?b=1.", "at http://www.example.org/a/?b=1") == []
    assert absent("see https://example.org/a.", "at https://example.org/ab") == [("url", "https://example.org/a")]
    assert absent("write to me@example.org.", "write to you@example.org") == [("url", "me@example.org")]
    assert absent("请看https://a.cn/1。好", "") == [("url", "https://a.cn/1")]


def test_code() -> None:
    text = "use `foo bar`, my_var, fooBar, os.path.join(), --dry-run, /etc/hosts and MAX_LEN, e.g. and/or i.e. here"
    found = ["foo bar", "my_var", "fooBar", "os.path.join()", "--dry-run", "/etc/hosts", "MAX_LEN"]
    assert absent(text, "nothing") == [("code", code) for code in found]
    assert absent(text, " ".join(found)) == []
    assert absent("use my_var", "use my_variable") == [("code", "my_var")]


def test_names_in_english() -> None:
    assert absent("It was Angela Merkel in Paris.", "merkel") == [("name", "Angela Merkel"), ("name", "Paris")]
    assert absent("It was Angela Merkel in Paris's centre.", "Merkel, Angela. PARIS") == []
    assert absent("Many people came. Others left, I think.", "") == []  # sentence starts
    assert absent("He met Dr. Watson.", "") == [("name", "Watson")]
    assert absent("NASA and COVID-19", "nasa") == [("name", "COVID-19")]
    assert absent("an American", "America") == []


def test_names_in_german_do_not_flag_inflection_or_plain_nouns() -> None:
    document = "Die Regierung in Berlin hat das Haus verkauft."
    assert absent("Das ist Berlins Regierung und die neue Verwaltung, nicht das Gebäude.", document) == []
    assert absent("Das war nicht in Hamburg.", document) == [("name", "Hamburg")]


def test_names_in_russian_inflect() -> None:
    assert absent("Он живёт в Москве с Путиным.", "Москва. Путин.") == []
    assert absent("Он живёт в Париже.", "Москва.") == [("name", "Париже")]


def test_names_in_chinese() -> None:
    assert absent("他在Apple公司读《红楼梦》。", "") == [("name", "红楼梦"), ("name", "Apple")]
    assert absent("他在Apple公司读《红楼梦》。", "apple 红楼梦") == []


def test_characters_are_reported_once_and_kinds_in_order() -> None:
    text = "In Rome 7 of 9, 7 again, on 5 May 2020, see `x_1 2` at https://a.org/2020/05/05?x_y=3"
    assert absent(text, "") == [
        ("url", "https://a.org/2020/05/05?x_y=3"),
        ("date", "5 May 2020"),
        ("code", "x_1 2"),
        ("number", "7"),
        ("number", "9"),
        ("name", "Rome"),
    ]
    assert fidelity(text, "").checked == 6


def test_the_query_may_support() -> None:
    assert absent("for Rome and 7", "Rome", query="7?") == []


@pytest.mark.parametrize("text", ["A0'0", "A0-0A1", "《A_》", "\\0À"])
def test_awkward_borders_support_themselves(text: str) -> None:
    assert absent(text, text) == []


@given(st.text(st.characters(), max_size=200))
def test_any_text_supports_itself(text: str) -> None:
    assert fidelity(text, text).unsupported == ()


@given(st.text(st.sampled_from("0123456789.,%'-/ 年月日 JanMay`_@:AbИ《》"), max_size=80))
def test_dense_text_supports_itself(text: str) -> None:
    assert fidelity(text, text).unsupported == ()


@pytest.mark.parametrize("piece", ["1.", "1,", "a@", "`a", "a_", "./", "1 May ", ".com", "http://", "《", "A'", "1月"])
def test_adversarial_repetition_ends(piece: str) -> None:
    found = fidelity(piece * 20_000, "nothing")  # what counts is that it ends
    assert len(found.unsupported) <= found.checked


# --- numbers in words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "written", "absent"),
    [
        ("It holds for two years.", "It holds for three years.", ["three"]),
        ("It holds for two years.", "It holds for 2 years.", []),
        ("It holds for 2 years.", "It holds for two years.", []),
        ("It takes twenty-five days.", "It takes 25 days, not five days.", ["five"]),  # twenty-five is one number
        ("Die Garantie gilt zwei Jahre.", "Sie gilt drei Jahre.", ["drei"]),
        ("Die Frist sind 14 Tage.", "Die Frist sind vierzehn Tage.", []),
        ("Гарантия действует два года.", "Она действует три года.", ["три"]),
        ("Гарантия действует 3 года.", "Она действует в течение трёх лет.", []),
        ("保修期为两年。", "保修期为三年。", ["三"]),
        ("保修期为25年。", "保修期为二十五年。", []),
        ("保証は2年間です。", "保証は三年間です。", ["三"]),
        ("It lists a, b and c.", "It names three ways, and nine people.", []),  # counted, not measured
        ("It was built 300 years ago.", "It was built three hundred years ago.", []),  # larger ones are not read
        ("三年级的学生", "三年级有两个班", []),  # a form at school
        ("", "", []),
    ],
)
def test_numbers_in_words_before_a_measure_are_looked_up(document, written, absent):
    assert [item.text for item in fidelity(written, document).unsupported] == absent


@given(st.integers(min_value=2, max_value=99))
def test_han_numbers_are_read_by_value(number):
    digits = "零一二三四五六七八九"
    tens, ones = divmod(number, 10)
    written = (digits[tens] if tens > 1 else "") + ("十" if tens else "") + (digits[ones] if ones else "")
    if written != "一":
        assert fidelity(f"保修期为{written}年", f"保修期为{number}年").unsupported == ()
