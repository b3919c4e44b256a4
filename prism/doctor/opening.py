"""From what stands on the command line to a target: a checkpoint is loaded, a server is asked what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prism.doctor.targets import HttpTarget, LocalTarget, Target
from prism.errors import EngineError, InputError
from prism.llm.allowance import plain_address
from prism.llm.failures import Stop, Undelivered, WrongEndpoint
from prism.llm.rerank_api import DIALECTS, rerank_url

if TYPE_CHECKING:
    import httpx

    from prism.devices import Dtype

_TRIED = ("jina", "tei", "cohere", "voyage", "sglang")
"""Dialects to try on a server that does not say what it is, commonest first."""
_OWNERS = ("prism", "vllm", "sglang")
"""Servers that call themselves so in `/v1/models`."""


def open_unchecked(source: str, *, template: str | None = None, dtype: Dtype = "auto", device: str = "auto") -> Target:
    """A checkpoint, loaded without its self-test: what is wrong with it is to be found here."""
    from prism.reranker import Reranker

    return LocalTarget(Reranker.load(source, template=template, dtype=dtype, device=device, self_test=False))


def open_server(
    url: str, *, dialect: str = "auto", model: str | None = None, key_env: str | None = None, timeout_s: float = 60.0
) -> Target:
    """A server, asked which dialect it speaks unless `dialect` says.

    The key is read from `key_env`; without that only a service's own address gets the key of its own variable. Raises
    InputError or ChatError when it cannot be reached, wants a key, or speaks none of the dialects.
    """
    import httpx

    try:
        plain_address(url)
    except ValueError as error:
        raise InputError(f"{url!r}: {error}") from error
    service = _service(url)
    variable = key_env or (DIALECTS[service].key if service else None)
    key = os.environ.get(variable) if variable else None
    if key_env and not key:
        raise InputError(f"no key in the environment: set {key_env}, which --api-key-env names")
    if service and not model:
        raise InputError(f"{service} serves several models: say which, --model NAME")
    client = httpx.Client(timeout=timeout_s)
    try:
        said = _Said(client, url, key)
        spoken = dialect if dialect != "auto" else service or said.dialect
        tried = [spoken] if spoken else _TRIED
        return _first_that_answers(
            tried, url, client, model=model or said.model, key=key, key_env=variable, limit_tokens=said.limit_tokens
        )
    except BaseException:
        client.close()
        raise


def _service(url: str) -> str | None:
    """The service whose own address this is."""
    host = urlsplit(url).netloc
    return next(
        (name for name, dialect in DIALECTS.items() if host and urlsplit(dialect.base_url).netloc == host), None
    )


def _first_that_answers(tried: Any, url: str, client: httpx.Client, **settings: Any) -> Target:
    """Raises what the last of them failed with; with one dialect only what ends everything."""
    last: Exception | None = None
    for name in tried:
        target = HttpTarget(name, rerank_url(name, url), client, **settings)
        try:
            target.ask("what is water", ["Water is a liquid.", "The train was late."])
            return target
        except WrongEndpoint as error:
            last = error
        except Stop:
            raise
        except Undelivered as error:
            if error.kind in ("connection", "timeout"):
                raise EngineError(
                    f"cannot reach {url}: {error}: is the server running, is the address right?"
                ) from error
            last = error
            if len(tried) == 1 and error.kind == "server_error":
                return target  # reached, and failing: that is for the checks to tell
    raise EngineError(f"{url} answers as none of {', '.join(tried)} does (last: {last}): say --dialect and --model")


class _Said:
    """What a server says about itself, as far as it does."""

    def __init__(self, client: httpx.Client, url: str, key: str | None) -> None:
        root = url.rstrip("/").removesuffix("/rerank").removesuffix("/v1").removesuffix("/v2")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        models = _object(client, f"{root}/v1/models", headers).get("data")
        listed = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        info = _object(client, f"{root}/info", headers)
        owner = listed.get("owned_by")
        named = listed.get("id") or info.get("model_id")
        limit = listed.get("max_model_len") or info.get("max_input_length")
        self.dialect = owner if owner in _OWNERS else "tei" if "model_type" in info else None
        self.model = named if isinstance(named, str) else ""
        self.limit_tokens = limit if isinstance(limit, int) else None


def _object(client: httpx.Client, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object at an address; empty where there is none, which is no failure: few servers have these pages."""
    import httpx

    try:
        response = client.get(url, headers=headers)
        found = response.json() if response.status_code == 200 else None
    except httpx.HTTPError as error:
        raise EngineError(f"cannot reach {url}: {type(error).__name__}: is the server running?") from error
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
