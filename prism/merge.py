"""Checkpoints that are not yet plain folders of weights, made into one: a GGUF file, an adapter beside its base.

    adapter folder -> its base (a catalogue name, a GGUF file, a folder, a hub id) -> base + low-rank update -> cache
    GGUF file      -> dequantized weights and tokenizer                             -> cache

Each is made once, in a folder named after the content of what went in, and appears there whole or not at all. Engines
then read it like any other checkpoint. Sums are made in fp32, where the low-rank update loses nothing, and stored in
the base's dtype (bf16 for a GGUF file).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prism import catalogue, gguf_file
from prism.errors import CheckpointError, in_one_line
from prism.outputs import made_whole

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

Locate = Callable[[str], Path]
"""A base's name -> the folder or GGUF file that holds it."""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter in peft's format and no weights of its own."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The name of the base that an adapter was trained on. Raises CheckpointError when it names none."""
    try:
        name = json.loads((folder / ADAPTER).read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / ADAPTER} is not an adapter's configuration: {error}") from error
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{folder / ADAPTER} names no base_model_name_or_path: which model was it trained on?")
    return name


def plain_from_gguf(path: Path) -> Path:
    """The folder with the weights and tokenizer of a GGUF file. Raises CheckpointError for a file that is none."""
    gguf_file.require_gguf(path)
    return _made_once(f"{path.stem}-{catalogue.sha256(path)[:16]}", partial(_convert, path))


def plain_from_adapter(folder: Path, locate: Locate, expected: str | None = None) -> Path:
    """The folder with an adapter merged into its base.

    `expected`: the SHA-256 of the base's file, where the adapter names it. Raises CheckpointError when the adapter is
    incomplete or was trained on another base.
    """
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}: the adapter is incomplete, or not safetensors")
    name = base_of(folder)
    known = catalogue.CATALOGUE.get(name)
    if known is not None and expected not in (None, known.sha256):
        raise CheckpointError(
            f"{folder} was trained on another {name} (SHA-256 {str(expected)[:12]}…, the catalogue's is"
            f" {known.sha256[:12]}…): it needs the version of Prism that it came with"
        )
    # What a catalogue base is, its hash says: what was merged before is found even where the base is gone.
    base = None if known else locate(name)
    identity = known.sha256 if known else _identity(base, expected)
    key = hashlib.sha256(f"{identity} {catalogue.sha256(weights)}".encode())
    key.update((folder / ADAPTER).read_bytes())
    return _made_once(
        f"{folder.resolve().name}-{key.hexdigest()[:16]}", lambda part: _merge(folder, base or locate(name), part)
    )


def _identity(base: Path | None, expected: str | None) -> str:
    """What tells one base from another: a file's hash; for a folder the sizes and times of its weights."""
    assert base is not None  # only a catalogue base has no place
    if base.is_file():
        digest = catalogue.sha256(base)
        if expected not in (None, digest):
            raise CheckpointError(
                f"{base} is not the base that the adapter was trained on (SHA-256 {digest[:12]}…, expected"
                f" {str(expected)[:12]}…)"
            )
        return digest
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(base.glob("*.safetensors"))]
    return json.dumps([str(base.resolve()), stats])


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    """`make` fills a new folder, which then takes its place in the cache; what is there already is used."""
    target = catalogue.cache_folder() / "merged" / name
    if (target / "config.json").is_file():
        return target
    try:
        with made_whole(target) as part:
            part.mkdir()
            make(part)
    except OSError as error:
        if not (target / "config.json").is_file():  # else another process was faster
            raise CheckpointError(
                f"cannot make {target}: {error.strerror or error}; PRISM_CACHE names another folder"
            ) from error
    return target


