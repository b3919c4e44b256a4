"""Settings of engines: what a caller may say, and the one line about what he may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.backends import EngineName, read_engine_options
from prism.engines.hf import HfOptions
from prism.engines.openai import OpenAIOptions
from prism.engines.settings import refuse_unknown
from prism.errors import InputError
from prism.reranker import Reranker


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("hf", {"pakced": True}, "no option of engine hf is called 'pakced': did you mean 'packed'?"),
        ("hf", {"compield": True}, "no option of engine hf is called 'compield': did you mean 'compiled'?"),
        (
            "openai",
            {"zzz": 1},
            "no option of engine openai is called 'zzz': expected one of probe_s, timeout_s, transport",
        ),
        ("openai", {3: 1}, "no option of engine openai is called '3': expected one of probe_s, timeout_s, transport"),
        ("vllm", {"tensor_parallel_size": 2}, "no option of engine vllm is called 'tensor_parallel_size': "),
        ("llamacpp", {"thread": 2}, "no option of engine llamacpp is called 'thread': did you mean 'threads'?"),
        ("hf", {"packed": "yes"}, "engine_options of hf: packed: Input should be a valid boolean, got 'yes'"),
        ("hf", {"packed": "no"}, "engine_options of hf: packed: Input should be a valid boolean, got 'no'"),
        ("hf", {"packed": 0}, "engine_options of hf: packed: Input should be a valid boolean, got 0"),
        ("hf", {"compiled": None}, "engine_options of hf: compiled: Input should be a valid boolean, got None"),
        ("hf", {"threads": 0}, "engine_options of hf: threads: Input should be greater than or equal to 1, got 0"),
        ("hf", {"threads": True}, "engine_options of hf: threads: Value error, expected a number, got True"),
        ("hf", {"threads": "2"}, "engine_options of hf: threads: Input should be a valid integer, got '2'"),
        ("hf", {"compiled": True, "packed": False}, "engine_options of hf: compiled=True packs rows, packed=False"),
        ("hf", {"compiled": True, "share_prefix": True}, "engine_options of hf: compiled=True shares no prefix"),
        ("openai", {"timeout_s": 0}, "engine_options of openai: timeout_s: Input should be greater than 0, got 0"),
        ("openai", {"timeout_s": float("inf")}, "engine_options of openai: timeout_s: Input should be a finite number"),
        ("openai", {"transport": "tcp"}, "engine_options of openai: transport: Input should be an instance of "),
        ("vllm", {"options": ["a"]}, "engine_options of vllm: options: Input should be"),
        ("llamacpp", {"sequences": 1}, "engine_options of llamacpp: sequences: Input should be greater than or equal"),
        ("hf", ["packed"], "engine_options must be an object of names and values, got list"),
        ("hf", OpenAIOptions(), "engine_options must be an object of names and values, got OpenAIOptions"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_may_be(engine: EngineName, options: Any, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_engine_options(engine, options)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def test_nothing_said_and_everything_said() -> None:
    assert read_engine_options("hf", None) == read_engine_options("hf", {}) == HfOptions()
    said = {"packed": True, "compiled": True, "share_prefix": False, "threads": 3, "max_batch_tokens": 1}
    assert read_engine_options("hf", said).model_dump(exclude_unset=True) == said
    assert read_engine_options("hf", HfOptions(packed=False)) == HfOptions(packed=False)
    assert read_engine_options("openai", {"timeout_s": 5}).timeout_s == 5.0


def test_options_are_read_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="did you mean 'packed'"):
        Reranker.load("no/such/model", engine="hf", engine_options={"packd": True})


@given(st.lists(st.text(max_size=60)), st.sets(st.text(max_size=12), min_size=1))
def test_whatever_is_not_known_is_refused_and_nothing_else(said: list[str], known: set[str]) -> None:
    if set(said) <= known:
        refuse_unknown("option", said, known)
    else:
        with pytest.raises(InputError, match="no option is called"):
            refuse_unknown("option", said, known)


def test_a_long_list_of_names_is_cut() -> None:
    with pytest.raises(InputError, match=r"called 'zzz': expected one of field000, field001, .*, field019, …$"):
        refuse_unknown("field", ["zzz"], [f"field{n:03}" for n in range(200)])
