"""The texts that are sent: pairs anybody would judge alike, in several languages, and filler of any length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Golden(NamedTuple):
    """A query and the one document, of all in its language, that answers it."""

    query: str
    document: str


GOLDEN: Final[Mapping[str, tuple[Golden, ...]]] = {
    "en": (
        Golden(
            "How long is the warranty on the battery?",
            "The warranty covers the battery for two years from the date of purchase.",
        ),
        Golden(
            "What is the capital of Australia?",
            "Canberra is the capital of Australia; it was chosen as a compromise between Sydney and Melbourne.",
        ),
        Golden(
            "how to reset the router password",
            "To reset the router's password, hold the button on its back for ten seconds and choose a new one.",
        ),
        Golden(
            "Why do leaves change colour in autumn?",
            "In autumn leaves turn yellow and red because the green chlorophyll breaks down and other pigments show.",
        ),
    ),
    "de": (
        Golden(
            "Wie lange gilt die Garantie auf den Akku?",
            "Die Garantie auf den Akku gilt zwei Jahre ab dem Kaufdatum.",
        ),
        Golden(
            "Warum färben sich Blätter im Herbst?",
            "Im Herbst färben sich die Blätter gelb und rot, weil das grüne Chlorophyll abgebaut wird.",
        ),
        Golden(
            "Was ist die Hauptstadt von Australien?",
            "Canberra ist die Hauptstadt von Australien, nicht Sydney.",
        ),
    ),
    "fr": (
        Golden(
            "Combien de temps dure la garantie de la batterie ?",
            "La garantie de la batterie dure deux ans à compter de la date d'achat.",
        ),
        Golden(
            "Pourquoi les feuilles changent-elles de couleur en automne ?",
            "En automne, les feuilles deviennent jaunes et rouges parce que la chlorophylle verte disparaît.",
        ),
        Golden("Quelle est la capitale de l'Australie ?", "Canberra est la capitale de l'Australie."),
    ),
    "es": (
        Golden(
            "¿Cuánto dura la garantía de la batería?",
            "La garantía de la batería dura dos años desde la fecha de compra.",
        ),
        Golden(
            "¿Por qué cambian de color las hojas en otoño?",
            "En otoño las hojas se vuelven amarillas y rojas porque la clorofila verde se descompone.",
        ),
        Golden("¿Cuál es la capital de Australia?", "Canberra es la capital de Australia."),
    ),
    "ru": (
        Golden(
            "Сколько действует гарантия на аккумулятор?",
            "Гарантия на аккумулятор действует два года со дня покупки.",
        ),
        Golden(
            "Почему осенью листья меняют цвет?",
            "Осенью листья желтеют и краснеют, потому что зелёный хлорофилл разрушается.",
        ),
        Golden("Какой город является столицей Австралии?", "Столица Австралии — город Канберра."),
    ),
    "ar": (
        Golden("ما مدة ضمان البطارية؟", "يسري ضمان البطارية لمدة سنتين من تاريخ الشراء."),
        Golden(
            "لماذا يتغير لون أوراق الشجر في الخريف؟",
            "في الخريف تصفرّ أوراق الشجر وتحمرّ لأن الكلوروفيل الأخضر يتحلل.",
        ),
        Golden("ما هي عاصمة أستراليا؟", "كانبرا هي عاصمة أستراليا."),
    ),
    "zh": (
        Golden("电池的保修期是多久？", "电池自购买之日起保修两年。"),
        Golden("秋天树叶为什么变色？", "秋天树叶变黄变红，是因为绿色的叶绿素分解了。"),
        Golden("澳大利亚的首都是哪里？", "澳大利亚的首都是堪培拉。"),
    ),
    "ja": (
        Golden("バッテリーの保証期間はどのくらいですか？", "バッテリーの保証期間は購入日から2年間です。"),
        Golden("秋に葉の色が変わるのはなぜですか？", "秋には緑の葉緑素が分解され、葉は黄色や赤に変わります。"),
        Golden("オーストラリアの首都はどこですか？", "オーストラリアの首都はキャンベラです。"),
    ),
}
LANGUAGES: Final = tuple(GOLDEN)
DECOYS: Final[Mapping[str, str]] = {
    "en": "The battery is charged with the cable that comes in the box.",
    "de": "Der Akku wird mit dem Kabel geladen, das in der Schachtel liegt.",
    "fr": "La batterie se charge avec le câble fourni dans la boîte.",
    "es": "La batería se carga con el cable que viene en la caja.",
    "ru": "Аккумулятор заряжается кабелем, который лежит в коробке.",
    "ar": "تُشحن البطارية بالكابل الموجود في العلبة.",
    "zh": "电池用盒子里的充电线充电。",
    "ja": "バッテリーは箱に入っているケーブルで充電します。",
}
"""One document for each language that shares words with the first query, and answers none."""

_FILLER: Final = (
    "The committee met on Tuesday to look at the minutes of the last meeting. "
    "A new bench was put up beside the pond, and the path around it was mended. "
    "Several members asked for more time to read the papers before the vote. "
    "The choir will sing in the old hall again, as it did in the years before. "
    "Tickets for the summer concert are sold at the bakery and at the door. "
)


def filler(characters: int, start: int = 0) -> str:
    """Prose about nothing that anybody asks here, whole words, about so many characters. `start` turns it around."""
    turned = _FILLER[start % len(_FILLER) :] + _FILLER[: start % len(_FILLER)]
    whole = turned * (characters // len(turned) + 2)
    end = whole.rfind(" ", 0, characters + 1)
    return whole[: end if end > 0 else characters].strip()


_WHO = ("engineer", "gardener", "teacher", "pilot", "baker", "nurse", "lawyer", "painter", "farmer", "librarian")
_WHAT = (
    "asked how long the warranty on the battery is",
    "replaced the battery of the phone under warranty",
    "read that the battery lasts about two days",
    "bought a lamp with a warranty of two years",
    "walked to the market before the rain",
    "wrote a letter about the broken window",
    "measured the temperature of the lake",
    "repaired the bicycle in the yard",
    "planted three rows of potatoes",
    "counted the chairs in the hall",
)


def hundred() -> list[str]:
    """A hundred different documents, from close to the first golden query to far from it."""
    return [f"The {who} {what}." for what in _WHAT for who in _WHO]
