"""Which scores these are: a stable name for what determines them, so that a threshold survives an upgrade knowingly.

    3f2a9c1b7d40         what a pair scores: the prompt's text, the label words, the weights
    3f2a9c1b7d40+5e81c2  the same, with the fit that makes probabilities of scores

Of weights, sizes and blocks spread over each file are read, not gigabytes: training changes them everywhere. Arithmetic
(dtype, engine) is not in it: it moves scores by some hundredths at most. Weights cut into other shards count as others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from prism import catalogue, gguf_file, merge
from prism.answering import Answering
from prism.scoring import Calibration
from prism.template import TemplateSpec

_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def score_version(scores: str, calibration: Calibration | None, answering: Answering | None) -> str:
    """The whole name; without a calibration there are no probabilities to name."""
    if calibration is None:
        return scores
    fits = [calibration.model_dump(mode="json"), answering and answering.model_dump(mode="json")]
    return f"{scores}+{_short(json.dumps(fits, sort_keys=True).encode(), 6)}"


def scores_part(version: str) -> str:
    """What is before the `+`: two versions with one such part give the same scores."""
    return version.partition("+")[0]


def stale(chosen_for: str | None, now: str | None, what: str) -> list[str]:
    """The warning that `what` ("the thresholds were chosen") was for other scores; none where either is unknown.

    A version without `+` says nothing of probabilities, so those do not count then.
    """
    if chosen_for is None or now is None or now == chosen_for or scores_part(now) == chosen_for:
        return []
    return [f"{what} for scores of version {chosen_for[:40]}, and these are {now}: calibrate or choose them again"]


def name_scores(spec: TemplateSpec, home: Path, locate: Callable[[str], Path], base_sha256: str | None) -> str:
    """What a pair scores with this template and the weights at `home`: a folder, an adapter's, or a file.

    `locate` finds an adapter's base, `base_sha256` is its sum where it is known. Raises CheckpointError as it does.
    """
    prompt = spec.model_dump_json(include={"text", "default_instruction", "yes", "no"})
    return _short(f"{prompt}\n{weights(home, locate, base_sha256)}".encode(), 12)


def weights(home: Path, locate: Callable[[str], Path], base_sha256: str | None) -> str:
    """What tells these weights from others. A GGUF file that Prism wrote says which it was made of: types of weights
    are arithmetic.
    """
    if home.is_file() and (made_of := gguf_file.read_metadata(home).get(gguf_file.WEIGHTS)):
        return str(made_of)
    if not merge.is_adapter(home):
        return fingerprint(home)
    name = merge.base_of(home)
    known = catalogue.CATALOGUE.get(name)
    base = known.sha256 if known else base_sha256 or fingerprint(locate(name))
    settings = hashlib.sha256((home / merge.ADAPTER).read_bytes()).hexdigest()
    return f"{base} {fingerprint(home / merge.ADAPTER_WEIGHTS)} {settings}"


def fingerprint(path: Path) -> str:
    """Of a file, or of the safetensors files of a folder: size and up to 64 blocks of 64 KiB of each, evenly spread."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}\n".encode())
        last = max(0, size - _BLOCK_BYTES)
        with file.open("rb") as stream:
            for start in sorted({last * block // (_BLOCKS - 1) for block in range(_BLOCKS)}):
                stream.seek(start)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _short(content: bytes, digits: int) -> str:
    return hashlib.sha256(content).hexdigest()[:digits]
