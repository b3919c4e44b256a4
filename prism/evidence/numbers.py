"""Numbers: the values a written number may have, its sign included. Texts are `normalised`: "−" is "-" here.

A hyphen is a sign where it stands before a number and behind nothing it could join to it: "-5" and "(-5)" are
negative, "5-10", "2019年-2020年" and "COVID-19" are not. Words for it count as well ("minus 5", "负5", "минус 5").
Where a reader would have to guess, both signs are taken: "–5 °C" with a dash that may be a minus, "(5)" which an
accountant means otherwise than an author, "5 -10", "12 minus 5", "negative 5", and "fell by 5", which is -5 in a table.
"""

from __future__ import annotations

import re
import unicodedata

from prism.text import CASED, UNSPACED

GAP = "\u2063"
"""Stands between the groups of 10 000; `normalised` text has none of its own."""
GROUP_GAP = re.compile(r"(?<=\d)(?<!\d{4}) (?=\d{3}(?!\d))")
SIGN = rf"(?:(?<![^\W{UNSPACED}])(?<!\d[{UNSPACED}])(?<![)\]%°_./\\–—\x00-])-[$€£¥]?)"
"""A hyphen that is a sign, as a pattern to stand before a digit."""
NUMBER = re.compile(rf"{SIGN}?(?<![{CASED}\d_])(?<!\d[.,'])(?<![{CASED}]-)\d[\d.,'{GAP}]*(?:\s?%)?")
ANY_NUMBER = re.compile(rf"{SIGN}?\d[\d.,']*")

_PLUS, _MINUS, _EITHER = ("",), ("-",), ("", "-")
_REACH = 40  # code points before a number in which a word may say which way it goes
_MINUS_WORD = re.compile(
    r"(?:(?P<left>[\d)]\s*)?(?<!\w)(?:minus|минус)\s"
    r"|负|負|零下|マイナス|氷点下|마이너스\s?|영하\s?)[$€£¥]?$",
    re.IGNORECASE,
)
_GUESSED = re.compile(
    r"(?<![\d%)\]°])(?<![\d%)\]°] )–$"  # a dash, not between two numbers
    r"|±\s?$"
    r"|[\d%)] -$"
    r"|\([$€£¥]?$"
    r"|(?<!\w)negativ\w{0,2} $"
    r"|(?:(?<!\w)(?:fell|falls?|fallen|drop(?:s|ped)?|declin\w+|decreas\w+|shrank|shrunk|sank|lost|loss(?:es)?|down"
    r"|fiel|gefallen|gesunken|sinkt|Rückgang|Verlust|Minus|снизил\w*|упал\w*|сократил\w*|убыт\w+|потер\w+)(?!\w)"
    r"|下降|减少|減少|下跌|亏损|虧損|下落|低下|감소|하락)[^.!?。！？\n\d]{0,25}$",
    re.IGNORECASE,
)
_CLOSED = re.compile(r"\s?[%$€£¥]?\)")


def values(match: re.Match[str]) -> frozenset[str]:
    """What a match of `NUMBER` or `ANY_NUMBER` may stand for, as plain decimal strings with their sign."""
    text, start = match.string, match.start()
    digits = match[0].lstrip("-$€£¥")
    if match[0][0] != digits[0]:
        signs: tuple[str, ...] = _EITHER if _GUESSED.search(text[max(0, start - 3) : start + 1]) else _MINUS
    else:
        signs = _signs(text, start, match.end())
    return frozenset(value if value == "0" else sign + value for value in readings(digits) for sign in signs)


def _signs(text: str, start: int, end: int) -> tuple[str, ...]:
    """The signs of a number that has no hyphen before it."""
    before = text[max(0, start - _REACH) : start]
    word = _MINUS_WORD.search(before)
    if word:
        return _EITHER if word["left"] else _MINUS
    guessed = _GUESSED.search(before)
    if guessed and (before[guessed.start()] != "(" or _CLOSED.match(text, end)):
        return _EITHER
    return _PLUS


def readings(raw: str) -> frozenset[str]:
    """The values written digits may have, without sign: "1,500" is 1500 or 1.500."""
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in raw if c in ".," or c.isdecimal())
    digits = digits.rstrip(".,")
    marks = [c for c in digits if c in ".,"]
    groups = digits.replace(",", ".").split(".")
    grouped = all(len(group) == 3 for group in groups[1:]) and 1 <= len(groups[0]) <= 3 and groups[0] != "0"
    if not marks:
        return frozenset({_whole(digits)})
    if len(marks) == 1:
        # Three decimals keep their zeros: otherwise "1,000" would be read as 1.
        decimals = groups[1] if len(groups[1]) == 3 else groups[1].rstrip("0")
        value = _whole(groups[0]) + ("." + decimals if decimals else "")
        return frozenset({value, _whole("".join(groups))}) if grouped else frozenset({value})
    if len(set(marks)) == 1:
        return frozenset({_whole("".join(groups)) if grouped else ".".join(groups)})  # 1.000.000, or a version
    if marks[-1] in marks[:-1]:
        return frozenset({digits})
    return readings("".join(groups[:-1]) + "." + groups[-1]) - {_whole("".join(groups))}


