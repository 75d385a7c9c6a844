"""How far daily returns of the same prices may lie apart, as closes come rounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.market.prices import PriceTable

__all__ = ["SAME_RETURN", "rounding_errors"]

Float = NDArray[np.float64]

SAME_RETURN = 1e-4
"""Room beside visible rounding: closes that were adjusted once more are rounded once more."""
DIGITS = (2, 3, 4)


def rounding_errors(prices: PriceTable) -> Float:
    """What rounding of closes moves returns by at most, shape [T, n]; row 0 is zero.

    It is seen where all closes have the same few decimals: half a unit at both ends of a day.
    """
    out = np.zeros_like(prices.close)
    out[1:] = _unit(prices.close) / np.minimum(prices.close[:-1], prices.close[1:])
    return out


def _unit(close: Float) -> float:
    """What all closes are multiples of: a cent, a tenth or a hundredth of one; else 0."""
    for digits in DIGITS:
        if np.allclose(close, close.round(digits), rtol=0.0, atol=1e-9):
            return float(10.0**-digits)
    return 0.0
