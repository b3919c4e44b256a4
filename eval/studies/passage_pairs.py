"""Pairs of passages of which is known whether they say the same, contradict each other, or neither.

They are made from question-passage pairs by people: a window of a passage in another dress, or with one value changed,
or about another thing. `eval/passage_compare.py` says what each kind is.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from itertools import combinations, groupby, islice, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from prism.evidence.sentences import sentences
from prism.files.jsonl import Drops, Row, read_rows

SETS = {"en": ("squad-dev.en", "medquad.en", "boolq-dev.en"), "zh": ("cmrc2018-train.zh",), "ja": ("jaquad.ja",)}
PASSAGES = {
    "de": [
        """Berlin ist die Hauptstadt der Bundesrepublik Deutschland und hat rund 3,7 Millionen Einwohner. Die Stadt
        liegt an der Spree. Im Krieg wurden viele Häuser zerstört und nicht alle wieder aufgebaut. Der
        Flughafen Tempelhof wurde 2008 geschlossen; auf dem Feld darf seither nicht gebaut werden. Ohne
        gültige Fahrkarte kostet die U-Bahn 60 Euro.""",
        """Ein Virtuelles Privates Netz verbindet Rechner über ein öffentliches Netz, ohne dass Dritte mitlesen
        können. Der Schlüssel wird nie im Klartext übertragen. Ältere Verfahren gelten als unsicher und
        sollten nicht mehr eingesetzt werden. Für den Zugriff genügt ein Zertifikat, ein Kennwort ist
        nicht nötig.""",
    ],
    "ru": [
        """Москва является столицей России и крупнейшим городом страны. Население города составляет около 13
        миллионов человек. Город не замерзает зимой полностью, однако река покрывается льдом. Без
        регистрации нельзя находиться в гостинице дольше недели. Метро открылось в 1935 году и с тех пор
        не прекращало работу надолго.""",
        """Индекс ускоряет поиск строк в таблице, но замедляет запись. При создании индекса таблица блокируется на
        запись. Без блокировки индекс создаётся в параллельном режиме, который нельзя запускать внутри
        транзакции. Если создание не удалось, остаётся недействительный индекс.""",
    ],
}
NEGATIONS = {
    "en": (r"\b(is|are|was|were|can|will|does|has|have|had)\b(?! not)", r"\1 not", r"\b(\w+) not\b", r"\1"),
    "de": (r"\b(ist|sind|wird|werden|wurde|wurden|kann|hat)\b(?! nicht)", r"\1 nicht", r" nicht\b", ""),
    "ru": (r" (является|составляет|открылось|ускоряет|блокируется|создаётся|остаётся)", r" не \1", r"\bне ", ""),
    "zh": (
        r"(是|会|能|可以|有)(?=[\u4e00-\u9fff]{2})",
        r"不\1",
        r"[不未没](?![断斷少久仅僅但过過同来來论論])(?<!出没)(?=[\u4e00-\u9fff]{2})",
        "",
    ),
    "ja": (r"している", "していない", r"していない", "している"),
}


class Made(NamedTuple):
    """A pair; `what` it is, and of which kind. `held`: the left says all that the right does."""

    what: Literal["same", "held", "conflict", "neither"]
    kind: str
    left: str
    right: str


_WIDE = str.maketrans("0123456789", "０１２３４５６７８９")
_FIGURES = re.compile(
    r"(?<![\w.,#-])\d{1,3}(?:,\d{3})*(?:\.\d+)?(?![\w.,/-]|\s?[-–]\s?\d|月)|(?<=[\u3040-\u9fff])\d{1,3}(?=[\u3040-\u6707\u6709-\u9fff])"
)
_ENTITY = re.compile(r"[^\d.。，,!?]{2,30}")
_PRONOUN = re.compile(r"(?:He|She|It|They|His|Her|Its|Their|This|These|That)\b|[他她它其这該该]|彼|その|この|これ")
_YEAR = re.compile(
    r"(?<=\b[iI]n )\d{4}(?=[ .,;])|(?<!\d)(?<!度)\d{4}(?=年)|(?<=\bв )\d{4}(?= году)|(?<=wurde )\d{4}(?= )"
)


def read_groups(data: Path, language: str, limit: int, half: int) -> Iterator[list[Row]]:
    """The rows of one passage after the other; of each set every 20th, of the half asked for."""
    if language in PASSAGES:
        yield from ([{"passage": " ".join(passage.split()), "answers": []}] for passage in PASSAGES[language])
        return
    for name in SETS[language]:
        found = (list(group) for _, group in groupby(_rows(data, name), key=lambda row: row["passage"]))
        chosen = (group for group in found if zlib.crc32(group[0]["passage"].encode()) % 2 == half)
        yield from islice(chosen, limit)


def _rows(data: Path, name: str) -> Iterator[Row]:
    return (row for _, row in read_rows(data / "pairs" / f"{name}.jsonl.gz", Drops()))


def _windows(passage: str, language: str) -> list[str]:
    """Two or three sentences each; together the whole passage."""
    borders = sentences(passage[:3000], language)
    return [
        passage[part[0][0] : part[-1][1]] for at in range(0, len(borders), 3) if len(part := borders[at : at + 3]) > 1
    ]


def _reformatted(text: str, language: str) -> str:
    """The same in another dress."""
    if language in ("zh", "ja"):
        return text.translate(_WIDE).replace("。", "｡").replace("、", "，").replace("「", "“").replace("」", "”")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("%", " %").replace("; ", ", ").replace(" – ", " - ")
    return text.lower() if len(text) % 2 else text.replace('"', "“").replace("'", "’").replace(". ", ".\n")


def _recut(text: str, language: str) -> tuple[str, str] | None:
    """Two windows over the same words, each without a word or two that the other has; None if those are facts."""
    parts, glue = (list(text), "") if language in ("zh", "ja") else (text.split(), " ")
    cut = 2 if glue == "" else 1
    lost = "".join([*parts[1:cut], *parts[-cut:]])
    if len(parts) < 25 or re.search(r"\d", "".join(parts[:cut])) or re.search(r"[A-Z\d]", lost):
        return None
    return glue.join(parts[:-cut]), glue.join(parts[cut:])


def _changed(text: str, language: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Kind of conflict, and the text with it."""
    if figures := list(_FIGURES.finditer(text)):
        found = draw.choice(figures)
        number = found[0].replace(",", "")
        new = str(int(float(number)) + draw.randint(1, 9) * max(1, int(float(number)) // 10))
        yield "number", text[: found.start()] + new + text[found.end() :]
    if years := list(_YEAR.finditer(text)):
        found = draw.choice(years)
        yield "year", text[: found.start()] + str(int(found[0]) + draw.randint(1, 30)) + text[found.end() :]
    for pattern, new in (NEGATIONS[language][:2], NEGATIONS[language][2:]):
        denied = re.sub(pattern, new, text, count=1)
        if denied != text and not re.search("not't|not (?:only|just|all)|不仅|不但", denied):
            yield "negation put in" if pattern == NEGATIONS[language][0] else "negation taken out", denied


def made_pairs(groups: list[list[Row]], language: str, draw: random.Random) -> Iterator[Made]:
    answers = [a for group in groups for row in group for a in row.get("answers", [])[:1] if _ENTITY.fullmatch(a)]
    for group, following in pairwise([*groups, groups[0]]):
        own = _windows(group[0]["passage"], language)
        for window in draw.sample(own, min(2, len(own))):
            parts = [window[start:end] for start, end in sentences(window, language)]
            glue = "" if language in ("zh", "ja") else " "
            yield Made("same", "reformatted", window, _reformatted(window, language))
            yield Made("same", "sentences reordered", window, glue.join(parts[::-1]))
            if both := _recut(window, language):
                yield Made("same", "cut differently", *both)
            yield Made("held", "one of its sentences", window, draw.choice(parts))
            for kind, text in _changed(window, language, draw):
                yield Made("conflict", kind, window, _reformatted(text, language))
            yield from _about_another(group, window, parts, glue, answers, language, draw)
        for left, right in islice(combinations(own, 2), 6):
            yield Made("neither", "of one passage", left, right)
        if group[0].get("title") and group[0].get("title") == following[0].get("title"):
            yield Made("neither", "of one article", group[0]["passage"], following[0]["passage"])


def _about_another(
    group: list[Row],
    window: str,
    parts: list[str],
    glue: str,
    answers: list[str],
    language: str,
    draw: random.Random,
) -> Iterator[Made]:
    """The window with another answer in place of its own, alone and with another value in that sentence or the next."""
    inside = [a for row in group for a in row.get("answers", [])[:1] if _ENTITY.fullmatch(a) and a in window]
    others = [a for a in draw.sample(answers, min(20, len(answers))) if a not in group[0]["passage"]]
    if not (inside and others):
        return
    own, other = inside[0], others[0]
    yield Made("neither", "another entity", window, window.replace(own, other))
    for part in (part for part in parts if own in part):
        for kind, text in _changed(part, language, draw):
            if own in text:
                yield Made("neither", f"another entity, another {kind}", part, text.replace(own, other))
    for one, behind in pairwise(parts):
        if own in one and _PRONOUN.match(behind):
            for kind, text in _changed(behind, language, draw):
                left, right = one + glue + behind, one.replace(own, other) + glue + text
                yield Made("neither", f"another entity before, another {kind}", left, right)


def found_pairs(data: Path, half: int, limit: int) -> Iterator[Made]:
    """Passages on one question, with those that only look as if they answered; answers on one pattern (MedQuAD)."""
    for name in ("hotpotqa-train100.en", "musique-train100.en"):
        for question, group in groupby(_rows(data, name), key=lambda row: row["question"]):
            texts = list(dict.fromkeys(row["passage"] for row in group))
            if zlib.crc32(question.encode()) % 2 == half:
                yield from (Made("neither", "of one question", *pair) for pair in combinations(texts, 2))
    found = dict.fromkeys(row["passage"][:2000] for row in _rows(data, "medquad.en"))
    alike = sorted(text for text in found if zlib.crc32(text.encode()) % 2 == half)
    for left, right in islice(pairwise(alike), 0, limit * 20, 4):  # sorted: they begin alike
        yield Made("neither", "on one pattern", left, right)


def scifact_pairs(folder: Path, half: int) -> Iterator[Made]:
    claims = {row["_id"]: row["text"] for _, row in read_rows(folder / "queries.jsonl", Drops())}
    gold = [row for _, row in read_rows(folder / "rationales.jsonl", Drops()) if int(row["query_id"]) % 2 == half]
    for row in gold:
        kind: Literal["conflict", "neither"] = "conflict" if row["label"] == "CONTRADICT" else "neither"
        yield Made(kind, f"claim, {row['label'].lower()}", claims[row["query_id"]], " ".join(row["sentences"]))
    for left, right in combinations(gold, 2):
        alike = left["query_id"] == right["query_id"] and left["label"] == right["label"]
        if alike and left["doc_id"] != right["doc_id"]:
            yield Made("neither", "abstracts on one claim", " ".join(left["sentences"]), " ".join(right["sentences"]))
