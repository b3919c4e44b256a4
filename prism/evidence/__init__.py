"""Evidence: find where the document says what was written about it, and check what can be checked."""

from prism.evidence.checking import check, outcome_of
from prism.evidence.spans import SUPPORT_FLOOR, align

__all__ = ["SUPPORT_FLOOR", "align", "check", "outcome_of"]
