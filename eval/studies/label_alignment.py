"""Whether labels order systems as people and users do; what `eval/label_alignment.py` runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from prism.errors import InputError
from prism.files.label_files import LabelFile, PairIds
from prism.labeling.rankings import RankingAgreement, compare_rankings
from prism.measures.ranking import measure
from prism.reports.blocks import Section
from prism.reports.report import Report
from prism.types import Qrels, Run
from studies import clicks
from studies.alignment import ONLINE, Alignment, align, read_online
from studies.recorded import read_labelled_run, read_recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("nDCG@10", "nDCG@5", "P@1", "MRR@10", "Recall@10")
PUBLISHED = (
    ("prophet-setting2", 0.9516),
    ("TREMA-4prompts", 0.9483),
    ("willia-umbrela1", 0.9009),
    ("Olz-gpt4o", 0.8793),
)
"""Kendall's tau on 35 TREC DL 2023 passage runs, LLMJudge (arXiv:2502.13908), as quoted by a later public benchmark."""
SYSTEMS = 20


def load(
    folder: Path | None, human: Path | None, model: Sequence[Path], top: int, limit: int | None, section: Section
) -> list[LabelFile]:
    """People's labels first, then the judges'. Labels of a judge off the scale are left out, with a warning."""
    found = read_recorded(folder, human, model, top, limit)
    for warning in found.warnings():
        section.warn(warning)
    return [found.people, *found.judges]


def load_runs(paths: Sequence[Path], human: LabelFile) -> dict[str, Run]:
    """Runs by name. Raises DataError when one has none of the labelled queries, InputError when two share a name."""
    runs: dict[str, Run] = {}
    for path in paths:
        if path.stem in runs:
            raise InputError(f"two runs are named {path.stem!r}: rename one of the files")
        runs[path.stem] = read_labelled_run(path, human)
    if len(runs) == 1:
        raise InputError("an order of systems needs at least two --run files, got 1")
    return runs


def simulated_systems(human: LabelFile, seed: int, count: int = SYSTEMS) -> dict[str, Run]:
    """Systems that rank by label plus normal noise, whose deviation grows from 0.3 to 3 labels."""
    rng = np.random.default_rng(seed)
    pages: dict[str, list[tuple[PairIds, int]]] = {}
    for place, label in human.labels.items():
        pages.setdefault(place.query, []).append((place, label))
    runs: dict[str, Run] = {}
    for number, noise in enumerate(np.linspace(0.3, 3.0, count), start=1):
        run = {}
        for query, rows in pages.items():
            scores = [label + rng.normal(0.0, noise) for _, label in rows]
            run[query] = [rows[i][0].document for i in np.argsort(scores)[::-1]]
        runs[f"noise{number:02}"] = run
    return runs


# --- online ----------------------------------------------------------------------------------------------------------


