"""Exports: what each layout holds, that its prompt renders as ours, and that other tools score the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from vllm_support import save_float32

from prism.chat_template import spec_from_chat_template
from prism.checkpoint import Checkpoint
from prism.cli import app
from prism.errors import InputError
from prism.export import chat_template, export
from prism.template import PRISM, QWEN3_RERANKER, Template, TemplateSpec
from prism.types import Document

QUERY = 'when {"did"} it\nfreeze?'
DOCUMENTS = (
    Document(text="The harbour at Lindau froze in 1963."),
    Document(text="Copper conducts {{ electricity }} better.\n", title="Copper\n\\metals"),
    Document(text="铜的导电性比铁好。"),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Any, tiny_tokenizer: Any) -> Path:
    from copy import deepcopy

    path = save_float32(tmp_path_factory.mktemp("source"), deepcopy(tiny_qwen3), tiny_tokenizer)
    (path / "recipe.yaml").write_text("a: 1\n")
    return path


def rendered(tokenizer: Any, text: str, messages: list[dict[str, str]], **variables: Any) -> list[int]:
    prompt = tokenizer.apply_chat_template(
        messages, chat_template=text, tokenize=False, add_generation_prompt=True, **variables
    )
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def as_messages(document: Document) -> list[dict[str, str]]:
    body = f"{document.title}\n{document.text}" if document.title else document.text
    return [{"role": "query", "content": QUERY}, {"role": "document", "content": body}]


@pytest.mark.parametrize("spec", [PRISM, QWEN3_RERANKER, PRISM.model_copy(update={"text": "{query}\n\n{document}\n"})])
def test_the_chat_template_renders_what_the_template_renders(spec: TemplateSpec, tiny_tokenizer):
    template = Template(spec, tiny_tokenizer)
    text = chat_template(template)
    for document in DOCUMENTS:
        assert rendered(tiny_tokenizer, text, as_messages(document)) == template.render(QUERY, document).ids
    if template.takes_instruction:
        expected = template.render(QUERY, DOCUMENTS[0], instruction='Is it "cold"?').ids
        said = [{"role": "system", "content": 'Is it "cold"?'}, *as_messages(DOCUMENTS[0])]
        assert rendered(tiny_tokenizer, text, said) == expected
        assert rendered(tiny_tokenizer, text, as_messages(DOCUMENTS[0]), instruction='Is it "cold"?') == expected


def test_prism_reads_the_chat_template_back(tiny_tokenizer):
    """Written and read by the same convention: an export without its prism.json still loads."""
    from copy import deepcopy

    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = chat_template(Template(QWEN3_RERANKER, tokenizer))
    read = spec_from_chat_template(tokenizer)
    assert read is not None
    assert (read.text, read.default_instruction) == (QWEN3_RERANKER.text, QWEN3_RERANKER.default_instruction)


def test_merged_is_the_same_checkpoint(source, tmp_path):
    written = Checkpoint.load(export(source, tmp_path / "merged", "merged"))
    assert written.config == Checkpoint.load(source).config
    assert (tmp_path / "merged" / "recipe.yaml").read_text() == "a: 1\n"
    expected = Checkpoint.load(source).load_model("float32", "cpu").state_dict()
    got = written.load_model("float32", "cpu").state_dict()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("stale", [False, True])
def test_what_was_fitted_for_the_source_is_for_its_export_too(source, tmp_path, stale):
    """Other files have another name for the same scores; a fit that was for other scores already stays so."""
    before = Checkpoint.load(source)
    stamp = "0" * 12 if stale else before.score_version
    fitted = tmp_path / "fitted"
    shutil.copytree(source, fitted)
    config = before.config.model_copy(update={"score_version": stamp})
    (fitted / "prism.json").write_text(config.model_dump_json())
    written = Checkpoint.load(export(fitted, tmp_path / "merged", "merged", dtype="bfloat16"))
    assert written.score_version != before.score_version
    assert written.config.score_version == (stamp if stale else written.score_version)


def test_an_adapter_is_merged_into_its_base(source, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = Checkpoint.load(source).load_model("float32", "cpu")
    torch.manual_seed(3)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(source)
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 12, 77]])
    with torch.inference_mode():
        expected = tuned(ids).logits
    written = Checkpoint.load(export(tmp_path / "adapter", tmp_path / "merged", "merged", dtype="float32"))
    with torch.inference_mode():
        got = written.load_model("float32", "cpu")(ids).logits
    # written through bfloat16, as the base is stored
    assert torch.allclose(got, expected, atol=0.1)
    assert not torch.allclose(got, Checkpoint.load(source).load_model("float32", "cpu")(ids).logits, atol=0.1)


def ours(source: Path, documents: tuple[Document, ...] = DOCUMENTS) -> list[float]:
    """sigmoid(l_yes - l_no) by a plain forward pass over the rendered prompt."""
    checkpoint = Checkpoint.load(source)
    model = checkpoint.load_model("float32", "cpu")
    yes, no = checkpoint.template.label_ids
    scores = []
    for document in documents:
        with torch.inference_mode():
            logits = model(torch.tensor([checkpoint.template.render(QUERY, document).ids])).logits[0, -1]
        scores.append(torch.sigmoid(logits[yes] - logits[no]).item())
    return scores


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_cross_encoder_scores_the_sentence_transformers_layout_alike(source, tmp_path):
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(export(source, tmp_path / "st", "sentence-transformers")), device="cpu")
    bodies = [as_messages(document)[1]["content"] for document in DOCUMENTS]
    got = encoder.predict([(QUERY, body) for body in bodies])
    assert got.tolist() == pytest.approx(ours(source), abs=1e-4)


def test_the_classifier_scores_alike_and_is_no_constant(source, tmp_path):
    """A head that is not found starts from zeros and scores 0.5 for everything; ours must be found, and vary."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = export(source, tmp_path / "classifier", "sequence-classification")
    model, found = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = (path / "score_template.jinja").read_text(encoding="utf-8")
    scores = []
    for document in DOCUMENTS:
        with torch.inference_mode():
            logits = model(torch.tensor([rendered(tokenizer, text, as_messages(document))])).logits
        scores.append(torch.sigmoid(logits).item())
    assert scores == pytest.approx(ours(source), abs=1e-4)
    assert max(scores) - min(scores) > 0.01
    assert json.loads((path / "config.json").read_text())["num_labels"] == 1


