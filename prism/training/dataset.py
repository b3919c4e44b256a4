"""Records -> rows: tokenized once, in all processes the machine has room for, and kept beside the run for all to map.

make_rows : files -> key of all that goes in -> `rows/KEY.arrow`, found or made -> mapped, with every drop counted
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from prism.errors import DataError, InputError, RecipeError
from prism.files.examples import Unparsed, open_examples, parse_example, read_unparsed
from prism.files.jsonl import Drops, dumps
from prism.files.lines import byte_lines
from prism.files.qa_settings import Qa
from prism.outputs import made_whole, write_text
from prism.parallel import ordered
from prism.template import Part, Supervised, Template
from prism.text import stable_id
from prism.training.progress import bar, say
from prism.training.recipe import PartWeights, Recipe
from prism.training.rows import SCHEMA, Row, Rows, part_of
from prism.types import Document, Example
from prism.version import __version__

FORMAT = 2
"""Raised when the same records would become other rows, or lie otherwise in their file."""
_RECORDS_AT_ONCE = 500
_NAMED = 20
"""Dropped records of each reason, by number, query and document."""
_EVEN = PartWeights()


class Tokenized(NamedTuple):
    """What became of the records."""

    rows: Rows
    drops: Drops


class Rendering(NamedTuple):
    """How records become rows."""

    template: Template
    max_tokens: int
    part_weights: PartWeights = _EVEN


def make_rows(recipe: Recipe, folder: Path, template: Template, build: QaBuilder | None = None) -> Tokenized:
    """The recipe's records as rows under `folder`, which a run with the same data, template and limits has made before,
    or this one makes. Raises DataError at a malformed record, or when none is left."""
    files = record_files(recipe, folder, build)
    rendering = Rendering(template, recipe.data.max_tokens, recipe.losses.sft_parts)
    data = _survey(files)
    path = folder / "rows" / f"{_key(rendering, data)}.arrow"
    if path.is_file() and _drops_beside(path).is_file():
        say(f"reusing {path}")
    else:
        tokenize(files, path, rendering, lines=data.lines, workers=recipe.schedule.workers)
    made = Tokenized(Rows.open(path), Drops.of(json.loads(_drops_beside(path).read_bytes())))
    _tell(made)
    return made


class QaBuilder(Protocol):
    """Makes the records of a recipe's `data.qa` in a folder, once: `prism.data.qa.build`."""

    def __call__(self, settings: Qa, folder: Path, seed: int, say: Callable[[str], None], /) -> object: ...


def record_files(recipe: Recipe, folder: Path, build: QaBuilder | None) -> tuple[Path, ...]:
    """Where the training records lie; those made of question-passage sets are made once per run, by `build`."""
    if recipe.data.qa is None:
        return recipe.data.files
    if build is None:
        raise RecipeError("data.qa: nobody makes its records: pass build=prism.data.qa.build, as prism train does")
    build(recipe.data.qa, folder / "data", recipe.seed, say)
    return (folder / "data" / "train.jsonl",)


def _tell(made: Tokenized) -> None:
    for reason, count in made.drops.counts.items():
        say(f"dropped {count:,} records: {reason}")
    for line in made.drops.named:
        say(f"  {line}")
    lengths = made.rows.lengths
    if not len(lengths):
        raise DataError("no training records are left: see the reasons above")
    say(f"{len(lengths):,} records, {lengths.sum(dtype=np.int64):,} tokens an epoch, longest {lengths.max():,}")


# --- kept rows -------------------------------------------------------------------------------------------------------


class _Survey(NamedTuple):
    """What records are made of, read once."""

    digest: str
    """Of the content of all files, unpacked, in their order."""
    lines: int


def _survey(files: Sequence[Path]) -> _Survey:
    """Raises DataError for a file that is not there, or cannot be read to its end."""
    found, lines = hashlib.blake2b(digest_size=16), 0
    for path in files:
        with open_examples(path) as stream:
            own = hashlib.blake2b(digest_size=16)
            for _, line in byte_lines(stream, str(path)):
                own.update(line)
                lines += 1
        found.update(own.digest())
    return _Survey(found.hexdigest(), lines)


def _key(rendering: Rendering, data: _Survey) -> str:
    """Equal where the rows would be: the same records, template, tokenizer and limits, rendered by the same Prism."""
    template = rendering.template
    settings = rendering.part_weights.model_dump_json(), template.spec.model_dump_json(), str(rendering.max_tokens)
    parts = (str(FORMAT), __version__, data.digest, *settings, template.tokenizer.backend_tokenizer.to_str())
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _drops_beside(path: Path) -> Path:
    return path.with_suffix(".json")


