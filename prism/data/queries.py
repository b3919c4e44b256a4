"""Queries as agents write them: keywords instead of questions, and questions for documents nobody has asked about.

By rule, for free, in English, German, Chinese and Russian; or by an LLM (`prism.data.llm_queries`). A question whose
meaning lives in the words that would go is left alone: keywords of "which sorts are not stable" ask for the opposite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from prism.data.splits import query_key
from prism.errors import DataError
from prism.evidence.sentences import sentences
from prism.files.jsonl import Drops, Line, OnBad, Row, read_queries, reject
from prism.text import stable_id


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

# Chinese is not cut into words: a character such as 由 stands inside words (路由器) as well as alone. So only what asks
# is taken out, with the particles beside it, and texts are cut nowhere else.
_ZH_KEEP = _either(
    r"(?<![差个特区级类识辨])不(?!锈钢|丹)|没|(?<![南北东西是])非(?![洲常典])|"
    r"無|无(?!线|人机|人驾|锡|穷|氧)|未(?!来)|"
    r"(?<![区差类性级特个分识判])别(?![墅致名的])|勿|除了|而非|反对|拒绝|避免|防止"
)
_ZH_DEGREE = "[高低大小多少好差坏快慢长短强弱早晚贵便宜优深浅轻重难易远近适合安稳省]"
_ZH_COMPARE = _either(
    r"比较|对比|相比|比起|(?<![对相百占环同性价])比(?![特赛例如率重分喻方利萨亚尔基]).{1,12}?(?:更|还|要|"
    + _ZH_DEGREE
    + ")",
    r"区别|差异|差別|不同|还是|或者|(?<!或)或(?!许|然)|相同|相似|之间|多于|少于|哪个更",
    r"(?<![变三五半])更(?:加|为|" + _ZH_DEGREE + ")|最(?![近后後终初新])|较(?:为|" + _ZH_DEGREE + ")",
    r"从.+到|(?<![路理自缘])由.+至",
)
_ZH_ASKS = (
    r"什么时候|什麼時候|什么地方|什么样|什么|什麼|怎么样|怎么办|怎么|怎麼|怎样|怎樣|如何|为何|為何|(?<![任几])何[时地种人]|"
    r"多少[个個种名位家座条]?|几[个個种名位家座条](?=[\u4e00-\u9fff])|几(?=[个個年月日号次种位名人天岁场部座条届])|谁|誰|"
    r"哪[些国里]?人|哪些|哪里|哪裡|哪儿|哪一?[家个個位种部座条次场年天月]|哪(?=[\u4e00-\u9fff])"
)
_ZH_BEFORE = (
    r"(?<![还于但凡总就只若])(?:分别)?(?:指的)?是(?:叫做?|由)?|(?<![路理自缘])由|叫做?|(?<![存现实正所潜])在|"
    r"(?<![具拥含所没只还现])有|(?<!自)从"
)
"""Particles that go with the word that asks."""
_ZH_END = r"(?=[，。！？?!\s]|$)"
_ZH_DROP = re.compile(
    rf"请问|請問|我想知道|你知道|为什么|為什麼|(?:{_ZH_BEFORE})?(?:{_ZH_ASKS})(?:的{_ZH_END})?|是否|能否|可否|"
    rf"(?<!目)(?<!标)的(?!确|士|黎波里)|了{_ZH_END}|(?<=[\u4e00-\u9fff])了(?![解结不如却断])(?<![为除罢终]了)|"
    r"吗|嗎|呢|(?<![酒网贴水])吧(?!台)|啊|[《》“”\"'‘’「」（）()、，。！？；：,!?;:\s]+"
)
_ZH_ENDS = re.compile(
    r"^(?:是(?![否非])|在(?![线职校家座])|又|会|就)|"
    r"(?:(?<![还于但凡总就只若])是|(?<![存现实正所潜])在|(?<![具拥含所没])有|会|能|要)$"
)
"""Particles that are left at the ends of a chunk when what asks is gone."""
_MOST_CHARS, _MOST_SENTENCES = 300, 2
"""Of a text that may be a question."""
_ZH_ENOUGH = 4
"""Characters that are keywords on their own, without a space between them: two words or more."""
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
    chunks = (_ZH_ENDS.sub("", chunk) if len(chunk) > 2 else chunk for chunk in _ZH_DROP.split(asked))
    kept = [chunk for chunk in chunks if chunk]
    if len("".join(kept)) >= _ZH_ENOUGH and query_key("".join(kept)) != query_key(question):
        return Rewrite(" ".join(kept))
    return _finished(question, kept)


def read_keyword_questions(path: Path, drops: Drops, on_bad: OnBad = "fail") -> Iterator[Line]:
    """As `read_queries`, and no corpus: BEIR calls the text of a query `text`, and so do corpora that of a document."""
    for place, row in read_queries(path, drops, on_bad):
        named = "question" in row or row.get("query") != row.get("text")
        long = len(row["query"]) > _MOST_CHARS or len(sentences(row["query"])) > _MOST_SENTENCES
        if not named and (long or any(row.get(name) for name in ("title", "headings", "heading"))):
            what = "documents" if long else "documents with titles"
            error = DataError(
                f"{place}: a question is expected, this looks like a corpus of {what}: make queries of it"
                " with `prism data queries`, or name the field `question`"
            )
            reject(error, place, drops, on_bad)
            continue
        yield Line(place, row)


def rewrite_rows(lines: Iterable[Line], drops: Drops, keep_original: bool) -> Iterator[Row]:
    """Rows with the question as keywords: `query` is rewritten, `original_query` keeps the question.

    What is skipped goes into `drops`, or passes unchanged with `keep_original`, which also keeps each question beside
    its keywords. The id of a pair is that of the new query.
    """
    from prism.text import language_of

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
