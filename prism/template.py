"""How a pair becomes token ids, and how written text becomes contribution and evidence.

One object does both, in training, evaluation and serving alike, so the prompt can never differ between them:

    TemplateSpec   the text, label words, tags and limits: plain data, stored in a checkpoint's `prism.json`
    Template       a spec bound to a tokenizer: renders, supervises, truncates the document only, parses

Control tokens come from the template's own text alone. What a caller sends is tokenized with the tokenizer's added
tokens removed, so a document that contains `<|im_end|>` stays text and cannot end the turn or forge an answer.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from prism.errors import InputError, TemplateError
from prism.slots import SLOTS, Slots
from prism.text import clean
from prism.types import Document, Outcome, Record, Side, Truncation, Verdict

_CHARS_PER_TOKEN = 16
"""First guess of how much text can fill a budget; widened until it does."""
_RULES_OF_NANO = ("no_repeat_ngram", "evidence_quotes", "restores_case")
"""Keys that `prism.json` files of 0.1 carry. Switched off they say nothing; switched on they ask for what is gone."""


class TemplateSpec(Record):
    """Everything about a prompt that travels with a checkpoint."""

    name: str
    text: str
    """The prompt up to the label, with `{query}`, `{document}` and, if the model takes one, `{instruction}`."""
    default_instruction: str = ""
    yes: str = "yes"
    no: str = "no"
    contribution_tag: str = Field(default="contribution", pattern=r"^[A-Za-z][\w-]*$")
    evidence_tag: str = Field(default="evidence", pattern=r"^[A-Za-z][\w-]*$")
    end_of_turn: str = "<|im_end|>"
    evidence_keeps_space: bool = False
    """Evidence copied from behind a space is written with it, so that its first word is the document's own token."""
    writes: bool = True
    """Whether texts can be asked of the model after a yes: not if the prompt is for the label alone and nothing has
    taught it more. Training does."""
    max_prompt_tokens: int = Field(default=8192, ge=16)
    max_written_tokens: int = Field(default=512, ge=8)

    @model_validator(mode="before")
    @classmethod
    def _without_rules_of_nano(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name in _RULES_OF_NANO:
            if fields.get(name):
                raise PydanticCustomError(
                    "rule_of_nano",
                    "`{name}` was a rule of nano, the model of Prism 0.1, and is no more: train again, or remove the"
                    " key (what is written then no longer keeps that rule)",
                    {"name": name},
                )
        return {name: value for name, value in fields.items() if name not in _RULES_OF_NANO}

    @field_validator("text")
    @classmethod
    def _slots(cls, text: str) -> str:
        slots = SLOTS.findall(text)
        if slots.count("document") != 1 or "query" not in slots:
            raise ValueError(f"a template needs {{query}} and exactly one {{document}}, got the slots {slots}")
        return text


PRISM = TemplateSpec(
    name="prism",
    text="<|im_start|>user\n{instruction}\nQuery: {query}\nDocument: {document}<|im_end|>\n<|im_start|>assistant\n",
    default_instruction="Does the document help to answer the query?",
    evidence_keeps_space=True,
)

QWEN3_RERANKER = TemplateSpec(
    # The published interface of Qwen3-Reranker (model card of Qwen/Qwen3-Reranker-4B), to the letter.
    name="qwen3-reranker",
    text=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
        ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    default_instruction="Given a web search query, retrieve relevant passages that answer the query",
)


class Prompt(NamedTuple):
    """A rendered pair."""

    ids: list[int]
    truncation: Truncation | None
    """None when the whole document is in the prompt."""


class Part(Enum):
    """What a token of a supervised sequence is there for."""

    PROMPT = 0
    LABEL = 1
    WRITTEN = 2
    """Tags, line breaks and the end of the turn: what stands around the two texts."""
    CONTRIBUTION = 3
    EVIDENCE = 4


class Supervised(NamedTuple):
    """A training sequence."""

    ids: list[int]
    parts: list[Part]
    """One per id; exactly one is LABEL."""
    truncation: Truncation | None


class Written(NamedTuple):
    """What was read out of a written text."""

    outcome: Outcome
    contribution: str | None
    evidence: str | None


class Template:
    """A `TemplateSpec` bound to a tokenizer.

    Raises TemplateError when the tokenizer cannot carry the template: a label that is not a single token, an unknown
    end-of-turn token, or a tokenizer without a fast backend.
    """

    def __init__(self, spec: TemplateSpec, tokenizer: Any) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self._slots = Slots(tokenizer)
        self._prompt = self._slots.cut(spec.text)
        self._target = self._slots.cut(
            f"\n{self.contribution_open}{{query}}{self.contribution_close}"
            f"\n{self.evidence_open}{{document}}{self.evidence_close}{spec.end_of_turn}"
        )
        self.yes_id = self._slots.single(spec.yes)
        self.no_id = self._slots.single(spec.no)
        if spec.end_of_turn not in self._slots.control:
            raise TemplateError(
                f"template {spec.name!r} ends turns with {spec.end_of_turn!r}, which is not a token of this tokenizer:"
                " pass the template the checkpoint was trained with"
            )
        eos = tokenizer.eos_token_id
        self.stop_ids = frozenset({self._slots.control[spec.end_of_turn]} | ({eos} if eos is not None else set()))
        self.stop_strings = (self.evidence_close,)
        padding = tokenizer.pad_token_id
        self.pad_id: int = min(self.stop_ids) if padding is None else padding
        """Fills rows up; what it is makes no difference, but some tokenizers name none."""

    contribution_open = property(lambda self: f"<{self.spec.contribution_tag}>")
    contribution_close = property(lambda self: f"</{self.spec.contribution_tag}>")
    evidence_open = property(lambda self: f"<{self.spec.evidence_tag}>")
    evidence_close = property(lambda self: f"</{self.spec.evidence_tag}>")

    @property
    def label_ids(self) -> tuple[int, int]:
        """Token ids of (yes, no)."""
        return self.yes_id, self.no_id

    @property
    def takes_instruction(self) -> bool:
        return "{instruction}" in self.spec.text

    def require_texts(self) -> None:
        """Raises InputError where there is nothing to write after a yes."""
        if not self.spec.writes:
            raise InputError(
                f"evidence='written' is not to be had with template {self.spec.name!r}, which asks for yes or no and"
                " nothing else: ask for 'quoted', or load the model with template 'instruct'"
            )

    # --- rendering ---------------------------------------------------------------------------------------------------

    def render(
        self,
        query: str,
        document: Document,
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
        side: Side = "right",
    ) -> Prompt:
        """Token ids of a pair, at most `max_tokens` (default: the template's limit). Only the document is cut.

        `side`: where; with `left` the title stays, and the text ends as it does. Raises InputError when the instruction
        and query alone leave no room for the document.
        """
        limit = self.spec.max_prompt_tokens if max_tokens is None else max_tokens
        fills = self._fills(query, document, instruction)
        body = fills["document"]
        ahead = len(body) - len(document.text) if side == "left" else 0
        encoded, read = self._fit(fills, _Body(body[:ahead], body[ahead:], side), limit)
        ids = [id_ for id_, _ in encoded]
        return Prompt(ids, _truncation(document, body, read, side))

    def supervise(
        self,
        query: str,
        document: Document,
        verdict: Verdict,
        *,
        contribution: str | None = None,
        evidence: str | None = None,
        instruction: str | None = None,
        max_tokens: int | None = None,
    ) -> Supervised:
        """The prompt, the label and (for a yes with both texts) the written part, ended by the end-of-turn token.

        A yes without texts stops after its label: nothing is known about what should follow. The document is cut until
        prompt and target fit in `max_tokens`. Raises InputError when they cannot.
        """
        limit = self.spec.max_prompt_tokens + self.spec.max_written_tokens if max_tokens is None else max_tokens
        target = [(self.yes_id if verdict == "yes" else self.no_id, Part.LABEL)]
        if verdict == "no":
            target.append((self._slots.control[self.spec.end_of_turn], Part.WRITTEN))
        elif contribution and evidence:
            lead = self._space_before(evidence, document)
            fills = {"query": clean(contribution), "document": lead + clean(evidence)}
            named = {"query": Part.CONTRIBUTION, "document": Part.EVIDENCE}
            target += self._slots.encode(self._target, fills, named, Part.WRITTEN)
        fills = self._fills(query, document, instruction)
        body = fills["document"]
        encoded, read = self._fit(fills, _Body("", body), limit - len(target))
        sequence = encoded + target
        return Supervised(
            [id_ for id_, _ in sequence], [part for _, part in sequence], _truncation(document, body, read)
        )

    def _space_before(self, evidence: str, document: Document) -> str:
        """The space that stands before the evidence in the prompt, where this template keeps it."""
        body = self._fills("", document, None)["document"]
        at = body.find(clean(evidence)) if self.spec.evidence_keeps_space else -1
        ahead = self.spec.text.partition("{document}")[0] + body[:at]
        return " " if at >= 0 and ahead.endswith(" ") else ""

    def _fills(self, query: str, document: Document, instruction: str | None) -> dict[str, str]:
        if instruction is not None and not self.takes_instruction:
            raise InputError(f"template {self.spec.name!r} takes no instruction: leave it out")
        chosen = self.spec.default_instruction if instruction is None else instruction
        body = f"{document.title}\n{document.text}" if document.title else document.text
        return {"instruction": clean(chosen), "query": clean(query), "document": clean(body)}

    def _fit(self, fills: dict[str, str], body: _Body, limit: int) -> tuple[list[tuple[int, Part]], int]:
        """Encoded prompt within `limit` tokens, and how many characters of the body's text it holds."""
        # A budget's worth of text first: a megabyte is not tokenized to be thrown away.
        taken = min(len(body.text), max(limit, 1) * _CHARS_PER_TOKEN)
        while True:
            encoded = self._encoded(fills, body.part(taken))
            if len(encoded) > limit:
                return self._cut(fills, body, taken, limit)
            if taken == len(body.text):
                return encoded, taken
            taken = min(len(body.text), taken * 4)

    def _encoded(self, fills: dict[str, str], document: str) -> list[tuple[int, Part]]:
        return self._slots.encode(self._prompt, {**fills, "document": document}, {}, Part.PROMPT)

    def _cut(self, fills: dict[str, str], body: _Body, taken: int, limit: int) -> tuple[list[tuple[int, Part]], int]:
        """Shorten the text until the prompt fits; the suffix the score is read after always survives."""
        empty = self._encoded(fills, "")
        if len(empty) >= limit:
            raise InputError(
                f"instruction and query take {len(empty)} of {limit} tokens and leave no room for a document:"
                " shorten the query or raise the limit"
            )
        sizes = self._sizes(body.kept(taken), body.side)
        keep = min(limit - len(self._encoded(fills, body.head)), len(sizes) - 1)
        while keep > 0:
            # Token borders shift a little where the text meets its neighbours: re-encode and give way until it fits.
            encoded = self._encoded(fills, body.part(sizes[keep]))
            if len(encoded) <= limit:
                return encoded, sizes[keep]
            keep -= max(1, len(encoded) - limit)
        return empty, 0

    def _sizes(self, text: str, side: Side) -> list[int]:
        """Characters in the first (or, cut on the left, the last) n tokens of a text, for every n from 0 on."""
        starts = [start for start, _ in self._slots.plain(text).offsets]
        if side == "right":
            return [*starts, len(text)] if starts else [0]
        return [0, *(len(text) - start for start in reversed(starts))]

    def fit_text(self, text: str, max_tokens: int, side: Side = "right") -> str:
        """The longest beginning (or, cut on the left, end) of a text that is at most `max_tokens` tokens by itself."""
        body = _Body("", text, side)
        taken = min(len(text), max(max_tokens, 1) * _CHARS_PER_TOKEN)
        while (fits := self.count_plain(body.kept(taken)) <= max_tokens) and taken < len(text):
            taken = min(len(text), taken * 4)
        if fits:
            return text
        sizes = self._sizes(body.kept(taken), side)
        keep = min(max_tokens, len(sizes) - 1)
        while keep > 0 and (over := self.count_plain(body.kept(sizes[keep])) - max_tokens) > 0:
            keep -= over
        return body.kept(sizes[keep]) if keep > 0 else ""

    def count_plain(self, text: str) -> int:
        """How many tokens a text is in a prompt, where control tokens in it are ordinary text."""
        return len(self._slots.plain(text).ids)

    def count(self, text: str) -> int:
        """How many tokens the model reads a text as."""
        return count_tokens(self.tokenizer, text)

    # --- reading ---------------------------------------------------------------------------------------------------

    def decode(self, ids: list[int]) -> str:
        """Text of written ids; special tokens leave no text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def parse(self, text: str, finish: Literal["stop", "length"] = "stop") -> Written:
        """Contribution and evidence of a text written after `yes`. Never raises, never guesses.

        complete: both tagged parts, non-empty, in order, with nothing but white space around them;
        cut_off: the token limit came first (what is there is kept); malformed: anything else.
        """
        contribution, rest, closed = _between(text, self.contribution_open, self.contribution_close)
        evidence, tail, ended = _between(rest, self.evidence_open, self.evidence_close) if closed else (None, "", False)
        if closed and ended and contribution and evidence and not tail.strip():
            return Written(Outcome.COMPLETE, contribution, evidence)
        if finish == "length" and not ended:
            return Written(Outcome.CUT_OFF, contribution or None, evidence or None)
        return Written(Outcome.MALFORMED, contribution if closed and contribution else None, None)


def count_tokens(tokenizer: Any, text: str) -> int:
    """How many tokens a transformers tokenizer reads a text as, without those it puts around it."""
    return len(tokenizer.encode(clean(text), add_special_tokens=False, verbose=False))


def _between(text: str, opening: str, closing: str) -> tuple[str | None, str, bool]:
    """(content, what follows, whether it was closed); content is None when `text` does not begin with `opening`."""
    stripped = text.lstrip()
    if not stripped.startswith(opening):
        return None, text, False
    content, found, rest = stripped[len(opening) :].partition(closing)
    return content.strip(), rest, bool(found)


class _Body(NamedTuple):
    """What stands for the document in a prompt: a head that stays, and a text that is cut on one side."""

    head: str
    text: str
    side: Side = "right"

    def kept(self, chars: int) -> str:
        """So many characters of the text."""
        return self.text[:chars] if self.side == "right" else self.text[len(self.text) - chars :]

    def part(self, chars: int) -> str:
        return self.head + self.kept(chars)


def _truncation(document: Document, body: str, read: int, side: Side = "right") -> Truncation | None:
    """`read`: characters of the body, or of the text alone where it was cut on the left."""
    total = len(document.text)
    if read >= (total if side == "left" else len(body)):
        return None
    if side == "left":
        return Truncation(start=total - read, read_chars=read, total_chars=total)
    return Truncation(read_chars=max(0, read - (len(body) - total)), total_chars=total)
