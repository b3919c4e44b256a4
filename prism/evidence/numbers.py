"""Numbers: the values a written number may have, its sign included. Texts are `normalised`: "−" is "-" here.

A hyphen is a sign where it stands before a number and behind nothing it could join to it: "-5" and "(-5)" are
negative, "5-10", "2019年-2020年" and "COVID-19" are not. Words for it count as well ("minus 5", "负5", "минус 5").
Where a reader would have to guess, both signs are taken: "–5 °C" with a dash that may be a minus, "(5)" which an
accountant means otherwise than an author, "5 -10", "12 minus 5", "negative 5", and "fell by 5", which is -5 in a table.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

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
0 zero null ноль
1 one ein eins один одна одно одну одного одной одному одним одном
2 two zwei два две двух двум двумя
3 three drei три трех трем тремя
4 four vier четыре четырех четырем
5 five fünf пять пяти пятью
6 six sechs шесть шести шестью
7 seven sieben семь семи семью
8 eight acht восемь восьми восемью
9 nine neun девять девяти девятью
10 ten zehn десять десяти десятью
11 eleven elf одиннадцать одиннадцати одиннадцатью
12 twelve zwölf двенадцать двенадцати двенадцатью
13 thirteen dreizehn тринадцать тринадцати тринадцатью
14 fourteen vierzehn четырнадцать четырнадцати четырнадцатью
15 fifteen fünfzehn пятнадцать пятнадцати пятнадцатью
16 sixteen sechzehn шестнадцать шестнадцати шестнадцатью
17 seventeen siebzehn семнадцать семнадцати семнадцатью
18 eighteen achtzehn восемнадцать восемнадцати восемнадцатью
19 nineteen neunzehn девятнадцать девятнадцати девятнадцатью
20 twenty zwanzig двадцать двадцати двадцатью
30 thirty dreißig dreissig тридцать тридцати тридцатью
40 forty vierzig сорок сорока
50 fifty fünfzig пятьдесят пятидесяти пятьюдесятью
60 sixty sechzig шестьдесят шестидесяти шестьюдесятью
70 seventy siebzig семьдесят семидесяти семьюдесятью
80 eighty achtzig восемьдесят восьмидесяти восемьюдесятью
90 ninety neunzig девяносто девяноста
100 hundred hundert сто ста сот сти стам стами стах
1000 thousand tausend тысяча тысячу тысячи тысяч тысяче тысячам тысячей тысячью тысячами тысячах
. point komma
"""
_WORDS = {word: row.split()[0] for row in _SPELLED.strip().splitlines() for word in row.split()[1:]}
_ONE_WORDS = "|".join(word for word, value in _WORDS.items() if value in ("0", "1"))
_LARGER = (
    r"(?:[mbt]r?illion(?:s|en)?|milliarden?|score|dozen|dutzend|(?:миллион|миллиард|триллион)(?:а|у|ов|ы|ам|ами|ах)?)"
)
_ATOM = "|".join((*(w.replace("е", "[её]") for w in sorted(_WORDS, key=len, reverse=True)), _LARGER))
_ATOMS = re.compile(f"{_ATOM}|(?!^)und", re.IGNORECASE)
_TOKEN = rf"(?:(?:{_ATOM})(?:und)?+)++(?!\w)"
_JOIN = r"(?:\s{1,4}|-|(?:(?<=hundred|hundert|tausend|million)|(?<=thousand)|(?<=score))[\s-](?:and|und)[\s-])"
_RUN = re.compile(
    rf"(?<![\w\x00-])(?!score|(?:{_ONE_WORDS})(?!\w)(?![\s-](?:hundred|hundert|thousand|тысяч|point|komma|{_LARGER})))"
    rf"(?:(?<!half\s)a\s(?=hundred|thousand))?{_TOKEN}(?:{_JOIN}{_TOKEN})*",
    re.IGNORECASE,
)
_HAN_DIGITS = {character: str("一二三四五六七八九".find(character) + 1) for character in "〇零○一二三四五六七八九"}
_HAN_DIGITS |= {"两": "2", "兩": "2"}
_HAN_DIGIT = "".join(_HAN_DIGITS)
_HAN_RUN = re.compile(
    rf"(?<![{_HAN_DIGIT}十百千万萬億亿数數几幾何])(?<![\d\x00](?=[十百千]))"
    rf"[{_HAN_DIGIT}十百千]+(?:[点點・][{_HAN_DIGIT}十百千]+)?"
)
SPELT = re.compile(f"(?P<words>{_RUN.pattern})|(?P<han>{_HAN_RUN.pattern})", re.IGNORECASE)
"""A whole run of number words: "one hundred and five", "fünfundzwanzig", "двадцать пять", "二〇二五"; valued or not."""
_MEASURE = re.compile(
    r"[\s-](?:years?|months?|weeks?|days?|hours?|minutes?|seconds?|percent|per\scent|degrees?|dollars?|euros?|pounds?"
    r"|met(?:er|re)s?|kilomet(?:er|re)s?|miles?|feet|inches|kilograms?|grams?|lit(?:er|re)s?|gigabytes?|megabytes?"
    r"|Jahren?|Monaten?|Wochen?|Tagen?|Stunden?|Minuten?|Sekunden?|Prozent|Grad|Euro|Metern?|Kilometern?|Gramm|Litern?"
    r"|лет|год\w{0,3}|месяц\w{0,3}|недел\w{0,3}|день|дн\w{1,3}|час\w{0,3}|минут\w{0,3}|секунд\w{0,3}|процент\w{0,3}|рубл\w{0,3}"
    r"|метр\w{0,3}|километр\w{0,3}|градус\w{0,3})(?!\w)",
    re.IGNORECASE,
)
_HAN_MEASURE = re.compile(
    r"年(?![级級生])|[个個か箇ヶ]月|天(?!下)|日間|小[时時]|時間|分[钟鐘間]|秒|[周週]間|星期|週間|元(?!素)|[米公]里|メートル|%"
)
# How number words go together. Each is a letter: (z)ero, (o)ne to nine, (t)een, (T)ens, (h)undred, (k) for thousand,
# "u" for "und" inside a word, "&" for "and" between words, "." for a decimal point, "x" for what is not valued.
_BELOW_100 = "(?:ouT|To?|t|o)"
_BELOW_1000 = f"(?:{_BELOW_100}?h(?:u?{_BELOW_100})?|{_BELOW_100})"
_PART = re.compile(f"{_BELOW_1000}?k(?:u?{_BELOW_1000})?|{_BELOW_1000}")
_NUMERAL = re.compile(rf"(?:{_PART.pattern.replace('u?', '[u&]?')}|z(?=\.))(?:\.[oz]+)?")
_BETWEEN = re.compile(r"(?<!\w)(?:between|zwischen)\s$", re.IGNORECASE)
_SOME_POINT = re.compile(r"(?<!\w)(?:at|to|from|after|before)\s$", re.IGNORECASE)
_ONE_OF_ITS_KIND = re.compile(r"(?:a\s|ст[оа]$|тысяч[ау]$)", re.IGNORECASE)
_COUNTED = re.compile(r"[\d\x00]\s?$")
_HAN_VALUE = re.compile(
    "(?:([{0}]?)千)?(?:[{1}]?([{0}]?)百)?(?:[{1}]?([{0}]?)十)?(?:[{1}]?([{0}]))?".format(_HAN_DIGIT[3:], _HAN_DIGIT[:3])
)
_THOUSANDS = re.compile(r"(\d[\d.,]*)\s?(?:thousand|tausend|Tsd\.|k(?!\w)|тысяч|тыс\.|千)", re.IGNORECASE)


