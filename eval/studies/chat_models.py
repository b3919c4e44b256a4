"""Models that evaluations put questions to: judges and readers.

MODEL@BASE_URL                  behind an OpenAI-compatible API, a server of yours included (vLLM, llama.cpp, ...)
MODEL@BASE_URL#KEY_VARIABLE     the same; the environment variable holds the key
local:FOLDER-OR-NAME            a causal language model in this process, through transformers: greedy, one at a time
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

from pydantic import ValidationError

from prism.errors import InputError
from prism.evaluation.judge import ChatModel
from prism.llm.allowance import Provider
from prism.llm.chat import ChatClient, Completion, Messages
from prism.llm.failures import BadAnswer, Rejected
from prism.llm.money import Price
from prism.records import first_problem
from prism.text import clean
from prism.types import Usage
from studies.systems import identity


class ChatSpec(NamedTuple):
    """A model as named on the command line."""

    model: str
    """As reports call it."""
    identity: str
    """Changes with the model: kept answers of another one are not taken over."""
    provider: Provider | None
    """None: in this process."""
    source: str
    """Where a local model is read from."""

    @property
    def at_once(self) -> int:
        """Questions under way at once."""
        return self.provider.concurrency if self.provider else 1

    def open(self) -> ChatModel:
        """A model to ask, inside `async with`. A local one is read with the first question."""
        return ChatClient(self.provider, name=self.model) if self.provider else LocalChat(self.source)


def parse_chat_spec(text: str, *, concurrency: int = 8) -> ChatSpec:
    """A judge or reader by name (see the module). Raises InputError for anything else."""
    kind, _, source = text.partition(":")
    if kind == "local" and source:
        return ChatSpec(Path(source).name, str(identity(source)), None, source)
    model, found, rest = text.partition("@http")
    url, _, variable = f"http{rest}".partition("#")
    if not found or not model:
        raise InputError(
            f"{text!r}: no model or no address: expected MODEL@BASE_URL, MODEL@BASE_URL#KEY_VARIABLE, or local:FOLDER"
        )
    try:
        provider = Provider(base_url=url, key_env=variable or None, concurrency=concurrency, backoff_s=0.5)
    except ValidationError as error:
        raise InputError(f"{text!r}: {first_problem(error)}") from error
    return ChatSpec(model, model, provider, "")


class LocalChat:
    """A causal language model with a chat template, answering greedily in this process.

    What documents contain of the template's own control strings is broken up before it is rendered, so no text can end
    its turn and speak as somebody else.
    """

    def __init__(self, source: str) -> None:
        self.name = Path(source).name
        self._source = source
        self._lock = Lock()

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        price: Price | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answer once; `model`, `price` and `params` are for services. Raises Rejected when the prompt does not fit."""
        return await asyncio.to_thread(self._complete, messages, max_tokens)

    def _complete(self, messages: Messages, max_tokens: int) -> Completion:
        import torch

        with self._lock:
            tokenizer, model = self._loaded
            ids = self._ids(messages)
            room = getattr(model.config, "max_position_embeddings", None)
            if room is not None and len(ids) + max_tokens > room:
                raise Rejected(f"{self.name}: {len(ids)} prompt tokens and {max_tokens} to write, of {room}")
            prompt = torch.tensor([ids], device=model.device)
            ends = sorted(self._ends)
            settings = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0]}
            with torch.inference_mode():
                made = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, **settings
                )
            written = made[0, len(ids) :].tolist()
        text = tokenizer.decode(written, skip_special_tokens=True)
        finish = "length" if len(written) == max_tokens and written[-1] not in self._ends else "stop"
        usage = Usage(prompt_tokens=len(ids), written_tokens=len(written))
        if not text.strip():
            kind = "cut_off" if finish == "length" else "empty"
            raise BadAnswer(kind, f"{self.name}: the answer is {kind}", usage=usage, cost_usd=Decimal(0))
        return Completion(text=text, finish=finish, usage=usage, cost_usd=Decimal(0))

    def _ids(self, messages: Messages) -> list[int]:
        tokenizer = self._loaded[0]
        said = [{name: self._inert(clean(text)) for name, text in message.items()} for message in messages]
        rendered = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _inert(self, text: str) -> str:
        for word in self._controls:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text

    @cached_property
    def _controls(self) -> list[str]:
        added = self._loaded[0].added_tokens_decoder.values()
        return sorted((str(t) for t in added if len(str(t)) > 1 and (t.special or str(t)[0] in "<[")), key=len)[::-1]

    @cached_property
    def _ends(self) -> set[int]:
        tokenizer, model = self._loaded
        ends = model.generation_config.eos_token_id
        known = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        return {end for end in known if end is not None}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._source)
            model = AutoModelForCausalLM.from_pretrained(self._source, dtype="auto", use_safetensors=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the chat model {self._source!r} ({type(error).__name__}): expected a folder or a name on"
                " the hub with safetensors weights"
            ) from error
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise InputError(f"{self._source!r} has no chat template or no end token: it cannot be asked questions")
        return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""
