"""What a finished run leaves: a whole checkpoint, or adapters beside a base that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prism import catalogue
from prism.checkpoint import CONFIG_NAME, Checkpoint, PrismConfig
from prism.merge import ADAPTER, ADAPTER_WEIGHTS
from prism.outputs import write_text
from prism.template import Template
from prism.training.model import merged_model
from prism.training.recipe import Recipe, dump_recipe


def package(path: Path, model: Any, recipe: Recipe, base: Checkpoint, template: Template, figures: list[str]) -> None:
    """Write the finished checkpoint to `path`, as `model.lora.save` says; `figures`: lines for an adapter's card."""
    if recipe.model.lora is None or recipe.model.lora.save == "merged":
        plain = merged_model(model, recipe, base)
        Checkpoint.save(path, model=plain, template=template, name=recipe.name, recipe=dump_recipe(recipe))
        return
    save_adapter(path, model, recipe.model.base)
    config = PrismConfig(name=recipe.name, template=template.spec, base_sha256=base_sum(base))
    (path / CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (path / "README.md").write_text(_card(recipe, config.base_sha256, figures), encoding="utf-8")


def save_adapter(path: Path, model: Any, base: str) -> None:
    """peft's two files, as `peft.PeftModel.from_pretrained` reads them: the adapters in bf16, the base by its name."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    kept = (config.base_model_name_or_path, config.inference_mode)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(path)
    config.base_model_name_or_path, config.inference_mode = kept
    said = json.loads((path / ADAPTER).read_bytes())  # peft writes its set of modules in any order, and what is unset
    modules = said["target_modules"]
    said["target_modules"] = modules if isinstance(modules, str) else sorted(modules)
    settings = {name: value for name, value in sorted(said.items()) if value not in (None, {}, [], False)}
    write_text(path / ADAPTER, json.dumps(settings, indent=2) + "\n")
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in sorted(get_peft_model_state_dict(model).items())
    }
    save_file(weights, path / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def base_sum(base: Checkpoint) -> str | None:
    """SHA-256 of a base that is one file; None for a folder, whose files may change without its weights."""
    return catalogue.sha256(base.home) if base.home is not None and base.home.is_file() else None


def _card(recipe: Recipe, base_sha256: str | None, figures: list[str]) -> str:
    lora = recipe.model.lora
    assert lora is not None  # only adapters have this card
    known = f" (SHA-256 {base_sha256})" if base_sha256 else ""
    lines = [
        f"# {recipe.name}",
        "",
        f"LoRA adapters of rank {lora.rank} (alpha {lora.alpha}, bf16) for `{recipe.model.base}`{known}.",
        f"The prompt is in `{CONFIG_NAME}`, the whole recipe in `recipe.yaml`.",
        "",
        *(f"- {line}" for line in figures),
        "",
        "Data and their licences, what was measured and what it is weak at: to be written by whoever publishes it.",
    ]
    return "\n".join(lines) + "\n"
