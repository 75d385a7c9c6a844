"""A curve's exposure to factor returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.relative import Estimate, annual_alpha, newey_west_lags, regression
from finflow_sb3.market.cells import check_order, parse_dates, parse_numbers
from finflow_sb3.market.readers import RawTable, plain, read_file, read_frame

__all__ = ["FactorModel", "FactorTable", "Loading", "factor_model", "load_factors"]

Float = NDArray[np.float64]

SKFOLIO = "skfolio"
MARKET_NAMES = frozenset({"market", "mkt", "mktrf"})
CASH_NAMES = frozenset({"rf", "cashrate"})
# A regression on half a dozen factors needs a year of days.
FEWEST_DAYS = 252
# Below this share of the days between its first and last, a table is not a daily one.
DAILY = 0.9
CHANCE = 0.05


@dataclass(frozen=True)
class FactorTable:
    """Daily prices or returns of factors, complete and checked.

    Attributes
    ----------
    source : where they came from
    dates : datetime64[D], shape [T], strictly increasing
    names : k unique names; cash rates of the file are not among them
    values : shape [T, k], prices of funds or simple daily returns of factors
    funds : True where `values` are prices
    market : position of the market's column among `names`, or None
    """

    source: str
    dates: NDArray[np.datetime64]
    names: tuple[str, ...]
    values: Float
    funds: bool
    market: int | None


@dataclass(frozen=True)
class Loading:
    """Exposure to one factor; `name` says what it is, such as "MTUM above market"."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class FactorModel:
    """Regression of a curve's excess returns on factors.

    Attributes
    ----------
    source : where the factors come from
    market : what stands for the market
    first, last : ISO dates of the days that both have; empty where there are none
    days, lags : common days, and lags of the Newey–West errors
    alpha : annual, what the factors do not explain; None where there are too few days
    loadings : one for each factor, the market first; empty where there are too few days
    r_squared : share of the variance that the factors explain; nan likewise
    sentence : what was found, or why there is nothing
    """

    source: str
    market: str
    first: str
    last: str
    days: int
    lags: int
    alpha: Estimate | None
    loadings: tuple[Loading, ...]
    r_squared: float
    sentence: str


def load_factors(source: str | Path) -> FactorTable:
    """Factors by name or from a file, wide: dates × factors.

    A table in which every number is above zero holds prices (of funds, say), any other holds
    simple daily returns: prices are never negative, and returns of many days never all positive.
    Of returns, a column named market, mkt or mkt-rf is the market in excess of cash; a column
    rf or cash_rate is cash and no factor, and does not count for the rule.

    Parameters
    ----------
    source : ``skfolio``, the prices of five US factor funds from 2014 to 2022 that the skfolio
        wheel carries (momentum MTUM, quality QUAL, size SIZE, minimum volatility USMV, value
        VLUE), or a CSV, CSV.gz or Parquet file

    Raises
    ------
    DataError
        If the file cannot be read as such, a cell is empty or no number, or returns are in
        percent.
    """
    raw = _raw(source)
    if raw.symbol_column is not None:
        raise DataError(
            f"{raw.name}: factors in long form; write one column a factor beside the dates"
        )
    dates = parse_dates(raw)
    check_order(raw, dates)
    columns = [
        (i, name)
        for i, name in enumerate(raw.columns)
        if i != raw.date_column and plain(name) not in CASH_NAMES
    ]
    if not columns:
        raise DataError(f"{raw.name}: has no column of a factor; add one beside the dates")
    # Cash rates are the kind of number that may have either sign.
    values = np.stack([parse_numbers(raw, i, dates, "cash_rate") for i, _ in columns], axis=1)
    names = tuple(name for _, name in columns)
    _check_complete(raw, dates, names, values)
    funds = bool(np.all(values > 0.0))
    if not funds and np.any(np.abs(values) >= 1.0):
        row, column = (int(i) for i in np.argwhere(np.abs(values) >= 1.0)[0])
        raise DataError(
            f"{raw.name}: {names[column]!r} on {dates[row]} returned {values[row, column]:g}; "
            "write returns as fractions, 0.01 for 1 %"
        )
    markets = [i for i, name in enumerate(names) if plain(name) in MARKET_NAMES]
    if len(markets) > 1:
        raise DataError(
            f"{raw.name}: {names[markets[0]]!r} and {names[markets[1]]!r} both name the market; "
            "keep one"
        )
    return FactorTable(raw.name, dates, names, values, funds, markets[0] if markets else None)


def _raw(source: str | Path) -> RawTable:
    if str(source) != SKFOLIO:
        return read_file(Path(source).expanduser(), name=str(source), what="factors")
    from skfolio.datasets import load_factors_dataset

    return read_frame(load_factors_dataset(), name=SKFOLIO, what="factors")


def _check_complete(
    raw: RawTable, dates: NDArray[np.datetime64], names: tuple[str, ...], values: Float
) -> None:
    if np.isnan(values).any():
        row, column = (int(i) for i in np.argwhere(np.isnan(values))[0])
        raise DataError(
            f"{raw.name}: column {names[column]!r}, {raw.row(row)} ({dates[row]}): is empty; fill "
            "it, or cut the rows before the factor begins"
        )


