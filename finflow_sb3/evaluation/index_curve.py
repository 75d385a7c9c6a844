"""An index beside the portfolios: what it returned, without costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.market.cells import check_order, parse_dates, parse_numbers
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.readers import read_file
from finflow_sb3.market.splits import Span
from finflow_sb3.messages import one_line, shown

__all__ = ["index_curve"]

Float = NDArray[np.float64]


def index_curve(index: str, prices: PriceTable, span: Span, execution_lag: int = 0) -> Curve:
    """The curve of an index over `span`: bought and held, and nobody pays for it.

    Parameters
    ----------
    index : an asset of the universe, or a file (CSV, CSV.gz, Parquet) of dates and one price
        that has every day of `span`
    execution_lag : of the curves that it stands beside; an index trades nothing

    Raises
    ------
    DataError
        If it is neither, has several prices a day, or lacks a day.
    """
    name, level = _levels(index, prices, span)
    days = len(level) - 1
    return Curve(
        name="index",
        dates=prices.dates[span.start + 1 : span.stop],
        decisions=prices.dates[span.start : span.stop - 1],
        returns=level[1:] / level[:-1] - 1.0,
        weights=np.tile([1.0, 0.0], (days, 1)),
        turnover=np.zeros(days),
        cost=np.zeros(days),
        assets=(name,),
        execution_lag=execution_lag,
        note=f"{name}, without any costs",
    )


def _levels(index: str, prices: PriceTable, span: Span) -> tuple[str, Float]:
    """Its name, and its prices on every day of `span`."""
    if index in prices.assets:
        column = prices.assets.index(index)
        return index, prices.close[span.start : span.stop, column]
    if not Path(index).expanduser().is_file():
        raise DataError(
            f"evaluation.index: {shown(index)} is no asset of {one_line(prices.source)} and no "
            "file; give one of either"
        )
    path = Path(index).expanduser()
    dates, price = _read(path)
    days = prices.dates[span.start : span.stop]
    absent = days[~np.isin(days, dates)]
    if len(absent):
        raise DataError(
            f"{path}: has no price on {absent[0]} ({len(absent)} of {len(days)} days are "
            f"missing); an index has to cover {days[0]} to {days[-1]}"
        )
    return path.stem, price[np.searchsorted(dates, days)]


def _read(path: Path) -> tuple[NDArray[np.datetime64], Float]:
    """Days with a price, in order, and their prices."""
    raw = read_file(path)
    columns = [i for i in range(len(raw.columns)) if i != raw.date_column]
    if len(columns) != 1:
        raise DataError(
            f"{path}: has {len(columns)} columns beside the date; an index is one price a day: "
            "leave one"
        )
    dates = parse_dates(raw)
    check_order(raw, dates)
    price = parse_numbers(raw, columns[0], dates, "close")
    known = np.isfinite(price)
    return dates[known], price[known]
