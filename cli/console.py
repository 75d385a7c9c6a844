"""Where the command prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import sys
from pathlib import PurePath
from typing import Any

from rich.console import Console

from finflow_sb3.messages import words

__all__ = ["console", "out", "print_error", "print_json", "set_quiet", "words"]

console = Console(stderr=True)
"""For progress and remarks; silent under --quiet."""

out = Console()
"""For results."""


def set_quiet(quiet: bool) -> None:
    """Switch `console` and progress bars off or on. Errors and results are printed anyway.

    Of several processes under `torchrun` the first one alone has them.
    """
    console.quiet = quiet or int(os.environ.get("RANK", "0")) > 0


def print_error(message: str) -> None:
    """One line on stderr, not wrapped, so that scripts can read it."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def print_json(value: Any) -> None:
    """JSON on stdout with sorted keys; numbers that are not finite become null.

    Takes what results are made of: dataclasses, mappings, sequences, numpy arrays and scalars,
    dates and paths.

    Raises
    ------
    TypeError
        If there is anything else in `value`.
    """
    print(json.dumps(_jsonable(value), indent=2, sort_keys=True, allow_nan=False))


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_jsonable(item) for item in value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _jsonable(getattr(value, field.name)) for field in fields}
    if hasattr(value, "tolist"):  # numpy, which is not imported here
        return _jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")
