"""Ways to score, to write and to rerank that `eval/engine_speed.py` compares: naive loops and the engine.

Each prepares one way in a process of its own (`studies.turns`): a model and what it is asked, made up from
sentences of this module, so that nothing is needed but the checkpoint.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prism import devices
from prism.backends import load_for_hf, open_checkpoint
from prism.checkpoint import Checkpoint
from prism.devices import Dtype
from prism.engines.base import Engine, LabelLogits, WriteRequest
from prism.engines.hf import HfEngine, HfOptions
from prism.engines.linear import arrange
from prism.engines.llama_context import LlamaContext
from prism.engines.llamacpp import LlamaCppEngine
from prism.errors import InputError
from prism.reranker import Reranker
from prism.scoring import score
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
_PADDED_ROWS = 16
_FIRST_CHARACTER = 0x20000


class Setting(NamedTuple):
    """What every way is given."""

    checkpoint: str
    """`random`, or what `Checkpoint.load` takes."""
    documents: int
    texts: int
    max_tokens: int
    threads: int | None = None
    gguf: str | None = None
    """The checkpoint as a file for engine `llamacpp`."""


class Work(NamedTuple):
    """A model and what it is asked."""

    model: Any
    label_ids: tuple[int, int]
    stop_ids: tuple[int, ...]
    prompts: list[list[int]]
    """One a document, label not included."""
    writes: list[list[int]]
    setting: Setting

    def engine(self, speculate: bool | None = None, packed: bool | None = None) -> HfEngine:
        """`decode` is one character per token, so that texts compare as tokens."""
        return HfEngine(
            self.model,
            label_ids=self.label_ids,
            stop_ids=self.stop_ids,
            stop_strings=(),
            pad_id=0,
            decode=_decode_apart,
            options=HfOptions(speculate=speculate, packed=packed, threads=self.setting.threads),
        )


def _decode_apart(ids: list[int]) -> str:
    return "".join(chr(_FIRST_CHARACTER + token) for token in ids)


def random_model() -> Any:
    """A random Llama of mini's shape: 135 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    return LlamaForCausalLM(config).eval()


def documents(count: int, sentences: tuple[int, int] = (4, 9)) -> list[Document]:
    """Made-up documents, the same every time; `sentences`: how many, at least and at most."""
    rng = random.Random(11)
    return [Document(text=" ".join(rng.sample(SENTENCES, rng.randint(*sentences)))) for _ in range(count)]


def work(setting: Setting, dtype: Dtype, *, plain: bool = False) -> Work:
    """`plain`: the model as transformers loads it; else as engine `hf` gets it.

    Raises InputError for a dtype that this CPU does not multiply.
    """
    chosen = devices.choose_dtype("cpu", dtype)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    if setting.checkpoint == "random":
        prompts = _random_prompts(setting.documents)
        model = random_model()
        if not plain:
            arrange(model, chosen, prompts[:2])
        return Work(model, (0, 1), (), prompts, prompts[: setting.texts], setting)
    checkpoint = Checkpoint.load(setting.checkpoint)
    template = checkpoint.template
    instruction = INSTRUCTION if template.takes_instruction else None
    rendered = [template.render(QUERY, one, instruction=instruction) for one in documents(setting.documents)]
    prompts = [list(one.ids) for one in rendered]
    writes = [[*ids, template.yes_id] for ids in prompts[: setting.texts]]
    model = checkpoint.load_model(dtype, "cpu") if plain else load_for_hf(checkpoint, dtype, "cpu")
    return Work(model, template.label_ids, tuple(sorted(template.stop_ids)), prompts, writes, setting)


def _random_prompts(count: int) -> list[list[int]]:
    """A prefix of 250, documents of 90 to 210."""
    rng = random.Random(11)
    prefix = [rng.randrange(16, 49152) for _ in range(250)]
    return [prefix + [rng.randrange(16, 49152) for _ in range(rng.randint(90, 210))] for _ in range(count)]


# --- scoring: each gives the scores ----------------------------------------------------------------------------------


def one_by_one(setting: Setting, dtype: Dtype, *, all_logits: bool) -> Callable[[], list[float]]:
    """A plain forward pass per document; `all_logits`: of every position, as a model called without a word gives."""
    model, labels, _, prompts, _, _ = work(setting, dtype, plain=True)

    @torch.inference_mode()
    def run() -> list[float]:
        kept = 0 if all_logits else 1
        last = [model(torch.tensor([ids]), logits_to_keep=kept).logits[0, -1, list(labels)].tolist() for ids in prompts]
        return [score(*pair) for pair in last]

    return run


def padded(setting: Setting, dtype: Dtype) -> Callable[[], list[float]]:
    """Right-padded batches in the given order, last position only, no shared prefix."""
    model, labels, _, prompts, _, _ = work(setting, dtype, plain=True)
    rows_2H = model.get_output_embeddings().weight[list(labels)].float()

    @torch.inference_mode()
    def run() -> list[float]:
        scores = []
        for start in range(0, len(prompts), _PADDED_ROWS):
            batch = prompts[start : start + _PADDED_ROWS]
            width = max(map(len, batch))
            ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])
            hidden_BTH = model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
            last_BH = hidden_BTH[torch.arange(len(batch)), [len(ids) - 1 for ids in batch]].float()
            scores += [score(*pair) for pair in (last_BH @ rows_2H.T).tolist()]
        return scores

    return run


