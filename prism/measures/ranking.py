"""Rankings measured against qrels."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prism.errors import InputError
from prism.types import Qrels, Run, descending

MEASURES = ("nDCG@10", "nDCG@5", "nDCG@1", "nDCG", "Recall@100", "MRR@10", "MRR", "MAP", "P@1")
_TREC_NAMES = {"Recall": "R", "MRR": "RR", "MAP": "AP"}


# --- measures --------------------------------------------------------------------------------------------------------


def measure(qrels: Qrels, run: Run, names: Iterable[str] = MEASURES) -> dict[str, float]:
    """Mean of each measure over ALL queries of the qrels; a query the run lacks counts as 0.

    Queries of the run without qrels do not count. nDCG has linear gains and log2 discounts, as in trec_eval and BEIR.
    """
    values = measure_queries(qrels, run, names)
    return {name: math.fsum(of_query.values()) / len(of_query) for name, of_query in values.items()}


def measure_queries(qrels: Qrels, run: Run, names: Iterable[str] = MEASURES) -> dict[str, dict[str, float]]:
    """Measure -> query -> value, for every query of the qrels.

    Labels below 0 (TREC's spam) gain nothing, as in trec_eval, which must not see them: below -1 it writes outside its
    own memory.
    """
    import ir_measures

    if not qrels:
        raise InputError("no qrels: there is nothing to measure against")
    measures: dict[object, list[str]] = {}
    for name in names:
        measures.setdefault(_parse(name), []).append(name)
    values = {name: dict.fromkeys(qrels, 0.0) for same in measures.values() for name in same}
    labels = {query: {d: max(0, label) for d, label in judged.items()} for query, judged in qrels.items()}
    for metric in ir_measures.iter_calc(list(measures), labels, _with_scores(run, qrels)):
        for name in measures[metric.measure]:
            values[name][metric.query_id] = float(metric.value)
    return values


def _parse(name: str) -> object:
    import ir_measures

    stem, _, cutoff = name.partition("@")
    trec = _TREC_NAMES.get(stem, stem) + ("@" + cutoff if cutoff else "")
    try:
        return ir_measures.parse_measure(trec)
    except (NameError, ValueError) as error:
        raise InputError(f"no measure {name!r}: expected one like {', '.join(MEASURES)}") from error


def _with_scores(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Scores that fall by 1 from rank to rank.

    Measuring programs sort by score again and break ties each in its own way (trec_eval by descending document id,
    others by file order), and trec_eval reads scores as float32. Whole numbers without ties leave them no choice.
    """
    return {query: dict(descending(query, ranked)) for query, ranked in run.items() if query in qrels and ranked}
