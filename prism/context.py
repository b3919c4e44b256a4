"""What goes into an LLM's prompt: the evidence of a ranking, within a budget of tokens.

Everything in it comes from documents and from a model that read them, so it is data wherever it goes. Four forms:

text       Markdown. Each source begins with a header in the first column, every line of its evidence is quoted:

               [1] id="aws-keys" title="Rotating access keys"
               Contribution: Lists the commands that replace a key without downtime.
               > Create a second key, switch the clients to it, then delete the first.

           A document cannot forge a header or another source: its lines all begin with `> `, its contribution is put on
           one line, and id and title are JSON strings.
xml        `<source n="1" document="4" id="..." title="...">` with `<contribution>` and `<evidence>`: well-formed XML,
           in which no text can close or open a tag.
json       An array with one object a line.
anthropic  `search_result` blocks of the Messages API with citations on. Each sentence of the evidence is a block of its
           own, so that citations name it. Contributions are left out: what is cited is to be evidence.

Source `n` is the judgment of rank n. Of documents whose evidence says the same one fills a slot, the best that fits; it
names the others (`also`). Left out are documents without evidence or with broken evidence, and contributions that are
broken or only say the query again.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prism.errors import CheckpointError, InputError
from prism.inputs import read_count
from prism.text import clean, printable
from prism.types import Judgment, Outcome, Record

ContextFormat = Literal["text", "xml", "json", "anthropic"]
CountTokens = Callable[[str], int]
LeftOutReason = Literal["budget", "broken", "no evidence", "same"]

_NONCHARACTERS = re.compile("[\ufffe\uffff]")  # XML 1.0 has no place for them, not even escaped


class LeftOut(Record):
    """A document with the verdict yes that is not in the context."""

    index: int
    """Position of the document in the caller's list."""
    id: str | None
    reason: LeftOutReason
    """`budget`: it did not fit any more; `broken`: its evidence has broken stretches; `no evidence`: none was made;
    `same`: a document that is in says all that its evidence does."""
    tokens: int | None = None
    """What a budget must be at least to hold this source alone."""


class PromptContext(Record):
    """Evidence as it goes into a prompt, and what was left out of it."""

    format: ContextFormat
    content: str | list[dict[str, Any]]
    """A text; with `anthropic` the blocks. Empty when there is nothing to say or nothing fits."""
    tokens: int | None
    """Of the content, blocks as the JSON they are sent as. None without a tokenizer."""
    documents: tuple[int, ...]
    """Positions of its documents in the caller's list, in order."""
    left_out: tuple[LeftOut, ...]
    problem: str | None = None
    """Set when there is evidence and the budget holds none of it: what would fit."""
    sufficient: bool | None = None
    """Whether what is in it answers as probably as all documents do; None where that is not known."""


class _Source(NamedTuple):
    rank: int
    judgment: Judgment


def make_context(
    judgments: Sequence[Judgment],
    format: ContextFormat = "text",
    max_tokens: int | None = None,
    count: CountTokens | None = None,
) -> PromptContext:
    """Whole sources, best first, as they fit in `max_tokens`; one that does not is passed over.

    Raises InputError for an unknown format, a budget that is none, and a budget without `count`.
    """
    if format not in _RENDER:
        raise InputError(f"a context's format must be {', '.join(map(repr, _RENDER))}, got {str(format)[:40]!r}")
    if max_tokens is not None:
        read_count("max_tokens", max_tokens)
        if count is None:
            raise InputError("a saved result has no tokenizer to count with: pass count= or tokenizer=")
    size = partial(_size, format, count)
    candidates = [_Source(n, judgment) for n, judgment in enumerate(judgments, start=1) if _whole(judgment)]
    chosen: list[_Source] = []
    passed: dict[int, int | None] = {}
    filled: set[int] = set()  # slots, by the best document that says it
    for source in candidates:
        slot = _slot(source.judgment)
        if slot in filled:
            continue
        if max_tokens is not None and (size([*chosen, source]) or 0) > max_tokens:
            passed[source.judgment.index] = size([source])
        else:
            chosen.append(source)
            filled.add(slot)
    return PromptContext(
        format=format,
        content=_render(format, chosen),
        tokens=size(chosen) if chosen else 0,
        documents=tuple(source.judgment.index for source in chosen),
        left_out=tuple(_left_out(judgments, {source.judgment.index for source in chosen}, passed, filled)),
        problem=_too_small(_of_each_slot(candidates), max_tokens, size) if candidates and not chosen else None,
    )


