"""How fast the transformers engine scores and writes, against the naive loops it replaces.

    python eval/engine_speed.py                                   a random model of nano's size, no weights needed
    python eval/engine_speed.py --checkpoint DIR --out eval/results/engine_speed

A random model repeats itself far more than a trained one, so its prompt-lookup figures are an upper bound.
Documents and prompts are made up by this script from sentences of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import transformers
import typer

from prism.checkpoint import Checkpoint
from prism.engines.base import WriteRequest
from prism.engines.hf import HfEngine, choose_dtype
from prism.template import Template
from prism.types import Document

INSTRUCTION = (
    "You read one document for one question and say whether a reader who has that question is helped by it. Judge the "
    "document alone: what it states, what it implies without a doubt, and nothing you happen to know from elsewhere. "
    "Answer yes when a part of it bears on the question, also when it answers only a part; answer no when it shares "
    "the topic or the words but leaves the reader where he was. After yes, write one sentence on what the document "
    "adds for this question, then repeat all of it that bears on the question so that it can be read on its own, with "
    "names in place of pronouns, with every number and date as the document gives it, and with nothing added. "
)
QUERY = "Why did the bridge over the river have to be closed, and when was it opened to traffic again?"
SENTENCES = (
    "The bridge over the river was closed in March after inspectors found cracks in two of its main girders.",
    "Traffic was led over the northern bypass, which added about eleven minutes to the way into town.",
    "The repair cost 2.4 million and was paid from a fund that the region keeps for such cases.",
    "On 9 November the bridge was opened again, at first for cars and bicycles only.",
    "Heavy lorries had to wait until the new bearings had settled, which took another six weeks.",
    "A small bakery beside the ramp sold more bread than ever, since people waited there for the ferry.",
    "The town archive holds drawings of an older bridge made of oak, which ice carried away in 1784.",
    "Potatoes are planted when the soil has reached eight degrees and the nights are free of frost.",
    "A good loaf needs time: the dough rests overnight and is folded twice before it is shaped.",
    "The museum shows tools of the rope makers, among them a wheel with four hundred hooks.",
    "Swifts sleep in flight; they climb at dusk and glide down slowly through the dark.",
    "The pump draws water from a depth of thirty metres and fills the tower in under two hours.",
    "In the second half the visitors pressed hard, but the score stayed at one to one.",
    "The library lends out seeds in spring and asks for a handful back in autumn.",
    "Glass cools over several days, because stresses that stay inside would break it later.",
    "The new timetable brings a train every half hour, with the last one leaving at ten past midnight.",
)


class Prompts(NamedTuple):
    score: list[list[int]]
    write: list[list[int]]


class Line(NamedTuple):
    name: str
    per_second: float
    ratio: float
    note: str


def nano_sized() -> Any:
    """A random Qwen3 of nano's shape: 12 million parameters."""
    config = transformers.Qwen3Config(
        vocab_size=16384,
        hidden_size=320,
        intermediate_size=896,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    return transformers.Qwen3ForCausalLM(config).eval()


def random_prompts(vocabulary: int, documents: int, texts: int) -> Prompts:
    """Random ids of the lengths in question: a prefix of 250, documents of 90 to 210."""
    rng = random.Random(11)

    def ids(count: int) -> list[int]:
        return [rng.randrange(16, vocabulary) for _ in range(count)]

    prefix = ids(250)
    prompts = [prefix + ids(rng.randint(90, 210)) for _ in range(documents)]
    return Prompts(prompts, prompts[:texts])


def made_up_prompts(template: Template, documents: int, texts: int) -> Prompts:
    """About the same lengths, in words, as the checkpoint's own template renders them."""
    rng = random.Random(11)
    instruction = INSTRUCTION if template.takes_instruction else None
    prompts = []
    for _ in range(documents):
        document = Document(text=" ".join(rng.sample(SENTENCES, rng.randint(4, 9))))
        prompts.append(template.render(QUERY, document, instruction=instruction).ids)
    return Prompts(prompts, [[*ids, template.yes_id] for ids in prompts[:texts]])


@contextmanager
def in_dtype(model: Any, dtype: torch.dtype) -> Iterator[Any]:
    before = model.dtype
    yield model.to(dtype)
    model.to(before)


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Median wall time after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.inference_mode()
def score_one_by_one(model: Any, prompts: Sequence[list[int]], logits_to_keep: int) -> list[list[float]]:
    return [model(torch.tensor([ids]), logits_to_keep=logits_to_keep).logits[0, -1, :2].tolist() for ids in prompts]


@torch.inference_mode()
def score_padded(model: Any, prompts: Sequence[list[int]], rows: int = 16) -> None:
    """Right-padded batches in the given order, last position only, no shared prefix."""
    for start in range(0, len(prompts), rows):
        batch = prompts[start : start + rows]
        width = max(map(len, batch))
        hidden = model.model(torch.tensor([ids + [0] * (width - len(ids)) for ids in batch]), use_cache=False)
        last = hidden.last_hidden_state[torch.arange(len(batch)), [len(ids) - 1 for ids in batch]]
        (last.float() @ model.lm_head.weight[:2].float().T).tolist()


def engine(model: Any, *, speculate: bool | None = None, stop_ids: Sequence[int] = ()) -> HfEngine:
    """Label ids 0 and 1 cost what any two cost. `decode` is one character per token, so texts compare as tokens."""
    return HfEngine(
        model,
        label_ids=(0, 1),
        stop_ids=stop_ids,
        stop_strings=(),
        pad_id=0,
        decode=lambda ids: "".join(chr(0x20000 + token) for token in ids),
        speculate=speculate,
    )


def scoring_lines(model: Any, prompts: list[list[int]], repeats: int) -> list[Line]:
    by_length = sorted(prompts, key=len)
    half = torch.bfloat16
    ways: list[tuple[str, torch.dtype, Callable[[], object]]] = [
        ("naive: one by one, all logits, fp32", torch.float32, lambda: score_one_by_one(model, prompts, 0)),
        ("one by one, last logit only, fp32", torch.float32, lambda: score_one_by_one(model, prompts, 1)),
        ("batches of 16, fp32", torch.float32, lambda: score_padded(model, prompts)),
        ("batches of 16, sorted, bf16", half, lambda: score_padded(model, by_length)),
        ("HfEngine: shared prefix, fp32", torch.float32, lambda: asyncio.run(engine(model).score(prompts))),
        ("HfEngine: shared prefix, bf16", half, lambda: asyncio.run(engine(model).score(prompts))),
    ]
    lines: list[Line] = []
    for name, dtype, work in ways:
        with in_dtype(model, dtype):
            rate = len(prompts) / median_s(work, repeats)
        lines.append(Line(name, rate, rate / lines[0].per_second if lines else 1.0, ""))
        typer.echo(f"{name}: {rate:.1f} documents/s", err=True)
    return lines


@torch.inference_mode()
def generate(model: Any, prompts: Sequence[list[int]], max_tokens: int, stop_ids: Sequence[int]) -> list[list[int]]:
    """Plain greedy decoding with a cache, one prompt after the other; stop ids are cut off."""
    texts = []
    for ids in prompts:
        written = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        texts.append([token for token in written if token not in stop_ids])
    return texts


async def _written(engine: HfEngine, requests: Sequence[WriteRequest]) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in requests]
    async for piece in engine.write(requests):
        texts[piece.index] += [ord(character) - 0x20000 for character in piece.text]
    return texts


