"""What the batch's arithmetic shares: sums of rows, and arrays that are used again."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Recycled", "row_sums"]

Float = NDArray[np.float64]


def row_sums(values: Float) -> Float:
    """Sums over the last axis of [B, m], in the same bits whatever B is.

    `einsum` runs one loop over the columns for each row. A matrix product would be as fast, but
    BLAS takes rows in groups whose size depends on B; `np.add.reduce` takes twice the time.
    """
    return np.asarray(np.einsum("ij->i", values))


class Recycled:
    """Arrays of one shape, handed out again once nobody else holds them.

    Fresh memory can cost more than what a step writes into it: the system maps and clears its
    pages one by one. What was handed out is never written to again while a name, a view, a
    list or a tensor refers to it.

    Parameters
    ----------
    most : arrays to keep; with all of them held elsewhere, new ones are made
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, most: int = 4):
        self.shape, self.dtype, self.most = shape, dtype, most
        self._arrays: list[NDArray[Any]] = []

    def take(self) -> NDArray[Any]:
        """An array with undefined content."""
        for i in range(len(self._arrays)):
            if _references(self._arrays, i) <= _UNHELD:
                return self._arrays[i]
        array = np.empty(self.shape, dtype=self.dtype)
        if len(self._arrays) < self.most:
            self._arrays.append(array)
        return array


def _references(arrays: list[NDArray[Any]], i: int) -> int:
    return sys.getrefcount(arrays[i])


# Counted, not written down: what the call itself adds differs between versions of Python.
_UNHELD = _references([np.empty(0)], 0)
