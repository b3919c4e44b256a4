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
        ("It was built 300 years ago.", "It was built three hundred years ago.", []),
        ("三年级的学生", "三年级有两个班", []),  # a form at school
        ("", "", []),
    ],
)
def test_numbers_in_words_before_a_measure_are_looked_up(document, written, absent):
    assert [item.text for item in fidelity(written, document).unsupported] == absent


@pytest.mark.parametrize(
    ("spelt", "frame", "digits"),
    [
        ("двадцать пять", "Гарантия действует {} лет.", "25"),
        ("сто пять", "Гарантия действует {} лет.", "105"),
        ("двухсот пяти", "Не менее {} лет.", "205"),
        ("тысяча двести", "Им {} лет.", "1200"),
        ("двадцать один", "Это {} год.", "21"),
        ("двадцать один", "Это {} день.", "21"),
        ("двадцатью пятью", "Ограничено {} процентами.", "25"),
        ("шестьюдесятью пятью", "Управились {} днями.", "65"),
        ("thirty two", "It lasts {} months.", "32"),
        ("thirty-two", "A {}-month term.", "32"),
        ("one hundred and five", "It lasts {} years.", "105"),
        ("a hundred", "It lasts {} years.", "100"),
        ("five thousand two hundred and six", "It lasts {} years.", "5,206"),
        ("two point five", "It grew to {} percent.", "2.5"),
        ("zero point five", "It grew to {} percent.", "0.5"),
        ("zwei Komma fünf", "Es sind {} Prozent.", "2,5"),
        ("fünfundzwanzig", "Es gilt {} Jahre.", "25"),
        ("zweihundertfünf", "Es gilt {} Jahre.", "205"),
        ("hundert und fünf", "Es gilt {} Jahre.", "105"),
        ("eintausendneunhundertvierundachtzig", "Es gilt {} Jahre.", "1984"),
        ("二〇二五", "建于{}年。", "2025"),
        ("二零二五", "建于{}年。", "2025"),
        ("二〇〇八", "建于{}年。", "2008"),
        ("一百零五", "已有{}年。", "105"),
        ("两千零八", "已有{}年。", "2008"),
        ("二点五", "长{}公里。", "2.5"),
        ("百五", "{}年間です。", "105"),
        ("二〇", "{}年間です。", "20"),
    ],
)
def test_a_run_of_number_words_is_one_number(spelt: str, frame: str, digits: str) -> None:
    words, number, last = frame.format(spelt), frame.format(digits), frame.format(digits[-1])
    assert absent(words, number) == []
    assert absent(number, words) == []
    assert absent(words, last) == [("number", spelt)]  # what only the last word says
    assert absent(last, words) == [("number", digits[-1])]
    assert absent(words, words) == []


@pytest.mark.parametrize(
    "text",
    [
        "two million years",
        "two million five hundred thousand years",
        "5 thousand two hundred years",
        "a few hundred years",
        "half a hundred years",
        "two and a half years",
        "two point years",
        "at one point two years",
        "four score and seven years",
        "between one hundred and two hundred years",
        "between one hundred and one thousand years",
        "nineteen ninety-nine days",
        "mehrere hundert Jahre",
        "две-три недели",
        "тысячи лет",
        "七八年",
        "十二三年",
        "两三百年",
        "数百年",
        "几十年",
        "千年",
        "二・三年",
        "三万五千年",
        "一年",
        "one year",
    ],
)
def test_words_that_are_no_number_for_sure_are_not_read_in_part(text: str) -> None:
    assert absent(text, "5 Jahre") == []


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        ("between one hundred and two hundred years", ["100 years", "200 years"]),
        ("between one hundred and one thousand years", ["100 years", "1000 years"]),
        ("two million years", ["2 million years"]),
        ("five thousand years", ["5 thousand years", "5000 years"]),
        ("5 тыс. лет", ["пять тысяч лет"]),
        ("2.5 thousand years", ["two thousand five hundred years"]),
        ("两三年", ["2年", "3年", "两年"]),
        ("十二三年", ["12年", "13年"]),
        ("下午三点五分", ["3点5分"]),
        ("-5 degrees", ["minus five degrees"]),
        ("At one point 2 years had passed", ["At one point two years had passed"]),
        ("It costs $2k", ["It costs two thousand dollars"]),
        ("Es sind 5 Tsd. Meter", ["Es sind fünftausend Meter"]),
    ],
)
def test_what_a_document_has_in_words_supports_either_reading(document: str, texts: list[str]) -> None:
    assert [absent(text, document) for text in texts] == [[] for _ in texts]


