"""Runs the checks on a target, in order: what an earlier one found decides which later ones would mean anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from prism.doctor import request_checks, scoring_checks
from prism.doctor.exchange import Check, CheckResult, ProbedTarget, Status, failed, skipped
from prism.doctor.targets import Target
from prism.errors import ChatError, InputError, in_one_line
from prism.llm.failures import Unavailable
from prism.symptoms import CURES, Failure
from prism.types import Record
from prism.version import __version__

CHECKS: Final = (*scoring_checks.CHECKS, *request_checks.CHECKS)
_SILENT: Final = ("connection", "timeout")


class Finding(Record):
    """One check: what was sent, what came back, and what that means."""

    check: str
    title: str
    status: Status
    sent: str
    got: str
    failure: Failure | None = None


class Diagnosis(Record):
    """One known failure that was found."""

    failure: Failure
    checks: tuple[str, ...]
    meaning: str
    advice: str


class Examination(Record):
    """Everything found about one target."""

    target: str
    dialect: str
    prism_version: str
    findings: tuple[Finding, ...]
    diagnoses: tuple[Diagnosis, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.diagnoses


def chosen(only: Sequence[str]) -> list[Check]:
    """The checks of these names, or that begin with one and a colon; all when none is named. Raises InputError."""
    for name in only:
        if not any(_named(check, name) for check in CHECKS):
            raise InputError(f"no check {name!r}: expected {', '.join(check.name for check in CHECKS)}")
    return [check for check in CHECKS if not only or any(_named(check, name) for name in only)]


def _named(check: Check, name: str) -> bool:
    return check.name == name or check.name.startswith(f"{name}:")


def examine(
    target: Target, checks: Sequence[Check] = CHECKS, starting: Callable[[Check], object] = lambda _: None
) -> Examination:
    """Run the checks. `starting` is told of each before it begins. Whatever the target answers is a finding."""
    subject = ProbedTarget(target)
    findings: list[Finding] = []
    failures: dict[Failure, list[str]] = {}
    gone = False
    for check in checks:
        starting(check)
        outcome, gone = (skipped("", "the server is gone"), True) if gone else _outcome(check, subject, failures)
        findings.append(Finding(check=check.name, title=check.title, **outcome._asdict()))
        if outcome.failure:
            failures.setdefault(outcome.failure, []).append(check.name)
    return Examination(
        target=target.name,
        dialect=target.dialect,
        prism_version=__version__,
        findings=tuple(findings),
        diagnoses=tuple(
            Diagnosis(failure=failure, checks=tuple(names), **CURES[failure]._asdict())
            for failure, names in failures.items()
        ),
    )


def _outcome(check: Check, subject: ProbedTarget, found: dict[Failure, list[str]]) -> tuple[CheckResult, bool]:
    """What a check finds, and whether the server is gone since."""
    blocking = next((failure for failure in found if failure in check.silent_after), None)
    if blocking:
        return skipped("", f"says nothing while: {blocking}"), False
    try:
        return check.run(subject), False
    except ChatError as error:
        return failed("", in_one_line(error), Failure.NO_ANSWER), _gone(error, subject)


def _gone(error: ChatError, subject: ProbedTarget) -> bool:
    """Whether not even a harmless request gets through any more."""
    if not isinstance(error, Unavailable) or error.kind not in _SILENT:
        return False
    try:
        subject.ask(subject.query, subject.documents[:1])
    except Unavailable as again:
        return again.kind in _SILENT
    except ChatError:
        return False
    return False
