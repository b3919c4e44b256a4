"""Text with slots, as token ids: control tokens come from the text around the slots, never from what fills them."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from prism.errors import TemplateError

SLOTS = re.compile(r"\{(instruction|query|document)\}")
Chunk = int | list[tuple[str, bool]]
"""A control token's id, or a run of (literal, False) and (slot name, True)."""
_Kind = TypeVar("_Kind")


class Slots:
    """A tokenizer for such texts. Raises TemplateError when it has no fast backend."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(f"{type(tokenizer).__name__} has no fast backend: save the tokenizer as tokenizer.json")
        self._plain = _without_added_tokens(backend)
        self.control: dict[str, int] = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
        """Control tokens and their ids."""
        longest_first = sorted(self.control, key=len, reverse=True)
        self._split_control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def plain(self, text: str) -> Any:
        """The encoding (`ids`, `offsets`) of text in which control tokens are ordinary text."""
        return self._plain.encode(text, add_special_tokens=False)

    def single(self, label: str) -> int:
        """The one token of a label. Raises TemplateError when there are more."""
        ids = self.plain(label).ids
        if len(ids) != 1:
            raise TemplateError(
                f"label {label!r} is {len(ids)} tokens in this tokenizer, expected one: choose other labels"
            )
        return int(ids[0])

    def cut(self, text: str) -> list[Chunk]:
        """The text, cut at its control tokens."""
        chunks: list[Chunk] = []
        position = 0
        for match in [*self._split_control.finditer(text), None]:
            run = text[position : match.start() if match else len(text)]
            if run:
                parts = SLOTS.split(run)
                chunks.append([(part, bool(i % 2)) for i, part in enumerate(parts) if part])
            if match:
                chunks.append(self.control[match.group()])
                position = match.end()
        return chunks

    def encode(
        self, chunks: Iterable[Chunk], fills: Mapping[str, str], named: Mapping[str, _Kind], rest: _Kind
    ) -> list[tuple[int, _Kind]]:
        """Ids, each with the kind of its slot, else `rest`; a token across a border belongs to `rest`.

        Text between control tokens is tokenized in one piece, as in the whole string.
        """
        out: list[tuple[int, _Kind]] = []
        for chunk in chunks:
            if isinstance(chunk, int):
                out.append((chunk, rest))
                continue
            text, filled = "", []
            for piece, is_slot in chunk:
                value = fills.get(piece, "") if is_slot else piece
                if is_slot and piece in named:
                    filled.append((len(text), len(text) + len(value), named[piece]))
                text += value
            encoding = self.plain(text)
            kinds = [rest] * len(encoding.ids)
            starts, ends = [start for start, _ in encoding.offsets], [end for _, end in encoding.offsets]
            for low, high, kind in filled:
                first, last = bisect_left(starts, low), bisect_right(ends, high)
                kinds[first:last] = [kind] * (last - first)
            out += zip(encoding.ids, kinds, strict=True)
        return out


def _without_added_tokens(backend: Any) -> Any:
    """A tokenizer on the same vocabulary for which `<|im_end|>`, `</think>` and their like are ordinary text."""
    from tokenizers import Tokenizer

    plain = Tokenizer(backend.model)
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    return plain
