"""Texts that are no answer: broken ones, and contributions that say the query again.

Every test asks for something that hardly occurs in what people write and that the sources do not have themselves;
`eval/LOG.md` has the rates at which real sentences are held for broken.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prism.evidence.sentences import UNIT, UNSPACED_CHAR
from prism.evidence.words import content_words, known, shared_start
from prism.text import normalised, straight

_LEAK = re.compile(
    r"<\|[^\s|<>]{1,40}\|>|</?(?:contribution|evidence|think|query|document|instruct|s|system|user|assistant)>"
    r"|\[/?INST\]|(?:^|\n)\s*(?:<)?(?:Document|Query|Instruct(?:ion)?|Evidence|Contribution)(?:>)?\s*: ?",
)
"""What stands in templates, not in sentences."""
_ODD_WORD = re.compile(
    r"[a-z]*([a-z])\1{3}[a-z]*"  # "sooooo"
    r"|[a-z]*([a-z]{2,3})\2{2}[a-z]*"  # "ededed"
    r"|[^\W\d_aeiouyäöüéèáàíóúâêîôûåæøœёаеиоуыэюя]{6,}"  # no vowel
)
_MIXED = re.compile(r"[a-z]{2,}[а-яё]{2,}|[а-яё]{2,}[a-z]{2,}")
_ENDING_WORDS = """
s es d ed ing ings er ers or ors ly ment ments able ably ible al ally tial cial tion tions sion sions t c ce
cy nt nts out up over off way ways ation ations ion ions ional ive ively ness ful fully less ity ities ize
izes ized izing izer ise ises ised ising iser ic ical ically ism ist ists y ies ied ian ians an n ans ship
ships hood dom wise ward wards like proof man men ous ously ent ant ance ence ate ates ated ating ator ators
th st nd rd eth ish age ages ure ures ery ary ory ia ium ee ees ess ette let lets ling ling's 's en ens ened
"""
_ENDINGS = frozenset(_ENDING_WORDS.split())
_SHARED = 6  # letters two words begin with before they count as kin
_CLOSED_ENDINGS = ("ed", "ing", "ly", "ness", "ment")  # behind these hardly anything grows
_SINGLE = frozenset("a i o e y x n s t d m к в с о у и а я")  # letters that stand alone
_MOST_UNITS = 2_000
_LONGEST_RUN = 12  # units that may be said again and again
_FEWEST = 2  # a phrase said twice is a figure of speech


def broken(text: str, sources: Sequence[str]) -> tuple[str, ...]:
    """Stretches of a text that no writer meant, as written: leaked template, a phrase again and again, letters that
    make no word. What one of the `sources` (document, title, query; all `normalised`) has as well is not counted."""
    plain = straight(normalised(text).text)
    texts = [straight(source) for source in sources]
    whole = "\n".join(texts)
    found = [match[0].strip() for match in _LEAK.finditer(plain) if match[0].strip() not in whole]
    return tuple(dict.fromkeys((*found, *_repeated(plain, whole), *_no_words(plain, texts))))


def _repeated(text: str, whole: str) -> Iterator[str]:
    """Runs of units said three times on end, or one unit said five times."""
    units = [(match.start(), match.end(), match[0].casefold()) for match in UNIT.finditer(text)][:_MOST_UNITS]
    forms = [form for _, _, form in units]
    times = {size: _times(forms, size) for size in range(1, _LONGEST_RUN + 1)}
    at = 0
    while at < len(forms):
        said = ((size, times[size][at]) for size in times if times[size][at] > _FEWEST)
        size, often = next(((n, k) for n, k in said if k >= _needed(forms[at : at + n])), (1, 1))
        if often > 1 and text[units[at][0] : units[at + size * often - 1][1]].casefold() not in whole.casefold():
            yield text[units[at][0] : units[at + size - 1][1]] + " …"
        at += size * often


def _times(forms: Sequence[str], size: int) -> list[int]:
    """For each place, how often the `size` forms there stand on end."""
    alike = [0] * (len(forms) + 1)  # so many forms from here on equal those `size` later
    for at in range(len(forms) - size - 1, -1, -1):
        alike[at] = alike[at + 1] + 1 if forms[at] == forms[at + size] else 0
    return [1 + alike[at] // size for at in range(len(forms))]


def _needed(run: Sequence[str]) -> int:
    """How often a run must be said to be no figure of speech; digits repeat themselves in codes and tables."""
    if not any(form.isalpha() for form in run):
        return 1_000_000
    dense = sum(bool(UNSPACED_CHAR.match(form)) for form in run)
    return 5 if len(run) - dense / 2 < 2 else _FEWEST + 1


def _no_words(text: str, sources: Sequence[str]) -> Iterator[str]:
    """Words the sources lack which look like none: mixed scripts, no vowel, a source's word with a wrong end."""
    theirs = {word for source in sources for word in re.findall(r"[^\W\d_]+", source.casefold())}
    ordered = sorted(theirs)
    words = list(re.finditer(r"[^\W\d_]+", text))
    odd: list[str] = []
    for match in words[:_MOST_UNITS]:
        form = match[0].casefold()
        if form in theirs or UNSPACED_CHAR.search(form):
            continue
        plain = match[0].islower() or match[0].istitle()
        if (
            "\ufffd" in form
            or _MIXED.search(form)
            or (plain and (_ODD_WORD.fullmatch(form) or _wrong_end(form, ordered)))
        ) or (len(form) == 1 and _stray(text, match)):
            odd.append(match[0])
    if "\ufffd" in text and not any("\ufffd" in source for source in sources):
        yield "\ufffd"
    yield from odd


