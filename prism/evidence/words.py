"""Content words: what of a text is about something, and how much of it another text has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prism.evidence.sentences import UNIT, UNSPACED_CHAR
from prism.evidence.units import weight_of
from prism.text import straight

_FUNCTION = {
    "en": """
a about above after again against all also an and another any are as at be been before being between both but
by can could did do does doing done down during each either else for from further get gets give given gives
giving had has have having he her here hers him his how however i if in into is it its itself just may me
might more most much must my of off on once only or other our out over own per same shall she should so some
such than that the their them then there these they this those through thus to too under until up upon us use
used uses using very via was we were what when where whether which while who whom whose why will with would
yes you your s t re ve ll d m
""",
    "de": """
aber alle allem allen aller alles als also am an andere anderen auch auf aus bei beim bis da dabei dadurch
dafür damit dann das dass dem den denen der des dessen die dies diese diesem diesen dieser dieses dort du
durch ein eine einem einen einer eines er es etwa für gegen hat hatte haben hier ich ihm ihn ihr ihre ihren
ihrer im in ins ist kann können man mehr mit nach noch nur ob oder sehr sein seine seinen seiner sich sie sind
so sollte sowie über um und unter vom von vor war waren was wann warum welche welcher welches wenn wer werden
wie wieder wir wird wo wurde wurden zu zum zur zwischen
""",
    "ru": """
а без бы был была были было быть в вам вас весь во вот все всего вы где да для до его ее ему если есть еще ещё
её же за и из или им их к как какая какие какой ко когда который которая которые кто ли между меня мне можно
мы на над нам нас но о об он она они оно от очень по под при с свой себя со так также такой там то того тоже
только том тут ты у уже что чтобы чем эта эти это этот этого я
""",
}
"""Words that are about nothing by themselves; "not" and its like are, so they are not among these."""

_FRAMES = {
    "en": """
according addressed addresses answer answers article book chapter concern concerned concerning concerns
contain contained containing contains cover covered covering covers date demonstrate demonstrates describe
described describes describing description detail details discuss discussed discusses discussing discussion
document documentation evidence explain explained explaining explains explanation fact focuses guide help
helps information instruction instructions introduces introduction list lists mention mentioned mentions name
named names number offers outline outlines overview page paragraph passage place point points present presents
provide provided provides query question reason refer refers regarding relate related relates relevant report
reported reports say says section show showing shows source state stated states statement step steps subject
summarises summarizes summary talk talks tell tells text time topic topics useful way ways
""",
    "de": """
abschnitt angaben anleitung antwort antworten artikel behandelt bericht berichtet beschreibt beschreibung
darstellung dokument enthält erklärt erläutert frage gibt hilft hinweise information informationen informiert
liefert nennt passage quelle sagt schildert seite stellt text thema überblick zeigt
""",
    "ru": """
вопрос даёт дает документ документе информацию информация источник объясняет описание описывает ответ отвечает
отрывок отрывке показывает приводит рассказывает раздел рассматривает сведения содержит сообщает статья статье
страница текст тексте тема указывает упоминает
""",
    "zh": """
给出 答案 说明 介绍 解释 描述 讲述 文中 文章 文档 该文 本文 指出 提到 提供 关于 有关 信息 内容 回答 问题 如何 什么
怎么 怎样 为什么 哪些 哪个 相关 涉及 讨论 了 的 是 在 和 与 及 或 这 那 吗 呢 其 被 对 从 到 中 也 都 就
""",
    "ja": """
文書 この その 説明 答え 回答 述べ 示し 示す について に関する 情報 提供 紹介 どのように 何 なに どこ いつ 誰 です ます
している します され する した は が を に で と の も へ や か ね
""",
    "ko": """
문서 설명 대해 대한 답 정보 제공 방법 어떻게 무엇 은 는 이 가 을 를 에 의 와 과 도
""",
}
"""Words with which a contribution says that something is said; said alone they say nothing."""

_IGNORED = frozenset(" ".join((*_FUNCTION.values(), _FRAMES["en"], _FRAMES["de"], _FRAMES["ru"])).split())
_FUNCTIONAL = frozenset(" ".join(_FUNCTION.values()).split())
_DENSE_FRAME = re.compile("|".join(sorted(f"{_FRAMES['zh']} {_FRAMES['ja']} {_FRAMES['ko']}".split(), key=len)[::-1]))


class Word(NamedTuple):
    """A content word: its form in lower case, its key (forms that differ in their endings share it), its weight."""

    form: str
    key: str
    weight: float


def content_words(text: str, *, framed: bool = False) -> list[Word]:
    """The content words of a `normalised` text in reading order; with `framed` those of framing too.

    A script without spaces gives overlapping pairs of its characters.
    """
    ignored = _FUNCTIONAL if framed else _IGNORED
    text = straight(text).casefold()
    found: list[Word] = []
    last = -1  # where a character of a script without spaces ended
    before = ""
    blanked = text if framed else _DENSE_FRAME.sub(lambda match: " " * len(match[0]), text)
    for match in UNIT.finditer(blanked):
        form = match[0]
        if UNSPACED_CHAR.match(form):
            if last == match.start():
                found.append(Word(before + form, before + form, 2.0))
            before, last = form, match.end()
        elif form not in ignored and (len(form) > 1 or form.isdecimal()):
            found.append(Word(form, stem(form), weight_of(form)))
    return found


def functional(form: str) -> bool:
    """Whether a word, in lower case, is about nothing by itself."""
    return form in _FUNCTIONAL


def stem(form: str) -> str:
    """What forms of one word share: their first four letters. Numbers are themselves."""
    return form[:4] if len(form) > 4 and form.isalpha() else form


def known(words: Iterable[Word], texts: Sequence[str]) -> list[bool]:
    """For each word, whether one of the `normalised` texts has it, give or take its ending."""
    keys = {word.key for text in texts for word in content_words(text, framed=True)}
    return [word.key in keys for word in words]


def share_known(text: str, texts: Sequence[str]) -> float:
    """Share, by weight, of the text's content words that one of the others has; 1.0 if it has none."""
    words = content_words(text)
    total = sum(word.weight for word in words)
    return sum(w.weight for w, found in zip(words, known(words, texts), strict=True) if found) / total if total else 1.0


def shared_start(left: str, right: str) -> int:
    """How many characters two words begin with alike."""
    alike = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        alike += 1
    return alike
