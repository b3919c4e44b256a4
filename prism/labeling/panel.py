"""Panels: one YAML file says which jurors are asked what, in which order, and within which limits.

    name: mine
    rubric: binary                       # or a whole rubric, spelt out
    sequential: {stop: majority}         # leave it out to ask everybody about everything
    providers:
      example: {base_url: https://api.example.com/v1, key_env: EXAMPLE_API_KEY, budget_usd: 5}
    jurors:                              # asked in this order: the cheapest first
      - {name: mini, kind: local, model: mini}
      - {name: ours, kind: endpoint, url: "http://gpu-1:8000/v1"}
      - {name: small, kind: api, provider: example, model: small-1, price: {input: 0.1, output: 0.4}}
      - {name: last-year, kind: recorded, path: votes.qrels}

Unknown keys are errors. Keys never stand in the file: it names the environment variables that hold them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from prism.catalogue import CATALOGUE, listed, require_model
from prism.devices import Dtype
from prism.errors import PanelError
from prism.files.shipped import read_yaml, shipped
from prism.labeling.rubrics import RUBRICS, Rubric
from prism.labeling.sequential import PosteriorBound, StopRule, when_decided
from prism.llm.allowance import Provider, plain_address
from prism.llm.money import Price
from prism.records import first_problem
from prism.types import Record, Verdict

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Juror(Record):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    sensitivity: Rate | None = None
    """P(its vote is yes | the document helps): for `stop: posterior`."""
    specificity: Rate | None = None
    """P(its vote is no | it does not)."""
    observer: bool = False
    """Its votes are kept and compared, and decide nothing: for models whose terms keep what they say out of training
    data."""


class ApiJuror(_Juror):
    """A model behind an OpenAI-compatible API."""

    kind: Literal["api"]
    provider: str
    model: str
    price: Price = Price()
    params: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})
    """Goes into each request as it is."""
    max_answer_tokens: int | None = Field(default=None, ge=1)
    """More room than the rubric gives: for models that write unseen before they answer."""
    read: Literal["spoken", "logits"] = "spoken"
    """spoken: the label it writes; logits: the label it would most probably begin with, which APIs that return
    `top_logprobs` tell. It then writes one token."""
    cut: Rate | None = None
    """For `read: logits` and two labels: the share of yes from which the label is the upper one; default: the likelier
    one. Small models say yes too rarely or too often, and still rank pairs well."""

    def identity(self, served: LocalModel | None = None) -> str:
        """Changes with what decides its answers, not with address or price.

        `served`: what answers on this machine in the place of the provider. Raises InputError when that is not here.
        """
        how: list[Any] = [self.read, self.cut] if self.read != "spoken" else []
        how += [served.identity()] if served else []
        return json.dumps(["api", self.model, self.params, self.max_answer_tokens, *how], sort_keys=True)


class _ScoreJuror(_Juror):
    """A reranker: its score becomes a label."""

    instruction: str | None = None
    """What counts as relevant, for templates that take it. It stands in for the rubric's text."""
    cuts: tuple[Rate, ...] = ()
    """Scores from which the label is 1, 2, …; default, for labels 0 and 1: where the checkpoint's yes begins, or
    that of an endpoint, 0.5 where it does not tell."""
    batch_size: int = Field(default=32, ge=1)


class LocalJuror(_ScoreJuror):
    """A reranker on this machine."""

    kind: Literal["local"]
    model: str = "mini"
    """mini, a checkpoint directory, or a name on the hub."""
    template: str | None = None
    engine: Literal["hf", "vllm"] = "hf"
    """hf: in this process; vllm: for GPUs and many pairs."""
    dtype: Dtype = "auto"
    device: str = "auto"

    def identity(self) -> str:
        """Engines agree on scores: which one it is does not matter."""
        return json.dumps(["local", self.model, self.template, self.instruction, self.cuts])


