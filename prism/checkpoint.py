"""Checkpoints: a directory with `prism.json` and the resolved recipe, and weights of one of two kinds:

    plain     safetensors weights, their configuration and a tokenizer
    adapter   low-rank updates in peft's format beside a base that the adapter names; merged once, into the cache

Or all of it in one GGUF file (`prism export --layout gguf`), which engine `llamacpp` reads as it is, without torch.

`mini`, the packaged checkpoint, is an adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError, field_validator, model_validator

from prism import gguf_file, merge, score_version, scoring, symptoms
from prism.answering import Answering
from prism.chat_template import INSTRUCT, choose_spec
from prism.errors import CheckpointError, DocumentError, InputError, in_one_line
from prism.gguf_file import tokenizer_errors
from prism.location import json_object, locate, plain_weights, read_json_object, refuse_pointers
from prism.records import first_problem
from prism.template import Template, TemplateSpec
from prism.text import require_languages
from prism.types import Document, EvidenceSource, Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prism.devices import Dtype

CONFIG_NAME = "prism.json"

_OBVIOUS_QUERY = "how to rotate access keys"
_OBVIOUS_YES = (
    "To rotate access keys, create a second access key, update your applications, and delete the old access key."
)
_OBVIOUS_NO = "The borrow checker compares scopes to determine whether all borrows of a value are valid."
_OTHER_QUERY = "how does the borrow checker determine that borrows are valid"
"""Under which it is the other way round."""
_COMPANY = 0.05
"""By so much a pair's score may differ alone and in a batch."""


class Scorer(Protocol):
    """The part of an engine that the self-test asks."""

    async def score(self, prompts: Sequence[Sequence[int]]) -> Any: ...