def simulated_online(
    human: LabelFile, runs: Mapping[str, Run], k: int, top: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Click model -> metric -> system -> value, users looking at the first `k`; unlabelled documents count as 0."""
    queries = list(dict.fromkeys(place.query for place in human.labels))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in clicks.MODELS:
        for name, run in runs.items():
            pages = [[human.labels.get(PairIds(q, d), 0) for d in list(run.get(q, ()))[:k]] for q in queries]
            metrics = clicks.simulate(pages, top, model, searches=200, seed=seed).model_dump()
            for metric, value in metrics.items():
                found.setdefault(model, {}).setdefault(metric, {})[name] = value
    return found


def align_all(
    files: Sequence[LabelFile], runs: Mapping[str, Run], online: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, list[Alignment]]:
    """Judge -> every measure against every online metric that differs between systems."""
    found = {}
    for file in track(files, "measuring", console=Console(stderr=True)):
        qrels: dict[str, dict[str, int]] = {}
        for place, label in file.labels.items():
            qrels.setdefault(place.query, {})[place.document] = label
        values = {name: _measured(qrels, run) for name, run in runs.items()}
        found[file.name] = [
            align({s: row[name] for s, row in values.items()}, of_system, (name, f"{source} {metric}"), ONLINE[metric])
            for source, metrics in online.items()
            for metric, of_system in metrics.items()
            for name in MEASURES
            if len(set(of_system.values())) > 1
        ]  # fmt: skip
    return found


def _measured(qrels: Qrels, run: Run) -> dict[str, float]:
    return measure(qrels, run, MEASURES)


# --- report ----------------------------------------------------------------------------------------------------------


def show_orders(section: Section, found: Sequence[RankingAgreement]) -> None:
    ordered = sorted(found, key=lambda f: -(f.tau.value or 0))
    rows = [[f.name, f.systems, f.queries, f.tau.value, f.tau.low, f.tau.high, f.rho.value] for f in ordered]
    section.table(
        ["labels", "systems", "queries", "tau-b", "low", "high", "rho"], rows, digits=3,
        caption=f"{found[0].measure} of the systems by these labels against people's; 95 % bootstrap over queries",
    )  # fmt: skip
    section.figure(
        "orders", lambda figure: _draw_orders(figure, found), size=(7.6, 5.0),
        alt="Each system's nDCG@10 by people's labels against its value by three judges' labels.",
        caption="Systems by people and by the judges with the highest, middle and lowest tau-b",
    )  # fmt: skip


def _draw_orders(figure: Figure, found: Sequence[RankingAgreement]) -> None:
    axes = figure.subplots()
    ordered = sorted(found, key=lambda f: -(f.tau.value or 0))
    for agreement in {a.name: a for a in (ordered[0], ordered[len(ordered) // 2], ordered[-1])}.values():
        people, judge = zip(*agreement.scores.values(), strict=True)
        axes.plot(people, judge, "o", ms=4, label=f"{agreement.name} ({agreement.tau.value or 0:.2f})")
    axes.axline((0.5, 0.5), slope=1.0, lw=0.8, ls="--")
    axes.set_xlabel(f"{found[0].measure} by people's labels")
    axes.set_ylabel(f"{found[0].measure} by the judge's labels")
    axes.legend(title="tau-b", loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside: its marks are no systems


def show_online(section: Section, found: Mapping[str, Sequence[Alignment]], human: str) -> None:
    """tau-b of each measure by people's labels, and by the judges' labels on average."""
    columns = list(dict.fromkeys(a.online for a in found[human]))
    if not columns:
        section.warn("No online metric differs between the systems: there is nothing to align with.")
        return
    for title, names in (("people's labels", [human]), ("the judges' labels, mean", [n for n in found if n != human])):
        rows = []
        for name in MEASURES:
            cells = [
                [a.tau_b for judge in names for a in found[judge] if (a.offline, a.online) == (name, c)]
                for c in columns
            ]
            known = [[tau for tau in cell if tau is not None] for cell in cells]
            rows.append([name, *(float(np.mean(cell)) if cell else None for cell in known)])
        section.table(
            ["measure", *columns], rows, caption=f"tau-b by {title}; 1 is the users' order of systems", digits=2
        )


def run(
    files: Sequence[LabelFile],
    runs: dict[str, Run],
    online: Path | None,
    k: int,
    top: int,
    seed: int,
    report: Report,
    out: Path,
) -> Path:
    """Orders systems by every judge and by users, and writes the report; returns its path."""
    human = files[0]
    section = report.section("Systems by people's and by model labels")
    if not runs:
        runs = simulated_systems(human, seed)
        section.warn(
            f"Simulated systems: people's labels plus noise, {len(runs)} of them. They test labels, no real system."
        )
    for judge, own in own_runs([file.name for file in files[1:]], runs).items():
        section.warn(f"{judge} labels what it ranked itself ({', '.join(own)}): its labels favour those systems.")
    orders = compare_rankings(files, runs, seed=seed)
    show_orders(section, orders)
    section.table(
        ["LLMJudge submission", "published tau"], list(PUBLISHED),
        caption="Reference: 35 TREC DL 2023 passage runs, arXiv:2502.13908, quoted second-hand",
    )  # fmt: skip
    section.note(
        "The reference cannot be reproduced from labels alone: it needs the TREC runs. Tau depends on how far apart the"
        " systems are: simulated ones in small steps cannot be compared with 35 real runs."
    )
    section = report.section("Offline measures against what users do")
    if online is not None:
        metrics: dict[str, Any] = {"log:": read_online(online, list(runs))}
    else:
        section.warn("Simulated users: clicks follow people's labels, so people's labels align by construction.")
        metrics = simulated_online(human, runs, k, top, seed)
    aligned = align_all(files, runs, metrics)
    show_online(section, aligned, human.name)
    section.note(
        "Abandonment and zero-result rate count as better when lower. Where users stop once they are satisfied (DBN) a"
        " better system may get fewer clicks: clicks and CTR need not order systems, dwell time and abandonment do."
    )
    report.lead(headline(orders, len(runs)))
    return report.write(
        out, {"orders": list(orders), "online": metrics, "alignment": aligned, "published": dict(PUBLISHED)}
    )


def counted(judges: int) -> str:
    return f"{judges} judge" if judges == 1 else f"{judges} judges"


def own_runs(judges: Sequence[str], runs: Iterable[str]) -> dict[str, list[str]]:
    """Per judge the runs whose name has the judge's in it, as `scifact.rrf-bm25-mini` has mini's."""
    found = {judge: [run for run in runs if judge in re.split(r"[.\-]", run)] for judge in judges}
    return {judge: own for judge, own in found.items() if own}


def headline(orders: Sequence[RankingAgreement], systems: int) -> str:
    """What the comparison comes to; no praise for a judge that orders systems by chance or the other way round."""
    best = max(orders, key=lambda order: -2.0 if order.tau.value is None else order.tau.value)
    tau = best.tau.value
    if tau is None:
        return f"No judge tells {systems} systems apart."
    if tau <= 0:
        return f"No judge orders {systems} systems as people do: the best, {best.name}, has tau-b {tau:.3f}."
    return f"{best.name} orders {systems} systems most like people do: tau-b {tau:.3f}."
