"""A checkpoint in the layouts of other tools. Each export carries the prompt, so it scores as Prism does.

    merged                 one plain checkpoint: a LoRA adapter folded into its base, `prism.json` beside the weights
    sentence-transformers  `CrossEncoder(path)` scores it; stays a causal language model
    sequence-classification  `vllm serve path --chat-template path/score_template.jinja` answers /rerank and /score
    gguf                   one file for llama.cpp, which engine `llamacpp` scores and writes with, without torch

The two foreign folders score only, and read the text of control tokens as control tokens: a document that contains
`<|im_end|>` can end its turn there. Prism's own engines do not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prism.checkpoint import CONFIG_NAME, Checkpoint, PrismConfig
from prism.errors import CheckpointError, InputError
from prism.location import locate
from prism.outputs import made_whole
from prism.score_version import name_scores, stale
from prism.template import Template

if TYPE_CHECKING:
    from prism.gguf_writing import Stored as GgufStored

Layout = Literal["merged", "sentence-transformers", "sequence-classification", "gguf"]
FolderStored = Literal["auto", "float32", "bfloat16"]
Stored = Literal["auto", "float32", "bfloat16", "float16", "q8_0"]
SCORE_TEMPLATE = "score_template.jinja"
_HEAD_ROWS = 1


def export(
    source: str | Path, target: Path, layout: Layout, *, template: str | None = None, dtype: Stored = "auto"
) -> Path:
    """Write the checkpoint `source` (`mini`, a directory, a LoRA adapter's directory, or a hub id) to `target`.

    `dtype`: of the written weights; auto keeps that of the source, in a GGUF file it is float16. Nothing is written
    over: `target` must be a new or empty folder, with layout gguf a new file. Raises CheckpointError when the source
    does not load or does not fit the layout, InputError when the target is taken.
    """
    if layout not in get_args(Layout):
        raise InputError(f"no layout {layout!r}: expected {', '.join(get_args(Layout))}")
    if layout == "gguf":
        return _export_file(source, target, template, "float16" if dtype == "auto" else dtype)
    if dtype == "float16" or dtype == "q8_0":  # mypy understands no tuple
        raise InputError(f"dtype {dtype} is layout gguf's: expected auto, float32 or bfloat16 with {layout}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not empty: choose another target, or remove it first")
    checkpoint, model = _load(source, template, dtype)
    with made_whole(target) as part:
        part.mkdir()
        _WRITERS[layout](part, checkpoint, model)
        _tell_older_readers(part)
        if target.exists():
            target.rmdir()
    return target


def _export_file(source: str | Path, target: Path, template: str | None, stored: GgufStored) -> Path:
    from prism.gguf_writing import write_gguf

    if target.suffix.lower() != ".gguf":
        raise InputError(f"layout gguf writes one file: name it so that it ends in .gguf, got {target}")
    if target.exists():
        raise InputError(f"{target} exists: choose another target, or remove it first")
    checkpoint, model = _load(source, template, "auto")
    with made_whole(target) as part:
        write_gguf(part, checkpoint, model, stored)
    return target


def _load(source: str | Path, template: str | None, dtype: FolderStored) -> tuple[Checkpoint, Any]:
    """The checkpoint and its causal language model on the CPU."""
    checkpoint = Checkpoint.load(source, template=template)
    stored = json.loads((checkpoint.path / "config.json").read_bytes())
    own: FolderStored = "float32" if (stored.get("dtype") or stored.get("torch_dtype")) == "float32" else "bfloat16"
    return checkpoint, checkpoint.load_model(own if dtype == "auto" else dtype, "cpu")


# --- the layouts -----------------------------------------------------------------------------------------------------


def _write_merged(path: Path, checkpoint: Checkpoint, model: Any) -> None:
    model.save_pretrained(path, safe_serialization=True)
    checkpoint.tokenizer.save_pretrained(path)
    _write_json(path / CONFIG_NAME, _restamped(path, checkpoint).model_dump(mode="json"))
    recipe = (checkpoint.home or checkpoint.path) / "recipe.yaml"
    if recipe.is_file():
        shutil.copyfile(recipe, path / recipe.name)


def _restamped(path: Path, checkpoint: Checkpoint) -> PrismConfig:
    """The configuration beside these weights: fits made for the source's scores hold for theirs, which are the same."""
    config = checkpoint.config
    if config.score_version is None or stale(config.score_version, checkpoint.score_version, "made"):
        return config
    named = name_scores(config.template, path, locate, config.base_sha256)
    return config.model_copy(update={"score_version": named})


def _write_sentence_transformers(path: Path, checkpoint: Checkpoint, model: Any) -> None:
    """The files of sentence-transformers 6.2: a text-generation module, then the two labels' logits, then a sigmoid."""
    _write_merged(path, checkpoint, model)
    (path / "chat_template.jinja").write_text(chat_template(checkpoint.template), encoding="utf-8")
    modules = (
        ("base.modules.transformer.Transformer", ""),
        ("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
    )
    _write_json(
        path / "modules.json",
        [
            {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.{kind}"}
            for index, (kind, folder) in enumerate(modules)
        ],
    )
    _write_json(
        path / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "logits"},
                "message": {"method": "forward", "method_output_name": "logits", "format": "flat"},
            },
            "module_output_name": "causal_logits",
        },
    )
    _write_json(
        path / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid", "prompts": {}},
    )
    yes_id, no_id = checkpoint.template.label_ids
    (path / "1_LogitScore").mkdir()
    _write_json(
        path / "1_LogitScore" / "config.json",
        {"true_token_id": yes_id, "false_token_id": no_id, "module_input_name": "causal_logits"},
    )


