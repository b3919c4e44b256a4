"""What `eval/gpu_check.py` measures: each section in a process of its own, with random models made on the device.

    python -m studies.gpu scoring --size full --seconds 60 --out rows.jsonl      one section alone

Libraries are loaded first; work begins with the first line on standard input. Every row is in the file as soon as it
is known, and again when it is known better: the last one counts. Times are the best of as many rounds as there is time
for, all ways in turns, after one that warms up; the device has finished before a clock is read.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from prism.errors import PrismError
from studies.gpu_models import (
    by_engine,
    by_padding,
    device,
    dtype_here,
    engine_of,
    finish,
    generated,
    llama,
    made,
    qwen3,
    random_prompts,
    tiny_qwen3,
    written,
)

FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError, OSError),
    PrismError,
)
"""Of one way: the others are measured all the same."""
PEAKS_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bf16, by the makers' data sheets (SXM)."""
MOST_ROUNDS = 3
WAYS: dict[str, dict[str, Any]] = {
    "prefix read once": {"share_prefix": True},
    "no prefix": {"share_prefix": False},
    "packed": {"packed": True, "share_prefix": False},
    "packed, prefix read once": {"packed": True, "share_prefix": True},
    "compiled": {"compiled": True},
}
"""What the engine may be told; compiling takes a CPU too long for a tiny check."""
WRITING: dict[str, dict[str, Any]] = {
    "": {},
    ", no drafts": {"speculate": False},
    ", graphs": {"graphs": True},
    ", graphs, no drafts": {"graphs": True, "speculate": False},
}
"""The same for writing."""
Figures = dict[str, Any]


class Task(NamedTuple):
    """What a section is given."""

    tiny: bool
    mini: str
    ends: float
    """By `time.perf_counter`."""
    out: Path

    def row(self, what: str, **figures: Any) -> None:
        """Keep a row, whatever comes after."""
        rounded = {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in figures.items()}
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **rounded}) + "\n")

    def tried(self, what: str, work: Callable[[], Any]) -> Any:
        """What `work` returns; None, and a row with the error, where it fails."""
        try:
            return work()
        except FAILURES as error:
            self.row(what, error=" ".join(f"{type(error).__name__}: {error}".split())[:300])
            return None

    def left_s(self) -> float:
        return self.ends - time.perf_counter()


# --- device ----------------------------------------------------------------------------------------------------------


def peak_tflops() -> float | None:
    name = torch.cuda.get_device_name() if device().type == "cuda" else ""
    return next((peak for known, peak in PEAKS_TFLOPS.items() if known in name), None)


def in_turns(task: Task, ways: dict[str, Callable[[], Any]], row: Callable[[str, float, Any], Figures]) -> None:
    """Time all ways, round by round; `row` makes the figures of a way from its best time and what it returned.

    The way named first is the one that the `ratio` of the others refers to.
    """
    best: dict[str, float] = {}
    working = dict(ways)
    for _ in range(1 if task.tiny else MOST_ROUNDS):
        round_began = time.perf_counter()
        for name, work in list(working.items()):
            gc.collect()
            if device().type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            timed = task.tried(name, partial(_timed, work))
            if timed is None:
                del working[name]
                continue
            best[name] = min(timed[0], best.get(name, timed[0]))
            memory = torch.cuda.max_memory_allocated() / 2**30 if device().type == "cuda" else None
            first = best.get(next(iter(ways)))
            ratio = first / best[name] if first else None
            task.row(name, **row(name, best[name], timed[1]), ratio=ratio, seconds=best[name], peak_gib=memory)
        if task.left_s() < 1.2 * (time.perf_counter() - round_began):
            return


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    finish()
    start = time.perf_counter()
    result = work()
    finish()
    return time.perf_counter() - start, result


# --- sections --------------------------------------------------------------------------------------------------------


def correctness(task: Task) -> None:
    """fp32 on the CPU is the truth; what the device makes of the same weights, in fp32 and bf16, with prefix and
    without."""
    models = {"tiny Qwen3": (Qwen3ForCausalLM, tiny_qwen3())}
    if not task.tiny:
        models["random 135M Llama"] = (LlamaForCausalLM, llama(False))
    for name, (kind, config) in models.items():
        task.tried(name, partial(_agree, task, name, made(kind, config, torch.float32, torch.device("cpu"))))
    model = task.tried("mini", partial(_load_mini, task, "float32", "cpu"))
    if model is not None:
        task.tried("mini", partial(_agree, task, "mini", model))


def _agree(task: Task, name: str, truth: Any) -> None:
    prompts = random_prompts(truth.config.vocab_size, 12 if task.tiny else 24, 60, (20, 120))
    expected, _ = by_engine(engine_of(truth), prompts)
    texts = written(engine_of(truth), prompts[:4], 24)
    copies = {"fp32": torch.float32, "bf16": torch.bfloat16}
    state = truth.state_dict()
    for short, dtype in copies.items():
        model = made(type(truth), truth.config, dtype, device())
        model.load_state_dict(state)
        for way, options in WAYS.items():
            what = f"{name}, {short}, {way}"
            if options.get("compiled") and (task.tiny or short == "fp32"):
                continue
            found = task.tried(what, partial(_by_new_engine, model, prompts, options))
            if found is not None:
                gap = max(abs(a - b) for a, b in zip(found[0], expected, strict=True))
                task.row(what, largest_score_difference=gap, within=gap < (1e-3 if short == "fp32" else 0.1))
        for way, options in WRITING.items():
            what = f"{name}, {short}, written{way}"
            again = task.tried(what, partial(_by_new_writer, model, prompts[:4], options))
            if again is not None:
                task.row(what, texts=len(texts), equal=sum(a == b for a, b in zip(again, texts, strict=True)))