def writing_lines(
    model: Any, prompts: list[list[int]], max_tokens: int, stop_ids: Sequence[int], repeats: int
) -> list[Line]:
    requests = [WriteRequest(ids, max_tokens) for ids in prompts]
    reference = generate(model, prompts, max_tokens, stop_ids)

    def measured(name: str, write: Callable[[], list[list[int]]], baseline: float | None) -> Line:
        texts = write()
        same = sum(text == expected for text, expected in zip(texts, reference, strict=True))
        rate = sum(map(len, texts)) / median_s(write, repeats)
        typer.echo(f"{name}: {rate:.1f} tokens/s", err=True)
        return Line(
            name, rate, rate / (baseline or rate), f"{same} of {len(texts)} texts identical to generate in fp32"
        )

    def batched(speculate: bool | None) -> Callable[[], list[list[int]]]:
        return lambda: asyncio.run(_written(engine(model, speculate=speculate, stop_ids=stop_ids), requests))

    plain = measured("generate, one by one, fp32", lambda: generate(model, prompts, max_tokens, stop_ids), None)
    lines = [plain, measured("HfEngine: batched, fp32", batched(False), plain.per_second)]
    lines.append(measured("HfEngine: batched + prompt lookup, fp32", batched(None), plain.per_second))
    with in_dtype(model, torch.bfloat16):
        lines.append(measured("HfEngine: batched, bf16", batched(False), plain.per_second))
        lines.append(measured("HfEngine: batched + prompt lookup, bf16", batched(None), plain.per_second))
    return lines


def markdown(title: str, unit: str, lines: Sequence[Line]) -> str:
    rows = [f"| {line.name} | {line.per_second:.1f} | {line.ratio:.1f}x | {line.note} |" for line in lines]
    return "\n".join([f"## {title}", "", f"| way | {unit} | against the first | |", "|---|---:|---:|---|", *rows, ""])


def main(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint with `prism.json`, `nano`, or `random`.")] = "random",
    documents: Annotated[int, typer.Option(min=2, help="Documents to score.")] = 100,
    texts: Annotated[int, typer.Option(min=1, help="Texts to write.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest text.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per figure after one to warm up; the median counts.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md too.")] = None,
) -> None:
    """Measure scoring and writing on the CPU, in one run."""
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if checkpoint == "random":
        model, stop_ids = nano_sized(), []
        prompts = random_prompts(model.config.vocab_size, documents, texts)
    else:
        loaded = Checkpoint.load(checkpoint)
        model, stop_ids = loaded.load_model("float32", "cpu"), sorted(loaded.template.stop_ids)
        prompts = made_up_prompts(loaded.template, documents, texts)
    setting = (
        f"{checkpoint}, {model.num_parameters() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
        f"auto dtype {choose_dtype('cpu')}, median of {repeats}"
    )
    scoring = scoring_lines(model, prompts.score, repeats)
    writing = writing_lines(model, prompts.write, max_tokens, stop_ids, repeats)
    report = "\n".join(
        [
            "# Speed of the transformers engine",
            "",
            setting,
            "",
            markdown(f"Scoring {documents} documents with one query", "documents/s", scoring),
            markdown(f"Writing {texts} texts of at most {max_tokens} tokens", "tokens/s", writing),
        ]
    )
    typer.echo(report)
    if out:
        record = {
            "setting": setting,
            "scoring": [line._asdict() for line in scoring],
            "writing": [line._asdict() for line in writing],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