def tokenize(
    files: Sequence[Path], path: Path, rendering: Rendering, *, lines: int | None = None, workers: int | None = None
) -> None:
    """Rows of all records, in their order, into an Arrow file at `path`; what was dropped into a JSON file beside it.

    Records are parsed and rendered in `workers` processes (default: one for each core, where there are enough records);
    neither rows nor drops depend on how many there are. `lines`: how many lines the files have, for the bar. The file
    appears whole or not at all; rows of other settings in its folder are removed. Raises DataError.
    """
    started = time.perf_counter()
    try:
        _make_room(path.parent)
        with made_whole(path) as part:
            with part.open("wb") as file:
                drops = _write_rows(file, files, rendering, lines, workers)
            write_text(_drops_beside(path), dumps(drops.report(), indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot tokenize into {path}: {error.strerror or error}") from error
    say(f"tokenized in {time.perf_counter() - started:,.0f} s")


def _make_room(folder: Path) -> None:
    """Rows of other settings go, and what a process left that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in chain.from_iterable(folder.glob(f"*.{ending}") for ending in ("arrow", "json", "part")):
        old.unlink(missing_ok=True)


def _write_rows(
    file: IO[bytes], files: Sequence[Path], rendering: Rendering, lines: int | None, workers: int | None
) -> Drops:
    drops = Drops(_NAMED)
    numbered = enumerate(chain.from_iterable(map(read_unparsed, files)), 1)
    with pa.ipc.new_file(file, SCHEMA) as out, bar("tokenizing", lines) as advance:
        for made in ordered(_render, rendering, numbered, chunk=_RECORDS_AT_ONCE, workers=workers):
            out.write_batch(pa.ipc.read_record_batch(pa.py_buffer(made.part), SCHEMA))
            for reason, record in made.left_out:
                drops.add(reason, record)
            advance(made.records)
    return drops


# --- records to rows, in any process ---------------------------------------------------------------------------------


class _Made(NamedTuple):
    """Some records, done."""

    part: bytes
    """Their rows: an Arrow record batch, serialized once, where it was made."""
    left_out: list[tuple[str, str]]
    """(reason, which record)."""
    records: int


def _render(rendering: Rendering, some: list[tuple[int, Unparsed]]) -> _Made:
    made: list[Row] = []
    left_out: list[tuple[str, str]] = []
    for number, record in some:
        example = parse_example(record)
        try:
            made.append(make_row(example, *rendering))
        except InputError as error:
            which = f"record {number} (query {example.query[:60]!r}, document {example.doc_id!r})"
            left_out.append((str(error), which))
    return _Made(part_of(made).serialize().to_pybytes(), left_out, len(some))


def make_row(example: Example, template: Template, max_tokens: int, part_weights: PartWeights = _EVEN) -> Row:
    """Tokenize one record. Raises InputError with the reason when it must be dropped."""
    sequence = _supervise(example, template, max_tokens)
    position = sequence.parts.index(Part.LABEL)
    distils = "distill" in example.losses and example.teacher_score is not None
    counts = _counts(part_weights, distils) if "sft" in example.losses else {}
    teacher = example.teacher_score if distils and example.teacher_score is not None else float("nan")
    return Row(
        input_ids=np.asarray(sequence.ids, dtype=np.int32),
        label_position=position,
        teacher_score=teacher,
        query=int(stable_id(example.query_id or example.query), 16) % 2**31,
        weights=np.asarray([counts.get(part, 0.0) for part in sequence.parts[position:]], dtype=np.float32),
    )


def _counts(weights: PartWeights, distils: bool) -> dict[Part, float]:
    """With a soft teacher the label's own cross-entropy would fight the distillation: it does not count then."""
    return {
        Part.LABEL: weights.label if weights.label_with_teacher or not distils else 0.0,
        Part.CONTRIBUTION: weights.contribution,
        Part.EVIDENCE: weights.evidence,
        Part.WRITTEN: weights.tags,
    }


def _supervise(example: Example, template: Template, max_tokens: int) -> Supervised:
    if not example.query.strip() or not example.document.strip():
        raise InputError("blank query or document")
    if not example.losses:
        raise InputError("no losses")
    too_long = f"prompt and target exceed {max_tokens} tokens"
    try:
        sequence = template.supervise(
            example.query,
            Document(text=example.document, title=example.title),
            example.verdict,
            contribution=example.contribution,
            evidence=example.evidence,
            max_tokens=max_tokens,
        )
    except InputError as error:  # query and target alone leave no room: one reason, whatever the numbers
        raise InputError(too_long) from error
    if sequence.truncation and example.verdict == "yes":
        raise InputError(too_long)  # the evidence may be in what was cut
    return sequence
