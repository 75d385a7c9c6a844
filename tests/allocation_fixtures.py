"""What the tests of `allocate` share: prices with a past and a present, and tiny runs on them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
from learning_fixtures import tiny_settings, write_prices
from markets import random_prices

from finflow_sb3.config import Settings
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.pipeline import pretrain

ROWS, TRAINED = 760, 730
"""Days there are, and days that runs were trained on."""
MARKET = {"anchor_refit": 21, "anchor_window": 252, "anchor_min_window": 252}
NEEDED = 252 + 252 + 2 * 21
HOLDINGS = "symbol,shares\nS03,40\nS00,25.5\nS01,3\nCASH,1234.56\n"


def table() -> PriceTable:
    """Prices of 5 assets, all days."""
    return random_prices(5, ROWS, seed=3)


def frame() -> pd.DataFrame:
    prices = table()
    dates = pd.Index(prices.dates, name="date")
    return pd.DataFrame(prices.close, index=dates, columns=list(prices.assets))


def last_day() -> str:
    return str(table().dates[-1])


def settings_of(folder: Path, **changes: dict[str, Any]) -> Settings:
    """Tiny settings on the days that are trained on."""
    write_prices(table().rows(0, TRAINED), folder / "prices.csv")
    changes["market"] = {**MARKET, **changes.get("market", {})}
    return tiny_settings(folder, **changes)


@lru_cache(maxsize=1)
def shared_folder() -> Path:
    """One for all runs, which are of one market then."""
    return Path(mkdtemp(prefix="finflow-allocate-"))


def trained_run(seed: int = 0, **env: Any) -> Path:
    """A pretraining run whose policy has moved away from where it started."""
    return _trained_run(seed, json.dumps(env))


@lru_cache(maxsize=16)
def _trained_run(seed: int, env: str) -> Path:
    iql = {"steps_per_epoch": 30, "actor_lr": 0.02}
    kwargs = {"episode_length": 20, **json.loads(env)}
    settings = settings_of(shared_folder(), run={"seed": seed}, env_kwargs=kwargs, iql=iql)
    return pretrain(settings).run


def partial_frame() -> pd.DataFrame:
    """As `frame`, with an asset that ends before the last day, and one that begins late."""
    out = frame()
    out.iloc[ROWS - 10 :, 2] = np.nan
    out.iloc[:40, 4] = np.nan
    return out


@lru_cache(maxsize=1)
def partial_run() -> Path:
    """A run on assets of which one begins late."""
    folder = Path(mkdtemp(prefix="finflow-allocate-"))
    settings = settings_of(folder, market={"partial": True})
    partial_frame().iloc[:TRAINED].to_csv(folder / "prices.csv")
    return pretrain(settings).run
