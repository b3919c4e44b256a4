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
from pathlib import Path

from studies.passage_errors import count_all, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, default=150, help="passages of each file")
    parser.add_argument("--half", type=int, default=1, choices=(0, 1), help="0: the half to tune on")
    parser.add_argument("--show", type=int, default=0, help="print so many errors of each kind")
    parser.add_argument("--out", type=Path, default=Path("eval/results/passage_compare"))
    args = parser.parse_args()
    found = count_all(args.data, args.limit, args.half, args.show)
    lines = table(found)
    print("\n".join(lines))
    if args.half == 1:
        args.out.mkdir(parents=True, exist_ok=True)
        report = [f"`python eval/passage_compare.py --limit {args.limit}`", "", *lines, ""]
        (args.out / "report.md").write_text("\n".join(report), encoding="utf-8")
        (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
