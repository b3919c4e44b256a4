"""Queries as agents write them: keywords instead of questions, and questions for documents nobody has asked about.

By rule, for free, in English, German, Chinese and Russian; or by an LLM (`prism.data.llm_queries`). A question whose
meaning lives in the words that would go is left alone: keywords of "which sorts are not stable" ask for the opposite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from prism.data.splits import query_key
from prism.files.jsonl import Drops, Line, Row
from prism.text import stable_id

Language = Literal["en", "de", "zh", "ru"]


class Rewrite(NamedTuple):
    """Keywords for a question, or why there are none."""

    keywords: str | None
    skipped: str | None = None


class _Rules(NamedTuple):
    """What is dropped, and what forbids dropping anything, in one language."""

    drop: frozenset[str]
    negation: re.Pattern[str]
    comparison: re.Pattern[str]
    direction: re.Pattern[str]


def _either(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_EN = _Rules(
    drop=frozenset(
        """
        a an the of in on at to for by with from into about as is are was were be been being am do does did doing
        has have had having can could will would shall should may might must what who whom whose which where when
        why how i me my we us our you your he she it its they them their this that these those there so if
        please tell explain describe show give find get need want know any some much many there's
        what's it's i'm happen happens name called
        """.split()  # noqa: SIM905
    ),
    negation=_either(
        r"\b(?:not|no|never|none|nor|neither|nobody|nothing|without|except|excluding|unless|cannot|lack(?:s|ing)?|"
        r"avoid(?:s|ing)?|prevent(?:s|ing)?|stop(?:s|ping)?|instead|rather|fail(?:s|ed)?|un\w+able)\b",
        r"n['’]t\b",
    ),
    comparison=_either(
        r"\b(?:vs\.?|versus|compare[ds]?|comparison|differences?|differ|different|better|worse|best|worst|than|prefer\w*|"
        r"more|less|fewer|most|least|or|between|both|same|similar|equal|largest|smallest|older|newer|faster|slower)\b"
    ),
    direction=_either(
        r"\bfrom\b.+\b(?:to|into)\b", r"\b(?:convert|migrate|change|translate|turn|move)\w*\b.+\b(?:to|into)\b"
    ),
)
_DE = _Rules(
    drop=frozenset(
        """
        der die das den dem des ein eine einen einem einer eines und ist sind war waren wird werden wurde wurden hat
        haben hatte kann können konnte soll sollte muss müssen darf was wer wen wem wessen welche welcher welches
        welchen wo wann warum wieso weshalb wie woher wohin ich mich mir wir uns man du sie er es ihr mein unser
        dieser diese dieses in im an am auf zu zum zur von vom bei beim mit für über aus nach um als bitte gibt sich
        so viel viele denn eigentlich heißt bedeutet
        """.split()  # noqa: SIM905
    ),
    negation=_either(
        r"\b(?:nicht|kein\w*|nie|niemals|niemand|nichts|ohne|außer|weder|noch|statt|anstatt|verhinder\w*|vermeid\w*)\b"
    ),
    comparison=_either(
        r"\b(?:vs\.?|versus|vergleich\w*|unterschied\w*|unterscheid\w*|besser\w*|schlechter\w*|best\w*|als|mehr|weniger|"
        r"meisten|oder|zwischen|gleich\w*|ähnlich\w*|größ\w*|kleiner\w*|schneller\w*|älter\w*)\b"
    ),
    direction=_either(r"\bvon\b.+\b(?:nach|zu|in)\b\s+\w"),
)
_RU = _Rules(
    drop=frozenset(
        """
        и в во на с со к ко по о об от до из у за для при что кто кого кому чей чья чье какой какая какое какие где
        когда почему зачем как откуда куда ли это этот эта эти тот та то те я мы вы он она оно они мой наш есть был
        была было были быть может можно нужно надо же бы сколько называется значит
        """.split()  # noqa: SIM905
    ),
    negation=_either(r"\b(?:не|нет|ни|никогда|никто|ничего|без|кроме|нельзя|вместо)\b"),
    comparison=_either(
        r"\b(?:или|чем|лучш\w*|хуж\w*|больш\w*|меньш\w*|сравн\w*|отлич\w*|разниц\w*|различ\w*|между|самы\w*|старше|быстрее)\b"
    ),
    direction=_either(r"\b(?:из|с|от)\b.+\b(?:в|на|до)\b"),
)
_RULES: dict[str, _Rules] = {"en": _EN, "de": _DE, "ru": _RU}

_ZH_KEEP = _either(r"不|没|無|无|非|未|(?<![区差类性级特个分识判])别|勿|除了|而非|反对|拒绝|避免|防止")
_ZH_COMPARE = _either(r"比|较|区别|差异|差別|不同|还是|或|哪个更|最|更|相同|相似|之间|多于|少于|从.+到|由.+至")
_ZH_DROP = re.compile(
    r"请问|請問|什么时候|什麼時候|为什么|為什麼|是什么|是什麼|什么|什麼|怎么样|怎么|怎麼|怎样|如何|为何|何时|何地|何|多少|几|哪些|哪里|哪儿"
    r"|哪一?[家个位种部座条次场年]|哪一|哪|谁|誰|是否|能否|可以|能够|吗|嗎|呢|吧|啊|有没有|的|是|了|在|于|被|把|由|和|与|以及|这|那|我|你|他|她|它|们"
    r"|[《》“”\"'‘’「」（）()、，。！？；：,.!?;:\s]+"
)
_COUNT = re.compile(r"\bhow (?:many|much)\b", re.IGNORECASE)
_QUOTED = re.compile(r"[\"“«„]([^\"“”«»„]+)[\"”»“]")
_WORD = re.compile(r"[^\s,;:!?()\[\]{}\"“”«»„]+")


def keywords(question: str, language: str) -> Rewrite:
    """The telling words of a question, in its order; quoted phrases stay whole, in quotation marks.

    Skipped: negations, comparisons and choices, conversions from one thing to another, texts without a question's words
    to drop, and whatever would leave fewer than two words or change nothing.
    """
    if language == "zh":
        return _chinese(question)
    rules = _RULES.get(language)
    if rules is None:
        return Rewrite(None, f"no rules for language {language}")
    for pattern, why in (
        (rules.negation, "negation"),
        (rules.comparison, "comparison or choice"),
        (rules.direction, "direction"),
    ):
        if pattern.search(question):
            return Rewrite(None, why)
    counted = _COUNT.sub("number of", question)  # "how many" is what is asked for, not filler
    kept = [piece for piece in _pieces(counted) if piece.startswith('"') or piece.lower() not in rules.drop]
    return _finished(question, kept)


def _pieces(question: str) -> Iterator[str]:
    at = 0
    for match in _QUOTED.finditer(question):
        yield from _words(question[at : match.start()])
        yield f'"{match[1].strip()}"'
        at = match.end()
    yield from _words(question[at:])


def _words(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text):
        if word := match.group().strip(".'’…-–—"):
            yield word


def _finished(question: str, kept: list[str]) -> Rewrite:
    text = " ".join(kept)
    if len(kept) < 2 and not (kept and " " in kept[0]):
        return Rewrite(None, "too little would be left")
    if query_key(text) == query_key(question):
        return Rewrite(None, "already keywords")
    return Rewrite(text)


def _chinese(question: str) -> Rewrite:
    asked = re.sub(r"有没有|能不能|是不是|会不会|可不可以", "吗", question)  # questions, not negations
    if _ZH_KEEP.search(asked):
        return Rewrite(None, "negation")
    if _ZH_COMPARE.search(asked):
        return Rewrite(None, "comparison or choice")
    return _finished(question, [chunk for chunk in _ZH_DROP.split(asked) if chunk])


def rewrite_rows(lines: Iterable[Line], drops: Drops, keep_original: bool) -> Iterator[Row]:
    """Rows with the question as keywords: `query` is rewritten, `original_query` keeps the question.

    What is skipped goes into `drops`, or passes unchanged with `keep_original`, which also keeps each question beside
    its keywords. The id of a pair is that of the new query.
    """
    from prism.evidence.letters import language_of

    for place, row in lines:
        question = row["query"]
        rewritten = keywords(question, str(row.get("language") or language_of(question)))
        if keep_original:
            yield row
        if rewritten.keywords is None:
            drops.add(f"not rewritten: {rewritten.skipped}", place)
        else:
            yield renamed(row, rewritten.keywords)


def renamed(row: Row, query: str) -> Row:
    """The row with another query and the ids that follow from it."""
    document = row.get("document")
    ids = {"id": stable_id(query, document)} if isinstance(document, str) else {}
    return {**row, "query": query, "query_id": stable_id(query), "original_query": row["query"], **ids}
