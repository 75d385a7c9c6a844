"""What the examples share: prices that are made up, so that they run anywhere in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SMALL = Path(__file__).with_name("small.yml")
"""Settings with which every stage takes seconds, and learns next to nothing."""


def write_prices(path: Path = Path("made_up.csv"), assets: str = "ABCDE", days: int = 800) -> Path:
    """A wide CSV of correlated random walks; bring a file of your own in its place."""
    rng = np.random.default_rng(0)
    common = rng.normal(0.0003, 0.006, size=(days, 1))
    own = rng.normal(0.0, 1.0, size=(days, len(assets))) * np.linspace(0.004, 0.015, len(assets))
    dates = pd.bdate_range("2018-01-01", periods=days, name="date")
    closes = 100.0 * np.exp(np.cumsum(common + own, axis=0))
    pd.DataFrame(closes, index=dates, columns=list(assets)).to_csv(path)
    return path
