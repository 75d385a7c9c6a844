"""What a batch of episodes gives, and the transitions in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Piece", "Wave", "pieces"]

Wave = dict[str, NDArray[Any]]
"""One episode of each of B portfolios, of at most L steps: arrays by name.

first_row, lengths, terminal [B]; states [B, L + 1, S]; action [B, L, A]; reward, distance [B, L].
What lies behind an episode's length is without meaning.
"""

Piece = dict[str, NDArray[Any]]
"""Some episodes in the form of a dataset: see `OfflineDataset`, whose arrays they add to."""


def pieces(waves: Iterable[Wave]) -> Iterator[Piece]:
    """Of each wave the transitions that lie within its episodes, in their order."""
    before = 0
    for wave in waves:
        lengths, terminal = wave["lengths"], wave["terminal"]
        steps = np.arange(wave["reward"].shape[1])
        inside = steps < lengths[:, None]
        seen = np.arange(len(steps) + 1) < lengths[:, None] + 1
        row = (wave["first_row"][:, None] + steps)[inside]
        episode = np.repeat(np.arange(before, before + len(lengths)), lengths)
        yield {
            "states": wave["states"][seen],
            "row": row.astype(np.int32),
            "action": wave["action"][inside],
            "reward": wave["reward"][inside],
            "distance": wave["distance"][inside],
            "episode": episode.astype(np.int32),
            "terminal": terminal,
            "timeout": ~terminal,
        }
        before += len(lengths)
