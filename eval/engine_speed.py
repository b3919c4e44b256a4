"""How fast the transformers engine scores and writes, against the naive loops it replaces.

    python eval/engine_speed.py                                   a random model of nano's size, no weights needed
    python eval/engine_speed.py --checkpoint DIR --out eval/results/engine_speed

A random model repeats itself far more than a trained one, so its prompt-lookup figures are an upper bound.
Documents and prompts are made up by this script from sentences of its own. Every way runs in a process of its own, as
it would alone (two computing threads in one process slow each other down), and they take turns, so that a slow moment
of the machine meets all.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import track

from prism.checkpoint import Checkpoint
from prism.engines.base import WriteRequest
from prism.engines.decode import shared_length
from prism.engines.hf import HfEngine, choose_dtype
from prism.evaluation.report import command_line
from prism.template import Template
from prism.types import Document

INSTRUCTION = (
    "You read one document for one question and say whether a reader who has that question is helped by it. Judge the "
    "document alone: what it states, what it implies without a doubt, and nothing you happen to know from elsewhere. "
    "Answer yes when a part of it bears on the question, also when it answers only a part; answer no when it shares "
    "the topic or the words but leaves the reader where he was. After yes, write one sentence on what the document "
    "adds for this question, then repeat all of it that bears on the question so that it can be read on its own, with "
    "names in place of pronouns, with every number and date as the document gives it, and with nothing added. Where "
    "two parts contradict each other repeat both, in the order of the document. Leave out greetings, menus, lists of "
    "links and other things that stand on every page, and keep to the language in which the question is asked. "
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


async def _written(writer: HfEngine, requests: Sequence[WriteRequest]) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in requests]
    async for piece in writer.write(requests):
        texts[piece.index] += [ord(character) - 0x20000 for character in piece.text]
    return texts


class Setting(NamedTuple):
    """What every way is given."""

    checkpoint: str
    documents: int
    texts: int
    max_tokens: int
    threads: int


class Work(NamedTuple):
    """A model and its prompts, in the process that measures."""

    model: Any
    stop_ids: Sequence[int]
    prompts: Prompts
    max_tokens: int

    def by_engine(self) -> Callable[[], object]:
        scorer = engine(self.model)
        return lambda: asyncio.run(scorer.score(self.prompts.score))

    def one_by_one(self) -> Callable[[], list[list[int]]]:
        return lambda: generate(self.model, self.prompts.write, self.max_tokens, self.stop_ids)

    def batched(self, speculate: bool | None) -> Callable[[], list[list[int]]]:
        writer = engine(self.model, speculate=speculate, stop_ids=self.stop_ids)
        requests = [WriteRequest(ids, self.max_tokens) for ids in self.prompts.write]
        return lambda: asyncio.run(_written(writer, requests))


class Way(NamedTuple):
    dtype: Literal["float32", "bfloat16"]
    prepare: Callable[[Work], Callable[[], Any]]


SCORING = {
    "naive: one by one, all logits, fp32": Way(
        "float32", lambda work: lambda: score_one_by_one(work.model, work.prompts.score, 0)
    ),
    "one by one, last logit only, fp32": Way(
        "float32", lambda work: lambda: score_one_by_one(work.model, work.prompts.score, 1)
    ),
    "batches of 16, fp32": Way("float32", lambda work: lambda: score_padded(work.model, work.prompts.score)),
    "batches of 16, sorted, bf16": Way(
        "bfloat16", lambda work: lambda: score_padded(work.model, sorted(work.prompts.score, key=len))
    ),
    "HfEngine: shared prefix, fp32": Way("float32", Work.by_engine),
    "HfEngine: shared prefix, bf16": Way("bfloat16", Work.by_engine),
}
WRITING = {
    "generate, one by one, fp32": Way("float32", Work.one_by_one),
    "HfEngine: batched, fp32": Way("float32", lambda work: work.batched(False)),
    "HfEngine: batched + prompt lookup, fp32": Way("float32", lambda work: work.batched(None)),
    "HfEngine: batched, bf16": Way("bfloat16", lambda work: work.batched(False)),
    "HfEngine: batched + prompt lookup, bf16": Way("bfloat16", lambda work: work.batched(None)),
}


def load(setting: Setting, dtype: Literal["float32", "bfloat16"]) -> Work:
    """On one thread, since the thread that loads is not the one that computes."""
    torch.set_num_threads(1)
    if setting.checkpoint == "random":
        model, stop_ids = nano_sized().to(getattr(torch, dtype)), []
        prompts = random_prompts(model.config.vocab_size, setting.documents, setting.texts)
    else:
        loaded = Checkpoint.load(setting.checkpoint)
        model, stop_ids = loaded.load_model(dtype, "cpu"), sorted(loaded.template.stop_ids)
        prompts = made_up_prompts(loaded.template, setting.documents, setting.texts)
    torch.set_num_threads(setting.threads or os.cpu_count() or 1)
    return Work(model, stop_ids, prompts, setting.max_tokens)


_RUN: dict[str, Callable[[], Any]] = {}
"""In a measuring process: the way it measures."""


def _prepare(setting: Setting, name: str) -> None:
    way = {**SCORING, **WRITING}[name]
    _RUN[name] = way.prepare(load(setting, way.dtype))


def _measure(name: str) -> tuple[float, Any]:
    start = time.perf_counter()
    result = _RUN[name]()
    return time.perf_counter() - start, result


def measure(setting: Setting, ways: Iterable[str], repeats: int) -> dict[str, tuple[float, Any]]:
    """Per way the median wall time in seconds and what it returned, after one run to warm up."""
    processes = {
        name: ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare, initargs=(setting, name))
        for name in ways
    }
    times: dict[str, list[float]] = {name: [] for name in processes}
    results: dict[str, Any] = {}
    try:
        for _ in track(range(repeats + 1), description="rounds", console=Console(stderr=True)):
            for name, process in processes.items():
                seconds, results[name] = process.submit(_measure, name).result()
                times[name].append(seconds)
    finally:
        for process in processes.values():
            process.shutdown()
    return {name: (statistics.median(taken[1:]), results[name]) for name, taken in times.items()}


def scoring_lines(setting: Setting, repeats: int) -> list[Line]:
    rates = {name: setting.documents / seconds for name, (seconds, _) in measure(setting, SCORING, repeats).items()}
    first = next(iter(rates.values()))
    return [Line(name, rate, rate / first, "") for name, rate in rates.items()]


def writing_lines(setting: Setting, repeats: int) -> list[Line]:
    measured = measure(setting, WRITING, repeats)
    _, reference = next(iter(measured.values()))
    lines: list[Line] = []
    for name, (seconds, texts) in measured.items():
        rate = sum(map(len, texts)) / seconds
        same = sum(text == expected for text, expected in zip(texts, reference, strict=True))
        note = f"{same} of {len(texts)} texts identical to generate in fp32"
        lines.append(Line(name, rate, rate / (lines[0].per_second if lines else rate), note))
    return lines


def markdown(title: str, unit: str, lines: Sequence[Line]) -> str:
    rows = [f"| {line.name} | {line.per_second:.1f} | {line.ratio:.1f}x | {line.note} |" for line in lines]
    return "\n".join([f"## {title}", "", f"| way | {unit} | against the first | |", "|---|---:|---:|---|", *rows, ""])


def main(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint with `prism.json`, `nano`, or `random`.")] = "random",
    documents: Annotated[int, typer.Option(min=2, help="Documents to score.")] = 100,
    texts: Annotated[int, typer.Option(min=1, help="Texts to write.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest text.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up; medians count.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md too.")] = None,
) -> None:
    """Measure scoring and writing on the CPU, in one run."""
    setting = Setting(checkpoint, documents, texts, max_tokens, threads or os.cpu_count() or 1)
    sample = load(setting, "float32")
    shared = shared_length([tuple(ids) for ids in sample.prompts.score])
    own = statistics.mean(len(ids) - shared for ids in sample.prompts.score)
    described = (
        f"{checkpoint}, {sample.model.num_parameters() / 1e6:.1f}M parameters, {setting.threads} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
        f"auto dtype {choose_dtype('cpu')}; a shared prefix of {shared} tokens, then {own:.0f} a document; "
        f"medians of {repeats} rounds in turn"
    )
    del sample
    scoring = scoring_lines(setting, repeats)
    writing = writing_lines(setting, repeats)
    command = command_line()
    report = "\n".join(
        [
            "# Speed of the transformers engine",
            "",
            described,
            "",
            markdown(f"Scoring {documents} documents with one query", "documents/s", scoring),
            markdown(f"Writing {texts} texts of at most {max_tokens} tokens", "tokens/s", writing),
            f"Command: `{command}`",
            "",
        ]
    )
    typer.echo(report)
    if out:
        record = {
            "command": command,
            "setting": described,
            "scoring": [line._asdict() for line in scoring],
            "writing": [line._asdict() for line in writing],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
