"""The worst stretches and days of a curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import drawdown

__all__ = ["Fall", "deepest_falls", "worst_days"]

# A value that comes back to its high may miss it by the last bits of a float.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Fall:
    """One drawdown: from a high down, and back to it.

    Attributes
    ----------
    depth : largest loss from the high, negative
    peak, trough : ISO dates of the high and of the lowest value
    recovered : ISO date on which the high was reached again; None where it was not
    days : trading days from the high to the recovery, or to the end
    """

    depth: float
    peak: str
    trough: str
    recovered: str | None
    days: int


def deepest_falls(curve: Curve, count: int = 5) -> tuple[Fall, ...]:
    """The `count` deepest drawdowns of a curve that do not overlap, the deepest first."""
    depth = np.concatenate([[0.0], drawdown(curve.value)])
    dates = np.concatenate([curve.decisions[:1], curve.dates])
    below = np.concatenate([depth < -ROUNDING, [False]])
    starts = np.flatnonzero(below[1:] & ~below[:-1])
    ends = np.flatnonzero(below[:-1] & ~below[1:]) + 1
    falls = []
    for start, end in zip(starts, ends, strict=True):
        lowest = start + int(np.argmin(depth[start:end]))
        back = end < len(depth)
        falls.append(
            Fall(
                depth=float(depth[lowest]),
                peak=str(dates[start]),
                trough=str(dates[lowest]),
                recovered=str(dates[end]) if back else None,
                days=int((end if back else len(depth) - 1) - start),
            )
        )
    return tuple(sorted(falls, key=lambda fall: fall.depth)[:count])


def worst_days(curve: Curve, count: int = 10) -> tuple[tuple[str, float], ...]:
    """Dates and net returns of the `count` worst days with a loss, the worst first."""
    order = np.argsort(curve.returns, kind="stable")[:count]
    return tuple(
        (str(curve.dates[i]), float(curve.returns[i])) for i in order if curve.returns[i] < 0.0
    )
