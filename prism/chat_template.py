"""Which template a checkpoint gets (`choose_spec`), and those read from a tokenizer's chat template, never retyped.

A reranker's own (`spec_from_chat_template`: the roles `query` and `document`), or that of any chat model, which is then
asked to judge without having been taught to (`instruct_spec`); both are rendered with sentinels and cut at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from prism.errors import TemplateError
from prism.records import first_problem
from prism.template import PRISM, QWEN3_RERANKER, TemplateSpec

BUILT_IN: Mapping[str, TemplateSpec] = {spec.name: spec for spec in (PRISM, QWEN3_RERANKER)}
INSTRUCT = "instruct"
_SENTINELS = {slot: f"\ue000{slot}\ue001" for slot in ("instruction", "query", "document")}
_ANSWER = "\ue000answer\ue001"


def choose_spec(
    name: str | Path | None, tokenizer: Any, stored: TemplateSpec | None, source: str | Path
) -> TemplateSpec:
    """The template asked for by name or file, the one stored beside the weights of `source`, or its tokenizer's.

    Raises TemplateError when there is none, for a name that is none, and for those of `CHAT` without a chat template.
    """
    if name is not None:
        wording = CHAT.get(str(name))
        return instruct_spec(tokenizer, wording) if wording else load_spec(name)
    found = stored or spec_from_chat_template(tokenizer)
    if found is None:
        raise TemplateError(
            f"{source} has no prism.json and no reranker chat template: say which prompt it was trained with,"
            f" --template {', '.join(NAMES)} or a file; {' and '.join(CHAT)} suit any chat model"
        )
    return found


def load_spec(name_or_path: str | Path) -> TemplateSpec:
    """A template of `BUILT_IN` by name, or one from a JSON file of `TemplateSpec` fields.

    Raises TemplateError naming all that need no file when neither fits.
    """
    if str(name_or_path) in BUILT_IN:
        return BUILT_IN[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise TemplateError(
            f"no template {str(name_or_path)!r}: expected {', '.join(NAMES)} or a JSON file of template fields"
        )
    try:
        return TemplateSpec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise TemplateError(f"{path} is not a template: {first_problem(error)}") from error


def spec_from_chat_template(tokenizer: Any) -> TemplateSpec | None:
    """Read the prompt of a checkpoint that follows the sentence-transformers reranker convention.

    Such a chat template takes the roles `query` and `document` (and `system` for the instruction). It is rendered with
    sentinels and cut at them, never retyped: public copies of one such prompt already differ by a character.
    Returns None when the tokenizer has no chat template of that kind.
    """
    pair = [{"role": role, "content": _SENTINELS[role]} for role in ("query", "document")]
    system = {"role": "system", "content": _SENTINELS["instruction"]}
    plain = _render_chat(tokenizer, pair)
    if plain is None or any(plain.count(message["content"]) != 1 for message in pair):
        return None
    instructed = _render_chat(tokenizer, [system, *pair])
    default = ""
    text = plain
    if instructed is not None and instructed.count(_SENTINELS["instruction"]) == 1:
        default = _default_instruction(plain, instructed, _SENTINELS)
        text = instructed
    return TemplateSpec(name="chat-template", text=_slotted(text), default_instruction=default)


def _slotted(rendered: str) -> str:
    for slot, sentinel in _SENTINELS.items():
        rendered = rendered.replace(sentinel, f"{{{slot}}}")
    return rendered


def _render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], goes_on: bool = True) -> str | None:
    from jinja2 import TemplateError as JinjaError

    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=goes_on)
    except (JinjaError, ValueError, TypeError, KeyError):  # an ordinary chat template refuses the roles
        return None
    return rendered if isinstance(rendered, str) else None


def _default_instruction(plain: str, instructed: str, sentinels: Mapping[str, str]) -> str:
    """What the chat template itself says where the instruction would stand."""
    before, rest = instructed.split(sentinels["instruction"])
    after = rest[: rest.index(sentinels["query"]) + len(sentinels["query"])]
    if plain.startswith(before) and after in plain:
        return plain[len(before) : plain.index(after)]
    return QWEN3_RERANKER.default_instruction


# --- any chat model --------------------------------------------------------------------------------------------------


class Wording(NamedTuple):
    """What a chat model is told."""

    name: str = INSTRUCT
    """Of the template it makes."""
    instruction: str = "Does the document state what the query asks for? Being about the same subject is not enough."
    """The question that a yes or no answers; a caller's own instruction takes its place."""
    task: str = (
        "If not, answer with the single word no. If so, answer yes, then in one sentence between <contribution> and"
        " </contribution> what the document states for this query, then between <evidence> and </evidence> the"
        " sentences of the document that state it, copied word for word."
    )
    examples: tuple[tuple[str, str, str], ...] = (
        (
            "how long does the battery of the X2 last",
            "The X2 weighs 310 g. On a full charge it runs for 14 hours. A second battery is sold separately.",
            "yes\n<contribution>It states that the X2 runs for 14 hours on a full charge.</contribution>\n"
            "<evidence>On a full charge it runs for 14 hours.</evidence>",
        ),
        (
            "how long does the battery of the X2 last",
            "Batteries of the X2 are recycled free of charge. Never throw a battery into the household waste.",
            "no",
        ),
    )
    """Query, document, answer. The second shares the query's words and does not state what it asks for. In the other
    order Qwen2.5-Coder tells as much from as little (AUC), but hardly ever says yes: nothing would be written."""
    pair: str = "Query: {query}\nDocument: {document}"
    writes: bool = True
    """Whether `task` asks for texts."""


