"""Checks of the scores themselves: what they depend on, and what they must not depend on."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Final

from prism import symptoms
from prism.chat_template import BUILT_IN
from prism.doctor.exchange import Check, CheckResult, ProbedTarget, failed, passed, range_of, short_score, skipped
from prism.doctor.golden import DECOYS, GOLDEN, LANGUAGES, filler, hundred
from prism.symptoms import Failure

MEANINGLESS: Final = frozenset(
    {
        *(Failure.INDICES, Failure.LABELS_LOST, Failure.CONSTANT),
        *(Failure.QUERY_DROPPED, Failure.DOCUMENT_DROPPED),
    }
)
"""While scores say nothing about pairs, nothing can be read from them."""
_LEADLESS: Final = MEANINGLESS | {Failure.INVERTED, Failure.TEMPLATE_MISSING, Failure.TEMPLATE_DOUBLED}
_UNSTABLE: Final = MEANINGLESS | {Failure.UNSTEADY}
_DISTINCT: Final = 90
_RUN: Final = 64
"""Words added to a text to see whether they reach the prompt."""
_BARE, _LONG = 8, 150
"""Tokens around the two texts: fewer is no template; more is more than those of known rerankers (about 90)."""
_REPEATED: Final = 20
"""A line of so many characters does not stand in a template twice by chance."""


def _indices(subject: ProbedTarget) -> CheckResult:
    sent = "1 query with 4 documents, in 3 orders"
    in_rank_order = 0
    for shift in range(3):
        documents = subject.documents[shift:] + subject.documents[:shift]
        reply = subject.ask(subject.query, documents)
        indices = [item.index for item in reply.items]
        if reply.faults or sorted(indices) != list(range(len(documents))):
            got = next(iter(reply.faults), f"indices {indices} for {len(documents)} documents")
            return failed(sent, got, Failure.INDICES)
        ranked = sorted(reply.scores.items(), key=lambda item: -item[1])
        told_apart = len(set(reply.scores.values())) == len(documents)
        in_rank_order += told_apart and [index for index, _ in ranked] == list(range(len(documents)))
    if in_rank_order == 3:
        return failed(sent, "index 0 is always the best, whatever is sent first", Failure.INDICES)
    return passed(sent, "every document once, by its position")


def _scores(subject: ProbedTarget) -> CheckResult:
    sent = f"{len(subject.golden)} queries, each with {len(subject.documents)} documents"
    everything = [score for row in subject.matrix for score in row]
    got = f"{len(everything)} scores, {range_of(everything)}"
    failure = symptoms.of_matrix(subject.matrix)
    return failed(sent, got, failure) if failure else passed(sent, got)


# --- the prompt ------------------------------------------------------------------------------------------------------


def _prompt(subject: ProbedTarget) -> CheckResult:
    prompt = subject.target.prompt("zebraquery", "zebradocument")
    if prompt is not None:
        return _seen(prompt)
    counted = _counted(subject)
    if counted.failure is None and subject.weak and _better_rendered(subject):
        got = "obvious pairs are told apart only when they are sent inside a prompt"
        return failed(counted.sent, got, Failure.TEMPLATE_MISSING)
    return counted


def _seen(prompt: str) -> CheckResult:
    """The prompt itself, of a checkpoint in this process."""
    sent = "1 pair, rendered"
    counts = {name: prompt.count(word) for name, word in (("query", "zebraquery"), ("document", "zebradocument"))}
    for name, dropped in (("query", Failure.QUERY_DROPPED), ("document", Failure.DOCUMENT_DROPPED)):
        if counts[name] == 0:
            return failed(sent, f"no {name} in the prompt", dropped)
    lines = Counter(line for line in prompt.splitlines() if len(line) >= _REPEATED)
    twice = [line for line, count in lines.items() if count > 1]
    if twice or max(counts.values()) > 1:
        got = f"twice in the prompt: {(twice or [max(counts, key=lambda name: counts[name])])[0][:60]}"
        return failed(sent, got, Failure.TEMPLATE_DOUBLED)
    return passed(sent, "query and document once in the prompt")


def _counted(subject: ProbedTarget) -> CheckResult:
    """What token counts tell of a prompt that cannot be seen. A word more is a token more, with every vocabulary."""
    run = " a" * _RUN
    sent = f"1 pair, then {_RUN} words more in the query, then in the document"
    tokens = [
        subject.ask(query, [document]).tokens for query, document in (("a", "a"), ("a" + run, "a"), ("a", "a" + run))
    ]
    base, longer_query, longer_document = tokens
    if base is None or longer_query is None or longer_document is None:
        return skipped(sent, "no token counts in the answers")
    around = base - 2
    got = f"{base}, {longer_query} and {longer_document} tokens: {around} around the texts"
    grown = {Failure.QUERY_DROPPED: longer_query - base, Failure.DOCUMENT_DROPPED: longer_document - base}
    for failure, more in grown.items():
        if more < _RUN / 2:
            return failed(sent, got, failure)
    if max(grown.values()) > 1.5 * _RUN:
        return failed(sent, got, Failure.TEMPLATE_DOUBLED)
    if subject.weak and around > _LONG:
        return failed(sent, f"{got}, and obvious pairs are not told apart", Failure.TEMPLATE_DOUBLED)
    if subject.weak and around < _BARE:
        return failed(sent, f"{got}, and obvious pairs are not told apart", Failure.TEMPLATE_MISSING)
    return passed(sent, got)


def _better_rendered(subject: ProbedTarget) -> bool:
    """Whether obvious pairs are told apart once a known prompt is put around them here."""
    for spec in BUILT_IN.values():
        before, after = spec.text.replace("{instruction}", spec.default_instruction).split("{document}")
        texts = [pair.document + after for pair in subject.golden]
        matrix = [subject.scores(before.replace("{query}", pair.query), texts) for pair in subject.golden]
        least = symptoms.MARGIN * symptoms.scale(matrix)
        if all(lead >= least for i, row in enumerate(matrix) for lead in symptoms.leads_of(row, i)):
            return True
    return False


# --- obvious pairs ---------------------------------------------------------------------------------------------------


def _golden(subject: ProbedTarget, language: str) -> CheckResult:
    pairs = GOLDEN[language]
    documents = [*(pair.document for pair in pairs), DECOYS[language]]
    matrix = [subject.scores(pair.query, documents) for pair in pairs]
    sent = f"{len(pairs)} queries, each with {len(documents)} documents"
    leads = {
        pair.query: min(symptoms.leads_of(row, i)) for i, (pair, row) in enumerate(zip(pairs, matrix, strict=True))
    }
    least = symptoms.MARGIN * subject.scale
    behind = {query: lead for query, lead in leads.items() if lead < least}
    if behind:
        query, lead = min(behind.items(), key=lambda item: item[1])
        got = f"{len(behind)} of {len(pairs)} not ahead by {short_score(least)}; worst {lead:+.3f}: {query}"
        return failed(sent, got, Failure.WEAK)
    return passed(sent, f"the right one ahead by {short_score(min(leads.values()))} and more")


# --- what scores must not depend on ----------------------------------------------------------------------------------


def _twice(subject: ProbedTarget) -> CheckResult:
    again = subject.scores(subject.query, subject.documents)
    return subject.compared("the same 4 documents again", again, subject.row, Failure.UNSTEADY)


def _alone(subject: ProbedTarget) -> CheckResult:
    alone = [subject.scores(subject.query, [document])[0] for document in subject.documents]
    return subject.compared("4 documents, each alone", alone, subject.row, Failure.BATCH)


def _order(subject: ProbedTarget) -> CheckResult:
    backwards = subject.scores(subject.query, subject.documents[::-1])
    return subject.compared("the same 4 documents backwards", backwards[::-1], subject.row, Failure.ORDER)


def _padding(subject: ProbedTarget) -> CheckResult:
    long = filler(6000)
    found = subject.scores(subject.query, [long, *subject.documents])[1:]
    return subject.compared("the same 4 behind one of 6,000 characters", found, subject.row, Failure.PADDING)


def _distinct(subject: ProbedTarget) -> CheckResult:
    documents = hundred()
    scores = subject.scores_in_parts(subject.query, documents)
    counts = Counter(scores)
    score, most = counts.most_common(1)[0]
    sent = f"{len(documents)} different documents"
    if len(counts) < _DISTINCT:
        return failed(sent, f"{len(counts)} different scores; {short_score(score)} comes {most} times", Failure.TIES)
    return passed(sent, f"{len(counts)} different scores, {range_of(scores)}")


CHECKS: Final = (
    Check("indices", "each result says which document it is about", _indices),
    Check("scores", "scores differ, with the query and with the document", _scores, frozenset({Failure.INDICES})),
    Check("prompt", "both texts are in the prompt, once", _prompt, MEANINGLESS | {Failure.INVERTED}),
    *(
        Check(
            f"golden:{language}",
            f"relevant above irrelevant ({language})",
            partial(_golden, language=language),
            _LEADLESS,
        )
        for language in LANGUAGES
    ),
    Check("twice", "the same request, the same scores", _twice, MEANINGLESS),
    Check("alone", "the same score alone and in company", _alone, _UNSTABLE),
    Check("order", "the same score in any order", _order, _UNSTABLE | {Failure.BATCH}),
    Check("padding", "a long neighbour changes nothing", _padding, _UNSTABLE | {Failure.BATCH, Failure.ORDER}),
    Check("distinct", "different documents, different scores", _distinct, MEANINGLESS),
)
