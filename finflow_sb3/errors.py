"""The exception tree. Every message is one line: what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import os

__all__ = [
    "ArtefactError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FinflowError",
    "MissingExtraError",
    "StorageError",
]


class FinflowError(Exception):
    """Something the user can mend. The command prints it on one line and exits with 1."""


class DataError(FinflowError):
    """Prices, datasets or dates that cannot be used as they are."""


class ConfigError(FinflowError):
    """A setting that is unknown, of the wrong type or out of range."""


class ArtefactError(FinflowError):
    """A run, artefact or dataset that does not fit what it is used with."""


class CheckpointError(FinflowError):
    """A checkpoint that is missing, truncated or altered."""


class MissingExtraError(FinflowError):
    """An optional dependency that is not installed."""


class StorageError(FinflowError):
    """A file that could not be written: a full disk, a quota, a device that fails."""

    @classmethod
    def of(cls, path: str | os.PathLike[str], error: OSError) -> StorageError:
        """What the system said about writing `path`, and what to do."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "disk full; free some space"
        elif error.errno == errno.EFBIG:
            reason = "larger than files may become here (ulimit -f); raise the limit"
        else:
            reason = f"{error.strerror or error}; see that it can be written"
        return cls(f"{os.fspath(path)}: could not be written: {reason}")