WORDING = Wording()
LABEL_ONLY = Wording(name="instruct-label", task="Answer with the single word yes or no.", examples=(), writes=False)
"""Ranks better, in less time. With it nearly all scores of an untaught Qwen2.5-Coder are below 0.5."""
CHAT: Mapping[str, Wording] = {wording.name: wording for wording in (WORDING, LABEL_ONLY)}
"""Both chosen by `eval/instruct_wording.py`."""
NAMES = (*BUILT_IN, *CHAT)
"""Templates that need no file."""


def instruct_spec(tokenizer: Any, wording: Wording = WORDING) -> TemplateSpec:
    """A prompt for any chat model, through its own chat template: what to do, the examples, the pair.

    Raises TemplateError when the tokenizer has no chat template that takes a system and a user turn, or ends turns with
    no token of its own.
    """
    messages = [{"role": "system", "content": f"{_SENTINELS['instruction']}\n{wording.task}"}]
    for query, document, answer in wording.examples:
        asked = wording.pair.format(query=query, document=document)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": wording.pair.format(**_SENTINELS)})
    rendered = _render_chat(tokenizer, messages)
    if rendered is None or any(rendered.count(sentinel) != 1 for sentinel in _SENTINELS.values()):
        raise TemplateError(
            f"template {wording.name!r} needs a model with a chat template that takes system, user and assistant turns,"
            f" and this one has none: expected {', '.join(BUILT_IN)} or a file"
        )
    return TemplateSpec(
        name=wording.name,
        text=_slotted(rendered),
        default_instruction=wording.instruction,
        end_of_turn=_end_of_turn(tokenizer, wording.name, messages),
        writes=wording.writes,
    )


def _end_of_turn(tokenizer: Any, name: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The control token that stands behind what a model has answered."""
    whole = _render_chat(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}], goes_on=False)
    after = whole.partition(_ANSWER)[2] if whole else ""
    control = (token.content for token in tokenizer.added_tokens_decoder.values())
    found = [(after.index(mark), -len(mark), mark) for mark in map(str, control) if mark and mark in after]
    if not found:
        raise TemplateError(f"template {name!r}: this model's chat template ends turns with no token of its own")
    return min(found)[2]
