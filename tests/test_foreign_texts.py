"""Texts in other languages: where they come from and what pairs are made of them."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prism.data.build import build, build_dev
from prism.data.records import read_examples
from prism.data.settings import HeldOut, Pairs, Stage
from prism.data.sources import own_texts
from prism.errors import DataError
from prism.evaluation.held_out import read_groups

ROOT = Path(__file__).parent.parent
SUBJECTS = {
    "en": "The {0} server keeps {1} records in a log. An administrator rotates the {1} keys of {0} every month.",
    "de": "Der {0}-Server führt {1} Einträge im Protokoll. Die Verwaltung erneuert {1} Schlüssel von {0} monatlich.",
    "ru": "Сервер {0} хранит записи {1} в журнале. Администратор обновляет ключи {1} для {0} каждый месяц.",
    "zh": "{0}服务器在日志中保存{1}的记录，管理员很少阅读它们。管理员每个月更新{0}的{1}密钥，旧的密钥被删除。",
}


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = []
    for language, pattern in SUBJECTS.items():
        for number in range(60):
            name = f"{chr(0x4E00 + 37 * number)}{number}" if language == "zh" else f"Name{number}"
            row = {"id": f"{language}/{number}#0", "title": f"{name} handbook", "headings": [f"{name} keys"]}
            rows.append(row | {"text": pattern.format(name, f"kind{number}"), "source": "book", "language": language})
    return save(tmp_path / "texts.jsonl.gz", rows)


def test_sections_of_a_file_of_ones_own(texts: Path) -> None:
    first = own_texts(texts).texts[0]
    assert (first.id, first.group, first.title) == ("en/0#0", "en/0", "Name0 handbook")
    assert (first.heading, first.source, first.language) == ("Name0 keys", "book", "en")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"texts\.jsonl\.gz"):
        own_texts(tmp_path / "texts.jsonl.gz")


def test_a_stage_has_its_share_of_every_language(texts: Path, tmp_path: Path) -> None:
    stage = Stage(max_chars=300, queries=40, hard=1, human=0, foreign=40)
    pairs = Pairs(corpora=(), texts=(texts,), stages=(stage,), held_out=HeldOut(queries=10, negatives=2))
    build(pairs, tmp_path / "made", seed=1)
    records = list(read_examples(tmp_path / "made" / "train.jsonl"))
    yes = Counter(record.language for record in records if record.verdict == "yes")
    assert yes[None] == pytest.approx(40, abs=2)
    assert yes["zh"] == pytest.approx(20, abs=2)
    assert yes["de"] + yes["ru"] == pytest.approx(20, abs=2)
    assert min(yes["de"], yes["ru"]) > 2
    for record in records:
        if record.verdict == "yes":
            assert record.evidence in record.document
            opening = {"de": ("Es geht um", "Erklärt"), "ru": ("Тема", "Объясняется"), "zh": ("文中",)}
            assert record.contribution.startswith(opening.get(record.language, ("It ",)))
    held_out = list(read_examples(tmp_path / "made" / "dev.jsonl"))
    assert {record.language for record in held_out} <= {None}


def test_held_out_groups_of_one_language(texts: Path, tmp_path: Path) -> None:
    stage = Stage(max_chars=300, queries=40, hard=1)
    held_out = HeldOut(queries=20, negatives=2, share=0.45)
    pairs = Pairs(corpora=(), texts=(texts,), stages=(stage,), held_out=held_out)
    build_dev(pairs, tmp_path / "dev-de.jsonl", 1, language="de")
    groups = read_groups(tmp_path / "dev-de.jsonl")
    assert len(groups) >= 8
    assert {group.positive.language for group in groups} == {"de"}
    assert all(len(group.negatives) == 2 for group in groups)


PAGE = """<html><body><h2 class="title">6.2. {title}</h2>
<div class="para">{translated}<code>apt</code> {translated}</div>
<pre class="screen">$ apt update</pre><div class="para">The list of packages needs to be updated.</div>
<div class="section"><h3 class="title">6.2.1. {inner}</h3><div class="para">{translated}</div></div></body></html>"""


def test_the_handbook_in_three_languages_without_what_nobody_translated(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("handbook", ROOT / "recipes" / "handbook.py")
    assert spec
    assert spec.loader
    handbook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handbook)
    said = {
        "de-DE": ("Pakete", "Liste", "Die Liste der Pakete wird mit diesem Befehl auf den neuen Stand gebracht."),
        "ru-RU": ("Пакеты", "Список", "Список пакетов обновляется этой командой."),
        "zh-CN": ("软件包", "列表", "此命令更新软件包列表。"),
    }
    for language, (title, inner, translated) in said.items():
        (tmp_path / "html" / language).mkdir(parents=True)
        page = PAGE.format(title=title, inner=inner, translated=translated)
        (tmp_path / "html" / language / "apt.html").write_text(page, encoding="utf-8")
    out = tmp_path / "runs" / "handbook.jsonl.gz"
    handbook.main(tmp_path / "html", out)
    found = own_texts(out).texts
    for (language, (title, inner, translated)), (outer, section) in zip(
        said.items(), zip(found[::2], found[1::2], strict=True), strict=True
    ):
        assert (outer.id, outer.language) == (f"handbook/{language}/apt#0", language[:2])
        assert (outer.title, outer.heading, outer.text) == (title, title, f"{translated}apt {translated}")
        assert (section.heading, section.text) == (inner, translated)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"id": "a#1", "title": "A", "headings": [], "source": "own", "language": "de"}',
            "own.jsonl:1: no field 'text'",
        ),
        ("[1]", "own.jsonl:1: expected an object, got list"),
        ("{", "own.jsonl:1: not JSON"),
    ],
)
def test_a_bad_line_of_a_corpus_is_named(tmp_path, line, said):
    path = tmp_path / "own.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        own_texts(path)