def _convert(path: Path, folder: Path) -> None:
    import torch

    model, tokenizer = _read_gguf(path, torch.bfloat16)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _merge(adapter: Path, base: Path, folder: Path) -> None:
    import torch

    model, tokenizer = _read_gguf(base, torch.float32) if base.is_file() else _read_folder(base)
    dtype = torch.bfloat16 if base.is_file() else model.dtype
    add_adapter(model.float(), adapter, base.name)
    with quiet():
        model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_adapter(model: Any, adapter: Path, base: str) -> None:
    """W + scale B A in place of every W that the adapter has a pair for (Hu et al. 2021, "LoRA", section 4.1).

    `model` in fp32. `scale` is alpha / rank, or alpha / sqrt(rank) with `use_rslora` (Kalajdzievski 2023, section 4.1).
    Raises CheckpointError, with the model untouched, unless every tensor of the adapter has its place.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = _plain_lora(adapter)
    try:
        tensors = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {adapter / ADAPTER_WEIGHTS}: {in_one_line(error)}") from error
    weights = dict(model.named_parameters(remove_duplicate=False))
    changes = []
    for name in sorted({key.removesuffix(_A).removesuffix(_B) for key in tensors}):
        down_RI, up_OR = tensors.get(name + _A), tensors.get(name + _B)
        weight_OI = weights.get(name.removeprefix(_PEFT) + ".weight")
        if down_RI is None or up_OR is None or weight_OI is None:
            raise CheckpointError(
                f"the adapter {adapter} does not fit its base {base}: {name} has no counterpart there"
            )
        if (len(up_OR), down_RI.shape[1]) != tuple(weight_OI.shape) or up_OR.shape[1] != len(down_RI):
            raise CheckpointError(
                f"the adapter {adapter} does not fit its base {base}: {name} is {len(up_OR)} x {down_RI.shape[1]}, the"
                f" base's is {' x '.join(map(str, weight_OI.shape))}"
            )
        rank = len(down_RI)
        scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
        changes.append((weight_OI, up_OR, down_RI, scale))
    with torch.no_grad():
        for weight_OI, up_OR, down_RI, scale in changes:
            weight_OI += scale * (up_OR.float() @ down_RI.float())


_PEFT, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_BEYOND_LORA = ("use_dora", "fan_in_fan_out", "alpha_pattern", "modules_to_save", "trainable_token_indices")


def _plain_lora(adapter: Path) -> dict[str, Any]:
    """The adapter's settings. Raises CheckpointError for what goes beyond low-rank updates of linear layers."""
    settings: dict[str, Any] = json.loads((adapter / ADAPTER).read_bytes())
    kind = settings.get("peft_type")
    beyond = [name for name in _BEYOND_LORA if settings.get(name)]
    beyond += ["bias"] if settings.get("bias", "none") != "none" else []
    if kind != "LORA" or beyond or not isinstance(settings.get("lora_alpha"), int | float):
        raise CheckpointError(
            f"{adapter} is an adapter of kind {' with '.join([str(kind), *beyond])}, and Prism merges plain LoRA only:"
            " merge it with peft (merge_and_unload) and load the result"
        )
    return settings


def _read_folder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"cannot load the base {folder}: {in_one_line(error)}") from error


def _read_gguf(path: Path, dtype: Any) -> tuple[Any, Any]:
    """The dequantized model, with nothing of its former format on it, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        with quiet():
            read = AutoModelForCausalLM.from_pretrained(
                **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except ImportError as error:  # gguf, or accelerate
        raise CheckpointError(f"cannot read {path}, a package is missing: {in_one_line(error)}") from error
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"cannot read {path}: {in_one_line(error)}; is the file complete?") from error
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(name, None)
    said = gguf_file.read_metadata(path)
    head_size = said.get(f"{said.get(gguf_file.ARCHITECTURE)}.attention.key_length")
    if head_size is not None:  # transformers takes the default of its class
        settings["head_dim"] = head_size
    with torch.device("meta"):  # what was read counts as quantized, and would not save: its tensors move
        plain = type(read)(type(read.config)(**settings)).to(dtype)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    return plain, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, reading weights draws no progress bars: it takes seconds, and standard error is the caller's."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    shown, bar = logging.is_progress_bar_enabled(), gguf_reader.tqdm
    logging.disable_progress_bar()
    gguf_reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()
