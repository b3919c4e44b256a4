"""What a finished run leaves: a whole checkpoint, or adapters beside a base that is named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from prism.checkpoint import CONFIG_NAME, Base, Checkpoint, PrismConfig
from prism.errors import CheckpointError
from prism.template import Template
from prism.training.model import merged
from prism.training.recipe import Recipe, dump_recipe

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def package(path: Path, model: Any, recipe: Recipe, base: Checkpoint, template: Template, figures: list[str]) -> None:
    """Write the finished checkpoint to `path`, as `model.lora.save` says; `figures`: lines for an adapter's card."""
    if recipe.model.lora is None or recipe.model.lora.save == "merged":
        plain = merged(model, recipe, base)
        Checkpoint.save(path, model=plain, template=template, name=recipe.name, recipe=dump_recipe(recipe))
        return
    found = Base(name=recipe.model.base, sha256=weights_digest(base.path))
    save_adapter(path, model, found)
    config = PrismConfig(name=recipe.name, template=template.spec, base=found)
    (path / CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (path / "README.md").write_text(_card(recipe, found, figures), encoding="utf-8")


def save_adapter(path: Path, model: Any, base: Base) -> None:
    """peft's two files, as `peft.PeftModel.from_pretrained` reads them: the adapters in bf16, the base by its name."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    kept = (config.base_model_name_or_path, config.inference_mode)
    config.base_model_name_or_path, config.inference_mode = base.name, True
    config.save_pretrained(path)
    config.base_model_name_or_path, config.inference_mode = kept
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in sorted(get_peft_model_state_dict(model).items())
    }
    save_file(weights, path / ADAPTER_FILES[1], metadata={"format": "pt"})


def weights_digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights: of the file, or of several files' digests in the order of their names.

    Raises CheckpointError where there are none.
    """
    files = sorted(path.glob("*.gguf")) or sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{path}: no weights to name as the base of an adapter: expected *.safetensors or *.gguf")
    digests = []
    for file in files:
        with file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _card(recipe: Recipe, base: Base, figures: list[str]) -> str:
    lora = recipe.model.lora
    assert lora is not None
    lines = [
        f"# {recipe.name}",
        "",
        f"LoRA adapters of rank {lora.rank} (alpha {lora.alpha}, bf16) for `{base.name}`"
        f" (SHA-256 of its weights {base.sha256}).",
        f"The prompt is in `{CONFIG_NAME}`, the whole recipe in `recipe.yaml`.",
        "",
        *(f"- {line}" for line in figures),
        "",
        "Data and their licences, what was measured and what it is weak at: to be written by whoever publishes it.",
    ]
    return "\n".join(lines) + "\n"