class EndpointJuror(_ScoreJuror):
    """A reranker behind `POST /v1/rerank`: `prism serve` on a machine of your own, whatever engine it runs."""

    kind: Literal["endpoint"]
    url: str
    """Up to and including `/v1`; `/rerank` is appended."""
    model: str = "prism"
    """What to ask the server for; part of what this juror is."""
    key_env: str | None = None
    """Environment variable that holds the key; None for a server that asks for none."""
    timeout_s: float = Field(default=60.0, gt=0)
    max_attempts: int = Field(default=6, ge=1)
    max_wait_s: float = Field(default=120.0, gt=0)
    """A server that asks to wait longer stops the juror."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        return plain_address(url)

    def identity(self) -> str:
        return json.dumps(["endpoint", self.model, self.instruction, self.cuts])


class RecordedJuror(_Juror):
    """Votes that were cast before: TREC or BEIR qrels, or JSONL with `label` and `query_id` + `doc_id` or `pair_id`."""

    kind: Literal["recorded"]
    path: Path
    """Relative to the panel file."""

    @field_validator("path")
    @classmethod
    def _placed(cls, path: Path, info: ValidationInfo) -> Path:
        return _beside(path, info)

    def identity(self) -> str:
        return json.dumps(["recorded", self.path.name])


class LocalModel(Record):
    """What `prism label --start-local` serves with llama.cpp, in the place of a provider's address."""

    model: str
    """A name of `prism pull`'s list, or a GGUF file; its path is relative to the panel file."""
    context_tokens: int = Field(default=4096, ge=256)
    """Longest prompt and answer together."""
    chat_format: str | None = None
    """For files without a chat template: llama.cpp's name of one, such as chatml."""
    threads: int | None = Field(default=None, ge=1)
    """Default: the physical cores, or what OMP_NUM_THREADS says."""

    @field_validator("model")
    @classmethod
    def _placed(cls, model: str, info: ValidationInfo) -> str:
        return model if model in CATALOGUE else str(_beside(model, info))

    def identity(self) -> dict[str, Any]:
        """What answers: a file, by its content where it is of the list, else by name and size; and its template."""
        require_model(self.model)
        base, path = listed(self.model), Path(self.model)
        file = base.sha256 if base else f"{path.name}, {path.stat().st_size} bytes"
        return {"served": file, "chat_format": self.chat_format}


