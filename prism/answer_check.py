"""Do the documents of one call answer its query, why not, and is the evidence that was kept enough?

With a calibration the probability decides: at least the cut, which is a half or what the checkpoint promises for the
error rate that the caller asked for. Without one the verdicts do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from prism.answering import DEFAULT_CUT, Answering
from prism.errors import InputError
from prism.scoring import Calibration
from prism.text import language_of
from prism.types import Conflict, Judgment, Outcome, Unanswered


class AnswerFit(NamedTuple):
    """What a checkpoint knows about the scores of a set."""

    calibration: Calibration | None = None
    answering: Answering | None = None

    def for_query(self, query: str) -> AnswerFit:
        """What is known of the scores under a query in this language: nothing, where none was seen in the fitting."""
        seen = self.calibration.languages if self.calibration else ()
        return self if not seen or language_of(query) in seen else AnswerFit()

    def probability(self, scores: Sequence[float]) -> float | None:
        """That one of the documents answers; None without a calibration. Nothing answers where there is nothing."""
        if self.calibration is None:
            return None
        if not scores:
            return 0.0
        if self.answering is None:  # at least so probable is it that any answers
            return self.calibration.probability(max(scores))
        return self.answering.probability(scores, self.calibration)

    def cut(self, risk: float | None, name: str) -> float:
        """From which probability on a set is called answered, where `risk` of those may hold no answer.

        Raises InputError, calling the model `name`, when the checkpoint promises no such rate.
        """
        if risk is None:
            return DEFAULT_CUT
        bound = self.answering.bound(risk) if self.answering else None
        if bound is None:
            promised = self.answering.bounds if self.answering else ()
            lowest = f"its lowest is {promised[0].risk:g}" if promised else "it promises none"
            raise InputError(
                f"{name} cannot promise an answer_risk of {risk:g}: {lowest}; leave it out, or `prism calibrate` the"
                " checkpoint on more questions"
            )
        return bound.threshold


class Answerability(NamedTuple):
    """Everything said of one call, under the names it has in a result."""

    answerable: float | None
    reason: Unanswered | None
    sufficient: bool | None


class AnswerCheck:
    """Judges one call: its fit, its cut, and the scores of all its documents, returned or not."""

    def __init__(self, fit: AnswerFit, cut: float, judged: Sequence[Judgment], *, promised: bool = False) -> None:
        """`judged`: all documents that have a score. `promised`: the cut keeps an error rate that was asked for, and
        decides alone; else documents none of which got a yes are not taken for an answer."""
        self._promised = promised
        self._fit, self._cut, self._judged = fit, cut, judged
        self._scores = {each.index: each.score for each in judged if each.score is not None}
        self.probability = fit.probability([*self._scores.values()]) if self._scores else None

    def answer(self, judgments: Sequence[Judgment] | None = None, conflicts: Sequence[Conflict] = ()) -> Answerability:
        """Of the whole call; `judgments`: those returned, with the evidence that was found; None: none was sought."""
        reason = self._reason(conflicts)
        enough = None if judgments is None else self.sufficient([each.index for each in judgments], judgments, reason)
        return Answerability(self.probability, reason, enough)

    def sufficient(
        self, kept: Collection[int], judgments: Sequence[Judgment], reason: Unanswered | None
    ) -> bool | None:
        """Whether these documents still answer by what of their evidence is whole; None without a calibration.

        The others count as if they had not been there, but a set does not become better by losing one.
        """
        if self.probability is None:
            return None
        whole = [each.index for each in judgments if each.index in kept and _whole(each)]
        left = self._fit.probability([self._scores[index] for index in whole])
        assert left is not None  # the same calibration
        return reason is None and min(self.probability, left) >= self._cut

    def _reason(self, conflicts: Sequence[Conflict]) -> Unanswered | None:
        if not self._scores:
            return None  # nothing could be judged: the errors of the documents say why
        yes = [each for each in self._judged if each.verdict == "yes"]
        probable = self.probability is None or self.probability >= self._cut
        if probable and (yes or (self._promised and self.probability is not None)):
            return Unanswered.CONFLICTING if conflicts else None
        best = max(self._judged, key=lambda each: each.score or 0.0)
        if any(each.truncation for each in yes or [best]):
            return Unanswered.CUT_OFF
        return Unanswered.RELATED_ONLY if yes else Unanswered.NONE_RELEVANT


def _whole(judgment: Judgment) -> bool:
    """Whether a judgment's evidence is there to its end and sound."""
    broken = judgment.check is not None and bool(judgment.check.broken)
    return judgment.outcome in (Outcome.COMPLETE, Outcome.UNINFORMATIVE) and not broken
