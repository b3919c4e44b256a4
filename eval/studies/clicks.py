"""Simulated clicks for when there is no log: position-based, cascade and dynamic Bayesian network models.

Chuklin, Markov, de Rijke: Click Models for Web Search (2015), chapter 3. Written here because no library fits: PyClick
is no package and unmaintained, pyClickModels has the DBN only and stopped in 2020, and CLAX, which is kept, would bring
JAX, Flax and Hydra for three formulas.
Parameters map a label to probabilities; the defaults are round numbers, not estimates from anybody's log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from prism.errors import InputError
from prism.types import Record

Model = Literal["pbm", "cascade", "dbn"]
MODELS: tuple[Model, ...] = ("pbm", "cascade", "dbn")
Floats = NDArray[np.float64]


class Users(Record):
    """How users behave; probabilities."""

    noise: float = Field(default=0.05, ge=0.0, le=1.0)
    """Chance that a seen document with the lowest label is clicked."""
    attraction: float = Field(default=0.95, ge=0.0, le=1.0)
    """The same for the highest label; those between by gain, (2^label - 1) / (2^top - 1)."""
    satisfaction: float = Field(default=0.9, ge=0.0, le=1.0)
    """DBN: chance that a clicked document with the highest label ends the search; scaled by gain, 0 at label 0."""
    continuation: float = Field(default=0.9, ge=0.0, le=1.0)
    """DBN: chance to go on after a document that did not satisfy."""
    eta: float = Field(default=1.0, ge=0.0)
    """PBM: a document at rank k is seen with probability (1 / k)^eta."""
    dwell_s: float = Field(default=30.0, gt=0.0)
    """Mean seconds spent on a clicked document with the highest label; exponential, a tenth of it at label 0."""


class Online(Record):
    """What a log would say of one ranking: means over its searches."""

    ctr: float
    """Share of shown documents that were clicked."""
    clicks: float
    """Clicks a search."""
    dwell_time: float
    """Seconds spent on clicked documents, a search."""
    abandonment: float
    """Share of searches with results but without a click."""
    zero_result_rate: float
    """Share of searches without results."""


def simulate(
    pages: Sequence[Sequence[int]],
    top: int,
    model: Model,
    *,
    users: Users | None = None,
    searches: int = 100,
    seed: int = 0,
) -> Online:
    """Searches over result pages: each page is a query's labels by rank, searched `searches` times.

    An empty page is a search without results. Raises InputError for a label outside 0 to `top`, or no pages.
    """
    if not pages:
        raise InputError("no result pages: there is nothing to click on")
    if strange := [label for page in pages for label in page if not 0 <= label <= top]:
        raise InputError(f"label {strange[0]} lies outside 0 to {top}: pass the scale's top label")
    rng, chosen = np.random.default_rng(seed), users or Users()
    shown = clicked = abandoned = empty = 0
    seconds = 0.0
    for labels in pages:
        if not labels:
            empty += searches
            continue
        gains = (2.0 ** np.asarray(labels, dtype=np.float64) - 1.0) / (2.0**top - 1.0)
        clicks_SK = clicks(gains, model, chosen, searches, rng)
        shown += clicks_SK.size
        clicked += int(clicks_SK.sum())
        abandoned += int((~clicks_SK.any(axis=1)).sum())
        mean_K = chosen.dwell_s * (0.1 + 0.9 * gains)
        seconds += float((rng.exponential(mean_K, clicks_SK.shape) * clicks_SK).sum())
    total = searches * len(pages)
    answered = total - empty
    return Online(
        ctr=clicked / shown if shown else 0.0,
        clicks=clicked / total,
        dwell_time=seconds / total,
        abandonment=abandoned / answered if answered else 0.0,
        zero_result_rate=empty / total,
    )


def clicks(gains: Floats, model: Model, users: Users, searches: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Clicks [searches, ranks] on one page whose documents have `gains` [ranks] in [0, 1].

    pbm: P(click) = P(seen at k) * attraction, independent over ranks (Richardson et al. 2007; Craswell et al. 2008).
    cascade: top to bottom, the first attractive document is clicked and ends the search (Craswell et al. 2008).
    dbn: top to bottom, after a click satisfied with s, else on with gamma (Chapelle and Zhang 2009).
    """
    attraction_K = users.noise + (users.attraction - users.noise) * gains
    attracted_SK = rng.random((searches, len(gains))) < attraction_K
    if model == "pbm":
        seen_K = (1.0 / np.arange(1, len(gains) + 1)) ** users.eta
        return attracted_SK & (rng.random(attracted_SK.shape) < seen_K)
    satisfied_K = np.ones(len(gains)) if model == "cascade" else users.satisfaction * gains
    continues = 1.0 if model == "cascade" else users.continuation
    clicked_SK = np.zeros(attracted_SK.shape, dtype=bool)
    looking_S = np.ones(searches, dtype=bool)
    for rank in range(len(gains)):
        clicked_SK[:, rank] = looking_S & attracted_SK[:, rank]
        stops_S = clicked_SK[:, rank] & (rng.random(searches) < satisfied_K[rank])
        looking_S &= ~stops_S & (rng.random(searches) < continues)
    return clicked_SK
