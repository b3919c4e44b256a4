"""The llama.cpp engine: its bookkeeping on a memory made of a transformers model, then llama.cpp itself beside `hf`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf_support import ModelContext, save, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_engine_hf import full_forward, generate, one_character_each, random_prompts, text_of
from vllm_support import pairs

from prism import catalogue, devices
from prism.backends import choose_engine, open_engine
from prism.checkpoint import Checkpoint
from prism.engines.base import Engine, LabelLogits, WritePiece, WriteRequest
from prism.engines.llama_context import Run, Wants
from prism.engines.llamacpp import LlamaCppEngine, _batches
from prism.errors import CheckpointError, DocumentError, EngineError, InputError
from prism.export import export
from prism.location import MINI
from prism.reranker import Reranker
from prism.scoring import score

ROOT = Path(__file__).parents[1]
YES, NO, STOP = 5, 9, 2
BASE = "base_model_name_or_path"

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not in this environment: `make llamacpp` runs these tests in the one that has it",
)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def make_engine(context: Any, **options: Any) -> LlamaCppEngine:
    options = {"stop_ids": {STOP}, "stop_strings": (), "decode": one_character_each} | options
    return LlamaCppEngine(context, label_ids=(YES, NO), **options)


async def collect(engine: Engine, requests: Sequence[WriteRequest]) -> list[list[WritePiece]]:
    pieces: list[list[WritePiece]] = [[] for _ in requests]
    async for piece in engine.write(requests):
        pieces[piece.index].append(piece)
    return pieces


def write(engine: Engine, prompts: Sequence[Sequence[int]], most: int) -> list[list[WritePiece]]:
    return asyncio.run(collect(engine, [WriteRequest(ids, most) for ids in prompts]))


# --- the bookkeeping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 40, 150])
def test_scores_are_those_of_plain_forward_passes(model, prefix):
    """Prompts in batches and longer than one, sequences that run out, equal prompts, and ones that cannot be scored."""
    prompts = random_prompts(1, prefix, [3, 90, 1, 17, 64, 65, 200, 5, 6, 7, 8, 2])
    asked = [*prompts, prompts[3], [], [1] * 2049]
    context = ModelContext(model)
    output = asyncio.run(make_engine(context).score(asked))
    for ids, labels in zip(asked[:-2], output.labels, strict=False):
        assert isinstance(labels, LabelLogits)
        assert (labels.yes, labels.no) == pytest.approx(full_forward(model, ids), abs=1e-4)
    assert [isinstance(labels, DocumentError) for labels in output.labels[-2:]] == [True, True]
    computed = prefix + sum(len(ids) - prefix for ids in prompts)
    assert sum(context.batches) == computed
    assert output.cached_tokens == sum(map(len, asked[:-2])) - computed
    assert context.most_rows > 1
    assert [len(context.held.get(sequence, ())) for sequence in range(8)] == [prefix, 0, 0, 0, 0, 0, 0, 0]


def test_the_next_call_goes_on_from_the_prefix_it_shares(model):
    context = ModelContext(model)
    engine = make_engine(context)
    prompts = random_prompts(2, 60, [30, 20, 25])
    other = random_prompts(3, 45, [9, 8])

    async def tokens(asked: Sequence[Sequence[int]]) -> int:
        context.batches.clear()
        output = await engine.score(asked)
        for ids, labels in zip(asked, output.labels, strict=True):
            assert labels == pytest.approx(full_forward(model, ids), abs=1e-4)
        assert output.cached_tokens == sum(map(len, asked)) - sum(context.batches)
        return sum(context.batches)

    async def run() -> None:
        assert await tokens(prompts) == 60 + 75
        assert await tokens(prompts) == 75
        assert await tokens(prompts[:1]) == 30
        half = [[*prompts[0][:50], *more] for more in ((7, 8, 9), (8, 8))]
        assert await tokens(half) == 5
        assert await tokens(prompts) == 10 + 75  # from 50 on
        assert await tokens(other) == 45 + 17
        assert await tokens([prompts[0]]) == 90  # nothing shared with that

    asyncio.run(run())


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("speculate", [False, True])
def test_writing_is_greedy_decoding(model, prefix, speculate):
    prompts = random_prompts(11, prefix, [3, 90, 1, 17, 64, 65, 130, 12, 13])
    context = ModelContext(model)
    engine = make_engine(context, speculate=speculate)
    for ids, pieces in zip(prompts, write(engine, prompts, 40), strict=True):
        expected = generate(model, ids, 40)
        assert text_of(pieces) == one_character_each(expected)
        assert sum(piece.tokens for piece in pieces) == len(expected)
        assert [piece.finish is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert context.most_rows > 1
    assert not any(held for sequence, held in context.held.items() if sequence)


def test_drafts_save_readings(model):
    """A text that repeats itself is read in fewer batches, and is the same text."""
    ids = random_prompts(4, 0, [30])[0] * 4
    batches = {}
    for speculate in (False, True):
        context = ModelContext(model)
        batches[speculate], texts = context.batches, write(make_engine(context, speculate=speculate), [ids], 60)
        assert text_of(texts[0]) == one_character_each(generate(model, ids, 60))
    assert len(batches[True]) < len(batches[False])


def test_a_text_ends_at_a_stop_string_at_its_limit_and_at_the_context(model):
    (ids,) = random_prompts(6, 0, [40])
    whole = one_character_each(generate(model, ids, 20, ()))
    engine = make_engine(ModelContext(model), stop_strings=(whole[4],), stop_ids=())
    (pieces,) = write(engine, [ids], 20)
    assert (text_of(pieces), pieces[-1].finish) == (whole[: whole.index(whole[4]) + 1], "stop")
    engine = make_engine(ModelContext(model, context=45), stop_ids=())
    (pieces,) = write(engine, [ids], 20)
    assert (text_of(pieces), pieces[-1].finish) == (whole[:5], "length")
    (pieces,) = write(engine, [ids + [1] * 5], 20)
    assert pieces == [WritePiece(0, "", 0, "length")]
    with pytest.raises(InputError, match="write request 1 has an empty prompt"):
        write(engine, [ids, []], 5)


def test_after_a_failure_nothing_is_taken_to_be_held(model):
    context = ModelContext(model)
    engine = make_engine(context)
    prompts = random_prompts(7, 30, [5, 6])

    async def run() -> None:
        await engine.score(prompts)
        context.fails = True
        with pytest.raises(EngineError, match="could not read"):
            await engine.score(prompts)
        with pytest.raises(EngineError, match="could not read"):
            await collect(engine, [WriteRequest(prompts[0], 5)])
        context.fails = False
        assert not any(context.held.values())
        output = await engine.score(prompts)
        assert output.labels[0] == pytest.approx(full_forward(model, prompts[0]), abs=1e-4)

    asyncio.run(run())


def test_closing_frees_the_model_once_the_work_has_stopped(model):
    context = ModelContext(model)
    engine = make_engine(context)

    async def run() -> None:
        work = asyncio.ensure_future(engine.score(random_prompts(8, 0, [200] * 50)))
        while len(context.batches) < 3:
            await asyncio.sleep(0.01)
        await engine.aclose()
        assert context.closed
        with pytest.raises(EngineError, match="stopped before it was finished"):
            await work
        with pytest.raises(EngineError, match="the engine is closed"):
            await engine.score([[1, 2]])
        await engine.aclose()

    asyncio.run(run())
    assert len(context.batches) < 50


def test_logits_that_are_no_numbers_are_refused(model):
    import torch

    broken = tiny_model("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="prompt 0 has label logits yes=nan"):
        asyncio.run(make_engine(ModelContext(broken)).score([[1, 2, 3]]))
    with pytest.raises(EngineError, match="NaN"):
        write(make_engine(ModelContext(broken)), [[1, 2, 3]], 5)


RUNS = st.lists(
    st.builds(
        Run,
        st.integers(0, 9),
        st.integers(0, 100),
        st.lists(st.integers(0, 9), min_size=1, max_size=70),
        st.sampled_from(Wants),
    ),
    max_size=12,
)


@given(RUNS, st.integers(1, 40), st.integers(1, 40))
def test_batches_hold_every_token_once_in_order(runs, tokens, outputs):
    found: list[list[tuple[int, int, bool]]] = [[] for _ in runs]
    for batch in _batches(runs, tokens, outputs):
        assert 0 < sum(len(run.ids) for _, run in batch) <= tokens
        read = 0
        for at, run in batch:
            for place, token in enumerate(run.ids):
                wanted = run.wants is Wants.EVERY or (run.wants is Wants.LAST and place == len(run.ids) - 1)
                found[at].append((run.start + place, token, wanted))
                read += wanted
        assert read <= outputs
    for run, got in zip(runs, found, strict=True):
        last = len(run.ids) - 1
        assert got == [
            (run.start + at, token, run.wants is Wants.EVERY or (run.wants is Wants.LAST and at == last))
            for at, token in enumerate(run.ids)
        ]


class LostRows(ModelContext):
    """A conversion without the rows of the labels: yes is next to impossible, whatever is asked."""

    label_ids = (YES, NO)

    def read(self, runs: Sequence[Run]) -> list[Any]:
        rows = [row.copy() for row in super().read(runs)]
        for row in rows:
            row[self.label_ids[0]] = row[self.label_ids[1]] - 46.0  # 1e-20
        return rows


def test_lost_label_rows_fail_the_self_test(model, exported):
    checkpoint = Checkpoint.load_packed(exported["file"])
    context = LostRows(model)
    context.label_ids = checkpoint.template.label_ids
    engine = LlamaCppEngine(
        context,
        label_ids=checkpoint.template.label_ids,
        stop_ids=(),
        stop_strings=(),
        decode=checkpoint.template.decode,
    )
    with pytest.raises(CheckpointError, match="label rows lost"):
        asyncio.run(checkpoint.self_test(engine))


# --- choosing it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    """A checkpoint in float32 and its file."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = save(folder / "checkpoint", "llama", tiny_tokenizer)
    return {"checkpoint": checkpoint, "file": export(checkpoint, folder / "tiny.gguf", "gguf", dtype="float32")}


