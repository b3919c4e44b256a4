"""One document on its way through a call: rendered, scored, ranked. Functions over frozen pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from prism.engines.base import Engine, LabelLogits, ScoreOutput
from prism.errors import DocumentError, EngineError, InputError
from prism.inputs import Candidate
from prism.options import Call
from prism.scoring import score
from prism.template import Prompt, Template
from prism.types import Document, Judgment, Side, Truncation, Usage, WindowScore
from prism.windows import Window, cut_windows, whole


class Pair(NamedTuple):
    """A document, what of it the model reads, and what is known about it so far."""

    document: Document
    windows: tuple[Window, ...]
    """In reading order; empty when the document cannot be judged, then `judgment.error` says why."""
    judgment: Judgment

    @property
    def read(self) -> tuple[int, int]:
        """The model reads `document.text[start:end]`."""
        return (self.windows[0].start, self.windows[-1].end) if self.windows else (0, 0)


def render_pair(
    template: Template, query: str, index: int, candidate: Candidate, *, call: Call, max_tokens: int | None
) -> Pair:
    """The pair with its prompts.

    Raises InputError when the query itself leaves no room, or a document would be cut that must not be.
    """
    document = candidate.document
    judgment = Judgment(index=index, id=document.id, title=document.title, score=None, verdict=None)
    if candidate.problem:
        return _failed(document, judgment, candidate.problem)
    if not document.text.strip():
        return _failed(document, judgment, "the document is blank: send its text, or leave it out")

    def render(part: Document) -> Prompt:
        return template.render(
            query, part, instruction=call.instruction, max_tokens=max_tokens, side=call.truncation_side
        )

    windowed = call.on_long_document == "window"
    try:
        windows = cut_windows(document, render) if windowed else [whole(document, render(document))]
    except DocumentError as error:
        return _failed(document, judgment, str(error))
    if not windows or windows[0].start == windows[0].end:
        reason = "query, instruction and title leave no room for its text: shorten them or raise max_prompt_tokens"
        return _failed(document, judgment, reason)
    cut = _truncation(document.text, windows)
    if cut and call.on_long_document == "refuse":
        raise InputError(
            f"documents[{index}] has {cut.total_chars:,} characters, the model reads {cut.read_chars:,}, and"
            " on_long_document='refuse' allows no cut: shorten it, allow the cut, or have it read in windows"
            " (on_long_document 'window')"
        )
    usage = Usage(prompt_tokens=sum(len(window.prompt.ids) for window in windows))
    return Pair(document, tuple(windows), judgment.model_copy(update={"truncation": cut, "usage": usage}))


def render_pairs(render: Callable[[int, Candidate], Pair], first: int, documents: Sequence[Candidate]) -> list[Pair]:
    """`render_pair` for documents one after another, the first of which is the caller's document `first`."""
    return [render(first + offset, document) for offset, document in enumerate(documents)]


def prompt_limit(template: Template, query: str, call: Call) -> int | None:
    """Of a prompt in tokens, so that it holds at most `max_document_tokens` of a document; None: the template's."""
    if call.max_document_tokens is None:
        return call.max_prompt_tokens
    limit = call.max_prompt_tokens or template.spec.max_prompt_tokens
    around = template.render(query, Document(text="."), instruction=call.instruction, max_tokens=limit)
    return min(limit, len(around.ids) - 1 + call.max_document_tokens)


def _truncation(text: str, windows: Sequence[Window]) -> Truncation | None:
    """What of a text is in no window; white space at its ends is no loss."""
    start, end = windows[0].start, windows[-1].end
    start = start if text[:start].strip() else 0
    if not start and not text[end:].strip():
        return None
    return Truncation(start=start, read_chars=end - start, total_chars=len(text))


def cut_off(what: str, indices: Sequence[int], side: Side = "right") -> str:
    """The warning about documents that were cut."""
    shown = ", ".join(map(str, indices[:10])) + (", …" if len(indices) > 10 else "")
    part = "end" if side == "right" else "beginning"
    return f"{what} longer than the model reads, whose {part} was not read: {shown}"


async def score_prompts(engine: Engine, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
    """`Engine.score`, of which an empty list of prompts asks nothing. Raises EngineError for a short answer."""
    if not prompts:
        return ScoreOutput([], 0)
    output = await engine.score(prompts)
    if len(output.labels) != len(prompts):
        raise EngineError(f"the engine answered {len(output.labels)} of {len(prompts)} prompts: report this engine")
    return output


def read_logit(answer: LabelLogits | DocumentError) -> float:
    """l_yes - l_no in an engine's answer to one prompt. Raises DocumentError where there is none."""
    if isinstance(answer, DocumentError):
        raise answer
    try:
        score(*answer)
    except ValueError as error:
        raise DocumentError(f"{error}: the weights are broken or the dtype overflows") from error
    return answer.yes - answer.no


def read_score(answer: LabelLogits | DocumentError) -> float:
    """The score in an engine's answer to one prompt. Raises DocumentError where there is none."""
    return score(read_logit(answer), 0.0)


def judge(pair: Pair, answers: Sequence[LabelLogits | DocumentError], threshold: float) -> Pair:
    """The one place where a score becomes a verdict: the best window's. A window that failed counts for nothing."""
    scored, problem = [], ""
    for window, answer in zip(pair.windows, answers, strict=True):
        try:
            logit = read_logit(answer)
            scored.append(window._replace(score=score(logit, 0.0), logit=logit))
        except DocumentError as error:
            problem = str(error)
    if not scored:
        return _failed(pair.document, pair.judgment, problem)
    best = max(scored, key=lambda window: window.score)
    shown = [WindowScore(start=window.start, end=window.end, score=window.score) for window in scored]
    update = {
        "score": best.score,
        "logit": best.logit,
        "verdict": "yes" if best.score >= threshold else "no",
        "windows": tuple(shown) if len(pair.windows) > 1 else (),
    }
    return pair._replace(windows=tuple(scored), judgment=pair.judgment.model_copy(update=update))


def _failed(document: Document, judgment: Judgment, reason: str) -> Pair:
    return Pair(document, (), judgment.model_copy(update={"error": reason, "usage": Usage()}))


def rank(pair: Pair) -> tuple[bool, bool, float, int]:
    """`sort_key` of its judgment."""
    return sort_key(pair.judgment)


def sort_key(judgment: Judgment) -> tuple[bool, bool, float, int]:
    """Best score first, of one verdict what is held already last; equal scores keep the caller's order."""
    return judgment.verdict != "yes", judgment.held is not None, -(judgment.score or 0.0), judgment.index
