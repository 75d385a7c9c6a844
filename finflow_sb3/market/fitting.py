"""Fits to windows of prices: in two processes where many are due, remembered on disk by content."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.files import write_whole

__all__ = ["cached_fits", "clean_weights"]

Float = NDArray[np.float64]

PARALLEL_FROM = 40


def cached_fits(
    path: Path,
    keys: Sequence[str],
    task: Callable[[int], Any],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Float]:
    """One array for each key, from the file or fitted; the file then holds it too.

    Parameters
    ----------
    path : an ``.npz`` of arrays of one shape; an unreadable one is as good as none
    keys : of everything that an array depends on, the shape's reasons included
    task : number of a key → ``joblib.delayed(function)(arguments)`` that gives its array; asked
        for what is missing alone
    on_progress : called with (fits done, fits to do)
    """
    from joblib import Parallel

    known = _read(path)
    missing = [i for i, key in enumerate(keys) if key not in known]
    jobs = 2 if len(missing) >= PARALLEL_FROM else 1
    fits = Parallel(n_jobs=jobs, return_as="generator", batch_size=8)(task(i) for i in missing)
    for done, (i, fitted) in enumerate(zip(missing, fits, strict=True), start=1):
        known[keys[i]] = fitted
        if on_progress is not None:
            on_progress(done, len(missing))
    if missing:
        _write(path, known)
    return [known[key] for key in keys]


def clean_weights(weights: Any) -> Float:
    """Solver noise removed: no tiny negatives, exactly one in total."""
    clean = np.where(np.asarray(weights, dtype=np.float64) < 1e-8, 0.0, weights)
    return np.asarray(clean / clean.sum())


def _read(path: Path) -> dict[str, Float]:
    """Known fits by key."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(zip(archive["keys"].tolist(), archive["fits"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def _write(path: Path, known: dict[str, Float]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.array(list(known)), fits=np.stack(list(known.values())))
    write_whole(path, buffer.getvalue())
