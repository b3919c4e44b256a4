"""What in the recipe makes nano better: one change at a time, the same budget for each, several seeds, intervals.

    python eval/ablation.py --out eval/results/ablation                          the small budget: minutes a run
    python eval/ablation.py --steps 1400 --queries 14000 --seeds 3               nano's own budget: an hour a run

Every way to train starts from the same tokenizer and the same pairs, sees as many rows in as many steps, and is
measured on the same held-out groups (one positive among BM25 negatives, `prism.data.build`). Runs go to `--work`; one
that was interrupted continues where it stopped, one that is finished is not run again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from typer import Option

from prism.data.build import build
from prism.data.records import read_examples, write_examples
from prism.data.settings import HeldOut, Stage
from prism.errors import PrismError, RecipeError
from prism.evaluation.held_out import Group, read_groups
from prism.evaluation.report import Report, command_line, versions, write_whole
from prism.evaluation.statistics import compare_with, mean_interval
from prism.reranker import Reranker
from prism.training.recipe import Recipe, dump_recipe, load_recipe
from prism.training.setup import open_template
from prism.training.trainer import train
from prism.types import Outcome, Record, Span

BASELINE = "both"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    BASELINE: ("distillation and SFT, the label token masked where a teacher scores it, point by point", ()),
    "sft only": (
        "no teacher: cross-entropy on label and text",
        ("losses.distill=0", "losses.distill_ce=0", "losses.sft_parts.label_with_teacher=true"),
    ),
    "distillation only": ("scores only: nothing of the text is learnt", ("losses.sft=0",)),
    "label not masked": (
        "as both, and cross-entropy on the label token",
        ("losses.sft_parts.label_with_teacher=true",),
    ),
    "listwise": (
        "as both, but the order of a query's documents is distilled instead of their scores",
        ("losses.distill=0", "losses.distill_ce=0", "losses.listwise=4"),
    ),
    "published weights": (
        "as both, with the published weights: squared error 20, SFT 1, no soft cross-entropy",
        ("losses.distill=20", "losses.distill_ce=0"),
    ),
    "no keyword queries": ("as both, on pairs whose queries are headings, titles and questions", ()),
    "not trained": (
        "the initial weights: one step at a rate of nothing",
        ("schedule.max_steps=1", *(f"optimizer.{rate}=1e-12" for rate in ("lr", "vector_lr", "muon_lr"))),
    ),
}
MEASURES = {
    "mrr": "MRR of the positive among its negatives",
    "mrr_keyword": "MRR, keyword queries",
    "mrr_other": "MRR, other queries",
    "teacher_error": "squared distance of score and teacher score",
    "complete": "written outputs that parse",
    "right": "evidence is the right sentence",
}
_CONSOLE = Console(stderr=True)


class Found(Record):
    """What one trained model did, group by group (`mrr`, `teacher_error`) and text by text (`complete`, `right`)."""

    mrr: dict[str, float]
    teacher_error: dict[str, float]
    complete: dict[str, float]
    right: dict[str, float]
    kinds: dict[str, str]

    def values(self, measure: str) -> dict[str, float]:
        if measure in ("mrr_keyword", "mrr_other"):
            wanted = {g for g, kind in self.kinds.items() if (kind == "keyword") == (measure == "mrr_keyword")}
            return {group: value for group, value in self.mrr.items() if group in wanted}
        values: dict[str, float] = getattr(self, measure)
        return values


class Budget(NamedTuple):
    """What every way to train gets."""

    recipe: Path
    steps: int
    queries: int
    groups: int
    written: int
    overrides: tuple[str, ...]


# --- training --------------------------------------------------------------------------------------------------------


def prepare(budget: Budget, work: Path) -> Recipe:
    """Pairs and tokenizer, once for all; returns the recipe that the ways to train change."""
    base = load_recipe(budget.recipe, list(budget.overrides))
    if base.data.pairs is None or base.model.scratch is None:
        raise RecipeError(f"{budget.recipe}: an ablation at nano scale needs `data.pairs` and `model.scratch`")
    stage = Stage(max_chars=300, queries=budget.queries, easy=1, hard=1)
    held_out = HeldOut(queries=budget.groups, max_chars=300)
    pairs = base.data.pairs.model_copy(update={"stages": (stage,), "held_out": held_out})
    build(pairs, work / "data", base.seed, _CONSOLE.print)
    examples = list(read_examples(work / "data" / "train.jsonl"))
    asked_in_words = (e for e in examples if not (e.source or "").endswith("/keyword"))
    write_examples(work / "data" / "no keyword queries.jsonl", asked_in_words)
    shared = base.model_copy(update={"data": base.data.model_copy(update={"pairs": pairs})})
    open_template(shared, work)  # trains the tokenizer
    return shared


def settings_of(arm: str, seed: int, base: Recipe, budget: Budget, work: Path) -> list[str]:
    """The overrides that turn the recipe into one run."""
    file = "no keyword queries.jsonl" if arm == "no keyword queries" else "train.jsonl"
    return [
        *budget.overrides,
        f"name={slug(arm)}-{seed}",
        f"seed={seed}",
        "data.pairs=null",
        f"data.files=['{work / 'data' / file}']",
        "evaluation=null",
        "schedule.shuffle=true",
        f"schedule.max_steps={budget.steps}",
        f"optimizer.warmup_steps={min(base.optimizer.warmup_steps, budget.steps // 10)}",
        *ARMS[arm][1],
    ]


def run_one(arm: str, seed: int, base: Recipe, budget: Budget, work: Path, groups: list[Group]) -> Found:
    """Train and measure, or read what was measured before."""
    folder = work / f"{slug(arm)}-{seed}"
    measured = folder / "found.json"
    recipe = load_recipe(budget.recipe, settings_of(arm, seed, base, budget, work))
    stored = folder / "resolved.yaml"
    if measured.is_file() and stored.read_text(encoding="utf-8") == dump_recipe(recipe):
        return Found.model_validate_json(measured.read_bytes())
    _CONSOLE.rule(f"{arm}, seed {seed}")
    if not (folder / "tokenizer").is_dir():
        shutil.copytree(work / "tokenizer", folder / "tokenizer")
    write_whole(stored, dump_recipe(recipe))
    checkpoint = train(stored, output=folder)
    found = measure(checkpoint, groups, budget.written)
    write_whole(measured, found.model_dump_json(indent=1) + "\n")
    shutil.rmtree(folder / "state", ignore_errors=True)  # measured: nothing is continued from here
    return found


def slug(arm: str) -> str:
    return arm.replace(" ", "-")


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(checkpoint: Path, groups: Sequence[Group], written: int) -> Found:
    """Ranks and scores of all groups; what is written for the positives of about `written`, evenly chosen."""
    mrr, errors, complete, right, kinds = {}, {}, {}, {}, {}
    speaking = set(range(0, len(groups), max(1, len(groups) // written))) if written else set()
    with Reranker.load(str(checkpoint), self_test=False) as reranker:
        for number, group in enumerate(groups):
            name = str(group.positive.query_id)
            judged = list(reranker.rerank(group.positive.query, group.documents, evidence=False))
            scores = {judgment.index: judgment.score or 0.0 for judgment in judged}
            mrr[name] = 1.0 / sum(score >= scores[0] for score in scores.values())  # ties rank the positive last
            teachers = [e.teacher_score or 0.0 for e in (group.positive, *group.negatives)]
            errors[name] = float(np.mean([(scores[i] - teacher) ** 2 for i, teacher in enumerate(teachers)]))
            kinds[name] = group.kind
            if number in speaking:
                said = reranker.rerank(group.positive.query, group.documents[:1], evidence=True, threshold=0.0)[0]
                complete[name] = float(said.outcome is Outcome.COMPLETE)
                right[name] = float(_overlap(group, said.spans) >= 0.5)
    return Found(mrr=mrr, teacher_error=errors, complete=complete, right=right, kinds=kinds)


def _overlap(group: Group, spans: Iterable[Span]) -> float:
    """Intersection over union of the evidence's and the gold sentence's characters."""
    start = group.positive.document.find(group.positive.evidence or "\0")
    if start < 0:
        return 0.0
    gold = set(range(start, start + len(group.positive.evidence or "")))
    found = {offset for span in spans for offset in range(span.start, span.end)}
    return len(gold & found) / len(gold | found)


# --- report ----------------------------------------------------------------------------------------------------------


def means(found: Found) -> dict[str, float | None]:
    """Of every measure; None where there was nothing to measure."""
    values = {measure: list(found.values(measure).values()) for measure in MEASURES}
    return {measure: float(np.mean(of_one)) if of_one else None for measure, of_one in values.items()}


def over_seeds(found: Mapping[int, Found], measure: str) -> dict[str, float]:
    """Per group the mean over the seeds."""
    by_seed = [one.values(measure) for one in found.values()]
    return {group: float(np.mean([values[group] for values in by_seed])) for group in by_seed[0]}


def write_report(results: Mapping[str, Mapping[int, Found]], budget: Budget, base: Recipe, out: Path) -> Path:
    """Tables of all measures and of the differences to the baseline."""
    report = Report(
        "Ablation of the training recipe at nano scale",
        command=command_line(),
        versions=versions("torch", "transformers", "trl"),
    )
    seeds = max(len(found) for found in results.values())
    rows = budget.steps * base.schedule.batch_size * base.schedule.accumulation
    report.lead(
        f"{len(results)} ways to train, {seeds} seeds each, {budget.steps} steps ({rows:,} rows) a run; measured on"
        f" {len(next(iter(results[BASELINE].values())).mrr)} held-out groups."
    )
    report.section("Read this first").warn(
        f"A budget of {budget.steps} steps is small: it says what is learnt first, not what is best in the end."
        " Intervals are over queries (their means over the seeds); the seeds, too few for one, are shown one by one."
    )
    for measure in MEASURES:
        _section(report, measure, results)
    report.section("Ways to train").table(["way", "what"], [[name, ARMS[name][0]] for name in results])
    body = {
        "budget": budget._asdict() | {"recipe": str(budget.recipe)},
        "results": {arm: {str(seed): means(one) for seed, one in by.items()} for arm, by in results.items()},
    }
    return report.write(out, body)


def _section(report: Report, measure: str, results: Mapping[str, Mapping[int, Found]]) -> None:
    section = report.section(MEASURES[measure])
    by_group = {arm: over_seeds(found, measure) for arm, found in results.items()}
    if len(by_group[BASELINE]) < 2:
        section.text("Too few to tell.")
        return
    lines: list[list[str | float]] = []
    for arm, found in results.items():
        values = list(by_group[arm].values())
        low, high = mean_interval(values)
        each = ", ".join(f"{np.mean(list(one.values(measure).values())):.3f}" for one in found.values())
        lines.append([arm, float(np.mean(values)), f"{low:.3f} to {high:.3f}", each])
    section.table(["way", "mean", "95 % interval", "seed by seed"], lines)
    others = {arm: values for arm, values in by_group.items() if arm != BASELINE}
    if others:
        compared = compare_with(by_group[BASELINE], others)
        section.table(
            [f"against {BASELINE}", "difference", "95 % interval", "p, Holm"],
            [
                [arm, pair.difference, f"{pair.interval.low:+.3f} to {pair.interval.high:+.3f}", pair.p_adjusted]
                for arm, pair in compared.items()
            ],
        )


def main(
    recipe: Annotated[Path, Option(help="Recipe that the ways to train change.")] = Path("recipes/nano.yaml"),
    steps: Annotated[int, Option(min=1, help="Optimizer steps of every run.")] = 150,
    seeds: Annotated[int, Option(min=1, help="Runs of every way to train.")] = 2,
    queries: Annotated[int, Option(min=10, help="Training queries, each with one positive and two negatives.")] = 4000,
    groups: Annotated[int, Option(min=10, help="Held-out queries made by rule; human questions come on top.")] = 120,
    written: Annotated[int, Option(min=0, help="Held-out queries for which the model writes.")] = 40,
    arm: Annotated[list[str] | None, Option(help=f"Only these, next to {BASELINE}: {', '.join(ARMS)}.")] = None,
    overrides: Annotated[list[str] | None, Option("--set", help="Change the recipe for all: a.b=value.")] = None,
    work: Annotated[Path, Option(help="Folder for pairs, runs and checkpoints.")] = Path("runs/ablation"),
    out: Annotated[Path, Option(help="Folder for the report.")] = Path("eval/results/ablation"),
) -> None:
    """Train every way with every seed, measure, and write tables; resumes where it stopped."""
    try:
        if strange := sorted(set(arm or ()) - set(ARMS)):
            raise RecipeError(f"--arm {strange[0]!r}: expected one of {', '.join(ARMS)}")
        chosen = [name for name in ARMS if not arm or name in (*arm, BASELINE)]
        budget = Budget(recipe, steps, queries, groups, written, tuple(overrides or ()))
        base = prepare(budget, work)
        held_out = read_groups(work / "data" / "dev.jsonl")
        results: dict[str, dict[int, Found]] = {}
        for seed in range(1, seeds + 1):
            for name in chosen:
                results.setdefault(name, {})[seed] = run_one(name, seed, base, budget, work, held_out)
            page = write_report(results, budget, base, out)  # after every seed: a partial table is one too
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    _CONSOLE.print(f"wrote {page}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
