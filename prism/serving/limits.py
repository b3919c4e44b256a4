"""What one server takes on, and whom it lets in: limits, API keys, a bounded number of requests at a time.

Keys come from a file or the environment, are kept as hashes, compared in constant time, never logged.

All requests that are let in take turns at the engine (`prism.engines.turns`). A request says its `priority` in its
body, which is read at the door. When all places are taken it is refused, unless one of them is held by a request that
is less urgent (a higher number): of these the least urgent, and of equals the latest, is given up for it. What has
begun to answer keeps its place.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import Field

from prism.errors import InputError
from prism.serving.http_errors import Refused
from prism.types import EvidenceChoice, Record


class Limits(Record):
    """Requests past a limit are refused with 400, 413, 429 or 504; none of them harms the others."""

    max_documents: int = Field(default=1000, ge=1)
    """Documents in one request."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    max_tokens: int = Field(default=4_000_000, ge=1)
    """Prompt tokens of one request."""
    max_requests: int = Field(default=64, ge=1)
    """Requests under way or waiting; the next is answered 429."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    tokenizers: tuple[str, ...] = ()
    """Which tokenizers requests may name for the budget of a context; their names are what `named_tokenizer` takes."""
    evidence: EvidenceChoice | bool = True
    """Whether there is evidence, and where it comes from, when a request does not say."""


ENVIRONMENT = "PRISM_API_KEYS"


class Keys:
    """The keys a server takes; none at all means that everybody is let in."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = [_hash(key.strip()) for key in keys if key.strip()]

    @classmethod
    def read(cls, path: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
        """One key a line in the file, `#` begins a comment; several in `PRISM_API_KEYS` are parted by commas.

        Raises InputError when the file cannot be read or has no key: a server meant to be closed must not be open.
        """
        keys = environment.get(ENVIRONMENT, "").split(",")
        if path is None:
            return cls(keys)
        try:
            text = path.read_text(encoding="utf-8").replace("\ufeff", "")  # Windows begins a file with it
        except OSError as error:
            raise InputError(f"cannot read the API keys in {path}: {error.strerror}") from error
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:  # UTF-16, as PowerShell writes it, or no text at all
            raise InputError(f"cannot read the API keys in {path}: save it as UTF-8, with one key a line")
        lines = text.splitlines()
        from_file = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not from_file:
            raise InputError(f"{path} holds no API key: write one a line")
        return cls([*keys, *from_file])

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def require(self, headers: Mapping[str, str]) -> None:
        """Raises Refused (401) unless the request carries a key: `Authorization: Bearer KEY`."""
        if not self._hashes:
            return
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        digest = _hash(sent.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]  # all of them, whichever matches
        if scheme.lower() != "bearer" or not any(matches):
            message = "no valid API key: send Authorization: Bearer KEY"
            raise Refused(401, message, "authentication_error", WWW_Authenticate="Bearer")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


_WEIGHT = 0.2
_LONGEST_WAIT_S = 60
_AT_THE_DOOR = 8
"""Requests whose body is read although all places are taken."""


class Slot:
    """One request under way."""

    def __init__(self, admission: Admission, entered: float) -> None:
        self.cancel: Callable[[], None] = lambda: None
        """Ends the work when the place is given up."""
        self.given_up = False
        self.kept = False
        """Whether it can no longer be given up."""
        self.priority: int | None = None
        """None while its body is being read."""
        self.entered = entered
        self._admission = admission

    def claim(self, priority: int) -> None:
        """The body is read. Raises Refused, 429, when all places are taken by requests that are as urgent."""
        self._admission.seat(self, priority)

    def keep(self) -> None:
        self.kept = True

    def give_up(self) -> None:
        self.given_up = True
        self.cancel()

    def leave(self) -> None:
        """Calling twice is harmless."""
        self._admission.release(self)


class Admission:
    """Counts the requests under way and refuses what would be too many, or comes while the server drains."""

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.draining = False
        self._places: list[Slot] = []
        self._max = max_requests
        self._clock = clock
        self._mean_s = 1.0

    @property
    def open(self) -> int:
        """Requests under way, those at the door included."""
        return len(self._places)

    def enter(self) -> Slot:
        """Lets a request in as far as the door. Raises Refused, 429 or 503, with a time to wait."""
        if self.draining:
            message = "the server is shutting down: send the request to another"
            raise Refused(503, message, "shutting_down", Retry_After="1")
        if self.open >= self._max + _AT_THE_DOOR:
            raise self.full()
        place = Slot(self, self._clock())
        self._places.append(place)
        return place

    def seat(self, place: Slot, priority: int) -> None:
        seated = [other for other in self._places if other.priority is not None and not other.given_up]
        if len(seated) >= self._max:
            urgencies = {id(other): other.priority or 0 for other in seated}
            less = [other for other in seated if not other.kept and urgencies[id(other)] > priority]
            if not less:
                raise self.full()
            max(reversed(less), key=lambda other: urgencies[id(other)]).give_up()
        place.priority = priority

    def release(self, place: Slot) -> None:
        if place in self._places:
            self._places.remove(place)
            if place.priority is None or place.given_up:
                return  # it was not served
            self._mean_s += _WEIGHT * (self._clock() - place.entered - self._mean_s)

    def full(self) -> Refused:
        message = f"{self._max} requests are under way, which is the limit: try again later"
        return self._busy(message)

    def given_up(self) -> Refused:
        return self._busy("given up for a more urgent request: try again later")

    def _busy(self, message: str) -> Refused:
        return Refused(429, message, "too_many_requests", Retry_After=str(self.retry_after_s()))

    def retry_after_s(self) -> int:
        """When a place is likely to be free: the requests under way end within about their mean time."""
        return min(_LONGEST_WAIT_S, max(1, round(self._mean_s)))
