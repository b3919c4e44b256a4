"""Language models that write for a command: behind an API, or served on this machine (`--start-local`)."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prism.errors import InputError

if TYPE_CHECKING:
    from prism.llm.allowance import Provider
    from prism.llm.chat import ChatClient

StartLocal = Annotated[
    bool, typer.Option("--start-local", help="Serve --model here with llama.cpp: a name of prism pull, or a GGUF file.")
]
CONTEXT_TOKENS = 4096
"""Longest prompt and answer together."""
_TIMEOUT_S = 600.0


def api_provider(
    base_url: str,
    key_env: str | None,
    concurrency: int,
    budget_usd: float | None = None,
    requests_per_minute: float | None = None,
) -> Provider:
    """What the options say of an API. Raises InputError for an address or a limit that is none."""
    from pydantic import ValidationError

    from prism.llm.allowance import Provider
    from prism.records import first_problem

    try:
        return Provider(
            base_url=base_url,
            key_env=key_env,
            concurrency=concurrency,
            budget_usd=None if budget_usd is None else Decimal(str(budget_usd)),
            requests_per_minute=requests_per_minute,
        )
    except ValidationError as error:
        raise InputError(f"--base-url {base_url!r}: {first_problem(error)}") from error


def api_writer(provider: Provider, model: str, spent_usd: Decimal) -> ChatClient:
    """A model behind an API; `spent_usd` before counts towards the provider's budget."""
    from prism.llm.chat import ChatClient

    return ChatClient(provider, name=model, spent_usd=spent_usd)


def require_writer(model: str) -> None:
    """Raises InputError for a model that is not here, or whose terms keep what it writes out of training data."""
    from prism.catalogue import listed, require_model

    require_model(model)
    base = listed(model)
    if base and base.studies_only:
        raise InputError(f"{base.name} is under {base.licence}: take another writer")


def served_writer(model: str, log: Path, context_tokens: int = CONTEXT_TOKENS) -> ChatClient:
    """A model of this machine, whose server starts at the first question and writes to `log`."""
    from prism.catalogue import model_file
    from prism.llm.allowance import Provider
    from prism.llm.local_server import LocalServer
    from prism.llm.served import ServedClient

    provider = Provider(base_url="http://127.0.0.1/v1", concurrency=1, timeout_s=_TIMEOUT_S)  # one after the other
    return ServedClient(
        provider, lambda: LocalServer(model_file(model), model, log=log, context_tokens=context_tokens), name=model
    )


def writer_identity(model: str) -> str:
    """A model of this machine is its file, whatever it is called."""
    from prism.labeling.panel import LocalModel

    return json.dumps(LocalModel(model=model).identity(), sort_keys=True)
