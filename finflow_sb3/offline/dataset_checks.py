"""What must hold of a dataset's arrays, checked chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.market.layout import ObservationLayout

__all__ = ["Checks", "Sizes", "expected_forms"]

Form = tuple[tuple[int, ...], str]
"""Shape and dtype of an array."""


@dataclass(frozen=True)
class Sizes:
    """Market rows, transitions, episodes and behaviours of a dataset."""

    rows: int
    transitions: int
    episodes: int
    behaviours: int


def expected_forms(layout: ObservationLayout, sizes: Sizes) -> dict[str, Form]:
    """Shape and dtype of every array, in the order in which they stand in a file."""
    n, e = sizes.transitions, sizes.episodes
    return {
        "market_rows": ((sizes.rows, layout.market_size), "float32"),
        "states": ((n + e, layout.portfolio_size), "float32"),
        "row": ((n,), "int32"),
        "action": ((n, layout.action_size), "float32"),
        "reward": ((n,), "float32"),
        "distance": ((n,), "float32"),
        "episode": ((n,), "int32"),
        "terminal": ((e,), "bool"),
        "timeout": ((e,), "bool"),
        "behaviour": ((e,), "int32"),
    }


class Checks:
    """Checks chunks of arrays as they come, in order; says what is wrong, or nothing."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self._last_episode = -1
        self._special: dict[str, Callable[[NDArray[Any]], str | None]] = {
            "row": self._row,
            "action": self._action,
            "episode": self._episode,
            "behaviour": self._behaviour,
        }

    def chunk(self, name: str, chunk: NDArray[Any]) -> str | None:
        """What is wrong with these rows of an array."""
        if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
            return f"{name} holds NaN or infinite numbers"
        special = self._special.get(name)
        return special(chunk) if special is not None and len(chunk) else None

    def end(self) -> str | None:
        """What is wrong with the whole, once all chunks were seen."""
        wrong = self._last_episode != self.sizes.episodes - 1
        return self._miscounted() if wrong else None

    def _row(self, chunk: NDArray[Any]) -> str | None:
        inside = chunk.min() >= 0 and chunk.max() + 1 < self.sizes.rows
        return None if inside else "row points outside market_rows"

    def _action(self, chunk: NDArray[Any]) -> str | None:
        return "action lies outside [-1, 1]" if np.abs(chunk).max() > 1.0 else None

    def _episode(self, chunk: NDArray[Any]) -> str | None:
        steps = np.diff(chunk, prepend=self._last_episode)
        # The first transition of all begins episode 0.
        begins = self._last_episode >= 0 or steps[0] == 1
        self._last_episode = int(chunk[-1])
        return None if begins and np.isin(steps, (0, 1)).all() else self._miscounted()

    def _miscounted(self) -> str:
        return f"episode does not count from 0 to {self.sizes.episodes - 1}"

    def _behaviour(self, chunk: NDArray[Any]) -> str | None:
        inside = 0 <= chunk.min() <= chunk.max() < self.sizes.behaviours
        return None if inside else "behaviour points outside behaviours"
