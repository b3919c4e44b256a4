"""Models that evaluations put questions to: judges and readers.

MODEL@BASE_URL                  behind an OpenAI-compatible API, a server of yours included (vLLM, llama.cpp, ...)
MODEL@BASE_URL#KEY_VARIABLE     the same; the environment variable holds the key
local:NAME-OR-FOLDER            a causal language model in this process, of the catalogue (`prism pull`), a folder or
                                the hub: greedy; what is asked at the same time is answered in one batch
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import ValidationError

from prism.catalogue import CATALOGUE
from prism.engines.base import WriteRequest
from prism.errors import InputError
from prism.evaluation.judge import ChatModel
from prism.llm.allowance import Provider
from prism.llm.chat import ChatClient, Completion, Messages
from prism.llm.failures import BadAnswer, Rejected
from prism.llm.money import Price
from prism.location import locate, plain_weights
from prism.records import first_problem
from prism.text import clean
from prism.types import Usage
from studies.systems import identity

if TYPE_CHECKING:
    from prism.engines.hf import HfEngine

AT_ONCE = 16
"""Questions to a local model in one batch: each weight is read once for all of them, which is most of writing."""
_GATHER_S = 0.01
"""Who got the last answers asks the next question within it."""


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
        return self.provider.concurrency if self.provider else AT_ONCE

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


class _Asked(NamedTuple):
    """A question that waits for its answer."""

    ids: list[int]
    max_tokens: int
    answer: asyncio.Future[tuple[str, int, str]]
    """Text, tokens written, and why it ended."""


class LocalChat:
    """A causal language model with a chat template, answering greedily in this process.

    What documents contain of the template's own control strings is broken up before it is rendered, so no text can end
    its turn and speak as somebody else.
    """

    def __init__(self, source: str) -> None:
        self.name = Path(source).name
        self._source = source
        self._waiting: list[_Asked] = []
        self._work: asyncio.Task[None] | None = None
        self._lock = Lock()
        self._model: _Loaded | None = None

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
        ids = await asyncio.to_thread(self._ids, messages)
        room = getattr(self._loaded.model.config, "max_position_embeddings", None)
        if room is not None and len(ids) + max_tokens > room:
            raise Rejected(f"{self.name}: {len(ids)} prompt tokens and {max_tokens} to write, of {room}")
        asked = _Asked(ids, max_tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        text, written, finish = await asked.answer
        usage = Usage(prompt_tokens=len(ids), written_tokens=written)
        if not text.strip():
            kind = "cut_off" if finish == "length" else "empty"
            raise BadAnswer(kind, f"{self.name}: the answer is {kind}", usage=usage, cost_usd=Decimal(0))
        return Completion(text=text, finish=finish, usage=usage, cost_usd=Decimal(0))

    async def _answer_all(self) -> None:
        """One batch after the other, until nobody waits."""
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            try:
                await self._answer(batch)
            except BaseException as error:  # it belongs to those who asked; who asked later still has his turn
                for asked in batch:
                    if not asked.answer.done():
                        asked.answer.set_exception(error) if isinstance(error, Exception) else asked.answer.cancel()
                if not isinstance(error, Exception):
                    raise

    async def _answer(self, batch: list[_Asked]) -> None:
        texts, written = [""] * len(batch), [0] * len(batch)
        requests = [WriteRequest(asked.ids, asked.max_tokens) for asked in batch]
        async for piece in self._loaded.engine.write(requests):
            texts[piece.index] += piece.text
            written[piece.index] += piece.tokens
            answer = batch[piece.index].answer
            if piece.finish and not answer.done():
                answer.set_result((texts[piece.index], written[piece.index], piece.finish))

    def _ids(self, messages: Messages) -> list[int]:
        tokenizer = self._loaded.tokenizer
        said = [{name: self._inert(clean(text)) for name, text in message.items()} for message in messages]
        rendered = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _inert(self, text: str) -> str:
        for word in self._controls:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text

    @cached_property
    def _controls(self) -> list[str]:
        added = self._loaded.tokenizer.added_tokens_decoder.values()
        return sorted((str(t) for t in added if len(str(t)) > 1 and (t.special or str(t)[0] in "<[")), key=len)[::-1]

    @property
    def _loaded(self) -> _Loaded:
        """Read with the first question, by one of the threads that ask."""
        with self._lock:
            if self._model is None:
                self._model = _load(self._source)
            return self._model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._model is not None:
            await self._model.engine.aclose()


class _Loaded(NamedTuple):
    tokenizer: Any
    model: Any
    engine: HfEngine


def _load(source: str) -> _Loaded:
    """Raises InputError for what is no chat model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prism.engines.hf import HfEngine
    from prism.engines.linear import arrange

    folder = plain_weights(locate(source), source, None) if source in CATALOGUE else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the chat model {source!r} ({type(error).__name__}): expected a name of `prism pull`, a folder"
            " or a name on the hub with safetensors weights"
        ) from error
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise InputError(f"{source!r} has no chat template or no end token: it cannot be asked questions")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    arrange(model, model.dtype, ())
    ends = model.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    engine = HfEngine(
        model,
        label_ids=(0, 1),  # nothing is scored
        stop_ids=known,
        stop_strings=(),
        pad_id=tokenizer.eos_token_id,
        decode=partial(tokenizer.decode, skip_special_tokens=True),
    )
    return _Loaded(tokenizer, model, engine)