class PrismConfig(Record):
    """The contents of `prism.json`."""

    format: Literal[1] = 1
    name: str
    template: TemplateSpec
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """Scores from here on mean yes."""
    thresholds: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(default_factory=dict)
    """The same under queries in a language of other letters (`prism.text.LANGUAGES`), where that was measured."""
    evidence: EvidenceSource = "written"
    """Where this model's evidence comes from when the caller does not say: `quoted` if it was not taught to write."""
    calibration: scoring.Calibration | None = None
    """What scores mean as probabilities; put there by `prism calibrate`."""
    answering: Answering | None = None
    """What the scores of a whole set mean: the probability that one of its documents answers."""
    score_version: str | None = None
    """Of the scores that both were fitted on; other weights or another prompt make them another model's."""
    base_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """An adapter's base, where that is one file: the sum decides whether it is the right one."""

    @field_validator("thresholds")
    @classmethod
    def _known_languages(cls, thresholds: dict[str, float]) -> dict[str, float]:
        require_languages(thresholds)
        return thresholds

    @model_validator(mode="after")
    def _sets_need_pairs(self) -> PrismConfig:
        if self.answering is not None and self.calibration is None:
            raise ValueError("answering needs the calibration it was fitted with")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A loaded tokenizer and template, and the way to the weights."""

    path: Path
    """The folder with the plain weights and the tokenizer, which engines read; or a GGUF file left packed."""
    config: PrismConfig
    tokenizer: Any
    template: Template
    trust_remote_code: bool = False
    home: Path | None = None
    """What was loaded, where that is not `path`: an adapter's folder, or a GGUF file."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def context_tokens(self) -> int | None:
        """Tokens the model reads and writes together, if its configuration says so."""
        return _context(self.path)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        template: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        weights: bool = True,
    ) -> Checkpoint:
        """Open `mini` (packaged), a directory, a name of the catalogue, a GGUF file, or a hub id.

        An adapter is merged into its base, and a GGUF file unpacked, the first time it is loaded. The template is the
        one in `prism.json` (for an adapter that has none, its base's); without that file, the checkpoint's own reranker
        chat template; without that, `template` (a built-in name or a file) must say. Given explicitly, `template`
        always wins. Without `weights`, for a look, none are downloaded from the hub and no adapter is merged.

        Raises CheckpointError when the source or an adapter's base is missing, incomplete or holds weights in an unsafe
        format, TemplateError when no template fits.
        """
        home = locate(source, revision, weights=weights)
        refuse_pointers(home, source)
        stored = stored_config(home)
        if stored is None and merge.is_adapter(home):
            stored = stored_config(locate(merge.base_of(home), weights=weights))
        path = plain_weights(home, source, stored.base_sha256 if stored else None, weights=weights)
        tokenizer = load_tokenizer(path, source, trust_remote_code)
        config = _config(path, source, tokenizer, template, stored)
        return cls(path, config, tokenizer, Template(config.template, tokenizer), trust_remote_code, home)

    @property
    def score_version(self) -> str:
        """What determines the scores, and the fits that make probabilities of them, by name (`prism.score_version`)."""
        home = self.path if self.home is None else self.home
        scores = score_version.name_scores(self.config.template, home, locate, self.config.base_sha256)
        return score_version.score_version(scores, self.config.calibration, self.config.answering)

    @classmethod
    def load_packed(cls, source: str | Path, *, template: str | Path | None = None) -> Checkpoint:
        """Open a GGUF file that Prism wrote and leave it packed, for engine `llamacpp`. Needs neither torch nor
        transformers.

        `template` as for `load`. Raises CheckpointError for another file, or one that is damaged; InputError for what
        is no GGUF file; TemplateError when the template does not fit.
        """
        home = locate(source)
        if not home.is_file():
            raise InputError(
                f"engine llamacpp reads GGUF files, got {source}: run `prism export {source} FILE.gguf --layout gguf`"
            )
        refuse_pointers(home, source)
        metadata = gguf_file.read_metadata(home)
        stored = _packed_config(home, metadata)
        if stored is None:
            gguf_file.refuse_foreign(home, gguf_file.CONFIG)
        tokenizer = gguf_file.tokenizer_of(metadata, home)
        config = _config(home, source, tokenizer, template, stored)
        made = Template(config.template, tokenizer)
        written = metadata.get(gguf_file.YES), metadata.get(gguf_file.NO)
        if template is None and written != made.label_ids:
            raise CheckpointError(
                f"{source} says its labels are tokens {written}, its tokenizer says {made.label_ids}: export it again"
            )
        return cls(home, config, tokenizer, made, home=home)

    def load_model(self, dtype: Dtype = "auto", device: str = "auto") -> PreTrainedModel:
        """The causal LM in eval mode.

        `dtype`: auto (bf16 where it is faster), float32, bfloat16, or int8 (bfloat16, of which engines make
        integers); `device`: auto, cpu, cuda, cuda:1, ….
        Raises CheckpointError when the weights do not load or do not match the tokenizer, InputError for a device or
        dtype that this machine lacks, EngineError when the model does not fit on the device.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        from prism import devices

        target = devices.choose_device(device)
        chosen = devices.choose_dtype(target, dtype)
        try:
            with merge.quiet():
                model, found = AutoModelForCausalLM.from_pretrained(
                    self.path,
                    dtype=torch.bfloat16 if chosen is torch.int8 else chosen,
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"cannot load the weights of {self.name}: {in_one_line(error)}") from error
        self._require_whole(model, found["missing_keys"])
        return devices.place(model, target, self.name).eval()

    def _require_whole(self, model: Any, missing: Collection[str]) -> None:
        if missing:  # transformers would fill them with random numbers
            raise CheckpointError(
                f"{self.name} lacks {len(missing)} weights of a causal language model, such as {min(missing)}:"
                " it is another kind of checkpoint, or incomplete"
            )
        rows = model.get_input_embeddings().num_embeddings
        if rows < len(self.tokenizer):
            raise CheckpointError(
                f"{self.name}: the model has {rows} embeddings, its tokenizer {len(self.tokenizer)} tokens:"
                " weights and tokenizer are not of one checkpoint"
            )

    def obvious_prompts(self) -> list[list[int]]:
        """Two prompts, the answer to which is an obvious yes and an obvious no."""
        return self._prompts_for(_OBVIOUS_QUERY)

    def _prompts_for(self, query: str) -> list[list[int]]:
        documents = [Document(text=_OBVIOUS_YES), Document(text=_OBVIOUS_NO)]
        return [list(self.template.render(query, document).ids) for document in documents]

    async def self_test(self, engine: Scorer) -> None:
        """Score two queries with two documents, an obvious yes and an obvious no each, and one pair alone.

        The prompt a model was not trained on is the commonest way to serve a reranker that ranks at random. Raises
        CheckpointError for a known failure (`symptoms`), by its name, and unless the yes ranks clearly first.
        """
        prompts = self.obvious_prompts()
        output = await engine.score([*prompts, *self._prompts_for(_OTHER_QUERY)])
        yes, no, *other = (_score(labels) for labels in output.labels)
        failure = symptoms.of_matrix([[yes, no], other])
        if failure is None and yes > no + 0.01:
            alone = _score((await engine.score(prompts[:1])).labels[0])
            failure = symptoms.Failure.BATCH if abs(alone - yes) > _COMPANY else None
        if failure is not None:
            cure = symptoms.CURES[failure]
            raise CheckpointError(
                f"{self.name} fails its self-test with template {self.template.spec.name!r}: {failure} ({cure.meaning};"
                f" an obvious yes scores {yes:.3g}, an obvious no {no:.3g}): {cure.advice}"
                " (self_test=False loads it anyway)"
            )
        if not yes > no + 0.01:
            raise CheckpointError(
                f"{self.name} fails its self-test with template {self.template.spec.name!r}: an obvious yes scores"
                f" {yes:.3f}, an obvious no {no:.3f}. Is this a reranker, and is it the template it was trained with?"
                " (self_test=False loads it anyway)"
            )

    @staticmethod
    def save(path: Path, *, model: Any, template: Template, name: str, recipe: str | None = None) -> None:
        """Write weights (bf16 safetensors), tokenizer, `prism.json` and `recipe.yaml` to `path`."""
        import torch

        path.mkdir(parents=True, exist_ok=True)
        config = PrismConfig(name=name, template=template.spec)
        model.to(torch.bfloat16).save_pretrained(path, safe_serialization=True)
        template.tokenizer.save_pretrained(path)
        (path / CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if recipe is not None:
            (path / "recipe.yaml").write_text(recipe, encoding="utf-8")


def _score(labels: Any) -> float:
    if isinstance(labels, DocumentError):
        raise CheckpointError(f"the self-test could not be scored: {labels}")
    return scoring.score(*labels)


def is_packed(source: str | Path) -> bool:
    """Whether this is a GGUF file that Prism wrote. Raises CheckpointError for a damaged one."""
    path = Path(source).expanduser()
    return path.suffix.lower() == ".gguf" and path.is_file() and gguf_file.CONFIG in gguf_file.read_metadata(path)


def load_tokenizer(path: str | Path, source: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder, in a `tokenizer.json`, or of a name on the hub; errors call it `source`.

    Raises CheckpointError when there is none that can be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        with tokenizer_errors(f"the tokenizer.json of {source}"):
            if Path(path).is_file():
                return PreTrainedTokenizerFast(tokenizer_file=str(path))
            return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {source}: {in_one_line(error)}") from error


def _config(
    path: Path, source: str | Path, tokenizer: Any, template: str | Path | None, stored: PrismConfig | None
) -> PrismConfig:
    spec = _within_context(choose_spec(template, tokenizer, stored.template if stored else None, source), path)
    evidence: EvidenceSource = "written" if spec.name == INSTRUCT else "quoted"
    if stored is None:
        return PrismConfig(name=Path(str(source)).name, template=spec, evidence=evidence)
    asked = template is not None and spec.name == INSTRUCT  # its prompt is for texts, whatever the stored one is for
    kept = stored.evidence if spec.writes and not asked else evidence
    return stored.model_copy(update={"template": spec, "evidence": kept})


def _within_context(spec: TemplateSpec, path: Path) -> TemplateSpec:
    """The template's limits lowered to what the model can read: prompt and written text share its context."""
    context = _context(path)
    if context is None or spec.max_prompt_tokens + spec.max_written_tokens <= context:
        return spec
    written = min(spec.max_written_tokens, context // 4)
    return spec.model_copy(update={"max_prompt_tokens": context - written, "max_written_tokens": written})


def _context(path: Path) -> int | None:
    if path.is_file():
        metadata = gguf_file.read_metadata(path)
        packed = metadata.get(f"{metadata.get(gguf_file.ARCHITECTURE)}.context_length")
        return packed if isinstance(packed, int) else None
    config = read_json_object(path / "config.json")
    context = config.get("text_config", config).get("max_position_embeddings")
    return context if isinstance(context, int) else None


def stored_config(home: Path) -> PrismConfig | None:
    """The `prism.json` of a folder or in a GGUF file, if there is one. Raises CheckpointError when it is malformed."""
    if home.is_file():
        return _packed_config(home, gguf_file.read_metadata(home))
    path = home / CONFIG_NAME
    return _valid_config(read_json_object(path), path) if path.is_file() else None


def _packed_config(path: Path, metadata: gguf_file.Metadata) -> PrismConfig | None:
    if gguf_file.CONFIG not in metadata:
        return None
    where = f"{path}: {gguf_file.CONFIG}"
    return _valid_config(json_object(str(metadata[gguf_file.CONFIG]), where), where)


def _valid_config(content: dict[str, Any], where: Path | str) -> PrismConfig:
    try:
        return PrismConfig.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {first_problem(error)}") from error
