"""Runs on assets that come and go: trained, stopped, gone on with, evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from learning_fixtures import tiny_settings, write_prices
from markets import random_prices

from finflow_sb3.config_files import read_config
from finflow_sb3.errors import ArtefactError, DataError
from finflow_sb3.market.sources import load_prices
from finflow_sb3.pipeline import evaluate, finetune, pretrain
from finflow_sb3.resuming import resume

STARTS, ENDS, LATER = {1: 60, 4: 200}, {2: 400, 3: 560}, 630


def write_partial(path: Path, rows: int, starts: dict[int, int], ends: dict[int, int]) -> Path:
    """The first `rows` of 660 days of 5 assets, empty before a start and after an end."""
    write_prices(random_prices(5, 660, seed=0).rows(0, rows), path)
    frame = pd.read_csv(path, index_col=0)
    for column, row in starts.items():
        frame.iloc[:row, column] = np.nan
    for column, row in ends.items():
        frame.iloc[row + 1 :, column] = np.nan
    frame.to_csv(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("partial")
    write_partial(path / "prices.csv", 600, STARTS, ENDS)
    write_partial(path / "longer.csv", 660, STARTS, {**ENDS, 0: LATER})
    write_partial(path / "other.csv", 660, STARTS, {**ENDS, 0: 590})
    return path


def test_the_whole_way(folder: Path) -> None:
    """Pretraining, fine-tuning that is stopped and goes on, evaluation, a longer history."""
    settings = tiny_settings(folder, market={"partial": True})
    run = finetune(settings, pretrain(settings).run, stop_at=120).run
    assert resume(run).finished
    measures = evaluate(run).measures
    assert all(
        np.isfinite(value)
        for lags in measures.values()
        for each in lags.values()
        for value in each.values()
    )
    # The run notes its prices, listing and all.
    prices = load_prices(folder / "prices.csv", partial=True)
    noted = load_prices(run / "prices.parquet", partial=True)
    assert noted.listed is not None
    np.testing.assert_array_equal(noted.listed, prices.listed)
    # A longer history, in which another asset ends; and one in which it ended long ago.
    with pytest.raises(ArtefactError, match="was trained on other prices"):
        resume(run, prices=str(folder / "other.csv"), n_timesteps=300)
    longer = resume(run, prices=str(folder / "longer.csv"), n_timesteps=300)
    assert longer.finished


def test_an_asset_of_a_complete_universe_ends_later(tmp_path: Path) -> None:
    """The run goes on, once `partial` lets it."""
    write_partial(tmp_path / "prices.csv", 600, {}, {})
    longer = str(write_partial(tmp_path / "longer.csv", 660, {}, {1: LATER}))
    settings = tiny_settings(tmp_path, cqsac={"offline_fraction": 0.0})
    run = finetune(settings, stop_at=120).run
    with pytest.raises(DataError, match="ends inside"):
        resume(run, prices=longer)
    allowed = read_config(run / "config.yml").replace(market={"partial": True})
    assert resume(run, settings=allowed, prices=longer).finished
    assert read_config(run / "config.yml").market.partial
