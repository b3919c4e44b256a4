"""The model a recipe trains: all of it, adapters beside it, or adapters beside a base in four bits."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from prism.engines.packed import PACKED
from prism.errors import RecipeError, in_one_line
from prism.location import MINI
from prism.merge import ADAPTER, ADAPTER_WEIGHTS, is_adapter
from prism.training.recipe import Lora, Recipe, Schedule

if TYPE_CHECKING:
    from prism.checkpoint import Checkpoint


def make_model(recipe: Recipe, base: Checkpoint) -> Any:
    """The model to train, on its device; the recipe's seed decides whatever is random in it.

    Raises RecipeError for what this machine lacks: a package, or a GPU.
    """
    from transformers import set_seed

    set_seed(recipe.seed)
    dtype, lora = recipe.dtype, recipe.model.lora
    if lora is not None and lora.quantize:
        model: Any = _in_four_bits(base, dtype)
    else:
        name: Literal["bfloat16", "float32"] = "bfloat16" if dtype is torch.bfloat16 else "float32"
        model = base.load_model(dtype=name)
    try:
        model.set_attn_implementation(attention_of(recipe.schedule))
    except ImportError as error:
        raise RecipeError(f"schedule.attention {recipe.schedule.attention!r}: {in_one_line(error)}") from error
    if recipe.schedule.liger:
        _speed_up(model)
    return model if lora is None else adapted(model, lora)


def attention_of(schedule: Schedule) -> str:
    """transformers' name of the attention to train with. flash-attn finds packed rows itself, by their positions."""
    return PACKED if schedule.packing and schedule.attention != "flash_attention_2" else schedule.attention


def require(package: str, setting: str, extra: str) -> None:
    """Raises RecipeError unless `package` is installed."""
    if find_spec(package) is None:
        raise RecipeError(
            f"{setting} needs {package}, which is not installed: pip install 'prism-reranker[{extra}]', or leave it out"
        )


# --- adapters --------------------------------------------------------------------------------------------------------


def adapted(model: Any, lora: Lora) -> Any:
    """The model with adapters beside its frozen weights. Raises RecipeError when `targets` names no module."""
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    try:
        made = get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"model.lora.targets {lora.targets!r}: {in_one_line(error)}") from error
    if lora.start is not None:
        _go_on(made, lora.start, lora)
    return made


def _go_on(model: Any, start: str, lora: Lora) -> None:
    """The numbers of a finished adapter in place of the new one's. Raises RecipeError when it is of another shape."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = adapter_folder(start)
    try:
        settings = json.loads((folder / ADAPTER).read_bytes())
        stored = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"model.lora.start: {start} is no adapter that can be read: {in_one_line(error)}") from error
    if (settings.get("r"), settings.get("lora_alpha")) != (lora.rank, lora.alpha):
        raise RecipeError(
            f"model.lora.start: {start} has rank {settings.get('r')} and alpha {settings.get('lora_alpha')}, the recipe"
            f" {lora.rank} and {lora.alpha}: they must be equal"
        )
    shapes = {name: value.shape for name, value in get_peft_model_state_dict(model).items()}
    if shapes != {name: value.shape for name, value in stored.items()}:
        raise RecipeError(f"model.lora.start: {start} is for another base or other targets than the recipe's")
    set_peft_model_state_dict(model, stored)


def adapter_folder(name: str) -> Path:
    """Where an adapter lies: `mini` comes with Prism. Raises RecipeError when there is none."""
    folder = MINI if name == "mini" else Path(name)
    if not is_adapter(folder):
        raise RecipeError(f"model.lora.start: {name} is no adapter: expected a folder with {ADAPTER}, or mini")
    return folder


def merged_model(model: Any, recipe: Recipe, base: Checkpoint) -> Any:
    """The plain model: adapters are folded into their weights in fp32, where nothing of them is rounded away."""
    lora = recipe.model.lora
    if lora is None:
        return model
    if lora.quantize:
        model = _out_of_four_bits(model, adapted(base.load_model("float32", "cpu"), lora))
    return model.float().merge_and_unload()


# --- four bits -------------------------------------------------------------------------------------------------------


def _in_four_bits(base: Checkpoint, dtype: torch.dtype) -> Any:
    """The base's projections as 4-bit NormalFloat with doubly quantized scales (Dettmers et al. 2023, "QLoRA")."""
    require("bitsandbytes", "model.lora.quantize", "qlora")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    here = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=dtype,
            device_map={"": here},
            quantization_config=settings,
            use_safetensors=True,
            trust_remote_code=base.trust_remote_code,
        ).eval()
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"model.lora.quantize: bitsandbytes does not run {base.name} here ({in_one_line(error)}): leave it out"
        ) from error
    for module in model.modules():
        # Some CPUs have weights rearranged by the first pass without gradients, an evaluation: after that they pass no
        # gradient on, and training goes on without learning.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _out_of_four_bits(trained: Any, plain: Any) -> Any:
    """`plain` with the numbers of `trained`: of a quantized weight those it stands for, which the adapters know."""
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        numbers = dict(trained.named_parameters())
        for name, parameter in plain.named_parameters():
            found = numbers[name]
            state = getattr(found, "quant_state", None)
            value = found if state is None else dequantize_4bit(found.data, state)
            parameter.copy_(value.to(parameter.device, torch.float32).reshape(parameter.shape))
    return plain


# --- kernels ---------------------------------------------------------------------------------------------------------


def _speed_up(model: Any) -> None:
    """Liger's kernels for norms, rotary embeddings and MLPs; the loss stays ours (Hsu et al. 2024, "Liger Kernel")."""
    if not torch.cuda.is_available():
        raise RecipeError("schedule.liger: Liger's kernels run on GPUs, and there is none here: set it to false")
    require("liger_kernel", "schedule.liger", "liger")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RecipeError(f"schedule.liger: this liger_kernel has nothing for {kind} models: set it to false")
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
