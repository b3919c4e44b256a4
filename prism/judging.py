"""One document on its way through a call: rendered, scored, ranked. Functions over frozen pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prism.engines.base import Engine, LabelLogits, ScoreOutput
from prism.errors import DocumentError, EngineError, InputError
from prism.inputs import Candidate, OnLongDocument
from prism.scoring import score
from prism.template import Prompt, Template
from prism.types import Document, Judgment, Truncation, Usage, WindowScore
from prism.windows import Window, cut_windows, whole


class Pair(NamedTuple):
    """A document, what of it the model reads, and what is known about it so far."""

    document: Document
    windows: tuple[Window, ...]
    """In reading order; empty when the document cannot be judged, then `judgment.error` says why."""
    judgment: Judgment

    @property
    def read_chars(self) -> int:
        """The model reads `document.text[:read_chars]`."""
        return self.windows[-1].end if self.windows else 0


def render_pair(
    template: Template,
    query: str,
    index: int,
    candidate: Candidate,
    *,
    instruction: str | None,
    max_tokens: int | None,
    on_long: OnLongDocument,
) -> Pair:
    """The pair with its prompts.

    Raises InputError when the query itself leaves no room, or a document would be cut that must not be.
    """
    document = candidate.document
    judgment = Judgment(index=index, id=document.id, title=document.title, score=None, verdict=None)
    if candidate.problem:
        return failed(document, judgment, candidate.problem)
    if not document.text.strip():
        return failed(document, judgment, "the document is blank: send its text, or leave it out")

    def render(part: Document) -> Prompt:
        return template.render(query, part, instruction=instruction, max_tokens=max_tokens)

    try:
        windows = cut_windows(document, render) if on_long == "window" else [whole(document, render(document))]
    except DocumentError as error:
        return failed(document, judgment, str(error))
    if not windows or windows[0].end == 0:
        reason = "query, instruction and title leave no room for its text: shorten them or raise max_prompt_tokens"
        return failed(document, judgment, reason)
    total, end = len(document.text), windows[-1].end
    cut = None if not document.text[end:].strip() else Truncation(read_chars=end, total_chars=total)
    if cut and on_long == "refuse":
        raise InputError(
            f"documents[{index}] has {total:,} characters, the model reads {end:,}, and on_long_document='refuse'"
            " allows no cut: shorten it, allow the cut, or have it read in windows (on_long_document 'window')"
        )
    usage = Usage(prompt_tokens=sum(len(window.prompt.ids) for window in windows))
    return Pair(document, tuple(windows), judgment.model_copy(update={"truncation": cut, "usage": usage}))


async def ask(engine: Engine, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
    """`Engine.score`, of which an empty list of prompts asks nothing. Raises EngineError for a short answer."""
    if not prompts:
        return ScoreOutput([], 0)
    output = await engine.score(prompts)
    if len(output.labels) != len(prompts):
        raise EngineError(f"the engine answered {len(output.labels)} of {len(prompts)} prompts: report this engine")
    return output


def read_score(answer: LabelLogits | DocumentError) -> float:
    """The score in an engine's answer to one prompt. Raises DocumentError where there is none."""
    if isinstance(answer, DocumentError):
        raise answer
    try:
        return score(*answer)
    except ValueError as error:
        raise DocumentError(f"{error}: the weights are broken or the dtype overflows") from error


def judge(pair: Pair, answers: Sequence[LabelLogits | DocumentError], threshold: float) -> Pair:
    """The one place where a score becomes a verdict: the best window's. A window that failed counts for nothing."""
    scored, problem = [], ""
    for window, answer in zip(pair.windows, answers, strict=True):
        try:
            scored.append(window._replace(score=read_score(answer)))
        except DocumentError as error:
            problem = str(error)
    if not scored:
        return failed(pair.document, pair.judgment, problem)
    best = max(window.score for window in scored)
    shown = [WindowScore(start=window.start, end=window.end, score=window.score) for window in scored]
    update = {
        "score": best,
        "verdict": "yes" if best >= threshold else "no",
        "windows": tuple(shown) if len(pair.windows) > 1 else (),
    }
    return pair._replace(windows=tuple(scored), judgment=pair.judgment.model_copy(update=update))


def failed(document: Document, judgment: Judgment, reason: str) -> Pair:
    return Pair(document, (), judgment.model_copy(update={"error": reason, "usage": Usage()}))


def rank(pair: Pair) -> tuple[bool, bool, float, int]:
    """`order` of its judgment."""
    return order(pair.judgment)


def order(judgment: Judgment) -> tuple[bool, bool, float, int]:
    """Best score first, of one verdict what is held already last; equal scores keep the caller's order."""
    return judgment.verdict != "yes", judgment.held is not None, -(judgment.score or 0.0), judgment.index