def cross_encoder(setting: Setting, dtype: Dtype) -> Callable[[], list[float]]:
    """sentence-transformers' `CrossEncoder.predict` at its own batch size, on the export in its layout.

    Raises InputError for `random`, which has no tokenizer.
    """
    import tempfile

    from sentence_transformers import CrossEncoder

    from prism.export import export

    if setting.checkpoint == "random":
        raise InputError("a random model has no tokenizer, which CrossEncoder needs: pass --checkpoint")
    checkpoint = Checkpoint.load(setting.checkpoint)
    with tempfile.TemporaryDirectory() as folder:  # read whole: nothing stays mapped
        path = export(setting.checkpoint, Path(folder) / "exported", "sentence-transformers")
        encoder = CrossEncoder(str(path), device="cpu", model_kwargs={"dtype": devices.choose_dtype("cpu", dtype)})
    instruction = INSTRUCTION if checkpoint.template.takes_instruction else None
    pairs = [(QUERY, document.text) for document in documents(setting.documents)]
    return lambda: encoder.predict(pairs, prompt=instruction, show_progress_bar=False).tolist()


def by_engine(setting: Setting, dtype: Dtype, packed: bool | None = None) -> Callable[[], list[float]]:
    """Engine `hf`: the shared prefix once, rows one after another; `packed` False: padded to the longest."""
    asked = work(setting, dtype)
    engine = asked.engine(packed=packed)

    def run() -> list[float]:
        labels = asyncio.run(engine.score(asked.prompts)).labels
        return [score(*label) if isinstance(label, LabelLogits) else float("nan") for label in labels]

    return run


def _packed(setting: Setting, speculate: bool = True) -> tuple[Engine, list[list[int]], int]:
    """Engine `llamacpp`, the prompts and the label `yes`; texts are one character per token, as in `Work.engine`."""
    checkpoint = open_checkpoint("llamacpp", str(setting.gguf))
    template = checkpoint.template
    instruction = INSTRUCTION if template.takes_instruction else None
    rendered = [template.render(QUERY, one, instruction=instruction) for one in documents(setting.documents)]
    limit = template.spec.max_prompt_tokens + template.spec.max_written_tokens
    engine = LlamaCppEngine(
        LlamaContext(checkpoint.path, context=limit, threads=setting.threads or devices.cores(), gpu=False),
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=(),
        decode=_decode_apart,
        speculate=speculate,
    )
    return engine, [list(one.ids) for one in rendered], template.yes_id


def by_llamacpp(setting: Setting) -> Callable[[], list[float]]:
    """Engine `llamacpp`: the shared prefix once, documents as sequences of one batch."""
    engine, prompts, _ = _packed(setting)

    def run() -> list[float]:
        labels = asyncio.run(engine.score(prompts)).labels
        return [score(*label) if isinstance(label, LabelLogits) else float("nan") for label in labels]

    return run


# --- writing: each gives the texts, as token ids ---------------------------------------------------------------------


def generated(setting: Setting, dtype: Dtype) -> Callable[[], list[list[int]]]:
    """Plain greedy decoding with a cache, one prompt after the other; stop ids are cut off."""
    asked = work(setting, dtype, plain=True)

    def run() -> list[list[int]]:
        return [_generate(asked, ids) for ids in asked.writes]

    return run


@torch.inference_mode()
def _generate(asked: Work, ids: list[int]) -> list[int]:
    written = asked.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=asked.setting.max_tokens,
        eos_token_id=list(asked.stop_ids) or None,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    return [token for token in written if token not in asked.stop_ids]


def written(setting: Setting, dtype: Dtype, *, speculate: bool | None = None) -> Callable[[], list[list[int]]]:
    """Engine `hf`, all texts at once."""
    asked = work(setting, dtype)
    engine = asked.engine(speculate)
    requests = [WriteRequest(ids, setting.max_tokens) for ids in asked.writes]
    return lambda: asyncio.run(_collect(engine, requests))


def written_by_llamacpp(setting: Setting, *, speculate: bool = True) -> Callable[[], list[list[int]]]:
    """Engine `llamacpp`, all texts at once."""
    engine, prompts, yes_id = _packed(setting, speculate)
    requests = [WriteRequest([*ids, yes_id], setting.max_tokens) for ids in prompts[: setting.texts]]
    return lambda: asyncio.run(_collect(engine, requests))


async def _collect(engine: Engine, requests: Sequence[WriteRequest]) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in requests]
    async for piece in engine.write(requests):
        texts[piece.index] += [ord(character) - _FIRST_CHARACTER for character in piece.text]
    return texts


# --- all of it -------------------------------------------------------------------------------------------------------


def reranked(
    setting: Setting, dtype: Dtype, *, tokens: int, top_n: int, packed: bool = False
) -> Callable[[], list[float]]:
    """Documents of about `tokens` tokens scored and ranked, evidence written for the best `top_n`: their scores.

    `packed`: by engine `llamacpp`, else by `hf`.
    """
    threads = {"threads": setting.threads}
    reranker = (
        Reranker.load(str(setting.gguf), engine="llamacpp", device="cpu", engine_options=threads)
        if packed
        else Reranker.load(setting.checkpoint, engine="hf", dtype=dtype, device="cpu", engine_options=threads)
    )
    per_sentence = reranker.count_tokens(" ".join(SENTENCES)) / len(SENTENCES)
    sentences = max(1, round(tokens / per_sentence))
    asked = documents(setting.documents, (sentences, sentences))
    return lambda: [one.score or 0.0 for one in reranker.rerank(QUERY, asked, top_n=top_n, threshold=0.0)]
