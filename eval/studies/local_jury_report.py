"""The local jury as a page: what its votes cost, how far it agrees with people, and what becomes of it together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from prism.errors import InputError
from prism.files.label_files import LabelTable, PairIds
from prism.labeling.rubrics import Rubric
from prism.measures.agreement import Estimate, cohen_kappa, confusion_tables, estimate, none_if_nan, resample
from prism.reports.blocks import Cell, Section
from studies.aggregation import Fit, JurorWeights, Predict, fit_mean, fit_weights, out_of_fold
from studies.local_jury import Timed, failures, jury_table
from studies.panel_study import BINARY, study_panel

Truth = Mapping[str, tuple[PairIds, int, str]]
_CROWD = ("dawid-skene", "one-coin")
_MOST_LOGIT = 20.0
"""A score of exactly 0 or 1 has no log odds."""


def add_cost(section: Section, jurors: Mapping[str, Timed]) -> dict[str, Any]:
    """Votes, failures by kind, seconds and tokens of each juror."""
    rows: list[list[Cell]] = []
    body = {}
    for name, (votes, seconds) in jurors.items():
        failed = failures(votes)
        prompt = sum(vote.usage.prompt_tokens for vote in votes) / len(votes)
        written = sum(vote.usage.written_tokens for vote in votes) / len(votes)
        yes = [vote.label for vote in votes if vote.label is not None]
        kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common()) or "none"
        rows.append([name, len(votes), failed.total() / len(votes), kinds, seconds, prompt, written])
        body[name] = {
            "votes": len(votes),
            "failures": dict(failed),
            "seconds": seconds,
            "prompt_tokens": prompt,
            "written_tokens": written,
            "labels": {str(label): yes.count(label) for label in sorted(set(yes))},
        }
    columns = ["juror", "votes", "failure rate", "failures", "seconds a pair", "tokens in", "tokens out"]
    section.table(columns, rows, caption="What the votes cost", digits=2)
    return body


def add_people(
    section: Section, rubric: Rubric, jurors: Mapping[str, Timed], certain: Truth, likely: Truth
) -> dict[str, Any]:
    """Each juror's yes against people's, and kappa of every two jurors."""
    columns = ["juror", "pairs", "kappa", "right", "yes of their yes", "yes of their no", "kappa, likely noes too"]
    rows: list[list[Cell]] = []
    body: dict[str, Any] = {}
    tables = [jury_table(truth, jurors, rubric.yes_from, Path("labels")) for truth in (certain, likely)]
    for name in tables[0].names[1:]:
        counts = _counts(tables[0], name, rubric.yes_from)
        total = counts.sum(axis=0)
        kappa, wider = (_kappa(table, name, rubric.yes_from) for table in tables)
        right = float(np.trace(total) / total.sum())
        of_yes, of_no = (float(total[row, 1] / max(1.0, total[row].sum())) for row in (1, 0))
        rows.append([name, int(total.sum()), str(kappa), right, of_yes, of_no, str(wider)])
        body[name] = {"kappa": kappa, "right": right, "yes_of_yes": of_yes, "yes_of_no": of_no, "kappa_likely": wider}
        body[name]["by_language"] = _by_language(jurors[name], certain, rubric.yes_from)
    section.table(columns, rows, caption="Against people (95 % intervals over questions)", digits=2)
    languages = sorted({language for _, _, language in certain.values()})
    by: list[list[Cell]] = [[name, *(one["by_language"].get(code) for code in languages)] for name, one in body.items()]
    section.table(["juror", *languages], by, caption="Kappa with people, by language", digits=2)
    body["scored"] = _scored(section, jurors, certain, likely)
    body["between"] = _between(section, tables[1], rubric.yes_from)
    return body


def _scored(section: Section, jurors: Mapping[str, Timed], certain: Truth, likely: Truth) -> dict[str, Any]:
    """Jurors read by logits, each alone and all with the weights of a logistic regression: AUC of the share of yes, and
    kappa at a cut chosen on the other questions."""
    rows: list[list[Cell]] = []
    body: dict[str, Any] = {}
    read = {name: scores for name, timed in jurors.items() if (scores := _scores(timed))}
    sets = {name: (name,) for name in read} | ({"all of them, weighted": tuple(read)} if len(read) > 1 else {})
    for name, members in sets.items():
        for which, truth in (("people", certain), ("people and likely noes", likely)):
            found = ranked([read[member] for member in members], truth)
            if found is not None:
                pairs, auc, kappa = found
                rows.append([name, which, pairs, auc, str(kappa)])
                body[f"{name}, {which}"] = {"pairs": pairs, "auc": auc, "kappa_at_cut": kappa}
    if rows:
        columns = ["juror", "against", "pairs", "AUC", "kappa at a cut learnt on other questions"]
        section.table(columns, rows, caption="Scores of jurors read by logits", digits=3)
    return body


def _scores(timed: Timed) -> dict[str, float]:
    """Pair -> log odds of yes."""
    return {vote.pair_id: float(logit(vote.score)) for vote in timed.votes if vote.score is not None}


def ranked(scores: Sequence[Mapping[str, float]], truth: Truth) -> tuple[int, float, Estimate] | None:
    """(pairs that all scored, AUC, kappa at a cut) of the weighted log odds; weights and cut are of other questions.

    None where people said the same of all pairs."""
    ids = [id_ for id_ in truth if all(id_ in one for one in scores)]
    labels_P = np.array([truth[id_][1] == 1 for id_ in ids], dtype=np.bool_)
    if len(ids) < 2 or labels_P.all() or not labels_P.any():
        return None
    scores_PR = np.clip([[one[id_] for one in scores] for id_ in ids], -_MOST_LOGIT, _MOST_LOGIT)
    queries = {query: at for at, query in enumerate(dict.fromkeys(truth[id_][0].query for id_ in ids))}
    query_P = np.array([queries[truth[id_][0].query] for id_ in ids], dtype=np.int64)
    if len(scores) == 1:
        return len(ids), _auc(scores_PR[:, 0], labels_P), _at_cut(scores_PR, labels_P, query_P, fit_mean)
    try:
        weighted_P = out_of_fold(scores_PR, labels_P, query_P, _weigh)
    except InputError:  # too few questions to weigh jurors without one of them
        return None
    return len(ids), _auc(weighted_P, labels_P), _at_cut(scores_PR, labels_P, query_P, fit_weights)


def _weigh(scores_PR: Any, labels_P: Any) -> Predict:
    """Without the intercept, which says how many of the other questions' pairs are a yes: it is higher where a question
    with few of them is left out, and would rank its pairs above those of others."""
    found = JurorWeights.fit(scores_PR, labels_P)
    return lambda votes_PR: found.score(votes_PR) - found.intercept


def _auc(scores_P: Any, labels_P: Any) -> float:
    return float(np.mean(np.sign(scores_P[labels_P][:, None] - scores_P[~labels_P]) / 2 + 0.5))


def _at_cut(scores_PR: Any, labels_P: Any, query_P: Any, fit: Fit) -> Estimate:
    try:
        verdicts_P = out_of_fold(scores_PR, labels_P, query_P, fit)
    except InputError:  # too few questions to learn a cut without one of them
        return Estimate(value=None)
    counts = confusion_tables(labels_P.astype(np.float64), verdicts_P, query_P, BINARY)
    return estimate(counts, _cohen, resample(int(query_P.max()) + 1, 500))


def _votes(table: LabelTable, name: str, cut: int) -> Any:
    votes = table.columns([name])[:, 0]
    return np.where(np.isnan(votes), np.nan, (votes >= cut).astype(np.float64))


def _counts(table: LabelTable, name: str, cut: int) -> Any:
    """[Q, 2, 2]: people's no and yes against the juror's."""
    return confusion_tables(_votes(table, "people", cut), _votes(table, name, cut), table.query_of, BINARY)


def _kappa(table: LabelTable, name: str, cut: int) -> Any:
    return estimate(_counts(table, name, cut), _cohen, resample(len(table.queries), 500))


def _cohen(tables: Any) -> Any:
    return cohen_kappa(tables, BINARY)


def _by_language(juror: Timed, truth: Truth, cut: int) -> dict[str, float | None]:
    found: dict[str, Any] = {}
    for vote in juror.votes:
        if vote.label is not None and vote.pair_id in truth:
            _, label, language = truth[vote.pair_id]
            found.setdefault(language, np.zeros((2, 2)))[label, int(vote.label >= cut)] += 1
    return {language: none_if_nan(float(_cohen(counts))) for language, counts in sorted(found.items())}


def _between(section: Section, table: LabelTable, cut: int) -> dict[str, dict[str, float | None]]:
    one_query = np.zeros_like(table.query_of)
    votes = {name: _votes(table, name, cut) for name in table.names}
    found = {
        name: {
            other: none_if_nan(float(_cohen(confusion_tables(votes[name], votes[other], one_query, BINARY)[0])))
            for other in table.names
            if other != name
        }
        for name in table.names
    }
    rows: list[list[Cell]] = [[name, *(found[name].get(other) for other in table.names)] for name in table.names]
    section.table(["", *table.names], rows, caption="Cohen's kappa of every two, likely noes of people too", digits=2)
    return found


def add_together(
    section: Section, rubric: Rubric, jurors: Mapping[str, Timed], truth: Truth, panel: Sequence[str], samples: int
) -> Any:
    """Ways to put the panel's votes together, by leaving one question out, and what asking in turn saves."""
    missing = [name for name in panel if name not in jurors]
    if missing:
        section.note(f"Not put together: no votes of {', '.join(missing)} under this rubric.")
        return None
    table = jury_table(truth, {name: jurors[name] for name in panel}, rubric.yes_from, Path("labels"))
    try:
        study = study_panel(table, panel, rubric.yes_from, crowd=_CROWD, samples=samples)
    except InputError as error:
        section.note(f"Not put together: {error}")
        return None
    ways = sorted(study.judged, key=lambda way: -(way.kappa.value or 0))
    section.table(
        ["way", "learns from", "kappa", "minus majority", "minus best juror"],
        [[w.name, w.learns_from, str(w.kappa), str(w.minus_majority), str(w.minus_best_juror)] for w in ways],
        caption=f"Votes of {', '.join(panel)} put together, judged on questions left out, likely noes too",
    )
    asked = [one for one in study.asked if one.order == "given"]
    section.table(
        ["stops when", "bound", "calls saved", "same verdict", "kappa"],
        [[one.name, one.bound, one.saved, one.same_verdict, str(one.kappa)] for one in asked],
        caption="Asked in turn",
        digits=2,
    )
    orders = study.orders
    section.text(
        f"Asked until the majority is decided: {orders.given:.1%} of the calls saved in this order, {orders.lowest:.1%}"
        f" to {orders.highest:.1%} over all orders (most in {', '.join(orders.highest_order)})."
    )
    return study