def spelt_value(match: re.Match[str]) -> frozenset[str]:
    """What a match of `SPELT` before a measure says, as plain decimal strings: "three years", "三年".

    Nothing where no measure follows, where the run is no single number that can be told for sure ("two million",
    "two three", "七八年", "thousand" with no word for how many), and for a lone one, which is as often an article.
    """
    if not _measured(match):
        return frozenset()
    if match["han"]:
        unsure = match["han"][0] == "千" or "・" in match["han"]  # 二・三年 is more often two or three years than 2.3
        found = frozenset() if unsure else _han_values(match["han"])
    else:
        atoms = _atoms(match["words"])
        many = all(kind in "hk" for kind, _ in atoms) and not _ONE_OF_ITS_KIND.match(match["words"])
        bare = many or (
            atoms[0][0] in "hk" and bool(_COUNTED.search(match.string[max(0, match.start() - 2) : match.start()]))
        )
        value = None if bare or _two_numbers(match, atoms) else _value(atoms)
        found = frozenset({value} if value else ())
    return _signed(match, found)


def spelt_values(text: str) -> set[str]:
    """Every number that a text has in words, before a measure or not; each of several where a run may be several."""
    found = {value for match in SPELT.finditer(text) for value in _signed(match, _all_values(match))}
    thousands = {value for match in _THOUSANDS.finditer(text) for value in readings(match[1]) if value.count(".") < 2}
    return found | {_whole(format((Decimal(value) * 1000).normalize(), "f")) for value in thousands}


def _measured(match: re.Match[str]) -> bool:
    return bool((_HAN_MEASURE if match["han"] else _MEASURE).match(match.string, match.end()))


def _signed(match: re.Match[str], found: Iterable[str]) -> frozenset[str]:
    signs = _signs(match.string, match.start(), match.end())
    return frozenset(sign + value for value in found for sign in signs)