ONES = {
    **dict(enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"], 1)),
    **dict(
        enumerate(["twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"], 12)
    ),
}
TENS = dict(enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2))


def in_english(number: int, hyphen: str, conjunction: str) -> str:
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    below = ONES[rest] if 0 < rest < 20 else TENS.get(tens, "") + (hyphen + ONES[ones] if ones else "")
    if not hundreds:
        return below
    return f"{ONES[hundreds]} hundred" + (f" {conjunction}{below}" if rest else "")


@given(st.integers(2, 999), st.sampled_from(["-", " "]), st.sampled_from(["and ", ""]))
def test_english_number_words_have_one_value(number: int, hyphen: str, conjunction: str) -> None:
    text = f"It holds for {in_english(number, hyphen, conjunction)} years."
    assert absent(text, f"It holds for {number} years.") == []
    assert len(absent(text, f"It holds for {number + 1} years.")) == 1
    assert absent(f"It holds for {number} years.", text) == []
    assert len(absent(f"It holds for {number + 1} years.", text)) == 1


def in_han(number: int, zero: str) -> str:
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    written = f"{HAN[hundreds]}百" if hundreds else ""
    if tens:
        written += f"{HAN[tens] if tens > 1 or hundreds else ''}十"
    elif hundreds and ones:
        written += zero
    return written + (HAN[ones] if ones else "")


HAN = "零一二三四五六七八九"


@given(st.integers(2, 999), st.sampled_from("零〇"), st.sampled_from(["年", "个月"]))
def test_han_numerals_have_one_value(number: int, zero: str, measure: str) -> None:
    text = f"保修期为{in_han(number, zero)}{measure}。"
    assert absent(text, f"保修期为{number}{measure}。") == []
    assert len(absent(text, f"保修期为{number + 1}{measure}。")) == 1
    assert absent(f"保修期为{number}{measure}。", text) == []


@given(st.integers(1000, 2099))
def test_years_in_han_digits_are_read_digit_by_digit(year: int) -> None:
    written = "".join(HAN[int(digit)] for digit in str(year))
    assert absent(f"建于{written}年。", f"建于{year}年。") == []
    assert len(absent(f"建于{written}年。", f"建于{year + 1}年。")) == 1


PIECES = (
    "two one five twenty hundred thousand million and und point a half between minus zwei ein hundert fünfund 5 12 -"
)
PIECES += " years Jahre лет сто двадцать тысячи , `x` 二 三 十 百 千 〇 点 ・ 万 年 天 《a》 x_y"


@given(st.lists(st.tuples(st.sampled_from(PIECES.split()), st.sampled_from(["", " ", "-"])), max_size=12))
def test_number_words_in_any_order_support_themselves(pieces: list[tuple[str, str]]) -> None:
    text = "".join(piece + gap for piece, gap in pieces)
    assert absent(text, text) == []


@pytest.mark.parametrize(
    "piece", ["two ", "zwei", "zwei und ", "two hundred and ", "ein", "vier", "二", "二点", "百", "сто "]
)
def test_long_runs_of_number_words_end(piece: str) -> None:
    assert fidelity(piece * 20_000, piece * 20_000).unsupported == ()
