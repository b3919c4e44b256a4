"""A new Qwen3 model and its tokenizer, from nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prism.template import Template, TemplateSpec
from prism.training.recipe import Scratch
from prism.training.wiring import HEAD_SIZE, ROPE_THETA, Landmarks, wire

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Words apart from punctuation, numbers digit by digit, runs of white space: the split the Qwen tokenizers use
# (tokenizer.json of Qwen/Qwen3-0.6B), which keeps numbers copyable. Ours besides: Chinese and Japanese characters stand
# alone, and no punctuation sticks to a word: it is the same tokens wherever it stands.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}"
_PRE_SPLIT = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[{_UNSPACED}]| ?(?:(?![{_UNSPACED}])\p{{L}})+|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], spec: TemplateSpec, vocab_size: int) -> Any:
    """Byte-level BPE with the template's control tokens; the written tags are tokens too, which saves writing them.

    With `spec.restores_case` all text is read in lower case: a small vocabulary then holds most words whole, and a word
    of the query is the same tokens in the document however it is written there.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    folds = [normalizers.Lowercase()] if spec.restores_case else []
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), *folds])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", spec.end_of_turn]
    tags = [f"<{mark}{tag}>" for tag in (spec.contribution_tag, spec.evidence_tag) for mark in ("", "/")]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials) - len(tags),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The label words must be single tokens whatever the corpus holds.
    labels = [f"{spec.yes} {spec.no}\n"] * 5000
    backend.train_from_iterator((text for source in (texts, labels) for text in source), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=spec.end_of_turn, pad_token=specials[0], clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[1:2]})
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return tokenizer


def new_model(scratch: Scratch, template: Template, sequences: Iterable[Sequence[int]] = ()) -> PreTrainedModel:
    """A Qwen3 with tied embeddings; seed torch first. `sequences`: token ids that show which tokens are rare."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = template.tokenizer
    vocabulary = -(-len(tokenizer) // 64) * 64  # whole tiles for matrix units
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=scratch.hidden_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.heads,
        head_dim=HEAD_SIZE,
        intermediate_size=scratch.mlp_size,
        max_position_embeddings=scratch.max_positions,
        # Slow rotations, as in Qwen3: equal tokens still find each other hundreds of positions apart.
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    if scratch.wired:
        wire(model, _landmarks(template, sequences))
    return model


def _landmarks(template: Template, sequences: Iterable[Sequence[int]]) -> Landmarks:
    tokenizer, spec = template.tokenizer, template.spec
    texts = {id_: tokenizer.decode([id_]) for id_ in range(len(tokenizer))}
    alike = _alike(texts)
    return Landmarks(
        first=template.first_id,
        query=template.announcing_id("query"),
        document=template.announcing_id("document"),
        labels=template.label_ids,
        answer=tokenizer.get_vocab()[f"<{spec.contribution_tag}>"],  # `train_tokenizer` saw to it
        evidence=tokenizer.get_vocab()[f"<{spec.evidence_tag}>"],
        telling=_telling(alike, sequences),
        alike=alike,
        borders={id_: 1.0 for id_, text in texts.items() if text.rstrip(" ").endswith((".", "?", "!", ":"))},
        sure_borders={id_: certainty for id_, text in texts.items() if (certainty := _surely_ends_sentence(text))},
        openings=[id_ for id_, text in texts.items() if _opens_sentence(text, spec.restores_case)],
    )


def _surely_ends_sentence(text: str) -> float:
    """How surely a sentence begins after a token, whatever follows: empty lines, less so line breaks."""
    if text.endswith(("。", "？", "！")) or text.count("\n") > 1:
        return 1.0
    return 0.4 if text.endswith("\n") else 0.0


def _opens_sentence(text: str, lowercase: bool) -> bool:
    """Whether a token can open a sentence behind a full stop: a word with a space before it, with a capital where
    there are any ("0.05" holds no sentence)."""
    return text[:1] == " " and (text[1:2].isalpha() if lowercase else text[1:2].isupper())


_COMMON = 1.0
"""Words in a third of all sequences (log 3 is 1.1) or more tell nothing."""


def _telling(alike: Sequence[int], sequences: Iterable[Sequence[int]]) -> list[float]:
    """Per token the inverse document frequency log(N / df) of its word, whatever the form, from `_COMMON` on, scaled to
    1; all 1 without sequences."""
    counts: Counter[int] = Counter()
    total = 0
    for ids in sequences:
        counts.update({alike[id_] for id_ in ids})
        total += 1
    if not total:
        return [1.0] * len(alike)
    most = max(math.log(total + 1), _COMMON + 1.0)
    idf = [math.log((total + 1) / (counts[word] + 1)) for word in alike]
    return [min(1.0, max(0.0, (value - _COMMON) / (most - _COMMON))) for value in idf]


_AROUND_WORD = re.compile(r"^[\W_]+|[\W_]+$")


def _alike(texts: Mapping[int, str]) -> list[int]:
    """Per token the number of its word: " Keys", "key" and "-key" are one; what is no word is alone."""
    import Stemmer

    english, russian = (Stemmer.Stemmer(language).stemWord for language in ("english", "russian"))
    numbers: dict[str, int] = {}
    words = {id_: _AROUND_WORD.sub("", text.lower()) for id_, text in texts.items()}
    stemmed = (russian(english(word)) if len(word) > 1 and word.isalpha() else word for word in words.values())
    keys = (word or f" {id_}" for id_, word in zip(words, stemmed, strict=True))
    return [numbers.setdefault(key, len(numbers)) for key in keys]