def _by_new_engine(model: Any, prompts: Sequence[Sequence[int]], options: Figures) -> tuple[list[float], int]:
    return by_engine(engine_of(model, **options), prompts)


def _by_new_writer(model: Any, prompts: Sequence[Sequence[int]], options: Figures) -> list[str]:
    return written(engine_of(model, **options), prompts, 24)


def _load_mini(task: Task, dtype: Any, where: str) -> Any:
    if not task.mini:
        return None
    from prism.checkpoint import Checkpoint

    return Checkpoint.load(task.mini).load_model(dtype, where)


def scoring(task: Task) -> None:
    """Pairs a second of the engine beside a plain padded forward pass."""
    tiny = task.tiny
    count, own = (12, (20, 40)) if tiny else (1500, (200, 452))
    small = made(Qwen3ForCausalLM, qwen3(tiny), dtype_here(), device())
    mini = task.tried("mini's own weights", partial(_load_mini, task, "auto", "auto"))
    if mini is None:
        mini = made(LlamaForCausalLM, llama(tiny), dtype_here(), device())
    words = small.config.vocab_size
    settings = {
        "Qwen3-0.6B, 60 shared": (small, random_prompts(words, count, 60, own)),
        "Qwen3-0.6B, 250 shared": (small, random_prompts(words, count, 250, (16, 16) if tiny else (160, 160))),
        "135M, 60 shared": (mini, random_prompts(mini.config.vocab_size, count, 60, own)),
    }
    for number, (name, (model, prompts)) in enumerate(settings.items()):
        part = task._replace(ends=time.perf_counter() + task.left_s() / (len(settings) - number))
        by_padding(model, prompts[: count // 4])  # warms up
        part.tried(f"{name}: warm-up", partial(by_engine, engine_of(model), prompts[: count // 4]))
        ways: dict[str, Callable[[], Any]] = {f"{name}: plain padded pass": partial(by_padding, model, prompts)}
        for way, options in {"as it comes": {}, **WAYS}.items():
            if tiny and options.get("compiled"):
                continue
            what = f"{name}: engine, {way}"
            engine = part.tried(what, partial(engine_of, model, **options))
            if engine is not None:
                ways[what] = partial(by_engine, engine, prompts)
        in_turns(part, ways, partial(_speed, model, prompts))


def _speed(
    model: Any, prompts: Sequence[Sequence[int]], _: str, seconds: float, found: tuple[list[float], int]
) -> Figures:
    """2 N T operations for the tokens that were computed, N without embeddings (Kaplan et al. 2020, section 2.1)."""
    tokens = sum(map(len, prompts))
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    tflops = 2 * weights * (tokens - found[1]) / seconds / 1e12
    peak = peak_tflops()
    return {
        "pairs_per_s": len(prompts) / seconds,
        "tokens_per_s": tokens / seconds,
        "cached_tokens": found[1],
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak,
    }


def writing(task: Task) -> None:
    """Tokens a second of our decoder beside plain `generate`. Random models repeat themselves: drafts hold more often
    than they would."""
    tokens, counts, own = (8, (2, 4), (20, 40)) if task.tiny else (128, (8, 64), (200, 260))
    model = made(Qwen3ForCausalLM, qwen3(task.tiny), dtype_here(), device())
    for number, count in enumerate(counts):
        part = task._replace(ends=time.perf_counter() + task.left_s() / (len(counts) - number))
        prompts = random_prompts(model.config.vocab_size, count, 60, own)
        generated(model, prompts, 4)  # warms up
        written(engine_of(model), prompts, 4)
        reference: list[list[str]] = []

        def figures(name: str, seconds: float, texts: list[str], reference: Any = reference) -> Figures:
            if not reference:
                reference.append(texts)
            equal = sum(a == b for a, b in zip(texts, reference[0], strict=True))
            return {"tokens_per_s": sum(map(len, texts)) / seconds, "texts": len(texts), "as_generate": equal}

        ways: dict[str, Callable[[], Any]] = {
            f"{count} texts: generate": partial(generated, model, prompts, tokens),
        }
        for way, options in WRITING.items():
            what = f"{count} texts: engine{way}"
            engine = part.tried(what, partial(engine_of, model, **options))
            if engine is not None:
                ways[what] = partial(written, engine, prompts, tokens)
        in_turns(part, ways, figures)


def training(task: Task) -> None:
    """See `studies.gpu_training`."""
    from studies import gpu_training

    gpu_training.training(task)


SECTIONS: dict[str, Callable[[Task], None]] = {
    "correctness": correctness,
    "scoring": scoring,
    "writing": writing,
    "training": training,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="One section of eval/gpu_check.py.")
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--mini", default="mini")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ready", type=Path, help="Is made when the libraries are loaded.")
    asked = parser.parse_args()
    if asked.section == "training":
        import studies.gpu_training  # noqa: F401  (loaded now, while other sections compute)
    if asked.ready:
        asked.ready.touch()
    seconds = float(sys.stdin.readline() or 60.0)
    SECTIONS[asked.section](Task(asked.size == "tiny", asked.mini, time.perf_counter() + seconds, asked.out))


if __name__ == "__main__":
    main()