def why_empty(judgments: Sequence[Judgment]) -> str:
    """What the reader should know of a context that is empty because there is no evidence."""
    yes = sum(judgment.verdict == "yes" for judgment in judgments)
    if yes:
        return f"no evidence was made for the {yes} of {len(judgments)} documents with a yes"
    best = max((judgment.score for judgment in judgments if judgment.score is not None), default=None)
    scored = "none could be scored" if best is None else f"the best score is {best:.3f}"
    return f"none of {len(judgments)} documents got a yes ({scored})"


@lru_cache(maxsize=8)
def named_tokenizer(name: str) -> CountTokens:
    """Counts tokens as the tokenizer `name` does: a directory, a `tokenizer.json`, or a name on the hub.

    Raises InputError when there is none.
    """
    from prism.checkpoint import load_tokenizer
    from prism.template import count_tokens

    path = Path(name).expanduser()
    try:
        tokenizer = load_tokenizer(path if path.exists() else name, name)
    except CheckpointError as error:
        raise InputError(
            f"no tokenizer {name!r}: expected a directory, a tokenizer.json or a name on the hub ({error})"
        ) from error
    return partial(count_tokens, tokenizer)


# --- choosing --------------------------------------------------------------------------------------------------------


def _whole(judgment: Judgment) -> bool:
    return bool((judgment.evidence or "").strip()) and not _broken(judgment)


def _broken(judgment: Judgment) -> bool:
    return bool(judgment.check and judgment.check.broken)


def _left_out(
    judgments: Iterable[Judgment], chosen: set[int], passed: Mapping[int, int | None], filled: set[int]
) -> Iterable[LeftOut]:
    for judgment in judgments:
        index = judgment.index
        if judgment.verdict != "yes" or index in chosen:
            continue
        reason: LeftOutReason = "budget" if index in passed else "broken" if _broken(judgment) else "no evidence"
        if judgment.same_as in filled:
            reason = "same"
        yield LeftOut(index=index, id=judgment.id, reason=reason, tokens=passed.get(index))


def _slot(judgment: Judgment) -> int:
    """The document whose place in a context this one would take: its own, or of the best one that says the same."""
    return judgment.index if judgment.same_as is None else judgment.same_as


def _of_each_slot(candidates: Sequence[_Source]) -> list[_Source]:
    best: dict[int, _Source] = {}
    for source in candidates:
        best.setdefault(_slot(source.judgment), source)
    return list(best.values())


def _named(source: _Source) -> str:
    known = source.judgment.id
    return f"document {source.judgment.index}" if known is None else f"document {str(known)[:60]!r}"


def _too_small(
    candidates: Sequence[_Source], max_tokens: int | None, size: Callable[[Sequence[_Source]], int | None]
) -> str:
    sizes = [size([source]) or 0 for source in candidates]
    least = sizes.index(min(sizes))
    if len(candidates) == 1:
        return f"a budget of {max_tokens} tokens does not hold the only source: it takes {sizes[0]}"
    return (
        f"a budget of {max_tokens} tokens holds none of {len(candidates)} sources: the smallest,"
        f" {_named(candidates[least])}, takes {sizes[least]}, the best, {_named(candidates[0])}, {sizes[0]},"
        f" all together {size(candidates)}"
    )


def _size(format: ContextFormat, count: CountTokens | None, sources: Sequence[_Source]) -> int | None:
    if count is None:
        return None
    content = _render(format, sources)
    return count(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))


# --- the formats -----------------------------------------------------------------------------------------------------


def _render(format: ContextFormat, sources: Sequence[_Source]) -> str | list[dict[str, Any]]:
    if not sources:
        return [] if format == "anthropic" else ""
    return _RENDER[format](sources)


def _text(sources: Sequence[_Source]) -> str:
    return "\n".join(_text_source(rank, judgment) for rank, judgment in sources)


