"""How often the checks of written texts are wrong: on real text, and on faults planted into it.

    python eval/text_checks.py --data ../shared/data/pairs --out eval/results/text_checks

Held for wrong though it is right: sentences of a passage with a word left out (so that they are not word for word)
against the passage; the same against the passage after it, which has few of their words (for broken words); questions,
which people wrote about a passage in words of their own. Missed: the same sentences with a "not" put in or taken out,
with a broken word, a stray letter, a phrase said four times, a leaked tag. German and Russian come from a few sentences
below, since the data has none.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from prism.evidence import check
from prism.evidence.sentences import sentences
from prism.evidence.soundness import broken, says_the_query_again
from prism.files.jsonl import Drops, read_rows
from prism.text import normalised
from studies.passage_pairs import NEGATIONS, PASSAGES, SETS


def texts(data: Path, language: str, limit: int) -> Iterator[tuple[str, str]]:
    """(question, passage); passages of German and Russian have no question."""
    if language in PASSAGES:
        yield from (("", " ".join(passage.split())) for passage in PASSAGES[language])
        return
    for name in SETS[language]:
        for _, row in islice(read_rows(data / f"{name}.jsonl.gz", Drops()), 0, limit * 20, 20):
            yield row["question"], normalised(row["passage"][:1500]).text


def cut(passage: str, language: str) -> list[str]:
    """Sentences with one word (of Chinese and Japanese: two characters) left out, so that none counts as quoted."""
    found = [passage[start:end] for start, end in sentences(passage, language)]
    if language in ("zh", "ja"):
        return [s[:4] + s[6:] for s in found if len(s) > 12 and not re.search("[不未没沒无無ないせ]", s[2:8])]
    words = [sentence.split() for sentence in found]
    return [" ".join((*w[:2], *w[3:])) for w in words if len(w) > 6 and not re.search(r"n.t|no|ни|не|oh", w[2].lower())]


def faults(language: str, draw: random.Random) -> dict[str, Callable[[str], str]]:
    """What is planted, by name. A fault that does not apply returns the text unchanged."""
    put_in, negated, taken_out, stated = NEGATIONS[language]

    def word(text: str) -> str:
        words = re.findall(r"\b[a-z]{7,}\b", text)
        return text.replace(draw.choice(words), draw.choice(words)[:7] + "eder", 1) if words else text

    def letter(text: str) -> str:
        at = text.find(" ", len(text) // 2)
        return f"{text[:at]} F{text[at:]}" if at > 0 else text

    def phrase(text: str) -> str:
        middle = len(text) // 2
        start = middle if language in ("zh", "ja") else text.find(" ", middle) + 1
        piece = text[start : start + 8] if language in ("zh", "ja") else " ".join(text[start:].split()[:3]) + " "
        return text[:start] + piece * 4 if len(piece) > 6 else text

    return {
        "negation: put in": lambda text: re.sub(put_in, negated, text, count=1),
        "negation: taken out": lambda text: re.sub(taken_out, stated, text, count=1),
        "broken: wrong end of a word": word,
        "broken: stray letter": letter,
        "broken: phrase again and again": phrase,
        "broken: leaked tag": lambda text: text[: len(text) // 2] + "<|im_end|>" + text[len(text) // 2 :],
    }


def measure(data: Path, language: str, limit: int) -> dict[str, tuple[int, int]]:
    """Name of the measure -> (how often the check fired, how often it could)."""
    draw = random.Random(7)
    counts: dict[str, list[bool]] = {}
    found = list(texts(data, language, limit))
    for (question, passage), (_, other) in zip(found, [*found[1:], found[0]], strict=True):
        every = cut(passage, language)
        kept = draw.sample(every, min(3, len(every)))
        for right in [*kept, *([question] if question else [])]:
            kind = "question" if right == question else "sentence"
            counts.setdefault(f"{kind}: broken", []).append(bool(broken(right, [passage])))
            counts.setdefault(f"{kind}: negation", []).append(negation(right, passage))
        for sentence in kept:
            counts.setdefault("sentence: broken, by another passage", []).append(bool(broken(sentence, [other])))
            counts.setdefault("sentence: uninformative", []).append(says_the_query_again(sentence, question or "?"))
            for name, plant in faults(language, draw).items():
                wrong = plant(sentence)
                if wrong != sentence:
                    fired = negation(wrong, passage) if name.startswith("neg") else bool(broken(wrong, [passage]))
                    counts.setdefault(f"planted {name}", []).append(fired)
    return {name: (sum(fired), len(fired)) for name, fired in counts.items()}


def negation(text: str, passage: str) -> bool:
    return any(item.kind == "negation" for item in check(text, passage).fidelity.unsupported)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairs"))
    parser.add_argument("--limit", type=int, default=150, help="passages of each file")
    parser.add_argument("--out", type=Path, default=Path("eval/results/text_checks"))
    args = parser.parse_args()
    found = {language: measure(args.data, language, args.limit) for language in ("en", "de", "ru", "zh", "ja")}
    names = sorted({name for rates in found.values() for name in rates})
    lines = [f"| fired on | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells = ("{} of {}".format(*rates[name]) if name in rates else "" for rates in found.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"python eval/text_checks.py --limit {args.limit}"
    (args.out / "report.md").write_text("\n".join([f"`{command}`", "", *lines, ""]), encoding="utf-8")
    (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
