"""Every error Prism raises on purpose.

    PrismError
    ├── InputError         the call itself is wrong: blank query, bad option, wrong type   (HTTP 400/422)
    │   ├── DocumentError  one document cannot be judged; the others still are             (on its own result)
    │   └── TooManyTokens  the call's prompts together are over its limit: send less at once
    ├── TemplateError      a template does not fit the tokenizer, or is not a template
    ├── CheckpointError    a checkpoint is missing, incomplete, unsafe or fails its self-test
    ├── RecipeError        a training recipe does not parse or contradicts itself
    ├── DataError          a data file is malformed; names the file and the line
    ├── PanelError         a panel file is wrong, or does not fit the votes it would add to
    └── EngineError        the model could not compute what was asked
        ├── LabelMissing   a label's log-probability was not returned: never replaced by a guess
        └── ChatError      an LLM behind an API gave no usable answer; its kinds are in prism.llm.chat

Each message says what was got, what was expected and what to do next, in one line.
"""

from __future__ import annotations


class PrismError(Exception):
    """Root of the tree: catch this to catch everything Prism raises on purpose."""


class InputError(PrismError, ValueError):
    """The caller's input is wrong."""


class DocumentError(InputError):
    """One document cannot be judged."""


class TooManyTokens(InputError):
    """A call takes more tokens than it may: what it asks can be asked in several calls."""


class TemplateError(PrismError):
    """A template does not fit the tokenizer, or is malformed."""


class CheckpointError(PrismError):
    """A checkpoint cannot be loaded, or fails its self-test."""


class RecipeError(PrismError):
    """A recipe is wrong."""


class DataError(PrismError):
    """A data file is malformed."""


class PanelError(PrismError):
    """A panel is wrong."""


class EngineError(PrismError):
    """An engine failed."""


class LabelMissing(EngineError):
    """A label's log-probability is absent from the engine's answer."""


class ChatError(EngineError):
    """An LLM behind an API gave no usable answer."""


def in_one_line(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, for a message of ours; at most so many characters of it."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
