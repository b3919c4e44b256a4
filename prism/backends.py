"""Which engine a reranker gets, and what each takes from a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from prism import devices
from prism.checkpoint import Checkpoint, is_packed
from prism.devices import Dtype
from prism.engines.base import Engine
from prism.engines.settings import EngineOptions, checked_options
from prism.errors import EngineError, InputError

if TYPE_CHECKING:
    from prism.engines.hf import HfOptions
    from prism.engines.llamacpp import LlamaCppOptions
    from prism.engines.openai import OpenAIOptions
    from prism.engines.vllm import VllmOptions

EngineName = Literal["auto", "hf", "vllm", "openai", "llamacpp"]
KEY_NAME = "PRISM_ENGINE_API_KEY"
"""Environment variable with the key of remote servers; no other is read, for a key is not sent to another service."""


def choose_engine(name: EngineName, model: str) -> EngineName:
    """The engine that `auto` stands for: `llamacpp` for a GGUF file that Prism wrote, where llama-cpp-python is
    installed, or torch is not; else `hf`. Raises InputError for a name that is none.
    """
    if name not in get_args(EngineName):
        raise InputError(f"no engine {name!r}: expected {', '.join(get_args(EngineName))}")
    if name != "auto":
        return name
    return "llamacpp" if is_packed(model) and (find_spec("llama_cpp") or not find_spec("torch")) else "hf"


def open_checkpoint(
    engine: EngineName,
    model: str,
    *,
    template: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """A checkpoint as an engine reads it: `llamacpp` leaves its GGUF file packed. Raises as `Checkpoint.load` does."""
    if engine == "llamacpp":
        return Checkpoint.load_packed(model, template=template)
    return Checkpoint.load(model, template=template, revision=revision, trust_remote_code=trust_remote_code)


def open_engine(
    name: EngineName,
    checkpoint: Checkpoint,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    base_url: str | Sequence[str] | None = None,
    served_model: str | None = None,
    options: EngineOptions | Mapping[str, Any] | None = None,
) -> Engine:
    """An engine for a checkpoint: `hf` or `llamacpp` in this process, `vllm` in processes of its own, `openai` on other
    machines.

    `base_url` (one or several, up to `/v1`) and `served_model` belong to `openai`, `device` to the engines in this
    process, `dtype` to `hf` and `vllm`. `options`: see `read_engine_options`.
    Raises InputError when they do not fit together, EngineError or CheckpointError when the engine does not start.
    """
    name = choose_engine(name, str(checkpoint.home or checkpoint.path))
    urls = [base_url] if isinstance(base_url, str) else list(base_url or ())
    if (name == "openai") != bool(urls):
        raise InputError("base_url belongs to engine 'openai', and 'openai' needs at least one: http://host:8001/v1")
    read: Any = read_engine_options(name, options)
    if name == "openai":
        return _openai(checkpoint, urls, served_model, read)
    if name == "vllm":
        return _vllm(checkpoint, dtype, read)
    if name == "llamacpp":
        return _llamacpp(checkpoint, dtype, device, read)
    return _hf(checkpoint, dtype, device, read)


def read_engine_options(name: EngineName, given: EngineOptions | Mapping[str, Any] | None) -> EngineOptions:
    """Settings of an engine (not `auto`): fields of its `HfOptions`, `VllmOptions`, `OpenAIOptions`, `LlamaCppOptions`.

    Raises InputError naming the setting that is wrong.
    """
    if name == "openai":
        from prism.engines.openai import OpenAIOptions

        return checked_options(name, OpenAIOptions, given)
    if name == "vllm":
        from prism.engines.vllm import VllmOptions

        return checked_options(name, VllmOptions, given)
    if name == "llamacpp":
        from prism.engines.llamacpp import LlamaCppOptions

        return checked_options(name, LlamaCppOptions, given)
    from prism.engines.hf import HfOptions

    return checked_options(name, HfOptions, given)


def load_for_hf(checkpoint: Checkpoint, dtype: Dtype = "auto", device: str = "auto") -> Any:
    """The model as engine `hf` gets it: on a CPU its linear layers multiply as `dtype` says, between float32.

    Raises as `Checkpoint.load_model` does.
    """
    from prism.engines.linear import arrange

    model = checkpoint.load_model(dtype, device)
    arrange(model, devices.choose_dtype(model.device, dtype), checkpoint.obvious_prompts())
    return model


def read_vllm_options(name: EngineName, given: Sequence[str]) -> dict[str, Any] | None:
    """`tensor_parallel_size=2` and the like, from a command line, as `options` of `open_engine`.

    Values are JSON where they can be, else texts. Raises InputError for another engine, and for what is no NAME=VALUE.
    """
    if not given:
        return None
    if name != "vllm":
        raise InputError(f"engine options are vLLM's own settings: they need engine 'vllm', got {name!r}")
    found = {}
    for one in given:
        option, equals, value = one.partition("=")
        if not equals or not option.isidentifier():
            raise InputError(f"engine option {one!r}: expected NAME=VALUE, such as tensor_parallel_size=2")
        try:
            found[option] = json.loads(value)
        except ValueError:
            found[option] = value
    return {"options": found}


def _hf(checkpoint: Checkpoint, dtype: Dtype, device: str, options: HfOptions) -> Engine:
    from prism.engines.hf import HfEngine

    template = checkpoint.template
    return HfEngine(
        load_for_hf(checkpoint, dtype, device),
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        pad_id=template.pad_id,
        decode=template.decode,
        options=options,
    )


def _vllm(checkpoint: Checkpoint, dtype: Dtype, options: VllmOptions) -> Engine:
    from prism.engines.vllm import VllmEngine

    if find_spec("vllm") is None:
        raise EngineError('engine vllm needs vLLM: pip install "prism-reranker[vllm]" (on a CPU, see serve/README.md)')
    if dtype == "int8":
        raise InputError("dtype int8 is the hf engine's: with vllm use auto, or a quantized checkpoint")
    template = checkpoint.template
    needed = template.spec.max_prompt_tokens + template.spec.max_written_tokens + 1  # vLLM samples a token to score
    return VllmEngine(
        checkpoint.path,
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        dtype=dtype,
        context=min(needed, checkpoint.context_tokens or needed),
        **dict(options),
    )


def _llamacpp(checkpoint: Checkpoint, dtype: Dtype, device: str, options: LlamaCppOptions) -> Engine:
    if find_spec("llama_cpp") is None:
        raise EngineError('engine llamacpp needs llama-cpp-python: pip install "prism-reranker[llamacpp]"')
    from prism.engines.llama_context import LlamaContext
    from prism.engines.llamacpp import LlamaCppEngine

    if dtype != "auto":
        raise InputError(f"dtype {dtype}: llama.cpp computes in the type a file is stored in; export it in another")
    if device not in ("auto", "cpu"):
        raise InputError(f"device {device!r}: with engine llamacpp auto (a GPU if llama.cpp was built for it) or cpu")
    template = checkpoint.template
    settings = dict(options)
    speculate = settings.pop("speculate")
    settings["context"] = options.context or template.spec.max_prompt_tokens + template.spec.max_written_tokens
    settings["threads"] = options.threads or devices.cores()
    return LlamaCppEngine(
        LlamaContext(checkpoint.path, gpu=device == "auto", **settings),
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        decode=template.decode,
        speculate=speculate,
    )


def _openai(checkpoint: Checkpoint, urls: Sequence[str], model: str | None, options: OpenAIOptions) -> Engine:
    from prism.engines.openai import OpenAIEngine

    template = checkpoint.template
    return OpenAIEngine(
        urls,
        label_ids=template.label_ids,
        label_texts=(template.spec.yes, template.spec.no),
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        model=model,
        api_key=os.environ.get(KEY_NAME),
        context=checkpoint.context_tokens,
        options=options,
    )
