"""Outputs: whether they can be written, asked before the work; files and folders that appear whole or not at all."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, TextIO
from uuid import uuid4

from prism.errors import DataError, InputError


def require_file(path: Path) -> None:
    """Raises InputError unless a file can be written at `path`; makes nothing."""
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder: name a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written: no permission: choose another")
    _require_folder(path.parent, path)


def require_other(path: Path, sources: Iterable[Path]) -> None:
    """Raises InputError when `path` is one of the files that are read: what was in it would be lost."""
    for source in sources:
        if path.exists() and source.exists() and os.path.samefile(path, source):
            raise InputError(f"{path} is read and would be written over: name another file for the result")


def require_folder(path: Path) -> None:
    """Raises InputError unless files can be written into the folder `path`, there or yet to be made; makes nothing."""
    _require_folder(path, path)


def _require_folder(folder: Path, path: Path) -> None:
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place) or place == place.parent)
    if not nearest.is_dir():
        raise InputError(f"{path} cannot be written: {nearest} is a file, not a folder: choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write into {nearest}: choose another")


def writable_file(path: Path | None) -> Path | None:
    """For command lines: the path, when a file can be written there. Raises InputError."""
    if path is not None:
        require_file(path)
    return path


def writable_folder(path: Path | None) -> Path | None:
    """For command lines: the path, when files can be written into that folder. Raises InputError."""
    if path is not None:
        require_folder(path)
    return path


class TextFile:
    """A text file that appears whole when the block ends well, and not at all when it fails. What was there stays until
    then; where it is the very same text, for good (`unchanged`).

    Raises DataError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.unchanged = path, False
        self._in_place = path.exists() and not path.is_file() and not path.is_dir()  # /dev/stdout is written as it is
        self._opened: tuple[ExitStack, Path, TextIO] | None = None

    def __enter__(self) -> Self:
        require_file(self.path)
        with self._refused(), ExitStack() as opened:
            part = self.path if self._in_place else opened.enter_context(_part_of(self.path))
            out = opened.enter_context(part.open("w", encoding="utf-8", errors="replace", newline="\n"))
            self._opened = opened.pop_all(), part, out
        return self

    def write(self, text: str) -> None:
        """Append to it."""
        if self._opened is None:
            raise InputError(f"{self.path} was written to before it was opened")
        with self._refused():
            self._opened[2].write(text)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._opened is None:
            return
        (opened, part, out), self._opened = self._opened, None
        with self._refused(), opened:
            if kind is None and not self._in_place:
                out.close()
                self.unchanged = self.path.is_file() and filecmp.cmp(part, self.path, shallow=False)
                if not self.unchanged:
                    _take_place(part, self.path)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> bool:
    """Write a text file atomically; returns whether it was there already, word for word. Raises DataError."""
    with TextFile(path) as out:
        out.write(text)
    return out.unchanged


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Where to make a file or a folder that is to appear at `path` whole, when the block ends well, or not at all.

    Others may make the same at the same time: the last one stays. Raises OSError where the disk refuses.
    """
    with _part_of(path) as part:
        yield part
        _take_place(part, path)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """Where to make what is to appear at `path`: beside it, under a name of its own; what is left there goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _take_place(part: Path, path: Path) -> None:
    if part.is_file():
        with part.open("rb+") as made:
            os.fsync(made.fileno())
    part.replace(path)
