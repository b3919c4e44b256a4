"""The training report: settings, curves, what was measured on the way, and judgments before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism.reports.blocks import Section
from prism.reports.report import Report, command_line, versions
from prism.training.evaluate import Assessment, Sample
from prism.training.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TERMS = {
    "distill": "squared error of scores",
    "distill_ce": "soft cross-entropy of scores",
    "distill_logit": "squared error of logits",
    "margin": "squared error of margins",
    "listwise": "divergence of rankings",
    "sft": "cross-entropy of the written part, nats a token",
}
_DOCUMENT_CHARS = 600
_SHOWN = ("score", "outcome", "contribution", "evidence")


def write_training_report(folder: Path, recipe: Recipe, log: Mapping[str, Any], measured: Sequence[Assessment]) -> Path:
    """Write `folder`/report/ and return the path of report.html. `log` is what log.json holds."""
    report = Report(
        f"Training of {recipe.name}",
        command=command_line(),
        versions=versions("torch", "transformers", "trl", "peft", "accelerate"),
    )
    report.lead(f"{log['steps']:,} steps over {log['records']:,} records.")
    _dropped(report.section("Data"), log)
    points = [point for point in log["history"] if "loss" in point]
    if points:
        _curves(report.section("Loss"), points, recipe)
    if measured:
        _measures(report.section("On held-out pairs"), measured)
        kept = next((one for one in measured if one.step == log["best_step"]), measured[-1])
        _samples(report.section("Before and after"), measured[0], kept)
    report.section("Recipe").code(dump_recipe(recipe))
    data = {"log": dict(log), "evaluation": [one.model_dump(mode="json") for one in measured]}
    return report.write(folder / "report", data)


def _dropped(section: Section, log: Mapping[str, Any]) -> None:
    section.text(f"{log['records']:,} records were trained on, {sum(log['dropped'].values()):,} dropped.")
    if log["dropped"]:
        section.table(["reason", "records"], [[reason, count] for reason, count in log["dropped"].items()])


def _curves(section: Section, points: Sequence[Mapping[str, float]], recipe: Recipe) -> None:
    names = [name for name in _TERMS if name in points[0]]
    steps = [point["step"] for point in points]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            axis.plot(steps, [point.get(name) for point in points])
            axis.set_title(f"{name}: {_TERMS[name]}", fontsize=9, loc="left")
        axes[-1].set_xlabel("step")

    first, last = points[0], points[-1]
    words = ", ".join(f"{name} {first[name]:.4g} to {last.get(name, float('nan')):.4g}" for name in names)
    section.figure(
        "loss",
        draw,
        alt=f"Curves over steps {steps[0]} to {steps[-1]}: {words}.",
        caption="Each term, unweighted, mean since the last point",
        size=(7.6, 1.2 + 1.6 * len(names)),
    )
    section.table(
        ["term", "weight", "first", "last"],
        [[name, getattr(recipe.losses, name), first[name], last.get(name)] for name in names],
    )


def _measures(section: Section, measured: Sequence[Assessment]) -> None:
    names = list(dict.fromkeys(name for one in measured for name in one.measures))
    section.table(
        ["step", *names],
        [[str(one.step), *(one.measures.get(name) for name in names)] for one in measured],
        caption="Step 0 is before training",
    )
    shares = [name for name in names if name != "failed"]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for name in shares:
            having = [one for one in measured if name in one.measures]
            axis.plot([one.step for one in having], [one.measures[name] for one in having], "o-", label=name)
        axis.set_xlabel("step")
        axis.legend(fontsize=8)

    last = measured[-1].measures
    ends = (f"{n} {value:.3f} to {last[n]:.3f}" for n, value in measured[0].measures.items() if n in last)
    section.figure("measures", draw, alt=f"Measures by step: {', '.join(ends)}.", caption="Measures by step")


def _samples(section: Section, before: Assessment, after: Assessment) -> None:
    section.text(f"The same pairs at step {before.step} and at step {after.step}.")
    for old, new in zip(before.samples, after.samples, strict=False):
        text = new.document if len(new.document) <= _DOCUMENT_CHARS else new.document[:_DOCUMENT_CHARS] + " …"
        section.code(text, caption=f"{new.query} (labelled {new.label})")
        section.table(
            ["", "wanted", f"step {before.step}", f"step {after.step}"],
            [[name, _wanted(new, name), _shown(old, name), _shown(new, name)] for name in _SHOWN],
        )


def _wanted(sample: Sample, name: str) -> str | None:
    """What the record says there should be."""
    return {"score": sample.label, "evidence": sample.gold_evidence}.get(name)


def _shown(sample: Sample, name: str) -> str | None:
    value = getattr(sample, name)
    return None if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