def factor_model(
    curve: Curve,
    equal_weight: Curve,
    table: FactorTable,
    cash_rate: Float | float = 0.0,
) -> FactorModel:
    """Regress a curve's returns in excess of cash on the market and the factors.

    The market is the table's own where it has one, else the universe's equal weight in excess
    of cash. Funds, which all hold the market too, enter as their return above it; returns of a
    file, which are as a rule those of long and short sides, enter as they are. Days count on
    which both have a return over the same step: a fund's is taken from its prices on the day of
    the decision and the next trading day.

    Returns
    -------
    FactorModel
        Without loadings on fewer than 252 common days, and where the table is not a daily one
        or its factors hang together; ``sentence`` says so.
    """
    market = "equal weight" if table.market is None else table.names[table.market]
    days, values = _common(curve, table)
    alpha: Estimate | None = None
    loadings: tuple[Loading, ...] = ()
    explained = math.nan
    sentence = _too_little(curve, table, days)
    if not sentence:
        rate = np.broadcast_to(np.asarray(cash_rate, dtype=np.float64), curve.returns.shape)[days]
        own = equal_weight.returns[days] - rate
        names, regressors = _regressors(table, values, rate, own)
        fit = regression(curve.returns[days] - rate, regressors)
        if fit is None:
            sentence = (
                f"The factors of {table.source} cannot be told apart on the {len(days):,} days "
                "that both have."
            )
        else:
            alpha, explained = annual_alpha(fit.intercept), fit.r_squared
            loadings = tuple(Loading(n, e) for n, e in zip(names, fit.slopes, strict=True))
            sentence = _found(alpha, explained, len(days))
    return FactorModel(
        source=table.source,
        market=market,
        first=str(curve.dates[days[0]]) if len(days) else "",
        last=str(curve.dates[days[-1]]) if len(days) else "",
        days=len(days),
        lags=newey_west_lags(len(days)) if len(days) else 0,
        alpha=alpha,
        loadings=loadings,
        r_squared=explained,
        sentence=sentence,
    )


def _common(curve: Curve, table: FactorTable) -> tuple[NDArray[np.int64], Float]:
    """Positions of the curve's days that the table has too, and its returns on them [C, k]."""
    row, there = _rows(table.dates, curve.dates)
    if not table.funds:
        days = np.flatnonzero(there)
        return days, table.values[row[days]]
    before, known = _rows(table.dates, curve.decisions)
    days = np.flatnonzero(there & known)
    return days, table.values[row[days]] / table.values[before[days]] - 1.0


def _rows(
    dates: NDArray[np.datetime64], wanted: NDArray[np.datetime64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row of each wanted day among `dates`, and whether it is there."""
    row = np.minimum(np.searchsorted(dates, wanted), len(dates) - 1)
    return row, dates[row] == wanted


def _too_little(curve: Curve, table: FactorTable, days: NDArray[np.int64]) -> str:
    """Why these common days are not enough for a regression; empty where they are."""
    if len(days) < FEWEST_DAYS:
        return (
            f"{table.source} ({table.dates[0]} to {table.dates[-1]}) shares {len(days):,} days "
            f"with these ({curve.dates[0]} to {curve.dates[-1]}); a regression on its factors "
            f"needs {FEWEST_DAYS}."
        )
    within = (curve.dates >= table.dates[0]) & (curve.dates <= table.dates[-1])
    if len(days) < DAILY * int(within.sum()):
        return (
            f"{table.source} has only {len(days):,} of the {int(within.sum()):,} days between its "
            "first and last; a regression on its factors needs daily ones."
        )
    return ""


def _regressors(
    table: FactorTable, values: Float, rate: Float, equal_weight: Float
) -> tuple[list[str], Float]:
    """Names and columns [C, k] of the regressors, the market first.

    Parameters
    ----------
    values : factor returns on the common days, [C, k]
    rate, equal_weight : cash, and the excess return of equal weight, on the same days
    """
    others = [i for i in range(len(table.names)) if i != table.market]
    factors, names = values[:, others], [table.names[i] for i in others]
    market = equal_weight if table.market is None else values[:, table.market]
    if table.funds:
        # A price is the whole fund's: what it earns beyond cash and market is the factor.
        market = market if table.market is None else market - rate
        factors = factors - rate[:, None] - market[:, None]
        names = [f"{name} above market" for name in names]
    first = "market (equal weight)" if table.market is None else table.names[table.market]
    return [first, *names], np.column_stack([market, factors])


def _found(alpha: Estimate, explained: float, days: int) -> str:
    if math.isnan(alpha.p_value):
        return f"Over {days:,} days market and factors explain these returns exactly."
    told = "is more than chance explains" if alpha.p_value < CHANCE else "may well be chance"
    size = f"{100 * alpha.value:.1f}".replace("-", "−")
    return (
        f"Over {days:,} days market and factors explain {100 * explained:.0f} % of the variance; "
        f"what they leave, alpha, is {size} % a year, which {told} "
        f"(p\u00a0=\u00a0{alpha.p_value:.2f})."
    )
