"""What goes wrong with rerankers again and again, by name: how it shows in scores, what it is, what to do about it.

The self-test at every load and `prism doctor` read scores with `of_matrix`: rows are queries, columns are documents,
document i answers query i and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

MARGIN: Final = 0.1
"""By so much of the scale an obviously relevant document must lead an obviously irrelevant one."""
_LOST: Final = 1e-6
"""Probabilities below this for everything are no judgments."""
_FLAT: Final = 1e-4
"""Scores of obvious pairs that differ by less are one score."""
_SHARE: Final = 0.02
"""What changes scores by less than this share of all their spread is not read."""
_REVERSED: Final = 0.75
"""From this share of comparisons the wrong way round on, it is the sign that is wrong, not the model."""


class Failure(StrEnum):
    """Known failures of rerankers and their servers; `CURES` says more about each."""

    INDICES = "indices are wrong"
    LABELS_LOST = "label rows lost"
    CONSTANT = "constant scores"
    QUERY_DROPPED = "query not in the prompt"
    DOCUMENT_DROPPED = "document not in the prompt"
    TEMPLATE_MISSING = "template missing"
    TEMPLATE_DOUBLED = "template doubled"
    INVERTED = "scores inverted"
    WEAK = "weak ranking"
    UNSTEADY = "another score each time"
    BATCH = "scores depend on the batch"
    ORDER = "scores depend on the order"
    PADDING = "padding is read"
    TIES = "ties"
    SUFFIX_LOST = "end of the prompt cut off"
    CUT_UNTOLD = "truncation not told"
    LONG_FAILS = "long document fails"
    INSTRUCTION_IGNORED = "instruction ignored"
    BAD_FAILS_ALL = "one bad document fails all"
    BAD_MOVES_OTHERS = "one bad document moves others"
    CONTROL_OBEYED = "control tokens obeyed"
    EMPTY_LIST = "empty list fails"
    UNICODE = "unicode fails"
    SPANS_IN_BYTES = "spans count bytes"
    SPANS_IN_UTF16 = "spans count UTF-16 units"
    SPANS_WRONG = "spans are wrong"
    TOP_N = "top_n not honoured"
    SLOW = "time grows too fast"
    NO_ANSWER = "no answer"


class Cure(NamedTuple):
    """One line each."""

    meaning: str
    advice: str


CURES: Final[dict[Failure, Cure]] = {
    Failure.INDICES: Cure(
        "`index` does not say which document of the request a score belongs to",
        "send the position in the request, from 0, not the rank or a position in a sorted list",
    ),
    Failure.LABELS_LOST: Cure(
        "every probability is next to nothing: the rows of the output layer for yes and no are gone, or not read",
        "convert the checkpoint again with its output layer (`lm_head`), and check the label token ids",
    ),
    Failure.CONSTANT: Cure(
        "every pair gets the same score: the classifier head is untrained, or the texts do not reach the model",
        "check that the checkpoint is a reranker, is loaded as one, and that its label tokens are set",
    ),
    Failure.QUERY_DROPPED: Cure(
        "scores do not change with the query", "the template lacks the query: use the one the model was trained with"
    ),
    Failure.DOCUMENT_DROPPED: Cure(
        "scores do not change with the document",
        "the template lacks the document: use the one the model was trained with",
    ),
    Failure.TEMPLATE_MISSING: Cure(
        "the texts reach a generative reranker bare, without the prompt it was trained with",
        "start the server with the model's reranker template (vLLM: --chat-template), not a plain pair of texts",
    ),
    Failure.TEMPLATE_DOUBLED: Cure(
        "the prompt is put around the texts twice, or the texts stand in it twice",
        "render the prompt in one place only: the server's template, or the proxy's or client's, not both",
    ),
    Failure.INVERTED: Cure(
        "irrelevant documents score above relevant ones", "the labels are swapped: check which token or class is yes"
    ),
    Failure.WEAK: Cure(
        "a document that plainly answers does not lead documents that plainly do not",
        "in one language: the model was not taught it; in all: check model, template and label tokens",
    ),
    Failure.UNSTEADY: Cure(
        "the same request gets other scores each time",
        "look for sampling, dropout (a model not in eval mode), or several replicas with different models",
    ),
    Failure.BATCH: Cure(
        "a pair's score depends on which documents are sent with it",
        "look for normalisation over the request (softmax, min-max), left padding without positions, or a missing mask",
    ),
    Failure.ORDER: Cure(
        "a pair's score depends on its place in the request", "look for results matched to the wrong documents"
    ),
    Failure.PADDING: Cure(
        "a long document changes the scores of short ones beside it",
        "padding is read: pass the attention mask, and read the score at the last real token",
    ),
    Failure.TIES: Cure(
        "different documents get the very same score: too few digits are left",
        'compute the label logits in float32 (vLLM: --hf-overrides \'{"head_dtype": "float32"}\'), do not round scores',
    ),
    Failure.SUFFIX_LOST: Cure(
        "with a long document the score says nothing: the prompt's end, which it is read after, is cut off",
        "cut the document, not the prompt, or lower the limit in tokens",
    ),
    Failure.CUT_UNTOLD: Cure("a document was cut, and nothing in the answer says so", "report what was not read"),
    Failure.LONG_FAILS: Cure(
        "a long document makes the request fail", "cut it, or answer 4xx with the limit: not 5xx, and not score 0"
    ),
    Failure.INSTRUCTION_IGNORED: Cure(
        "an instruction changes nothing, and nothing says so",
        "the template has no place for it: refuse it, or use a template that has",
    ),
    Failure.BAD_FAILS_ALL: Cure(
        "one document that cannot be judged fails the whole request",
        "answer for the others, with an error or the lowest score for that one",
    ),
    Failure.BAD_MOVES_OTHERS: Cure(
        "a document without content changes the scores of others", "see that each pair is computed by itself"
    ),
    Failure.CONTROL_OBEYED: Cure(
        "control tokens in a document end the prompt and forge an answer",
        "tokenize the texts of requests with special tokens disabled",
    ),
    Failure.EMPTY_LIST: Cure(
        "a request without documents is a server error, or gets documents", "answer 4xx or no results"
    ),
    Failure.UNICODE: Cure("texts that are not plain letters fail or lose their score", "see the server's log"),
    Failure.SPANS_IN_BYTES: Cure(
        "spans are offsets in UTF-8 bytes: after the first é they point elsewhere", "count Unicode code points"
    ),
    Failure.SPANS_IN_UTF16: Cure(
        "spans are offsets in UTF-16 units: after the first emoji they point elsewhere", "count Unicode code points"
    ),
    Failure.SPANS_WRONG: Cure("spans point past the text or cut words", "check what the offsets refer to"),
    Failure.TOP_N: Cure("top_n returns another number of documents, or not the best", "sort, then cut at top_n"),
    Failure.SLOW: Cure(
        "time grows faster than the work", "look for padding to the longest of the request, and for missing batches"
    ),
    Failure.NO_ANSWER: Cure("the request failed", "raise --timeout if the server is only slow; else its log says why"),
}


def scale(scores: Sequence[Sequence[float]]) -> float:
    """1 for probabilities; for logits and the like the spread of these scores."""
    low, high = _range([score for row in scores for score in row])
    return 1.0 if low >= 0.0 and high <= 1.0 else high - low


def of_matrix(scores: Sequence[Sequence[float]]) -> Failure | None:
    """What the scores of obvious pairs (see above) give away; None when nothing is plainly broken.

    `scores`: at least two queries with the same two or more documents.
    """
    everything = [score for row in scores for score in row]
    low, high = _range(everything)
    if low >= 0.0 and 0.0 < high < _LOST:
        return Failure.LABELS_LOST
    spread = high - low
    if spread < _FLAT * max(1.0, abs(high)):
        return Failure.CONSTANT
    columns = list(zip(*scores, strict=True))
    if max(_spread(column) for column in columns) < _SHARE * spread:
        return Failure.QUERY_DROPPED
    if max(_spread(row) for row in scores) < _SHARE * spread:
        return Failure.DOCUMENT_DROPPED
    least = MARGIN * scale(scores)
    leads = [lead for i, row in enumerate(scores) for lead in leads_of(row, i)]
    if sum(lead < -least for lead in leads) >= _REVERSED * len(leads):
        return Failure.INVERTED
    return None


def leads_of(row: Sequence[float], relevant: int) -> list[float]:
    """By how much the relevant document leads each of the others."""
    return [row[relevant] - score for place, score in enumerate(row) if place != relevant]


def _range(scores: Sequence[float]) -> tuple[float, float]:
    return min(scores), max(scores)


def _spread(scores: Sequence[float]) -> float:
    low, high = _range(scores)
    return high - low
