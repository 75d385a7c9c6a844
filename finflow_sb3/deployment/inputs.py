"""What an exported policy is given, from an observed market and portfolios in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import unscaled_blocks

__all__ = ["decision_inputs"]


def decision_inputs(batch: PortfolioBatch) -> dict[str, NDArray[np.float32]]:
    """Inputs of an exported policy in the present states of B portfolios.

    Parameters
    ----------
    batch : on rows of its market, as `allocation.decision.standing` makes one for the last

    Returns
    -------
    float32 arrays by the name of the input, each [B, ...]: unscaled features, the anchors' weights
    with cash last, and the portfolio
    """
    market, rows = batch.market, batch.row
    layout, blocks = market.layout, unscaled_blocks(market)
    found: dict[str, NDArray[Any]] = {name: block[rows] for name, block in blocks.items()}
    found["anchor_weights"] = market.anchors.at(rows)
    own, start = batch.portfolio_block(), layout.market_size
    for name, place in layout.slices.items():
        if place.start >= start:
            found[name] = own[:, place.start - start : place.stop - start]
    if market.settings.partial:
        tradable = batch.tradable()
        every = np.ones((batch.n_envs, layout.n_assets))
        found["tradable"] = every if tradable is None else tradable
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in found.items()}