def _all_values(match: re.Match[str]) -> set[str]:
    """The value of a run, of its numbers where it is several, and of what counts thousands: "5 thousand" has a 5."""
    if match["han"]:
        return _all_han_values(match["han"], measured=_measured(match))
    atoms = _atoms(match["words"])
    value = None if _two_numbers(match, atoms) else _value(atoms)
    if value:
        counted = _value(atoms[:-1]) if atoms[-1][0] == "k" else None
        return {value, counted} if counted else {value}
    kinds = "".join(kind for kind, _ in atoms)
    parts = (_value(atoms[part.start() : part.end()]) for part in _PART.finditer(kinds))
    return {part for part in parts if part}


def _two_numbers(match: re.Match[str], atoms: list[tuple[str, str]]) -> bool:
    """Whether a number ends within the run: between one hundred and one thousand; at one point two years had passed."""
    before = match.string[max(0, match.start() - 9) : match.start()]
    some_point = [kind for kind, _ in atoms[:2]] == ["o", "."] and atoms[0][1] == "1" and _SOME_POINT.search(before)
    return bool(some_point or (("&", "") in atoms and _BETWEEN.search(before)))


def _atoms(run: str) -> list[tuple[str, str]]:
    """The number words of a run as (kind, value); the kinds are explained at `_PART`."""
    atoms: list[tuple[str, str]] = []
    for token in re.split(r"[\s-]+", run.lower().replace("ё", "е")):
        if token in ("and", "und"):
            atoms.append(("&", ""))
        for atom in _ATOMS.findall(token):
            value = _WORDS.get(atom, "")
            kind = {"0": "z", ".": ".", "100": "h", "1000": "k", "": "u" if atom == "und" else "x"}.get(value)
            atoms.append((kind or ("o" if len(value) == 1 else "t" if value[0] == "1" else "T"), value))
    return atoms


def _value(atoms: list[tuple[str, str]]) -> str | None:
    """The number that all of the words are, as a plain decimal string; None if they are no single one."""
    if not _NUMERAL.fullmatch("".join(kind for kind, _ in atoms)):
        return None
    total = part = 0
    decimals = ""
    for kind, value in atoms:
        if decimals or kind == ".":
            decimals += value
        elif kind == "h":
            part = (part or 1) * 100
        elif kind == "k":
            total, part = (part or 1) * 1000, 0
        else:
            part += int(value or 0)
    return f"{total + part}{decimals.rstrip('0').rstrip('.') if decimals else ''}"


def _han_values(run: str) -> frozenset[str]:
    """What a run of Han numerals says: 二十五 is 25, 二〇二五 is 2025, 二点五 is 2.5, 百五 is 105 or 150.

    Nothing for two digits side by side (七八年 is seven or eight years, or the year 78).
    """
    whole, point, decimals = re.sub("[點・]", "点", run).partition("点")
    if point:
        plain = all(c in _HAN_DIGITS for c in decimals)
        tail = ("." + "".join(_HAN_DIGITS[c] for c in decimals)).rstrip("0").rstrip(".") if plain else ""
        heads = {"0"} if whole in ("零", "〇", "○") else _han_values(whole) or ({"1"} if whole == "一" else set())
        return frozenset(head + tail for head in heads if plain)
    if not re.search("[十百千]", whole):
        digits = "".join(_HAN_DIGITS[c] for c in whole)
        sure = digits[0] != "0" and (len(digits) > 2 or "0" in digits or len(digits) == 1) and digits != "1"
        return frozenset({digits} if sure else ())
    match = _HAN_VALUE.fullmatch(whole)
    if not match or whole[0] in "〇零○":
        return frozenset()
    parts = [0 if digit is None else int(_HAN_DIGITS.get(digit, "1")) for digit in match.groups()]
    value = sum(part * unit for part, unit in zip(parts, (1000, 100, 10, 1), strict=True))
    unit = {"百": 10, "千": 100}.get(whole[-2:-1], 1)  # 百五 is 105 in one language, 150 in the other
    return frozenset({str(value), str(value + parts[-1] * (unit - 1))})


def _all_han_values(run: str, *, measured: bool) -> set[str]:
    """The values of a run of Han numerals; where it is none for sure, each that it may be: 十二三 is 12 or 13."""
    found = set(_han_values(run))
    if re.search("[点點・]", run):
        # Before a measure a decimal, else more likely three o'clock and five minutes.
        halves = [] if found and measured else re.split("[点點・]", run)
        return found.union(*(_all_han_values(half, measured=False) for half in halves))
    if found:
        return found | (_han_values(run[:-1]) if run[1:] and run[-1] == "千" else set())
    if len(run) > 12:
        return found
    pairs = [at for at in range(len(run) - 1) if {run[at], run[at + 1]} <= _HAN_DIGITS.keys()]
    if pairs and len(run) == 2:
        found.add(_whole(_HAN_DIGITS[run[0]] + _HAN_DIGITS[run[1]]))
    return found.union(*(_han_values(run[:at] + run[at + 1 :]) for pair in pairs for at in (pair, pair + 1)))
