"""What a cell leaves behind: its net curves, its figures, and of what learned its policy."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finflow_sb3.benchmark.tasks import Files
from finflow_sb3.errors import ArtefactError
from finflow_sb3.evaluation.curve import Curve

__all__ = ["CURVES", "POLICY", "RESULT", "CellResult", "pack", "unpack"]

RESULT, CURVES, POLICY = "result.json", "curves.npz", "best"
FORMAT = "finflow-cell-1"
_ARRAYS = ("dates", "decisions", "returns", "weights", "turnover", "cost", "gates")


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
        f"{i}.{name}": _stored(getattr(curve, name))
        for i, curve in enumerate(result.curves)
        for name in _ARRAYS
        if getattr(curve, name) is not None
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


def _stored(array: Any) -> Any:
    return array.astype("datetime64[D]").astype(np.int64) if array.dtype.kind == "M" else array


def _head(curve: Curve) -> dict[str, Any]:
    plain = ("name", "assets", "anchors", "fee", "execution_lag")
    return {name: getattr(curve, name) for name in plain}


def _curve(i: int, head: Mapping[str, Any], archive: Mapping[str, Any]) -> Curve:
    arrays = {name: archive[f"{i}.{name}"] for name in _ARRAYS if f"{i}.{name}" in archive}
    for name in ("dates", "decisions"):
        arrays[name] = arrays[name].astype("datetime64[D]")
    texts: dict[str, Sequence[str]] = {k: tuple(head[k]) for k in ("assets", "anchors")}
    return Curve(
        name=str(head["name"]),
        fee=float(head["fee"]),
        execution_lag=int(head["execution_lag"]),
        **texts,
        **arrays,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
