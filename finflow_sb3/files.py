"""Files and folders that are written whole or not at all.

A write goes to a temporary name beside its target, is synchronised with the disk, and takes the
target's name last: a process that is killed leaves the old content or the new, never a mixture.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finflow_sb3.errors import StorageError

__all__ = [
    "present",
    "remove_folder",
    "storing",
    "sweep",
    "sync",
    "whole_file",
    "whole_folder",
    "write_whole",
]


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one line that names `path`.

    Raises
    ------
    StorageError
        If there is no space left, or the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        raise StorageError.of(path, error) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it.

    Raises
    ------
    StorageError
        If it cannot be written; what stood there is unharmed.
    """
    with whole_file(path) as new:
        new.write_bytes(content)


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """A new, empty file to fill, which takes the place of `final` once it is synchronised.

    Raises
    ------
    StorageError
        If it cannot be written; what stood there is unharmed.
    """
    with storing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.")
        os.close(handle)
        try:
            yield Path(name)
            sync(Path(name))
            # mkstemp makes files that only their owner reads; a result is as readable as any other.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, final)
            sync(final.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `final` once it is filled and synchronised.

    Its files lie in it directly. Between two renames `final` is missing for a moment: a process
    that is killed just then leaves the old folder under another name, where `present` finds it.

    Raises
    ------
    StorageError
        If it cannot be written; what stood there is unharmed.
    """
    with storing(final):
        _settle(final)
        new = _aside(final, "new")
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir(parents=True)
        try:
            yield new
            for path in sorted(new.iterdir()):
                sync(path)
            sync(new)
            _exchange(new, final)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync(final.parent)
        shutil.rmtree(_aside(final, "old"), ignore_errors=True)


def present(final: Path) -> Path:
    """Where the content of a folder lies: aside, if its replacement was cut short.

    Nothing is renamed here: the process that replaces the folder may be at work.
    """
    old = _aside(final, "old")
    return old if old.is_dir() and not final.exists() else final


def sweep(folder: Path, pattern: str) -> None:
    """Tidy up after a killed process: what `whole_folder` and `remove_folder` left in `folder`.

    Parameters
    ----------
    pattern : of the names that they were for; only the process that writes them may call this
    """
    for path in folder.glob(f".{pattern}"):
        _settle(path.with_name(path.name.removeprefix(".").rpartition(".")[0]))
        if path.is_dir():
            shutil.rmtree(path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that nothing looks like it while it goes."""
    gone = _aside(path, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def sync(path: Path) -> None:
    """Have the disk hold this file, or the names in this folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _settle(final: Path) -> None:
    """Undo the replacement of a folder that was cut short between its two renames."""
    found = present(final)
    if found != final:
        found.rename(final)


def _exchange(new: Path, final: Path) -> None:
    """Rename `new` to `final`; what stood there is kept aside, and comes back on failure."""
    old = _aside(final, "old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        new.rename(final)
    except BaseException:
        _settle(final)
        raise


def _aside(path: Path, why: str) -> Path:
    return path.with_name(f".{path.name}.{why}")
