"""The exception tree. Every message is one line: what is wrong, where, and what to do."""

from __future__ import annotations

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
    """A file that cannot be written: no space left, or no permission."""
