"""Start a new model with circuits it would otherwise have to discover: copying, noticing what was asked for, and where
the sentence that answers begins.

Small models find the first by themselves, but only after some millions of tokens (Olsson et al. 2022, "In-context
Learning and Induction Heads"), and had not found the last after two million; wired in, all work before the first step
and training refines them. The score starts as a lexical one: inverse document frequency (Spärck Jones 1972), word
forms, proximity. All of it is initial values: every weight stays free.

    embedding   content in one half of the dimensions, part of it the same for all forms of a word; a constant; how rare
                the token is; marks on the tokens that open a prompt, a query, a document and the written parts
    layer 0     heads write the content of the three tokens before, each turned its own way, into the other half;
                one head tells every position whether it is in the query, the document or the answer;
                hidden units multiply: in the query, how rare the token before is; whether a sentence opens here
    layer 1     where something is written, heads look for positions in the prompt whose three previous tokens are the
                last three (nothing found: the first token) and copy what stands there; one head looks for forms of the
                same word and notes, when that place is in the query, how rare it is: what was asked for
    layer 2     one head averages these notes over the document, one over the stretch that ends here, one collects what
                matched; one notes words that follow the same word as in the query; one tells every position the first
                token of its sentence
    layer 3     one head reads the note of the densest stretch, one averages the pairs: the score; where the evidence
                opens, one looks at the noted words of the document and says how their sentences begin
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HEAD_SIZE = 128
ROPE_THETA = 1e10
"""Slow rotations: most pairs of a head can compare tokens that are hundreds of positions apart."""

# Dimensions of the residual stream with a meaning of their own.
(
    _ONE,
    _IN_DOCUMENT,
    _ASKED,
    _DOCUMENT_MARK,
    _FIRST_MARK,
    _ASKED_MEAN,
    _BORDER,
    _STARTS,
    _ANSWER_MARK,
    _IN_ANSWER,
    _EVIDENCE_MARK,
    _QUERY_MARK,
    _IN_QUERY,
    _TELLING,
    _TELLING_BEFORE,
    _ASKABLE,
    _DENSITY,
    _WRITTEN,
    _PAIRED,
    _OPENS,
    _SURE_BORDER,
    _OPENING,
) = range(22)
_RESERVED = 24
_FORMS = 40
"""This many dimensions of the content, the last ones, are the same for all forms of a word."""
_ONE_VALUE, _MARK_VALUE = 4.0, 8.0
_LOGIT_SCALE = 0.1
_ASKED_WEIGHT, _PAIRED_WEIGHT, _DENSEST_WEIGHT, _BIAS = 134.0, 44.0, 7.3, 0.45
"""What the three notes count in the score, by logistic regression on training pairs."""
_SHARP, _SOFT = 4.0, 1.4
"""Lengths of queries: how surely a head looks at one place."""


class _Band(NamedTuple):
    """Rotary pairs that turn at about the same speed."""

    start: int
    stop: int
    length: float
    """Of the vector that says yes in this band: keys and queries are normalised, so bands share out one length."""


# The fastest tell neighbours apart, the slowest do not turn at all. Those between fall off over a few dozen positions
# (a stretch) or a hundred and more: of several places, the nearest.
_PAIRS = HEAD_SIZE // 2
_FAST, _STRETCH, _NEAR = _Band(0, 5, 2.8), _Band(7, 12, 2.8), _Band(10, 16, 2.8)
_CONTENT, _STILL = _Band(19, 60, 6.0), _Band(60, 64, 2.0)


_Silent = Sequence[tuple[int, Tensor]]
"""Marks and contents of tokens that carry nothing."""


class Landmarks(NamedTuple):
    """Tokens the circuits hold on to."""

    first: int
    """The token every prompt begins with."""
    query: int
    """The token that announces the query."""
    document: int
    """The token that announces the document."""
    labels: tuple[int, int]
    """(yes, no)"""
    answer: int
    """The tag that opens the contribution."""
    evidence: int
    """The tag that opens the evidence."""
    borders: Mapping[int, float]
    """How surely a sentence begins after a token, 0 to 1, if an opening token follows; zero is left out."""
    sure_borders: Mapping[int, float]
    """How surely a sentence begins after a token, whatever follows."""
    openings: Sequence[int]
    """Tokens that can open a sentence after one of `borders`."""
    telling: Sequence[float]
    """Per token how rare it is in documents, 0 to 1."""
    alike: Sequence[int]
    """Per token the number of its group: forms of one word."""


def wire(model: Any, marks: Landmarks) -> None:
    """Set the initial values of a Qwen3 with heads of `HEAD_SIZE`, at least four layers and five heads, in place."""
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    width = (hidden - _RESERVED) // 2
    content, before = slice(_RESERVED, _RESERVED + width), slice(hidden - width, hidden)
    head = [slice(HEAD_SIZE * h, HEAD_SIZE * (h + 1)) for h in range(heads)]
    with torch.no_grad():
        _keep_clear(model)
        _embed(model, content, marks)
        codes = model.model.embed_tokens.weight[:, content]
        silent = [(_FIRST_MARK, codes[marks.first]), (_EVIDENCE_MARK, codes[marks.evidence])]
        turns = [_exact(width) for _ in range(2)]
        through = orthonormal(HEAD_SIZE, width), orthonormal(HEAD_SIZE, width)
        layers = [layer.self_attn for layer in model.model.layers]
        _wire_previous(layers[0], head, content, before, silent, turns)
        _wire_askable(model.model.layers[0].mlp)
        _wire_opening(model.model.layers[0].mlp)
        _wire_copying(layers[1], head, content, before, silent, turns)
        _wire_mean(layers[2], head[0], _ASKED, _ASKED_WEIGHT)
        _wire_collect(layers[2], head[1], content, before, silent)
        _wire_sentence_start(layers[2], head[2], content, before, silent, through)
        _wire_density(layers[2], head[3])
        _wire_pairs(layers[2], head[4], content, before, turns[0])
        _wire_densest(layers[3], head[1])
        _wire_mean(layers[3], head[2], _PAIRED, _PAIRED_WEIGHT)
        _wire_evidence_start(layers[3], head[0], content, before, through)


def _keep_clear(model: Any) -> None:
    """Nothing random is written to the dimensions with a meaning: heads multiply what stands there."""
    for layer in model.model.layers:
        layer.mlp.down_proj.weight[:_RESERVED] = 0.0
        layer.self_attn.o_proj.weight[:_RESERVED] = 0.0


def _embed(model: Any, content: slice, marks: Landmarks) -> None:
    table = model.model.embed_tokens.weight
    table.normal_(0.0, 0.02)
    codes = torch.randn(len(table), content.stop - content.start)
    alike = torch.tensor(marks.alike)
    words = torch.randn(int(alike.max()) + 1, _FORMS)
    codes[: len(alike), -_FORMS:] = words[alike]
    # All of one length: whether two tokens are forms of a word must not depend on which word it is.
    for part in (codes[:, :-_FORMS], codes[:, -_FORMS:]):
        part *= math.sqrt(part.shape[1]) / part.norm(dim=1, keepdim=True)
    table[:, content] = codes
    table[:, :_RESERVED] = 0.0
    table[: len(alike), _TELLING] = _ONE_VALUE * torch.tensor(marks.telling)
    table[:, _ONE] = _ONE_VALUE
    for token, mark in (
        (marks.first, _FIRST_MARK),
        (marks.query, _QUERY_MARK),
        (marks.document, _DOCUMENT_MARK),
        (marks.answer, _ANSWER_MARK),
        (marks.evidence, _EVIDENCE_MARK),
    ):
        table[token, mark] = _MARK_VALUE
    for dimension, borders in ((_BORDER, marks.borders), (_SURE_BORDER, marks.sure_borders)):
        for token, certainty in borders.items():
            table[token, dimension] = _ONE_VALUE * certainty
    table[list(marks.openings), _OPENS] = _ONE_VALUE
    table[marks.labels[1], content] = table[marks.labels[0], content]  # nothing but the note tells them apart
    table[marks.labels[0], _ASKED_MEAN], table[marks.labels[1], _ASKED_MEAN] = 2.0, -2.0
    model.model.norm.weight.fill_(_LOGIT_SCALE)


def _wire_previous(
    attention: Any, heads: list[slice], content: slice, before: slice, silent: _Silent, turns: list[Tensor]
) -> None:
    *carrying, third, second, flag = heads
    offset = _pairs(_FAST)
    _silence(attention, heads)
    for rows, distance in (*((rows, 1.0) for rows in carrying), (second, 2.0), (third, 3.0)):
        attention.q_proj.weight[rows, _ONE] = offset
        attention.k_proj.weight[rows, _ONE] = rotated(offset, distance)
    for rows, carried in zip(carrying, _shares(content, len(carrying)), strict=True):
        _carry(attention, rows, content, carried, silent)
        attention.o_proj.weight[before, rows] = 0.72 * carried.T  # about the content's own size
    for rows, turn in ((second, turns[0]), (third, turns[1])):
        width = len(turn) - _FORMS
        exact = torch.eye(HEAD_SIZE, len(turn)) * (torch.arange(len(turn)) < width)
        _carry(attention, rows, content, exact, silent)
        attention.o_proj.weight[before, rows] = 0.36 * turn @ exact.T
    spare = carrying[-1].stop - 1  # the last of these heads is not full
    told = ((_BORDER, _STARTS), (_TELLING, _TELLING_BEFORE), (_SURE_BORDER, _OPENING))
    for row, (of_token, of_next) in enumerate(told):
        attention.v_proj.weight[spare - row, of_token] = 1.0
        attention.o_proj.weight[of_next, spare - row] = 1.0
    attention.q_proj.weight[flag, _ONE] = _pairs(_CONTENT)
    # This head looks at all marks before it, in equal parts: the query's, then the document's, then the answer's too.
    marks = ((_DOCUMENT_MARK, _IN_DOCUMENT), (_QUERY_MARK, _IN_QUERY), (_ANSWER_MARK, _WRITTEN))
    for row, (mark, note) in enumerate(marks):
        attention.k_proj.weight[flag, mark] = _pairs(_CONTENT)
        attention.v_proj.weight[flag.start + row, mark] = 1.0
        attention.o_proj.weight[note, flag.start + row] = 0.85
    attention.q_norm.weight.fill_(_SHARP)


def _wire_copying(
    attention: Any, heads: list[slice], content: slice, before: slice, silent: _Silent, turns: list[Tensor]
) -> None:
    *copying, answer, flag = heads
    _silence(attention, heads)
    width = content.stop - content.start
    for rows in copying:  # each compares in a random view of its own: together they err less
        compared = torch.zeros(HEAD_SIZE, width)
        compared[:, :-_FORMS] = _pairs(_CONTENT)[:, None] * _unit_rows(HEAD_SIZE, width - _FORMS)
        attention.q_proj.weight[rows, content] = compared
        attention.k_proj.weight[rows, before] = compared
        # What stands one and two tokens before a position stands two and three before the next one.
        attention.q_proj.weight[rows, before] = 0.45 * compared @ (turns[0] + turns[1] @ turns[0].T)
        # Where nothing is found, the first token takes the attention: its keys lie in pairs of their own. Where nothing
        # is written nothing should be found: the prompt's positions are to keep their own content.
        for note, weight in ((_ONE, 1.0), (_WRITTEN, -1.0), (_EVIDENCE_MARK, 1.0)):
            attention.q_proj.weight[rows, note] = weight * _pairs(_STILL)
        attention.k_proj.weight[rows, _FIRST_MARK] = 4.0 * _pairs(_STILL)
        attention.k_proj.weight[rows, _WRITTEN] = -1.5 * _pairs(_STILL)  # no circles: what was written is not copied
        attention.k_proj.weight[rows, _ONE] = 0.2 * _pairs(_FAST)  # keys are normalised: noise must not be all of one
        carried = orthonormal(HEAD_SIZE, width)
        _carry(attention, rows, content, carried, silent)
        attention.o_proj.weight[content, rows] = 1.6 * carried.T
    _wire_flag(attention, flag, content, before)
    attention.q_proj.weight[answer, _ONE] = _pairs(_CONTENT)
    attention.k_proj.weight[answer, _ANSWER_MARK] = _pairs(_CONTENT)
    attention.k_proj.weight[answer, _ONE] = 0.5 * _pairs(_FAST)
    attention.v_proj.weight[answer.start, _ANSWER_MARK] = 1.0
    attention.o_proj.weight[_IN_ANSWER, answer.start] = 0.425
    attention.q_norm.weight.fill_(_SHARP)


def _wire_flag(attention: Any, rows: slice, content: slice, before: slice) -> None:
    """Forms of the same word, whatever stands before it; when that place is in the query, how rare the word is."""
    width = content.stop - content.start
    compared = torch.zeros(HEAD_SIZE, width)
    compared[:, -_FORMS:] = 2.3 * _pairs(_CONTENT)[:, None] * orthonormal(_FORMS, HEAD_SIZE).T
    attention.q_proj.weight[rows, content] = compared
    attention.k_proj.weight[rows, before] = compared
    attention.q_proj.weight[rows, _ONE] = 0.75 * _pairs(_STILL)
    # Places in the query and earlier ones in the document share the attention: each further repetition counts less.
    attention.k_proj.weight[rows, _FIRST_MARK] = 4.0 * _pairs(_STILL)
    attention.v_proj.weight[rows.start, _ASKABLE] = 1.0
    attention.o_proj.weight[_ASKED, rows.start] = 1.0


def _wire_pairs(attention: Any, rows: slice, content: slice, before: slice, turn: Tensor) -> None:
    """Forms of the same word after the same token: two neighbours of the query that stand together here too."""
    _silence(attention, [rows])
    width = content.stop - content.start
    forms, exact = torch.zeros(HEAD_SIZE, width), torch.zeros(HEAD_SIZE, width)
    forms[:, -_FORMS:] = 2.0 * _pairs(_CONTENT)[:, None] * orthonormal(_FORMS, HEAD_SIZE).T
    exact[:, :-_FORMS] = 1.2 * _pairs(_CONTENT)[:, None] * _unit_rows(HEAD_SIZE, width - _FORMS)
    attention.q_proj.weight[rows, content] = forms
    attention.q_proj.weight[rows, before] = exact @ turn
    attention.k_proj.weight[rows, before] = forms + exact
    attention.q_proj.weight[rows, _ONE] = 0.75 * _pairs(_STILL)  # more than either of the two, less than both
    attention.k_proj.weight[rows, _FIRST_MARK] = 4.0 * _pairs(_STILL)
    attention.v_proj.weight[rows.start, _ASKABLE] = 1.0
    attention.o_proj.weight[_PAIRED, rows.start] = 1.0


def _wire_mean(attention: Any, rows: slice, note: int, weight: float) -> None:
    """The label: the sum of a note over the document, divided by its length and two hundred tokens more.

    Length counts less than in a plain mean, as in BM25: the first token takes as much attention as those two hundred.
    """
    _silence(attention, [rows])
    attention.q_proj.weight[rows, _ONE] = _pairs(_CONTENT) + 8.5 * _pairs(_STILL)  # a third of the length says yes
    attention.k_proj.weight[rows, _IN_DOCUMENT] = _pairs(_CONTENT)
    attention.k_proj.weight[rows, _FIRST_MARK] = 4.0 * _pairs(_CONTENT)
    attention.k_proj.weight[rows, _ONE] = 2.5 * _pairs(_FAST)
    attention.v_proj.weight[rows.start, note] = math.sqrt(weight)
    attention.o_proj.weight[_ASKED_MEAN, rows.start] = math.sqrt(weight)


def _wire_collect(attention: Any, collect: slice, content: slice, before: slice, silent: _Silent) -> None:
    """What matched, beside what stands before."""
    _silence(attention, [collect])
    attention.q_proj.weight[collect, _ONE] = _pairs(_CONTENT) + 3.0 * _pairs(_STILL)
    attention.k_proj.weight[collect, _IN_DOCUMENT] = _pairs(_CONTENT)
    attention.k_proj.weight[collect, _ASKED] = 3.0 * _pairs(_STILL)
    carried = orthonormal(HEAD_SIZE, content.stop - content.start)
    _carry(attention, collect, content, carried, silent)
    attention.o_proj.weight[before, collect] = carried.T
    attention.q_norm.weight.fill_(_SHARP)


def _wire_opening(mlp: Any) -> None:
    """One hidden unit multiplies: a sentence may start here, and the token looks like it ("0.05" holds no sentence)."""
    mlp.gate_proj.weight[1], mlp.up_proj.weight[1], mlp.down_proj.weight[:, 1] = 0.0, 0.0, 0.0
    mlp.gate_proj.weight[1, _STARTS] = 1.0
    mlp.up_proj.weight[1, _OPENS] = 0.25
    mlp.down_proj.weight[_OPENING, 1] = 0.6


def _wire_askable(mlp: Any) -> None:
    """One hidden unit multiplies: in the query, how telling the token before is."""
    mlp.gate_proj.weight[0], mlp.up_proj.weight[0], mlp.down_proj.weight[:, 0] = 0.0, 0.0, 0.0
    mlp.gate_proj.weight[0, _IN_QUERY], mlp.gate_proj.weight[0, _IN_DOCUMENT] = 0.2, -0.2
    mlp.up_proj.weight[0, _TELLING_BEFORE] = 1.0
    mlp.down_proj.weight[_ASKABLE, 0] = 2.5


def _wire_density(attention: Any, rows: slice) -> None:
    """Every position: how much of what was asked stands in the stretch that ends here."""
    _silence(attention, [rows])
    near = _pairs(_STRETCH)
    attention.q_proj.weight[rows, _ONE] = near
    attention.k_proj.weight[rows, _ONE] = near + 0.6 * _pairs(_CONTENT)
    attention.v_proj.weight[rows.start, _ASKED] = 1.0
    attention.o_proj.weight[_DENSITY, rows.start] = 2.0


def _wire_densest(attention: Any, rows: slice) -> None:
    """The label looks at the densest stretch."""
    _silence(attention, [rows])
    attention.q_proj.weight[rows, _ONE] = _pairs(_STILL)
    attention.k_proj.weight[rows, _DENSITY] = 6.0 * _pairs(_STILL)
    attention.k_proj.weight[rows, _ONE] = _pairs(_FAST)
    attention.v_proj.weight[rows.start, _DENSITY] = 1.0
    attention.v_proj.weight[rows.start, _ONE] = -_BIAS  # between what documents that answer get and others
    attention.o_proj.weight[_ASKED_MEAN, rows.start] = _DENSEST_WEIGHT


def _wire_sentence_start(
    attention: Any, rows: slice, content: slice, before: slice, silent: _Silent, through: tuple[Tensor, Tensor]
) -> None:
    """Every position: the nearest place where a sentence starts, and its token, beside what stands before."""
    _silence(attention, [rows])
    attention.q_proj.weight[rows, _ONE] = _pairs(_NEAR)
    attention.k_proj.weight[rows, _OPENING] = 1.2 * _pairs(_NEAR)
    attention.k_proj.weight[rows, _ONE] = 0.1 * _pairs(_CONTENT)
    _carry(attention, rows, content, through[0], silent)
    attention.o_proj.weight[before, rows] = 2.0 * through[1].T


def _wire_evidence_start(
    attention: Any, rows: slice, content: slice, before: slice, through: tuple[Tensor, Tensor]
) -> None:
    """Where the evidence opens: the document's words that were asked for, and how their sentences begin."""
    _silence(attention, [rows])
    attention.q_proj.weight[rows, _EVIDENCE_MARK] = 3.0 * _pairs(_STILL)
    attention.q_proj.weight[rows, _ONE] = 0.3 * _pairs(_CONTENT)
    # Asked for, and in the document, and not in the answer.
    for note, weight in ((_ASKED, 3.0), (_DENSITY, 4.0), (_IN_DOCUMENT, 6.0), (_IN_ANSWER, -9.0), (_ONE, -8.0)):
        attention.k_proj.weight[rows, note] = weight * _pairs(_STILL)
    # Else the first token, and not the one that opens the answer, though it is the same.
    for note, weight in ((_FIRST_MARK, 1.0), (_IN_DOCUMENT, -2.0)):
        attention.k_proj.weight[rows, note] += weight * _pairs(_CONTENT)
    attention.k_proj.weight[rows, _ONE] += 0.5 * _pairs(_FAST)
    attention.v_proj.weight[rows, before] = through[1]
    attention.o_proj.weight[content, rows] = 6.0 * through[0].T
    attention.q_norm.weight.fill_(_SOFT)