def test_auto_is_llamacpp_for_prism_s_own_files_where_it_is_installed(exported, tmp_path):
    installed = importlib.util.find_spec("llama_cpp") is not None
    assert choose_engine("auto", str(exported["file"])) == ("llamacpp" if installed else "hf")
    assert choose_engine("auto", str(exported["checkpoint"])) == choose_engine("auto", "mini") == "hf"
    assert choose_engine("llamacpp", "mini") == "llamacpp"
    with pytest.raises(InputError, match="no engine 'lama'"):
        choose_engine("lama", "mini")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"prism export mini FILE\.gguf --layout gguf"):
        Reranker.load("mini", engine="llamacpp")


def test_without_llama_cpp_python_it_says_so(exported):
    """In an interpreter that does not find it."""
    code = (
        "import sys; sys.modules['llama_cpp'] = None; import importlib.util as u; u.find_spec = lambda name: None;"
        "from prism.reranker import Reranker; Reranker.load(sys.argv[1], engine='llamacpp')"
    )
    done = run_python("-c", code, str(exported["file"]))
    assert 'EngineError: engine llamacpp needs llama-cpp-python: pip install "prism-reranker[llamacpp]"' in done.stderr


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "safetensors", "accelerate", "gguf"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_rendering_and_reading_need_no_torch(exported):
    """The whole way from the file to the engine's door, and back from a written text."""
    code = BLOCKED + (
        "import prism.cli, prism.reranker, prism.engines.llamacpp, prism.engines.llama_context, prism.serving.app\n"
        "from prism.backends import open_checkpoint\n"
        "from prism.types import Document\n"
        "template = open_checkpoint('llamacpp', sys.argv[1]).template\n"
        "print(template.render('when', Document(text='In 1963.')).ids)\n"
        "print(template.decode(template.render('when', Document(text='In 1963.')).ids))\n"
    )
    done = run_python("-c", code, str(exported["file"]))
    assert done.returncode == 0, done.stderr
    from prism.types import Document

    template = Checkpoint.load(exported["checkpoint"]).template
    ids = template.render("when", Document(text="In 1963.")).ids
    assert done.stdout == f"{ids}\n{template.decode(ids)}\n"