def _write_sequence_classification(path: Path, checkpoint: Checkpoint, model: Any) -> None:
    """One output row `w_yes - w_no`: its product with the last hidden state is l_yes - l_no, vLLM adds the sigmoid.

    The head is written under the name every `...ForSequenceClassification` reads, `score.weight`: where a server does
    not find it there, it starts from zeros and scores a constant 0.5.
    """
    from safetensors.torch import save_file

    yes_id, no_id = checkpoint.template.label_ids
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise CheckpointError(f"{checkpoint.name} has a biased output layer, which this layout cannot carry")
    rows = head.weight.detach().float()
    score_1H = (rows[yes_id] - rows[no_id])[None].to(model.dtype)
    weights = {
        name: tensor.contiguous().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("lm_head.")
    }
    save_file({**weights, "score.weight": score_1H.contiguous()}, path / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict()
    name = (config.get("architectures") or [type(model).__name__])[0]
    config |= {
        "architectures": [name.replace("ForCausalLM", "ForSequenceClassification")],
        "num_labels": _HEAD_ROWS,
        "id2label": {"0": "relevant"},
        "label2id": {"relevant": 0},
        "dtype": str(model.dtype).removeprefix("torch."),
        "pad_token_id": checkpoint.tokenizer.pad_token_id,
    }
    _write_json(path / "config.json", config)
    checkpoint.tokenizer.save_pretrained(path)
    written = chat_template(checkpoint.template)
    for file in (SCORE_TEMPLATE, "chat_template.jinja"):
        (path / file).write_text(written, encoding="utf-8")


def _tell_older_readers(folder: Path) -> None:
    """What transformers 4 reads under other names: the base of the rotations (without it, 10,000), and tokenizers."""
    config = json.loads((folder / "config.json").read_bytes())
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        _write_json(folder / "config.json", {**config, "rope_theta": rope["rope_theta"]})
    tokenizer = json.loads((folder / "tokenizer_config.json").read_bytes())
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    _write_json(folder / "tokenizer_config.json", tokenizer)


_WRITERS = {
    "merged": _write_merged,
    "sentence-transformers": _write_sentence_transformers,
    "sequence-classification": _write_sequence_classification,
}


# --- the prompt ------------------------------------------------------------------------------------------------------


def chat_template(template: Template) -> str:
    """The prompt as a Jinja chat template with the roles `query` and `document`.

    The instruction comes from a `system` message (sentence-transformers) or the variable `instruction` (vLLM), else it
    is the template's default. All text stands inside expressions: Jinja drops a newline at the end of a template, and
    the score is read right after one.
    """
    import re

    spec = template.spec
    lines = [
        _set(role, f"messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first | default('')")
        for role in ("query", "document")
    ]
    if template.takes_instruction:
        said = "messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
        default = json.dumps(spec.default_instruction, ensure_ascii=False)
        lines.append(_set("asked", f"{said} | default(instruction, true) | default({default}, true)"))
    names = {"query": "query", "document": "document", "instruction": "asked"}
    parts = re.split(r"\{(instruction|query|document)\}", spec.text)
    shown = [names[part] if at % 2 else json.dumps(part, ensure_ascii=False) for at, part in enumerate(parts) if part]
    return "".join(lines) + "{{- " + " ~ ".join(shown) + " -}}"


def _set(name: str, expression: str) -> str:
    return f"{{%- set {name} = {expression} -%}}"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
