"""What a GGUF file says about itself, read without torch: its metadata, and where Prism wrote it all that a checkpoint
has beside weights.

    prism.config                       `prism.json`, whole
    prism.yes_token_id, .no_token_id   the labels, as its tokenizer reads them
    prism.weights                      what tells the weights that it was made of from others (`prism.score_version`)
    tokenizer.huggingface.json         `tokenizer.json`, whole, so that texts become the very ids they always were

The tensors are llama.cpp's to read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from prism.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken

MAGIC = b"GGUF"
CONFIG, WEIGHTS, YES, NO = "prism.config", "prism.weights", "prism.yes_token_id", "prism.no_token_id"
TOKENIZER, END, PADDING = "tokenizer.huggingface.json", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id"
ARCHITECTURE = "general.architecture"

Metadata = dict[str, str | int | float | bool]

_VERSIONS = (2, 3)
_SINGLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values, and how `struct` reads them."""
_TEXT, _LIST = 8, 9


def require_gguf(path: Path) -> None:
    """Raises CheckpointError unless the file begins as GGUF files do."""
    with path.open("rb") as stream:
        if (magic := stream.read(len(MAGIC))) != MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file: it begins with {magic!r}, expected {MAGIC!r}")


def read_metadata(path: Path) -> Metadata:
    """All single values of the metadata; lists, which hold the vocabulary, are passed over.

    Raises CheckpointError for what is no GGUF file, one of another version, and one that ends too soon.
    """
    require_gguf(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Reader(content).metadata()
        except (struct.error, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path} ends within its metadata, or is damaged ({error}): is the file complete?"
            ) from error
        except _UnreadableError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


class _UnreadableError(Exception):
    """The content is of a kind that is not known."""


class _Reader:
    """Goes through the file once. Raises struct.error at its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = len(MAGIC)

    def metadata(self) -> Metadata:
        version = self._take("I")
        if version not in _VERSIONS:
            raise _UnreadableError(f"version {version} of the format, expected {' or '.join(map(str, _VERSIONS))}")
        _, count = self._take("Q"), self._take("Q")
        found: Metadata = {}
        for _ in range(count):
            key, kind = self._text(), self._take("I")
            if kind == _LIST:
                self._pass_list(key)
            elif kind == _TEXT:
                found[key] = self._text()
            else:
                found[key] = self._take(_format(kind, key))
        return found

    def _take(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._content, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def _skip(self, size: int) -> int:
        """The place before what is passed over."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise struct.error(f"{size:,} bytes are meant to follow byte {start:,}")
        return start

    def _text(self) -> str:
        start = self._skip(self._take("Q"))
        return self._content[start : self._at].decode("utf-8")

    def _pass_list(self, key: str) -> None:
        kind, count = self._take("I"), self._take("Q")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._take("Q"))
        else:
            self._skip(count * struct.calcsize(f"<{_format(kind, key)}"))


def _format(kind: int, key: str) -> str:
    if kind not in _SINGLE:
        raise _UnreadableError(f"{key} is of type {kind}, which is not known here")
    return _SINGLE[kind]


class PackedTokenizer:
    """What `Template` takes from a transformers tokenizer, by the tokenizers library alone."""

    chat_template = None

    def __init__(self, text: str, *, eos_token_id: int | None, pad_token_id: int | None) -> None:
        """`text`: a `tokenizer.json`."""
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_str(text)
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        found: dict[int, AddedToken] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> list[int]:
        """Ids. `verbose` is transformers', and says nothing here."""
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(
        self, ids: list[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Text. `clean_up_tokenization_spaces` is transformers', and never wanted here."""
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def tokenizer_of(metadata: Metadata, path: Path) -> PackedTokenizer:
    """The tokenizer that Prism put into a file. Raises CheckpointError where it cannot be read."""
    ids = {name: metadata.get(name) for name in (END, PADDING)}
    eos, pad = (value if isinstance(value, int) else None for value in ids.values())
    if TOKENIZER not in metadata:
        refuse_foreign(path, TOKENIZER)
    with tokenizer_errors(f"{TOKENIZER} of {path}"):
        return PackedTokenizer(str(metadata[TOKENIZER]), eos_token_id=eos, pad_token_id=pad)


@contextmanager
def tokenizer_errors(source: str) -> Iterator[None]:
    """What the tokenizers library cannot read becomes a CheckpointError that calls it `source`.

    The library raises bare Exceptions; whatever else is raised within is another's fault, and passes.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise CheckpointError(
            f"tokenizers {version('tokenizers')} cannot read {source}: it is none, or a newer version has written it:"
            f" upgrade tokenizers, or fetch the file again ({' '.join(str(error).split())[:300]})"
        ) from error


def refuse_foreign(path: Path, lacks: str) -> NoReturn:
    """Raises CheckpointError for a file without what Prism writes into one."""
    raise CheckpointError(
        f"{path} has no {lacks} in its metadata: it was not written by Prism, and its prompt and labels are not known."
        " Run `prism export CHECKPOINT FILE.gguf --layout gguf` on what it was made from, or load it with engine hf"
        " (which needs torch) and a template"
    )