def _stray(text: str, match: re.Match[str]) -> bool:
    """A single letter between words that is none of those which stand alone."""
    if not re.match("[A-Za-zА-Яа-яЁё]", match[0]):
        return False
    around = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 1]
    return match[0].casefold() not in _SINGLE and bool(around) and not around.strip()


def _wrong_end(form: str, theirs: Sequence[str]) -> bool:
    """Whether a word begins as one of the sources' (sorted) does, for six letters or more, and ends as no word does."""
    if not form.isascii() or len(form) < 9:
        return False
    at = bisect_left(theirs, form)
    most = max((shared_start(form, other) for other in theirs[max(0, at - 1) : at + 1]), default=0)
    if most < _SHARED or any(form[most - back :] in _ENDINGS for back in range(1, 5)):
        return False
    return not _grown(form[:most], form[most:], theirs)


def _grown(head: str, end: str, theirs: Sequence[str]) -> bool:
    """Whether `end` may stand behind `head`: up to three endings, a word of the sources, or a second word in one."""
    if not end or len(end) > 4 or end in theirs:
        return True
    if head.endswith(_CLOSED_ENDINGS):
        return end in ("s", "ly", "ness")
    return end in _ENDINGS or any(
        end[:cut] in _ENDINGS and _grown(head + end[:cut], end[cut:], theirs) for cut in range(1, len(end))
    )


# --- contributions that say the query again --------------------------------------------------------------------------

_TOPICAL = re.compile(
    r"^\W*(?:(?:it|this|the (?:document|page|passage|text|article|section))\s+)?(?:also\s+)?"
    r"(?:covers?|discuss(?:es)?|describes?|mentions?|addresses|deals with|talks about|relates to|outlines|answers|helps"
    r"|is (?:about|related)|concerns|matches|refers to|(?:explains?|tells?|shows) (?:how|what|why|when|where|which|who)"
    r"|(?:provides|contains|gives|has|offers) (?:\w+ )?"
    r"(?:information|details|an? (?:answer|overview|explanation)|instructions|steps))\b"
    r"|^\W*(?:es|das dokument|der text|die seite|der abschnitt)?\s*(?:behandelt|erklärt,? wie|erläutert|beschreibt"
    r"|informiert|gibt (?:informationen|auskunft)|enthält (?:informationen|angaben)|geht um)"
    r"|^\W*(?:он|она|это|документ|текст|страница|раздел)?\s*(?:описывает|объясняет,? как|рассказывает"
    r"|содержит (?:информацию|сведения)|рассматривает|посвящ)"
    r"|^\W*(?:该|本|此)?(?:文档|文章|文|段落|页面)?中?(?:介绍|说明|解释|讲述|描述|讨论|提供|涉及|关于)",
    re.IGNORECASE,
)
"""How a contribution begins that names a topic and states nothing."""
_YES_NO = re.compile(
    r"^\W*(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had|may|might|must)\s"
    r"|^\W*(?:ist|sind|war|waren|hat|haben|kann|können|darf|dürfen|muss|wird|werden|gibt|soll)\s"
    r"|\sли(?!\w)|[吗嗎]|是否|能不能|可不可以|有没有|ますか|ですか|でしょうか|나요|까\?",
    re.IGNORECASE,
)


def says_the_query_again(contribution: str, query: str) -> bool:
    """Whether a contribution has content words, and the query has them all.

    An answer to a yes-or-no question may have none ("deer mice live in the US"); there only what states a topic
    ("It covers …", "It explains how …") is a repetition.
    """
    written, asked = normalised(contribution).text, normalised(query).text
    words = content_words(written)
    if not words or not all(known(words, [asked])):
        return False
    return bool(_TOPICAL.match(written)) or not _YES_NO.search(asked)
