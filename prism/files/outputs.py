"""Outputs: whether they can be written, asked before the work; and files that appear whole or not at all."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

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


class Part:
    """A file that is written beside its place and moved there whole. Raises DataError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        special = path.exists() and not path.is_file() and not path.is_dir()  # /dev/stdout is written as it is
        self._part = path if special else path.with_name(path.name + ".part")
        self._out: TextIO | None = None

    def open(self) -> None:
        """Make the folder and the part."""
        require_file(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._out = self._part.open("w", encoding="utf-8", errors="replace", newline="\n")
        except OSError as error:
            raise self._refused(error) from error

    def write(self, text: str) -> None:
        """Append to the part."""
        if self._out is None:
            raise InputError(f"{self.path} was written to before it was opened")
        try:
            self._out.write(text)
        except OSError as error:
            raise self._refused(error) from error

    def keep(self) -> bool:
        """Move the part into place; returns whether the very same file was there, which is then left alone."""
        out, self._out = self._out, None
        if out is None or self._part == self.path:
            if out is not None:
                out.close()
            return False
        try:
            with out:
                out.flush()
                os.fsync(out.fileno())
            if self.path.is_file() and filecmp.cmp(self._part, self.path, shallow=False):
                self._part.unlink()
                return True
            self._part.replace(self.path)
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise self._refused(error) from error
        return False

    def discard(self) -> None:
        """Leave no part behind."""
        out, self._out = self._out, None
        if out is not None:
            try:
                out.close()
            except OSError as error:  # the rest does not fit on the disk
                raise self._refused(error) from error
            finally:
                if self._part != self.path:
                    self._part.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> DataError:
        return DataError(f"cannot write {self.path}: {error.strerror or error}")
