"""Text files below one folder that the user named, and nothing else of the machine.

What is asked for by name and cannot be read is an error; what stands in a folder beside text is skipped and told. A
path is followed to where it really leads, so neither `..` nor a symbolic link leaves the root, and what was opened is
compared with what stands there after it was opened, so no swap in between does either. Pipes and devices are never
opened for reading.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from prism.errors import InputError
from prism.types import Document, Record

_BINARY = b"\0"
# Opening a pipe would wait for a writer; O_NONBLOCK does not. Not every system has every flag.
_OPEN = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY", "O_CLOEXEC"))


class Skipped(Record):
    """A file in a folder that was asked for, which is no document."""

    path: str
    reason: str


class Folder:
    """Reads files below `root`, each at most `max_file_bytes` long, at most `max_files` and `max_bytes` in one call."""

    def __init__(
        self,
        root: Path,
        *,
        max_file_bytes: int = 2**20,
        max_files: int = 500,
        max_bytes: int = 32 * 2**20,
    ) -> None:
        """Raises InputError when `root` is no directory."""
        self._root = root.expanduser().resolve()
        if not self._root.is_dir():
            raise InputError(f"--root {root}: expected a directory")
        self._max_file_bytes, self._max_files, self._max_bytes = max_file_bytes, max_files, max_bytes

    def read(self, paths: Sequence[str]) -> tuple[list[Document], list[Skipped]]:
        """The documents at `paths` and, for directories, below them; their ids are paths from the root.

        Each is read once. Raises InputError for a path that leads out of the root or to nothing, for a named file that
        is too large or no text, and when there are too many.
        """
        documents: list[Document] = []
        skipped: list[Skipped] = []
        left_bytes = self._max_bytes
        for name, path, named in self._files(paths):
            try:
                text = self._text(name, path)
            except InputError as error:
                if named:
                    raise
                skipped.append(Skipped(path=name, reason=str(error).removeprefix(f"{name!r} ")))
                continue
            left_bytes -= len(text.encode())
            if left_bytes < 0:
                raise InputError(f"the files are over {self._max_bytes:,} bytes together: name fewer")
            documents.append(Document(text=text, id=name))
        return documents, skipped

    def _files(self, paths: Sequence[str]) -> Iterator[tuple[str, Path, bool]]:
        """Name from the root, place, and whether it was asked for by name."""
        seen: set[Path] = set()
        for asked in paths:
            place = self._inside(asked)
            named = not place.is_dir()
            for path in [place] if named else _below(place):
                if path in seen:
                    continue
                seen.add(path)
                if len(seen) > self._max_files:
                    raise InputError(f"more than {self._max_files} files: name fewer, or a smaller folder")
                yield path.relative_to(self._root).as_posix(), path, named

    def _inside(self, asked: str) -> Path:
        """Where `asked` leads. What is outside is refused without a look whether it is there."""
        try:
            place = (self._root / asked).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
            raise InputError(f"{asked!r} is not a path: {error}") from error
        if not place.is_relative_to(self._root):
            raise InputError(f"{asked!r} leads out of the root: name files below it")
        if not place.exists():
            raise InputError(f"{asked!r} is not there: name files by their paths from the root")
        return place

    def _text(self, name: str, path: Path) -> str:
        content = self._bytes(name, path)
        if _BINARY in content:
            raise InputError(f"{name!r} is binary: expected text")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{name!r} is not text in UTF-8 (byte {error.start})") from error

    def _bytes(self, name: str, path: Path) -> bytes:
        try:
            place = path.resolve(strict=True)
            if not place.is_relative_to(self._root):
                raise InputError(f"{name!r} leads out of the root")
            descriptor = os.open(place, _OPEN)
            with open(descriptor, "rb") as stream:
                opened = os.fstat(descriptor)
                again = path.resolve(strict=True)
                if not again.is_relative_to(self._root) or not os.path.samestat(opened, again.stat()):
                    raise InputError(f"{name!r} changed while it was opened: try again")
                if not stat.S_ISREG(opened.st_mode):
                    raise InputError(f"{name!r} is not a file")
                content = stream.read(self._max_file_bytes + 1)
        except OSError as error:
            raise InputError(f"{name!r} cannot be read: {error.strerror or error}") from error
        except RuntimeError as error:  # what Python before 3.13 says of a loop of links
            raise InputError(f"{name!r} cannot be read: a loop of links") from error
        if len(content) > self._max_file_bytes:
            raise InputError(f"{name!r} is over {self._max_file_bytes:,} bytes")
        return content


def _below(folder: Path) -> Iterator[Path]:
    """Files below a folder in order of their paths; hidden ones are left alone, linked folders not entered."""
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))
