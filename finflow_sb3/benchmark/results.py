"""What a cell leaves behind: its net curves, its figures, and of what learned its policy."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finflow_sb3.benchmark.tasks import Files
from finflow_sb3.errors import ArtefactError
from finflow_sb3.evaluation.curve import Curve

__all__ = ["CURVES", "POLICY", "RESULT", "CellResult", "pack", "unpack"]

RESULT, CURVES, POLICY = "result.json", "curves.npz", "best"
FORMAT = "finflow-cell-1"
DAYS = ("dates", "decisions")


@dataclass(frozen=True)
class CellResult:
    """Figures of a cell.

    Attributes
    ----------
    key : of the cell
    facts : `env_steps` online, `gradient_steps` of an offline phase and `offline_transitions` that
        it had, `seconds` (an offline phase that cells share counts for each), validation figures
    measures : by lag ("lag_0") the measures of its curve
    curves : one for each lag
    policy : files of the trained policy by name, empty of a rule; in the store `load_policy` reads
        it from the cell's folder
    """

    key: str
    algo: str
    market: str
    fold: str
    seed: int
    facts: dict[str, Any]
    measures: dict[str, dict[str, float]]
    curves: tuple[Curve, ...]
    policy: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def curve(self, lag: int = 0) -> Curve:
        """The curve of a lag."""
        return next(c for c in self.curves if c.execution_lag == lag)


def pack(result: CellResult) -> Files:
    """Files of a result by name: the same on every machine, without a pickle."""
    head = {
        "format": FORMAT,
        **{k: getattr(result, k) for k in ("key", "algo", "market", "fold", "seed", "facts")},
        "measures": result.measures,
        "curves": [_head(curve) for curve in result.curves],
        "policy": sorted(result.policy),
    }
    arrays = {
        f"{i}.{name}": array
        for i, curve in enumerate(result.curves)
        for name, array in _arrays(curve)
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    text = json.dumps(_finite(head), indent=1, sort_keys=True, allow_nan=False)
    policy = {f"{POLICY}/{name}": content for name, content in result.policy.items()}
    return {CURVES: buffer.getvalue(), RESULT: f"{text}\n".encode(), **policy}


def unpack(files: Mapping[str, bytes], where: str) -> CellResult:
    """The result that `pack` gave.

    Raises
    ------
    ArtefactError
        If it is not whole.
    """
    try:
        head = json.loads(files[RESULT])
        if head["format"] != FORMAT:
            raise ArtefactError(f"{where}: is of format {head['format']!r}; run the cell again")
        with np.load(io.BytesIO(files[CURVES]), allow_pickle=False) as archive:
            curves = [_curve(i, each, archive) for i, each in enumerate(head["curves"])]
        return CellResult(
            **{k: head[k] for k in ("key", "algo", "market", "fold", "seed", "facts")},
            measures={
                lag: {k: math.nan if v is None else float(v) for k, v in found.items()}
                for lag, found in head["measures"].items()
            },
            curves=tuple(curves),
            policy={name: files[f"{POLICY}/{name}"] for name in head["policy"]},
        )
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtefactError(f"{where}: is not whole ({error}); run the cell again") from None


def _head(curve: Curve) -> dict[str, Any]:
    """What of a curve is no array: texts and numbers."""
    fields = {f.name: getattr(curve, f.name) for f in dataclasses.fields(curve)}
    return {k: v for k, v in fields.items() if v is None or isinstance(v, (str, int, float, tuple))}


def _arrays(curve: Curve) -> Iterator[tuple[str, Any]]:
    """Arrays of a curve by name; those of a mapping by its name, a slash and their own."""
    for each in dataclasses.fields(curve):
        value = getattr(curve, each.name)
        named = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, array in named:
            if isinstance(array, np.ndarray):
                days = array.dtype.kind == "M"
                stored = array.astype("datetime64[D]").astype(np.int64) if days else array
                yield f"{each.name}/{name}".rstrip("/"), stored


def _curve(i: int, head: Mapping[str, Any], archive: Mapping[str, Any]) -> Curve:
    start = f"{i}."
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in head.items()}
    for key in archive:
        if key.startswith(start):
            field, slash, name = key.removeprefix(start).partition("/")
            array = archive[key]
            if field in DAYS:
                array = array.astype("datetime64[D]")
            values[field] = {**values.get(field, {}), name: array} if slash else array
    return Curve(**values)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