def _whole(digits: str) -> str:
    return digits.lstrip("0") or "0"


# --- in words --------------------------------------------------------------------------------------------------------

_SPELLED = """
2 two zwei два две двух двум двумя
3 three drei три трех трем тремя
4 four vier четыре четырех четырем
5 five fünf пять пяти
6 six sechs шесть шести
7 seven sieben семь семи
8 eight acht восемь восьми
9 nine neun девять девяти
10 ten zehn десять десяти
11 eleven elf одиннадцать одиннадцати
12 twelve zwölf двенадцать двенадцати
13 thirteen dreizehn тринадцать тринадцати
14 fourteen vierzehn четырнадцать четырнадцати
15 fifteen fünfzehn пятнадцать пятнадцати
16 sixteen sechzehn шестнадцать шестнадцати
17 seventeen siebzehn семнадцать семнадцати
18 eighteen achtzehn восемнадцать восемнадцати
19 nineteen neunzehn девятнадцать девятнадцати
20 twenty zwanzig двадцать двадцати
30 thirty dreißig dreissig тридцать тридцати
40 forty vierzig сорок сорока
50 fifty fünfzig пятьдесят пятидесяти
60 sixty sechzig шестьдесят шестидесяти
70 seventy siebzig семьдесят семидесяти
80 eighty achtzig восемьдесят восьмидесяти
90 ninety neunzig девяносто девяноста
"""
_WORDS = {word: row.split()[0] for row in _SPELLED.strip().splitlines() for word in row.split()[1:]}
_WORD = "|".join(word.replace("е", "[её]") for word in sorted(_WORDS, key=len, reverse=True))
_LARGER = r"(?:hundred|thousand|million|billion|hundert|tausend|million|milliard|сот|сто|тысяч|миллион|миллиард)"
_MEASURES = (
    r"(?:years?|months?|weeks?|days?|hours?|minutes?|seconds?|percent|per\scent|degrees?|dollars?|euros?|pounds?|met(?:er|re)s?"
    r"|kilomet(?:er|re)s?|miles?|feet|inches|kilograms?|grams?|lit(?:er|re)s?|gigabytes?|megabytes?"
    r"|Jahren?|Monaten?|Wochen?|Tagen?|Stunden?|Minuten?|Sekunden?|Prozent|Grad|Euro|Metern?|Kilometern?|Gramm|Litern?"
    r"|лет|год\w{0,3}|месяц\w{0,3}|недел\w{0,3}|дн\w{1,3}|час\w{0,3}|минут\w{0,3}|секунд\w{0,3}|процент\w{0,3}|рубл\w{0,3}"
    r"|метр\w{0,3}|километр\w{0,3})"
)
_SPELT = re.compile(rf"(?<![\w-])(?P<word>{_WORD})(?![\w])(?![\s-]{_LARGER})(?!-(?:{_WORD})\b)", re.IGNORECASE)
SPELT_MEASURE = re.compile(
    rf"{_SPELT.pattern}(?=[\s-]{_MEASURES}(?!\w))"
    r"|(?<![一二两兩三四五六七八九十百千万萬億亿])(?P<han>[二两兩三四五六七八九十百][一二三四五六七八九十百]{0,4})"
    r"(?=年(?![级級生])|[个個か箇ヶ]月|天(?!下)|日間|小[时時]|時間|分[钟鐘間]|秒|[周週]間|星期|週間|元(?!素)|[米公]里|メートル|%)",
    re.IGNORECASE,
)
"""A number in words before a measure: "three years", "drei Jahre", "три года", "三年". One is as often an article."""
_HAN = re.compile("(?<![一二两兩三四五六七八九十百千万萬億亿])[二两兩三四五六七八九十百][一二三四五六七八九十百]{0,4}")
_HAN_DIGITS = {"一": 1, "二": 2, "两": 2, "兩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_TENS_AND_ONES = re.compile(rf"(?<!\w)({_WORD})[- ]({_WORD})(?!\w)", re.IGNORECASE)


def spelt_value(match: re.Match[str]) -> str:
    """What a match of `SPELT_MEASURE` says, as a plain decimal string."""
    return _word_value(match["word"]) if match["word"] else _han_value(match["han"])


def spelt_values(text: str) -> set[str]:
    """Every number that a text has in words, before a measure or not."""
    words = {_word_value(match["word"]) for match in _SPELT.finditer(text)}
    pairs = [(int(_word_value(tens)), int(_word_value(ones))) for tens, ones in _TENS_AND_ONES.findall(text)]
    words |= {str(tens + ones) for tens, ones in pairs if tens >= 20 and ones < 10}
    return words | {_han_value(match[0]) for match in _HAN.finditer(text)}


def _word_value(word: str) -> str:
    return _WORDS[word.lower().replace("ё", "е")]


def _han_value(text: str) -> str:
    """The value of Han digits with tens and hundreds: 二十五 is 25."""
    total = unit = 0
    for character in text:
        if character in _HAN_DIGITS:
            unit = _HAN_DIGITS[character]
        else:
            total, unit = total + (unit or 1) * (10 if character == "十" else 100), 0
    return str(total + unit)
