"""How often the comparison of passages is wrong: four error rates, by language and by kind of pair.

    python eval/passage_compare.py --data ../shared/data --out eval/results/passage_compare

Same: a window of two or three sentences against itself with case, punctuation and number formats changed, with its
sentences reordered, cut a word or two differently, and (it adds nothing) against one of its sentences. Conflict: the
window with one number, year or negation changed. Neither: the next window of the passage, a window of the
next passage of the same article, the passages offered for one question (HotpotQA, MuSiQue), answers on one
pattern (MedQuAD), the window with the answer of another question in place of its own, that and another
number. SciFact: claims against the sentences that contradict or support them, support for one claim from two abstracts.
The thresholds were chosen on half 0 of the passages; the report is of half 1. German and Russian have two passages each.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import zlib
from collections.abc import Iterator
from itertools import combinations, groupby, islice, pairwise
from pathlib import Path
from typing import Any

from text_checks import _NEGATION
from text_checks import PASSAGES, SETS

from prism.evidence.compare import clashes, same, says_all
from prism.evidence.sentences import sentences
from prism.evidence.tokens import Passage

Row = dict[str, Any]
Made = tuple[str, str, str, str]  # what it is (same, held, conflict, neither), kind, left, right
IDIOM = "(?![断斷少久仅僅但过過同来來论論])(?<!出没)"  # 不断 denies nothing
NEGATIONS = _NEGATION | {"zh": (*_NEGATION["zh"][:2], _NEGATION["zh"][2].replace("]", "]" + IDIOM, 1), "")}
WIDE = str.maketrans("0123456789", "０１２３４５６７８９")
FIGURES = re.compile(r"(?<![\w.,#-])\d{1,3}(?:,\d{3})*(?:\.\d+)?(?![\w.,/-]|\s?[-–]\s?\d|月)|(?<=[\u3040-\u9fff])\d{1,3}(?=[\u3040-\u6707\u6709-\u9fff])")
ENTITY = re.compile(r"[^\d.。，,!?]{2,30}")
PRONOUN = re.compile(r"(?:He|She|It|They|His|Her|Its|Their|This|These|That)\b|[他她它其这該该]|彼|その|この|これ")
YEAR = re.compile(r"(?<=\b[iI]n )\d{4}(?=[ .,;])|(?<!\d)(?<!度)\d{4}(?=年)|(?<=\bв )\d{4}(?= году)|(?<=wurde )\d{4}(?= )")


def rows(data: Path, language: str, limit: int, half: int) -> Iterator[list[Row]]:
    """The rows of one passage after the other; of each set every 20th, of the half asked for."""
    if language in PASSAGES:
        yield from ([{"passage": " ".join(passage.split()), "answers": []}] for passage in PASSAGES[language])
        return
    for name in SETS[language]:
        with gzip.open(data / "pairs" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            found = (list(group) for _, group in groupby(map(json.loads, lines), key=lambda row: row["passage"]))
            chosen = (group for group in found if zlib.crc32(group[0]["passage"].encode()) % 2 == half)
            yield from islice(chosen, limit)


def windows(passage: str, language: str) -> list[str]:
    """Two or three sentences each; together the whole passage."""
    borders = sentences(passage[:3000], language)
    return [passage[part[0][0] : part[-1][1]] for at in range(0, len(borders), 3) if len(part := borders[at : at + 3]) > 1]


def reformatted(text: str, language: str) -> str:
    """The same in another dress."""
    if language in ("zh", "ja"):
        return text.translate(WIDE).replace("。", "｡").replace("、", "，").replace("「", "“").replace("」", "”")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("%", " %").replace("; ", ", ").replace(" – ", " - ")
    return text.lower() if len(text) % 2 else text.replace('"', "“").replace("'", "’").replace(". ", ".\n")


def recut(text: str, language: str) -> tuple[str, str] | None:
    """Two windows over the same words, each without a word or two that the other has; None if those are facts."""
    parts, glue = (list(text), "") if language in ("zh", "ja") else (text.split(), " ")
    cut = 2 if glue == "" else 1
    lost = "".join([*parts[1:cut], *parts[-cut:]])
    if len(parts) < 25 or re.search(r"\d", "".join(parts[:cut])) or re.search(r"[A-Z\d]", lost):
        return None
    return glue.join(parts[:-cut]), glue.join(parts[cut:])


def changed(text: str, language: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Kind of conflict, and the text with it."""
    if figures := list(FIGURES.finditer(text)):
        found = draw.choice(figures)
        number = found[0].replace(",", "")
        new = str(int(float(number)) + draw.randint(1, 9) * max(1, int(float(number)) // 10))
        yield "number", text[: found.start()] + new + text[found.end() :]
    if years := list(YEAR.finditer(text)):
        found = draw.choice(years)
        yield "year", text[: found.start()] + str(int(found[0]) + draw.randint(1, 30)) + text[found.end() :]
    for pattern, new in (NEGATIONS[language][:2], NEGATIONS[language][2:]):
        denied = re.sub(pattern, new, text, count=1)
        if denied != text and not re.search("not't|not (?:only|just|all)|不仅|不但", denied):
            yield "negation put in" if pattern == NEGATIONS[language][0] else "negation taken out", denied


def pairs(groups: list[list[Row]], language: str, draw: random.Random) -> Iterator[Made]:
    answers = [a for group in groups for row in group for a in row.get("answers", [])[:1] if ENTITY.fullmatch(a)]
    for group, following in pairwise([*groups, groups[0]]):
        own = windows(group[0]["passage"], language)
        for window in draw.sample(own, min(2, len(own))):
            parts = [window[start:end] for start, end in sentences(window, language)]
            glue = "" if language in ("zh", "ja") else " "
            yield "same", "reformatted", window, reformatted(window, language)
            yield "same", "sentences reordered", window, glue.join(parts[::-1])
            if both := recut(window, language):
                yield "same", "cut differently", *both
            yield "held", "one of its sentences", window, draw.choice(parts)
            for kind, text in changed(window, language, draw):
                yield "conflict", kind, window, reformatted(text, language)
            inside = [a for row in group for a in row.get("answers", [])[:1] if ENTITY.fullmatch(a) and a in window]
            others = [a for a in draw.sample(answers, min(20, len(answers))) if a not in group[0]["passage"]]
            if inside and others:
                yield "neither", "another entity", window, window.replace(inside[0], others[0])
                for part in (part for part in parts if inside[0] in part):
                    for kind, text in changed(part, language, draw):
                        if inside[0] in text:
                            yield "neither", f"another entity, another {kind}", part, text.replace(inside[0], others[0])
                for one, next_one in pairwise(parts):
                    if inside[0] in one and PRONOUN.match(next_one):
                        other = one.replace(inside[0], others[0])
                        for kind, text in changed(next_one, language, draw):
                            yield "neither", f"another entity before, another {kind}", one + glue + next_one, other + glue + text
        for left, right in islice(combinations(own, 2), 6):
            yield "neither", "of one passage", left, right
        if group[0].get("title") and group[0].get("title") == following[0].get("title"):
            yield "neither", "of one article", group[0]["passage"], following[0]["passage"]


def for_one_question(data: Path, half: int, limit: int) -> Iterator[Made]:
    """Passages on one question, with those that only look as if they answered; answers on one pattern (MedQuAD)."""
    for name in ("hotpotqa-train100.en", "musique-train100.en"):
        with gzip.open(data / "pairs" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for question, group in groupby(map(json.loads, lines), key=lambda row: row["question"]):
                texts = list(dict.fromkeys(row["passage"] for row in group))
                if zlib.crc32(question.encode()) % 2 == half:
                    yield from (("neither", "of one question", *pair) for pair in combinations(texts, 2))
    with gzip.open(data / "pairs" / "medquad.en.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = dict.fromkeys(row["passage"][:2000] for row in map(json.loads, lines))
    alike = sorted(text for text in found if zlib.crc32(text.encode()) % 2 == half)
    for left, right in islice(pairwise(alike), 0, limit * 20, 4):  # sorted: they begin alike
        yield "neither", "on one pattern", left, right


def scifact(folder: Path, half: int) -> Iterator[Made]:
    claims = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))}
    gold = [json.loads(line) for line in (folder / "rationales.jsonl").open(encoding="utf-8")]
    gold = [row for row in gold if int(row["query_id"]) % 2 == half]
    for row in gold:
        kind = "conflict" if row["label"] == "CONTRADICT" else "neither"
        yield kind, f"claim, {row['label'].lower()}", claims[row["query_id"]], " ".join(row["sentences"])
    for left, right in combinations(gold, 2):
        alike = left["query_id"] == right["query_id"] and left["label"] == right["label"]
        if alike and left["doc_id"] != right["doc_id"]:
            yield "neither", "abstracts on one claim", " ".join(left["sentences"]), " ".join(right["sentences"])


def count(made: Iterator[Made], shown: int) -> dict[str, list[int]]:
    """Kind of error and of pair -> how often it happened, how often it could."""
    found: dict[str, list[int]] = {}
    for what, kind, left, right in made:
        a, b = Passage(left), Passage(right)
        alike = says_all(a, b) if what == "held" else same(a, b)
        errors = {("missed" if what in ("same", "held") else "false") + " duplicate": alike == (what not in ("same", "held"))}
        errors[("missed" if what == "conflict" else "false") + " conflict"] = bool(clashes(a, b)) == (what != "conflict")
        for error, wrong in errors.items():
            for name in (error, f"{error}: {kind}"):
                tally = found.setdefault(name, [0, 0])
                tally[0], tally[1] = tally[0] + wrong, tally[1] + 1
                if wrong and ":" in name and tally[0] <= shown:
                    print(f"--- {name}\n  {left!r}\n  {right!r}\n  {clashes(a, b)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, default=150, help="passages of each file")
    parser.add_argument("--half", type=int, default=1, choices=(0, 1), help="0: the half to tune on")
    parser.add_argument("--show", type=int, default=0, help="print so many errors of each kind")
    parser.add_argument("--out", type=Path, default=Path("eval/results/passage_compare"))
    args = parser.parse_args()
    found = {}
    for language in ("en", "zh", "ja", "de", "ru"):
        groups = list(rows(args.data, language, args.limit, args.half))
        found[language] = count(pairs(groups, language, random.Random(7)), args.show)
    found["en, found"] = count(for_one_question(args.data, args.half, args.limit), args.show)
    found["SciFact"] = count(scifact(args.data / "beir" / "scifact", args.half), args.show)
    names = sorted({name for rates in found.values() for name in rates})
    lines = [f"| | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells = ("{} of {}".format(*rates[name]) if name in rates else "" for rates in found.values())
        lines.append(f"| {name if ':' in name else f'**{name}**'} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if args.half == 1:
        args.out.mkdir(parents=True, exist_ok=True)
        report = [f"`python eval/passage_compare.py --limit {args.limit}`", "", *lines, ""]
        (args.out / "report.md").write_text("\n".join(report), encoding="utf-8")
        (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