def test_a_command_that_needs_torch_says_so_where_there_is_none(exported):
    code = BLOCKED + "from prism.cli import main; sys.argv[1:] = sys.argv[1:]; main()"
    done = run_python("-c", code, "rerank", "when", str(ROOT / "README.md"), "--model", str(exported["checkpoint"]))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: this command needs transformers: run pip install")
    assert done.stderr.count("\n") == 1


def test_threads_are_the_cores_this_process_may_use(tmp_path, monkeypatch):
    for cpu, (package, core) in enumerate([(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert devices.cores(tmp_path) == min(3, usable)
    assert devices.cores(tmp_path / "absent") == usable
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert devices.cores(tmp_path) == 1


# --- llama.cpp itself ------------------------------------------------------------------------------------------------


def scores(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[float]:
    labels = asyncio.run(engine.score(prompts)).labels
    return [score(*label) for label in labels if isinstance(label, LabelLogits)]


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen2"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float16", 5e-3), ("q8_0", 0.05)])
def test_scores_and_texts_are_those_of_hf(tmp_path, tiny_tokenizer, kind, dtype, bound):
    """Random weights of width 64 magnify what q8_0 rounds, of weights and in between."""
    source = save(tmp_path / "checkpoint", kind, tiny_tokenizer)
    path = export(source, tmp_path / "tiny.gguf", "gguf", dtype=dtype)
    checkpoint = Checkpoint.load_packed(path)
    asked = [ids for _, _, ids in pairs(checkpoint.template, 60, 1500)]
    expected = scores(open_engine("hf", Checkpoint.load(source), dtype="float32", device="cpu"), asked)
    assert max(expected) - min(expected) > 0.2
    options = {"exact": dtype == "float32", "context": 2048}
    engine = open_engine("llamacpp", checkpoint, options=options)
    got = scores(engine, asked)
    assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < bound
    assert scores(engine, asked[:1]) == pytest.approx(got[:1], abs=bound / 2)
    if dtype == "float32":
        prompts = [[*ids, checkpoint.template.yes_id] for ids in asked[:6]]
        hf = open_engine("hf", Checkpoint.load(source), dtype="float32", device="cpu")
        assert list(map(text_of, write(engine, prompts, 40))) == list(map(text_of, write(hf, prompts, 40)))
        asyncio.run(hf.aclose())
    asyncio.run(engine.aclose())


@needs_llama_cpp
@pytest.mark.slow
def test_mini_in_float16_scores_within_half_a_hundredth_of_hf(tmp_path):
    if catalogue.find(catalogue.CATALOGUE[json.loads((MINI / "adapter_config.json").read_text())[BASE]]) is None:
        pytest.skip("mini's base is not here: prism pull mini")
    path = export("mini", tmp_path / "mini.gguf", "gguf")
    checkpoint = Checkpoint.load_packed(path)
    asked = [ids for _, _, ids in pairs(checkpoint.template, 24, 400)]
    hf = open_engine("hf", Checkpoint.load("mini"), dtype="float32", device="cpu")
    expected, got = scores(hf, asked), scores(open_engine("llamacpp", checkpoint), asked)
    assert max(expected) - min(expected) > 0.2
    assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < 0.005


@needs_llama_cpp
def test_a_reranker_of_a_file_ranks_and_quotes_like_the_checkpoint(exported):
    from vllm_support import SENTENCES

    documents = [" ".join(texts) for texts in SENTENCES.values()]
    found = {}
    for name, place in exported.items():
        with Reranker.load(str(place), dtype="auto" if name == "file" else "float32", self_test=False) as reranker:
            assert type(reranker._engine._engine).__name__ == ("LlamaCppEngine" if name == "file" else "HfEngine")
            found[name] = reranker.rerank("when", documents, threshold=0.0, evidence="quoted")
    theirs, ours = found["checkpoint"], found["file"]
    assert [one.index for one in ours] == [one.index for one in theirs]
    assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=0.01)
    assert [one.evidence for one in ours] == [one.evidence for one in theirs]


