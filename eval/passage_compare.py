"""How often the comparison of passages is wrong: four error rates, by language and by kind of pair.

    python eval/passage_compare.py --data ../shared/data --out eval/results/passage_compare

Same: a window of two or three sentences against itself with case, punctuation and number formats changed, with its
sentences reordered, cut a word or two differently, and (it adds nothing) against one of its sentences. Conflict: the
window with one number, year or negation changed. Neither: the next window of the passage, a window of the
next passage of the same article, the passages offered for one question (HotpotQA, MuSiQue), answers on one
pattern (MedQuAD), the window with the answer of another question in place of its own, that and another value.
SciFact: claims against the sentences that contradict or support them, support for one claim from two abstracts.
The thresholds were chosen on half 0 of the passages; the report is of half 1. German and Russian: two passages each.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from prism.evidence.compare import clashes, same, says_all
from prism.evidence.tokens import Passage
from studies.passage_pairs import Made, found_pairs, made_pairs, read_groups, scifact_pairs


def count(made: Iterator[Made], shown: int) -> dict[str, list[int]]:
    """Kind of error and of pair -> how often it happened, how often it could."""
    found: dict[str, list[int]] = {}
    for what, kind, left, right in made:
        a, b = Passage(left), Passage(right)
        alike = says_all(a, b) if what == "held" else same(a, b)
        errors = {
            ("missed" if what in ("same", "held") else "false") + " duplicate": alike == (what not in ("same", "held"))
        }
        errors[("missed" if what == "conflict" else "false") + " conflict"] = bool(clashes(a, b)) == (
            what != "conflict"
        )
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
        groups = list(read_groups(args.data, language, args.limit, args.half))
        found[language] = count(made_pairs(groups, language, random.Random(7)), args.show)
    found["en, found"] = count(found_pairs(args.data, args.half, args.limit), args.show)
    found["SciFact"] = count(scifact_pairs(args.data / "beir" / "scifact", args.half), args.show)
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