class PanelProvider(Provider):
    """An account at an API, or a model of this machine."""

    local: LocalModel | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> PanelProvider:
        limits = ("key_env", "budget_usd", "requests_per_minute", "tokens_per_minute")
        if self.local and (given := [name for name in limits if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(given)}: not beside `local`, which has no account: name another provider")
        return self


Juror = Annotated[ApiJuror | LocalJuror | EndpointJuror | RecordedJuror, Field(discriminator="kind")]


class Sequential(Record):
    """Ask in the panel's order, and stop early."""

    stop: Literal["majority", "posterior"] = "majority"
    """majority: when further votes cannot change it; posterior: when the verdict is probable enough."""
    bound: float = Field(default=0.95, gt=0.5, lt=1.0)
    """For `posterior`: stop at P(yes) >= bound or P(yes) <= 1 - bound."""
    prior: Rate = 0.5
    """For `posterior`: share of pairs that deserve a yes."""


class Panel(Record):
    """Who is asked what."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    rubric: Rubric
    yes_from: int | None = None
    """Labels from here on mean yes; default: as the rubric says."""
    min_votes: int = Field(default=1, ge=1)
    """With fewer labels than this a pair gets no verdict."""
    sequential: Sequential | None = None
    give_up_after: int = Field(default=20, ge=1)
    """Stop asking an API juror when this many questions in a row got no answer."""
    providers: dict[str, PanelProvider] = Field(default_factory=dict)
    jurors: tuple[Juror, ...] = Field(min_length=1)

    @field_validator("rubric", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value not in RUBRICS:
            raise ValueError(f"no such rubric: expected {', '.join(RUBRICS)} or a whole one")
        return RUBRICS[value]

    @model_validator(mode="after")
    def _fits(self) -> Panel:
        names = [juror.name for juror in self.jurors]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two jurors are called {twice!r}")
        low, *_, high = self.rubric.labels
        if self.yes_from is not None and not low < self.yes_from <= high:
            raise ValueError(f"yes_from must lie in ({low}, {high}], got {self.yes_from}")
        if self.min_votes > len(self.deciding):
            raise ValueError(f"min_votes is {self.min_votes} but there are {len(self.deciding)} jurors that decide")
        for juror in self.jurors:
            self._check(juror)
        return self

    def _check(self, juror: Juror) -> None:
        if isinstance(juror, ApiJuror) and juror.provider not in self.providers:
            known = ", ".join(self.providers) or "none is defined"
            raise ValueError(f"juror {juror.name!r}: no provider {juror.provider!r} under providers: {known}")
        if isinstance(juror, ApiJuror):
            self._check_api(juror)
        if isinstance(juror, LocalJuror | EndpointJuror):
            cuts = list(juror.cuts)
            if cuts != sorted(set(cuts)):
                raise ValueError(f"juror {juror.name!r}: cuts must grow, got {cuts}")
            if (len(cuts) or 1) + 1 != len(self.rubric.labels):
                want = len(self.rubric.labels) - 1
                raise ValueError(f"juror {juror.name!r}: rubric {self.rubric.name} needs {want} cuts, got {len(cuts)}")
        weighed = self.sequential and self.sequential.stop == "posterior" and not juror.observer
        if weighed and None in (juror.sensitivity, juror.specificity):
            raise ValueError(f"juror {juror.name!r}: stop: posterior needs its sensitivity and specificity")

    def _check_api(self, juror: ApiJuror) -> None:
        if juror.read == "logits" and self.rubric.answer != "digit":
            raise ValueError(f"juror {juror.name!r}: read: logits needs a rubric that asks for a digit alone")
        if juror.cut is not None and (juror.read != "logits" or len(self.rubric.labels) != 2):
            raise ValueError(f"juror {juror.name!r}: cut is for read: logits and a rubric of two labels")
        local = self.providers[juror.provider].local
        if local and juror.price != Price():
            raise ValueError(f"juror {juror.name!r}: a provider with `local` costs nothing: leave out price")
        base = listed(local.model) if local and not juror.observer else None
        if base and base.studies_only:
            raise ValueError(f"juror {juror.name!r}: {base.name} is under {base.licence}: say observer: true")

    def identities(self, *, served: bool = False) -> dict[str, str]:
        """Juror -> what it is. `served`: models of this machine answer in the place of their providers.

        Raises InputError when one of these is not here.
        """
        found = {}
        for juror in self.jurors:
            local = self.providers[juror.provider].local if served and isinstance(juror, ApiJuror) else None
            found[juror.name] = juror.identity(local) if isinstance(juror, ApiJuror) else juror.identity()
        return found

    @property
    def deciding(self) -> frozenset[str]:
        """Names of the jurors whose votes count."""
        return frozenset(juror.name for juror in self.jurors if not juror.observer)

    @property
    def cut(self) -> int:
        """The first label that means yes."""
        return self.rubric.yes_from if self.yes_from is None else self.yes_from

    def stop_rule(self) -> StopRule:
        """Says when a pair's verdict stands: never with fewer than `min_votes` labels."""
        rule: StopRule = when_decided(self.cut)
        if self.sequential and self.sequential.stop == "posterior":
            rule = self._posterior(self.sequential)

        def with_enough_votes(labels: Sequence[int | None], remaining: int) -> Verdict | None:
            enough = sum(label is not None for label in labels) >= self.min_votes
            return rule(labels, remaining) if enough else None

        return with_enough_votes

    def _posterior(self, sequential: Sequential) -> PosteriorBound:
        ratios = []
        for juror in self.jurors:
            right_yes, right_no = juror.sensitivity or 0.5, juror.specificity or 0.5
            yes, no = math.log(right_yes / (1 - right_no)), math.log((1 - right_yes) / right_no)
            ratios.append({label: yes if label >= self.cut else no for label in self.rubric.labels})
        odds = math.log(sequential.prior / (1 - sequential.prior))
        return PosteriorBound(bound=sequential.bound, prior_log_odds=odds, log_ratios=tuple(ratios))


def load_panel(path: Path) -> Panel:
    """Read a panel file; paths in it are relative to it. Raises PanelError: file, key, what was expected.

    `configs/panels/NAME.yaml` is found wherever Prism is installed.
    """
    path = shipped(path)
    raw = read_yaml(path, "panel", "configs/panels/local-mini.yaml", PanelError)
    try:
        return Panel.model_validate(raw, context=path.parent)
    except ValidationError as error:
        raise PanelError(f"{path}: {first_problem(error)}") from error


def _beside(path: str | Path, info: ValidationInfo) -> Path:
    """Where a path of a panel file leads: `load_panel` says in which folder the file is."""
    return Path(info.context or "") / path
