"""Contributions by rule: what a document gives, in one sentence, never the query's words back.

Where the answer is known it is named ("It gives the date: 1969."), else the contribution is what the evidence states.
The wording is one of several, drawn by a hash of query and evidence: a model learns no single phrase from them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from prism.evidence.passages import words
from prism.text import stable_id

STOP_WORDS = frozenset(
    """
    a an and are as at be been but by can could do does for from had has have he her his how i if in into is it its
    may me more most must my no not of on one only or other our should so some such than that the their them then
    there these they this those to two up use used using was we were what when where which while who why will with
    would you your also all any each same see following example e.g i.e
    """.split()  # noqa: SIM905  (a list of 100 strings reads worse)
)
_UNSPACED_LANGUAGES = ("zh", "ja")
_LONGEST = {"zh": 70, "ja": 80}
"""Characters of a statement by language; 170 elsewhere."""
_LIST_MARK = re.compile(r"^\s*(?:[-*+•>]|#+|\(?\d{1,2}[.)])\s+")
_BORDER = re.compile(r"[;,:—–，；：、]\s?")


class _Wordings(NamedTuple):
    """How contributions are worded in one language."""

    answer: tuple[str, ...]
    """With {kind} and {answer}."""
    statement: tuple[str, ...]
    """With {statement}, which brings its own full stop."""
    confirmed: tuple[str, ...]
    denied: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]
    """(pattern of a question, what it asks for); the first that matches."""
    other: str
    """What any other question asks for."""


_WORDINGS: dict[str, _Wordings] = {
    "en": _Wordings(
        (
            "It gives the {kind}: {answer}.",
            "It has the {kind}: {answer}.",
            "The {kind} stands in it: {answer}.",
            "It states the {kind} as {answer}.",
        ),
        ("It states: {statement}", "It says: {statement}", "It explains: {statement}", "Its point: {statement}"),
        ("It answers yes: {statement}", "It confirms this: {statement}"),
        ("It answers no: {statement}", "It says otherwise: {statement}"),
        (
            (r"\b(?:when|what (?:year|date|day|month|time)|which (?:year|date|day|month))\b", "date"),
            (r"\bhow (?:many|much|long|far|old|tall|high|large|big|often)\b", "figure"),
            (r"\b(?:who|whom|whose)\b", "name"),
            (r"\b(?:where|(?:what|which) (?:city|country|place|state|town|region))\b", "place"),
            (r"\b(?:why|what (?:is|was) the (?:reason|cause))\b", "reason"),
        ),
        "answer",
    ),
    "de": _Wordings(
        ("{kind} wird genannt: {answer}.", "Darin steht – {kind}: {answer}.", "Genannt wird {answer} ({kind})."),
        ("Darin steht: {statement}", "Es heißt dort: {statement}", "Die Aussage: {statement}"),
        ("Die Antwort ist ja: {statement}", "Das wird bestätigt: {statement}"),
        ("Die Antwort ist nein: {statement}", "Dem wird widersprochen: {statement}"),
        (
            (r"\b(?:wann|in welchem jahr)\b", "Das Datum"),
            (r"\bwie (?:viele?|lange|groß|hoch|weit|alt|oft)\b", "Die Zahl"),
            (r"\b(?:wer|wen|wem|wessen)\b", "Der Name"),
            (r"\b(?:wo|woher|wohin)\b", "Der Ort"),
            (r"\b(?:warum|weshalb|wieso)\b", "Der Grund"),
        ),
        "Die Antwort",
    ),
    "ru": _Wordings(
        ("Называется {kind}: {answer}.", "В тексте есть {kind}: {answer}.", "Указано: {answer} ({kind})."),
        ("Там сказано: {statement}", "Говорится следующее: {statement}", "Суть: {statement}"),
        ("Ответ — да: {statement}", "Это подтверждается: {statement}"),
        ("Ответ — нет: {statement}", "Это опровергается: {statement}"),
        (
            (r"\b(?:когда|в каком году)\b", "дата"),
            (r"\bсколько\b", "число"),
            (r"\b(?:кто|кого|кому|кем|чей|чья)\b", "имя"),
            (r"\b(?:где|куда|откуда)\b", "место"),
            (r"\b(?:почему|зачем)\b", "причина"),
        ),
        "ответ",
    ),
    "zh": _Wordings(
        (
            "文中给出{kind}：{answer}。",
            "文中的{kind}：{answer}。",
            "其中提到{kind}：{answer}。",
            "由文中可知{kind}：{answer}。",
        ),
        ("文中指出：{statement}", "文中写道：{statement}", "文中说明：{statement}"),
        ("回答是肯定的：{statement}", "文中证实：{statement}"),
        ("回答是否定的：{statement}", "文中否认：{statement}"),
        (
            (r"什么时候|何时|哪一?年|哪一?天|几月|时间", "时间"),
            (r"多少|几[个名次部座位岁]|多[大长高远久]", "数目"),
            (r"谁|哪[位个]人|何人", "人名"),
            (r"哪里|哪儿|何处|什么地方|哪个(?:城市|国家|地区)|哪[国省市县]", "地点"),
            (r"为什么|为何|原因", "原因"),
        ),
        "答案",
    ),
    "ja": _Wordings(
        (
            "{kind}が示されている：{answer}。",
            "{kind}は{answer}と書かれている。",
            "{kind}として{answer}を挙げている。",
            "本文によれば{kind}は{answer}。",
        ),
        ("本文にはこうある：{statement}", "次のように述べている：{statement}", "説明によると：{statement}"),
        ("答えは肯定：{statement}", "そのとおりだと述べている：{statement}"),
        ("答えは否定：{statement}", "そうではないと述べている：{statement}"),
        (
            (r"いつ|何年|何月|何日|何時", "時期"),
            (r"いくつ|いくら|何[人個回歳枚本件台メ]|どれくらい|どのくらい", "数"),
            (r"誰|だれ|何者", "名前"),
            (r"どこ|何処|何[県市国]", "場所"),
            (r"なぜ|何故|どうして|理由", "理由"),
        ),
        "答え",
    ),
}


def contribute(
    query: str,
    evidence: str,
    language: str,
    *,
    answers: Sequence[str] = (),
    verdict: bool | None = None,
) -> str | None:
    """One sentence on what the document gives: the shortest answer that is not in the query, else what the evidence
    states.

    `verdict`: the answer to a question that takes yes or no. None when all there is to say are words of the query.
    """
    say = _WORDINGS.get(language, _WORDINGS["en"])
    draw = int(stable_id("wording", query, evidence), 16)
    if verdict is None:
        for answer in sorted(answers, key=lambda text: (len(text), text)):
            if answer in evidence and not echoes(answer, query, language):
                wording = say.answer[draw % len(say.answer)]
                return wording.format(kind=_asked_for(query, say), answer=" ".join(answer.split()).strip(" .,;:。，"))
    statement = stated(evidence, language)
    if echoes(statement, query, language):
        return None
    wordings = say.statement if verdict is None else say.confirmed if verdict else say.denied
    return wordings[draw % len(wordings)].format(statement=statement)


def stated(evidence: str, language: str) -> str:
    """The first sentence or clause of the evidence, short enough for a contribution; cut at a border if possible."""
    text = " ".join(_LIST_MARK.sub("", evidence).split())
    longest = _LONGEST.get(language, 170)
    stop = "。" if language in _UNSPACED_LANGUAGES else "."
    first = re.match(r".+?[.!?](?=\s|$)|.+?[。！？]", text)
    if first and len(first[0]) >= longest // 4:
        text = first[0]
    if len(text) > longest:
        borders = [match.start() for match in _BORDER.finditer(text, longest // 3, longest)]
        cut = borders[-1] if borders else text.rfind(" ", longest // 3, longest)
        text = text[: cut if cut > 0 else longest].rstrip() + "…"
    return text if text[-1:] in ".!?。！？…" else text.rstrip(" ,;:，；：") + stop


def echoes(text: str, query: str, language: str) -> bool:
    """Whether a text holds nothing but words of the query."""
    said = topic_terms(text, language)
    return not said or said <= topic_terms(query, language)


def topic_terms(text: str, language: str) -> frozenset[str]:
    """The words of a text that carry a topic; pairs of characters in Chinese and Japanese."""
    if language in _UNSPACED_LANGUAGES:
        return frozenset(pairs_of(text) or {text.strip()} - {""})
    return frozenset(word for word in words(text) if word not in STOP_WORDS)


def _asked_for(query: str, say: _Wordings) -> str:
    """The kind whose question word comes first: "how many … when …" asks for a figure."""
    found = [
        (match.start(), kind) for pattern, kind in say.kinds if (match := re.search(pattern, query, re.IGNORECASE))
    ]
    return min(found)[1] if found else say.other


def pairs_of(text: str) -> set[str]:
    """Neighbouring characters and whole words of other scripts: what stands for words here."""
    dense = re.sub(r"\W+", "", text.casefold())
    return {dense[start : start + 2] for start in range(len(dense) - 1)}
