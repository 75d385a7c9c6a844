"""A cache on disk whose keys are hashes of what the content was computed from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cache_folder", "content_key"]


def cache_folder() -> Path:
    """Where finflow caches: $FINFLOW_CACHE_DIR, else $XDG_CACHE_HOME/finflow, else ~/.cache."""
    explicit = os.environ.get("FINFLOW_CACHE_DIR")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "finflow"


def content_key(*parts: Any) -> str:
    """A SHA-256 over arrays (dtype, shape, bytes) and JSON-able values, as 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            array: NDArray[Any] = np.ascontiguousarray(part)
            if array.dtype.kind == "M":
                array = array.astype(np.int64)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()