@needs_llama_cpp
def test_labels_that_a_conversion_emptied_are_refused_at_the_start(tmp_path, tiny_tokenizer):
    import torch

    source = save(tmp_path / "checkpoint", "llama", tiny_tokenizer)
    checkpoint = Checkpoint.load(source)
    emptied = checkpoint.load_model("float32", "cpu")
    with torch.no_grad():
        emptied.lm_head.weight[list(checkpoint.template.label_ids)] = 0.0
    emptied.save_pretrained(source)
    path = export(source, tmp_path / "emptied.gguf", "gguf")
    with pytest.raises(CheckpointError, match=r"fails its self-test.*constant scores"):
        Reranker.load(str(path), engine="llamacpp")


@needs_llama_cpp
def test_llama_cpp_s_own_tokenizer_reads_the_same_ids(exported):
    """What other programs make of the file: for texts without tokens that it takes for control tokens."""
    import llama_cpp

    tokenizer = Checkpoint.load_packed(exported["file"]).tokenizer
    llama = llama_cpp.Llama(str(exported["file"]), vocab_only=True, verbose=False)
    for text in ("The harbour froze in 1963.", "铜的导电性", "yes\nno", "  a\t b ", "don't we'll", "", "é e\u0301"):
        theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert theirs == tokenizer.encode(text, add_special_tokens=False)
    whole = "<|im_start|>user\nwhen?<|im_end|>\n"
    assert llama.tokenize(whole.encode(), add_bos=False, special=True) == tokenizer.encode(whole)


