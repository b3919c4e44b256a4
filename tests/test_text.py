"""Normalisation: spellings that read alike become one, and every offset leads back to the text as sent."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.evidence import check
from prism.text import normalised, titled

DATA = Path(__file__).parents[2] / "shared" / "data" / "pairs"

# Real sentences, each followed by another: what the spelling is played with, and what must still be found in it.
TEXTS = {
    "en": (
        "The café's finest efficiency figure didn't change in 2023; it stayed at -12.5% for Zoë O'Brien. "
        "The staff's offices are in the old waffle factory near the river. "
        "Bake the fish at 180 °C for 25 minutes, then let it rest."
    ),
    "de": (
        "Die Straße über den Fluß wurde am 3. Mai 1945 für 3,7 Millionen Einwohner geöffnet. "
        "Größere Häfen hätten früher „grünes Licht“ bekommen müssen. "
        "Im Büro von Frau Müller hängt kein Schlüssel."
    ),
    "ru": (
        "Ёлки в йодистой воде живут около 13 лет, а не -5. "
        "Большой театр в Москве основал князь Урусов в 1776 году. "
        "Съезд объявил чёткий план на май."
    ),
    "zh": (
        "《战国无双3》是由光荣和ω-force开发的游戏。游戏于2009年12月3日发售，售价为6800円。"
        "本作以三大故事为主轴，共有１２名武将登场！冬天气温是-5度，不是5度。"
    ),
    "ja": (
        "ダムのデータをバックアップするサービスは、2021年5月にガイドブックで紹介された。"
        "パソコンがなくても、プログラムを学べる。料金は1,500円です。"
    ),
    "ko": (
        "서울은 대한민국의 수도이며 인구는 약 940만 명이다. "
        "한글은 1443년에 세종대왕이 만들었다. 값은 -5도까지 떨어졌다."
    ),
}
LIGATURES = {"ffi": "ﬃ", "ffl": "ﬄ", "ff": "ﬀ", "fi": "ﬁ", "fl": "ﬂ"}
FULL_WIDTH = {chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F) if chr(c).isalnum()}
HIDDEN = "\u00ad\u200b\u200c\u200d\u2060\ufeff\ufe0f"
CURLY = str.maketrans({"'": "’"})
NO_BREAK = str.maketrans({" ": "\u00a0"})

FORMS = {
    **{form: lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "ligatures": lambda text: re.sub("ffi|ffl|ff|fi|fl", lambda match: LIGATURES[match[0]], text),
    "full width": lambda text: "".join(FULL_WIDTH.get(c, c) for c in text),
    "soft hyphens": lambda text: re.sub(r"(?<=\w\w)(?=\w\w)", "\u00ad", text),
    "zero width": lambda text: "\u200b".join(text) + "\ufeff",
    "no-break spaces": lambda text: text.translate(NO_BREAK),
    "curly quotes": lambda text: text.translate(CURLY),
    "minus signs": lambda text: re.sub(r"(?<![\w)])-(?=\d)", "\u2212", text),
}


def same(left: str, right: str) -> bool:
    """Whether two stretches of text read alike, by a plainer road than the one under test."""

    def plain(text: str) -> str:
        text = unicodedata.normalize("NFKC", "".join(c for c in text if c not in HIDDEN))
        return text.replace("’", "'").replace("\u2212", "-").casefold()

    return plain(left) == plain(right)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", TEXTS)
def test_spelling_makes_no_difference(language: str, form: str) -> None:
    text = TEXTS[language]
    spelt = FORMS[form](text)
    usual = check(text, text)
    assert (usual.support, usual.fidelity.unsupported) == (1.0, ())
    assert usual.fidelity.checked > 0
    for evidence, document in ((text, spelt), (spelt, text), (spelt, spelt)):
        found = check(evidence, document)
        assert (found.support, found.fidelity) == (1.0, usual.fidelity), (evidence, document)
        assert len(found.spans) == len(usual.spans)
        for mine, plain in zip(found.spans, usual.spans, strict=True):
            assert same(document[mine.start : mine.end], text[plain.start : plain.end])


@given(st.data())
def test_mixed_spellings_of_one_sentence_are_found_where_they_stand(data: st.DataObject) -> None:
    """Each character of the document is spelt anyhow; the evidence is one of its sentences, spelt anyhow as well."""
    text = TEXTS[data.draw(st.sampled_from(sorted(TEXTS)))]
    spans = check(text, text).sentences
    sentence = data.draw(st.sampled_from([text[s.start : s.end] for s in spans]))
    document = spelt_anyhow(data, text)
    found = check(spelt_anyhow(data, sentence), document)
    assert (found.support, found.fidelity.unsupported) == (1.0, ())
    assert same("".join(document[s.start : s.end] for s in found.spans), sentence)


def spelt_anyhow(data: st.DataObject, text: str) -> str:
    """A text whose characters are each composed or not, full width or not, with something invisible behind or not."""
    choices = data.draw(st.lists(st.integers(0, 9), min_size=8, max_size=8))
    out = []
    for at, char in enumerate(text):
        choice = choices[(at * 7 + at // 11) % len(choices)]
        char = unicodedata.normalize("NFD", char) if choice % 2 else char
        char = FULL_WIDTH.get(char, char) if choice == 4 else char
        out.append(char + (HIDDEN[at % len(HIDDEN)] if choice > 7 and char.isalnum() else ""))
    return "".join(out)


ANY = st.one_of(
    st.text(), st.text(st.sampled_from("aé\u0301ｆﬁ한\u1112\u1161\u11abﾀﾞダ\u00ad\u200b 5²，…’−１"), max_size=40)
)


@given(ANY)
def test_offsets_lead_back_to_the_text_as_sent(text: str) -> None:
    plain = normalised(text)
    assert len(plain.text) == len(plain.starts) == len(plain.ends)
    before = 0
    for start, end in zip(plain.starts, plain.ends, strict=True):
        assert before <= start < end <= len(text)
        before = start
    assert normalised(plain.text).text == plain.text


@given(ANY, st.sampled_from(["NFC", "NFD"]))
def test_canonical_forms_are_one(text: str, form: str) -> None:
    assert normalised(unicodedata.normalize(form, text)).text == normalised(text).text


@pytest.mark.parametrize(
    ("text", "plain", "starts"),
    [
        ("e\u0301a", "éa", [0, 2]),
        ("\u1112\u1161\u11ab!", "한!", [0, 3]),
        ("ﾀﾞ", "ダ", [0]),
        ("a\u00adb", "ab", [0, 2]),
        ("e\u200b\u0301", "é", [0]),
        ("ﬁx", "fix", [0, 0, 1]),
        ("3，5", "3, 5", [0, 1, 1, 2]),
        ("1，000", "1,000", [0, 1, 2, 3, 4]),
        ("10²", "10^2", [0, 1, 2, 2]),
        ("m²", "m2", [0, 1]),
        ("好…−5", "好…-5", [0, 1, 2, 3]),
        ("\ud800x", "\ufffdx", [0, 1]),
    ],
)
def test_normalised_by_hand(text: str, plain: str, starts: list[int]) -> None:
    found = normalised(text)
    assert (found.text, list(found.starts)) == (plain, starts)


@pytest.mark.parametrize("name", ["squad-dev.en", "cmrc2018-train.zh", "jaquad.ja"])
@pytest.mark.parametrize("form", ["NFD", "NFKC", "soft hyphens", "zero width", "curly quotes"])
def test_real_passages_support_themselves_in_any_spelling(name: str, form: str) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}: real passages lie beside the project, not in it")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        passages = [json.loads(line)["passage"][:600] for line in islice(lines, 0, 2000, 200)]
    for passage in passages:
        usual, found = check(passage, passage), check(passage, FORMS[form](passage))
        assert (found.support, found.fidelity) == (usual.support, usual.fidelity), passage


def test_a_title_stands_above_the_text() -> None:
    assert titled("b", "a") == "a\nb"
    assert titled("b", None) == titled("b", "") == "b"