def _text_source(rank: int, judgment: Judgment) -> str:
    names = [f"{name}={_quoted(value)}" for name, value in _names(judgment).items()]
    header = f"[{rank}] {' '.join(names) or f'document={judgment.index}'}"
    if judgment.outcome is Outcome.CUT_OFF:
        header += " (cut off)"
    contribution = _contribution(judgment)
    lines = [header, *([f"Contribution: {contribution}"] if contribution else [])]
    lines += [f"> {line}".rstrip() for line in _evidence(judgment).splitlines()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)


def _xml(sources: Sequence[_Source]) -> str:
    return "".join(("<sources>\n", *(_xml_source(rank, judgment) for rank, judgment in sources), "</sources>\n"))


def _xml_source(rank: int, judgment: Judgment) -> str:
    attributes = {"n": str(rank), "document": str(judgment.index), **_names(judgment)}
    if judgment.outcome is Outcome.CUT_OFF:
        attributes["cut_off"] = "true"
    head = " ".join(f'{name}="{_attribute(value)}"' for name, value in attributes.items())
    contribution = _contribution(judgment)
    about = f"<contribution>{_escaped(contribution)}</contribution>\n" if contribution else ""
    evidence = f"<evidence>\n{_escaped(_evidence(judgment))}\n</evidence>"
    return f"<source {head}>\n{about}{evidence}\n</source>\n"


def _escaped(text: str) -> str:
    """Text as XML 1.0 may hold it in an element."""
    return html.escape(_NONCHARACTERS.sub("\ufffd", printable(text)))


def _attribute(text: str) -> str:
    """Text as XML 1.0 may hold it in an attribute, which would lose bare tabs and line ends."""
    return _escaped(text).replace("\n", "&#10;").replace("\t", "&#9;")


def _json(sources: Sequence[_Source]) -> str:
    lines = (json.dumps(_object(rank, judgment), ensure_ascii=False) for rank, judgment in sources)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _object(rank: int, judgment: Judgment) -> dict[str, Any]:
    named = {name: printable(value) for name, value in _names(judgment).items()}
    made: dict[str, Any] = {"n": rank, "document": judgment.index, **named}
    if contribution := _contribution(judgment):
        made["contribution"] = contribution
    made["evidence"] = _evidence(judgment)
    return made | ({"cut_off": True} if judgment.outcome is Outcome.CUT_OFF else {})


def _anthropic(sources: Sequence[_Source]) -> list[dict[str, Any]]:
    return [_search_result(judgment) for _, judgment in sources]


def _search_result(judgment: Judgment) -> dict[str, Any]:
    names = {name: printable(value) for name, value in _names(judgment).items()}
    source = names.get("id", f"document-{judgment.index}")
    return {
        "type": "search_result",
        "source": source,
        "title": names.get("title", source),
        "content": [{"type": "text", "text": text} for text in _sentences(judgment)],
        "citations": {"enabled": True},
    }


def _sentences(judgment: Judgment) -> list[str]:
    """The evidence in pieces that join up to it, none of them blank: a sentence each where the sentences are known."""
    evidence = _evidence(judgment)
    found = judgment.check.sentences if judgment.check else ()
    starts = sorted({0, *(sentence.start for sentence in found if 0 < sentence.start < len(evidence))})
    pieces: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(evidence)], strict=True):
        piece = evidence[start:end]
        if pieces and not (piece.strip() and pieces[-1].strip()):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


_RENDER: Mapping[ContextFormat, Callable[[Sequence[_Source]], str | list[dict[str, Any]]]] = {
    "text": _text,
    "xml": _xml,
    "json": _json,
    "anthropic": _anthropic,
}


def _names(judgment: Judgment) -> dict[str, str]:
    """Id, title, and the documents whose evidence this source stands for too."""
    known = {"id": judgment.id, "title": judgment.title, "also": ", ".join(judgment.also)}
    return {name: clean(value) for name, value in known.items() if value and value.strip()}


def _evidence(judgment: Judgment) -> str:
    return printable(judgment.evidence or "")


def _contribution(judgment: Judgment) -> str:
    """The contribution on one line; empty where it is broken or only says the query again."""
    about = judgment.contribution_check
    if judgment.outcome is Outcome.UNINFORMATIVE or (about and about.broken):
        return ""
    return " ".join(printable(judgment.contribution or "").split())