@needs_llama_cpp
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_ends_in_its_weights_says_so(exported, tmp_path, share):
    content = exported["file"].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"llama\.cpp cannot read .*is the file complete") as caught:
        Reranker.load(str(path), engine="llamacpp")
    assert "\n" not in str(caught.value)


@needs_llama_cpp
def test_an_architecture_that_llama_cpp_does_not_know_says_so(exported, tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(exported["file"].read_bytes().replace(b"llama", b"lhama"))
    with pytest.raises(CheckpointError, match=r"llama\.cpp cannot read .*unknown model architecture: 'lhama'"):
        Reranker.load(str(path), engine="llamacpp")


@needs_llama_cpp
def test_the_device_and_the_dtype_are_the_file_s(exported):
    with pytest.raises(InputError, match=r"dtype float32: llama\.cpp computes in the type"):
        Reranker.load(str(exported["file"]), engine="llamacpp", dtype="float32")
    with pytest.raises(InputError, match="device 'cuda'"):
        Reranker.load(str(exported["file"]), engine="llamacpp", device="cuda")


@needs_llama_cpp
def test_the_command_runs_where_there_is_no_torch(exported, tmp_path):
    """In this environment when it has none (`make llamacpp`), else in one that pretends to have none."""
    document = tmp_path / "a.txt"
    document.write_text("The harbour at Lindau froze in 1963.")
    code = BLOCKED + "from prism.cli import main; main()"
    asked = ["rerank", "when", str(document), "--model", str(exported["file"]), "--no-self-test", "--json"]
    done = run_python("-c", code, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert '"score"' in done.stdout
    assert run_python("-m", "prism", *asked).stdout == done.stdout
