"""API keys: from a file or the environment, kept as hashes, compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prism.errors import InputError
from prism.serving.refusal import Refused

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
