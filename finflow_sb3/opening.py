"""Opening the market of a configuration."""

from __future__ import annotations

import dataclasses

import torch

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket, Scaler, observe
from finflow_sb3.market.sources import load_prices
from finflow_sb3.results import Watch

__all__ = ["open_market", "open_pinned"]


def open_market(
    settings: Settings, scaler: Scaler | None = None, watch: Watch | None = None
) -> ObservedMarket:
    """The market of a configuration, with features and anchors computed."""
    watch = watch or Watch()
    threads = settings.run.threads
    torch.set_num_threads(1 if threads == "auto" else threads)
    prices = load_prices(settings.market.prices, max_gap=settings.market.max_gap)
    return observe(
        prices,
        settings.market,
        settings.env_kwargs,
        scaler,
        on_progress=lambda done, total: watch.progress("anchors", done, total),
    )


def open_pinned(
    settings: Settings, scaler: Scaler | None, watch: Watch
) -> tuple[Settings, ObservedMarket]:
    """The market, and its settings with split dates written out, so that more data moves no split.

    The market carries these settings too: a dataset's key is then the same before and after.
    """
    market = open_market(settings, scaler, watch)
    dates, splits = market.prices.dates, market.splits
    settings = settings.replace(
        market={
            "train_end": str(dates[splits.validation.start - 1]),
            "validation_end": str(dates[splits.test.start - 1]),
        }
    )
    return settings, dataclasses.replace(market, settings=settings.market)