def _carry(attention: Any, rows: slice, content: slice, carried: Tensor, silent: _Silent) -> None:
    """Values are the content, but nothing for tokens where heads look that find nothing, or that nobody is to copy."""
    attention.v_proj.weight[rows, content] = carried
    for mark, code in silent:
        attention.v_proj.weight[rows, mark] = -carried @ code / _MARK_VALUE


def _silence(attention: Any, heads: list[slice]) -> None:
    """Heads without their random values."""
    for rows in heads:
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = 0.0
        attention.o_proj.weight[:, rows] = 0.0


def _shares(content: slice, heads: int) -> list[Tensor]:
    """One orthonormal basis of the content dimensions, dealt out to the heads; late heads may get fewer rows."""
    width = content.stop - content.start
    basis = torch.zeros(heads * HEAD_SIZE, width)
    basis[: min(width, heads * HEAD_SIZE)] = orthonormal(width, width)[: heads * HEAD_SIZE]
    return [basis[HEAD_SIZE * head : HEAD_SIZE * (head + 1)] for head in range(heads)]


def _pairs(band: _Band) -> Tensor:
    """A head vector that is the same in all rotary pairs of a band (pairs are i and i + half a head)."""
    vector = torch.zeros(HEAD_SIZE)
    for half in (0, _PAIRS):
        vector[half + band.start : half + band.stop] = band.length / math.sqrt(2 * (band.stop - band.start))
    return vector


def _exact(width: int) -> Tensor:
    """A random rotation [width, width] of the content, the part that forms of a word share left out."""
    turn = torch.zeros(width, width)
    turn[:-_FORMS, :-_FORMS] = orthonormal(width - _FORMS, width - _FORMS)
    return turn


def _unit_rows(rows: int, columns: int) -> Tensor:
    """Random rows of length one [rows, columns], orthonormal in groups of `columns`."""
    return torch.cat([orthonormal(min(rows - start, columns), columns) for start in range(0, rows, columns)])


def orthonormal(rows: int, columns: int) -> Tensor:
    """Random orthonormal rows [rows, columns]."""
    q: Tensor = torch.linalg.qr(torch.randn(columns, rows))[0]
    return q.T


def rotated(vector: Tensor, offset: float) -> Tensor:
    """A head vector as rotary embedding turns it over `offset` positions."""
    angles = offset * ROPE_THETA ** (-torch.arange(_PAIRS) / _PAIRS)
    first, second = vector[:_PAIRS], vector[_PAIRS:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])
