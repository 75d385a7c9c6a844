"""Folds of the days before the test split: what a trial trains on, and is judged by."""

from __future__ import annotations

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError

__all__ = ["folds_of"]


def folds_of(settings: Settings, market: ObservedMarket, folds: int) -> tuple[Settings, ...]:
    """Settings of each fold: one after the other judged by stretches that end with validation.

    The last fold is the configuration's own split. Each one before it ends where the next one's
    validation begins, is judged by as many days, and trains on all that lies before them. No fold
    reaches into the test split.

    Parameters
    ----------
    folds : how many

    Raises
    ------
    ConfigError
        If the first of several would have fewer days to train on than to be judged by.
    """
    dates, splits = market.prices.dates, market.splits
    length = splits.test.start - splits.validation.start
    starts = [splits.validation.start - i * length for i in reversed(range(folds))]
    short = folds > 1 and starts[0] - splits.train.start < length
    if folds < 1 or short:
        raise ConfigError(
            f"--folds: {folds} do not fit into the {splits.test.start - splits.train.start:,} days "
            "before the test split; ask for fewer, or set a smaller validation_fraction"
        )
    return tuple(
        settings.replace(
            market={
                "train_end": str(dates[start - 1]),
                "validation_end": str(dates[start + length - 1]),
            }
        )
        for start in starts
    )
