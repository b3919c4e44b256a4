"""What a labelling run did, juror by juror: votes, failures, calls, tokens and money."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import Field

from prism.labeling.panel import Panel
from prism.types import Record, Usage

if TYPE_CHECKING:
    from prism.labeling.voting import RunState


class JurorReport(Record):
    """One juror, over all runs into the directory; `missed` and `stopped` are of the last run."""

    name: str
    votes: int
    """Answers under this rubric, failures included."""
    labels: dict[int, int]
    """Label -> how often."""
    failures: dict[str, int]
    """Kind -> how often: refused, unparseable, cut_off, empty, rejected, absent, no_text, unjudgeable."""
    failure_rate: float
    """Failures over votes; 0 without votes."""
    missed: dict[str, int]
    """Questions that got no answer, by reason; the next run asks them again."""
    last_missed: str | None = None
    """What was said about one of them."""
    stopped: str | None
    """Why it was not asked any more."""
    calls: int
    """Requests sent, under every rubric, tries that failed included."""
    failed_tries: dict[str, int]
    """How requests ended that brought no answer."""
    usage: Usage
    paid_usd: Decimal
    """For answers: tokens as counted by the provider, times the price in the panel file."""
    uncertain_usd: Decimal
    """At most, for requests whose answer never came."""
    uncertain_calls: int
    in_flight: int
    """Of those, how many were under way when a program died: these may have been paid twice."""


class LabelingReport(Record):
    """One labelling run."""

    panel: str
    rubric: str
    yes_from: int
    pairs: int
    """Different pairs read."""
    repeated: int
    """Lines whose pair stood further up; judged once."""
    bad_lines: int
    first_bad_lines: tuple[str, ...]
    verdicts: dict[str, int]
    """yes, no, undecided -> pairs."""
    not_asked: int
    """Votes that a sequential panel saved in the last run."""
    interrupted: bool
    jurors: tuple[JurorReport, ...]
    paid_usd: Decimal
    uncertain_usd: Decimal
    unchanged: bool = Field(default=False, exclude=True)
    """Nothing was asked, and the files are as they were."""

    @property
    def stopped(self) -> bool:
        """Whether some juror could not go on."""
        return any(juror.stopped for juror in self.jurors)


def make_report(panel: Panel, state: RunState, verdicts: dict[str, int], *, interrupted: bool) -> LabelingReport:
    outcomes = state.store.outcomes(panel.rubric.key)
    jurors = tuple(_juror(juror.name, outcomes.get(juror.name, {}), state) for juror in panel.jurors)
    return LabelingReport(
        panel=panel.name,
        rubric=panel.rubric.key,
        yes_from=panel.cut,
        pairs=state.counts.pairs,
        repeated=state.counts.repeated,
        bad_lines=state.counts.bad_lines,
        first_bad_lines=tuple(state.counts.first_bad_lines),
        verdicts=verdicts,
        not_asked=state.counts.not_asked,
        interrupted=interrupted,
        jurors=jurors,
        paid_usd=sum((juror.paid_usd for juror in jurors), Decimal(0)),
        uncertain_usd=sum((juror.uncertain_usd for juror in jurors), Decimal(0)),
    )


def _juror(name: str, outcomes: dict[str, int], state: RunState) -> JurorReport:
    standing, spent = state.standings[name], state.store.spent(juror=name)
    labels = {int(outcome): n for outcome, n in outcomes.items() if outcome.isdecimal()}
    failures = {outcome: n for outcome, n in outcomes.items() if not outcome.isdecimal()}
    votes = sum(outcomes.values())
    return JurorReport(
        name=name,
        votes=votes,
        labels=labels,
        failures=failures,
        failure_rate=sum(failures.values()) / votes if votes else 0.0,
        missed=dict(standing.missed),
        last_missed=standing.last_missed,
        stopped=standing.stopped,
        calls=spent.calls,
        failed_tries=state.store.ends(name),
        usage=state.store.usage(name),
        paid_usd=spent.paid_usd,
        uncertain_usd=spent.uncertain_usd,
        uncertain_calls=spent.uncertain_calls,
        in_flight=spent.in_flight,
    )
