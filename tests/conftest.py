"""Session fixtures: a tiny tokenizer and tiny random models, built in-process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM

settings.register_profile("prism", deadline=None)  # no test fails because a machine is slow
settings.load_profile("prism")

SENTENCES = (
    "Does this document answer the query? yes or no. yes. no. yes\nno\nyes no yes no",
    "The harbour at Lindau freezes only in very cold winters, most recently in 1963.",
    "Copper conducts electricity better than iron, and silver better than both of them.",
    "Der Hafen von Lindau friert nur in sehr kalten Wintern zu, zuletzt im Jahr 1963.",
    "Le cuivre conduit mieux l'électricité que le fer, et l'argent mieux que les deux.",
    "Медь проводит электричество лучше, чем железо, а серебро лучше, чем оба.",
    "铜的导电性比铁好，而银比两者都好。林道的港口只在非常寒冷的冬天结冰。",
    "銅は鉄よりも電気をよく通し、銀は両方よりもよく通す。",
    "<contribution>It names the winter.</contribution>\n<evidence>The harbour froze in 1963.</evidence>",
    "Instruct: Given a query, decide whether the document answers it.\nQuery: when\nDocument: what",
)
VOCABULARY = 600


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Byte-level BPE of about 600 tokens; `yes` and `no` are single tokens, `<think>` is an added, non-special one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, *["yes\nno\n"] * 20], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_qwen3() -> Any:
    """A random Qwen3 of two layers with grouped keys, float32."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    torch.manual_seed(20260101)
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_qwen35() -> Any:
    """A random Qwen3.5 with linear and full attention layers, float32."""
    config = Qwen3_5TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    torch.manual_seed(20260102)
    return Qwen3_5ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Any, tiny_tokenizer: Any) -> Path:
    """A directory with the weights of `tiny_qwen3` and the tokenizer."""
    path = tmp_path_factory.mktemp("tiny_checkpoint")
    tiny_qwen3.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """A browser's window, a desktop's, for the tests of a module."""
    if not (CHROMIUM and DRIVER):
        pytest.skip(MISSING)
    with browser() as window:
        yield window