@pytest.mark.parametrize("layout", ["merged", "sentence-transformers", "sequence-classification"])
def test_transformers_4_finds_the_rotations_and_the_tokenizer(layout, source, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    path = export(source, tmp_path / "out", layout)
    expected = AutoConfig.from_pretrained(source).rope_parameters
    assert json.loads((path / "config.json").read_bytes())["rope_theta"] == expected["rope_theta"]
    assert AutoConfig.from_pretrained(path).rope_parameters == expected
    said = json.loads((path / "tokenizer_config.json").read_bytes())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"  # the names of version 4
    assert not isinstance(said.get("extra_special_tokens"), list)
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(path)
    assert after.all_special_tokens == before.all_special_tokens
    assert after("a <|im_end|> b").input_ids == before("a <|im_end|> b").input_ids


def test_nothing_is_written_over(source, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(source, tmp_path / "taken", "merged")
    with pytest.raises(InputError, match="no layout 'onnx'"):
        export(source, tmp_path / "new", "onnx")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_the_command(source, tmp_path):
    target = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(source), str(target), "--layout", "sequence-classification"])
    assert done.exit_code == 0, done.output
    assert f"--chat-template {target}/score_template.jinja" in done.output.replace("\n", "")
    again = CliRunner().invoke(app, ["export", str(source), str(target)])
    assert again.exit_code == 2
    assert "not empty" in again.output
