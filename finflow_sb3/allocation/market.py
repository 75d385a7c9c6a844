"""The market on the day of a decision, from the latest prices."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from finflow_sb3.allocation.latest import (
    age_of,
    last_move,
    of_universe,
    recent,
    require_plain_moves,
    require_same_past,
)
from finflow_sb3.allocation.terms import MAX_AGE, MAX_MOVE, MAX_REVISION, Terms
from finflow_sb3.ensembles import Policies, Runs, load_policies
from finflow_sb3.envs.observations import ObservedMarket, observe, with_interest
from finflow_sb3.market.anchors import refit_rows
from finflow_sb3.market.features import WARMUP
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.market.splits import Span, Splits
from finflow_sb3.opening import open_market
from finflow_sb3.results import Watch
from finflow_sb3.run_notes import PRICES, noted_prices

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["latest_market", "latest_prices", "observed_last"]

SHORT_PAST = 21


def latest_market(
    run: Runs,
    prices: str | Path | pd.DataFrame | PriceTable,
    as_of: datetime.date | str,
    *,
    max_age: int = MAX_AGE,
    max_revision: float = MAX_REVISION,
    max_move: float = MAX_MOVE,
) -> ObservedMarket:
    """The market that `allocate` decides on: what `allocate` keeps of these prices, observed.

    Its last row is the day of the decision; it has no validation and no test split.

    Parameters
    ----------
    max_age, max_revision, max_move : as for `allocate`

    Raises
    ------
    ArtefactError, DataError, ConfigError
        As `allocate` does.
    """
    policies = load_policies(run)
    terms = Terms.of(1, 0, None, as_of, max_age, max_revision, max_move)
    return observed_last(policies, latest_prices(policies, prices, terms)[0], Watch())


def latest_prices(
    policies: Policies, source: str | Path | pd.DataFrame | PriceTable | None, terms: Terms
) -> tuple[PriceTable, int, tuple[str, ...]]:
    """The prices that are decided on, their age, and what is to be said of them."""
    settings, run = policies.settings, policies.runs[0]
    own = settings.market
    table = load_prices(
        own.prices if source is None else source,
        max_gap=own.max_gap,
        partial=own.partial,
        until=terms.as_of if terms.cut else None,
    )
    table = with_interest(table, settings.env_kwargs.cash_rate)
    table = of_universe(table, policies.layout.assets, run)
    age = age_of(table, terms.as_of, terms.max_age)
    past = noted_prices(run)
    offset = require_same_past(table, past, run, terms.max_revision)
    require_plain_moves(table, past.dates[-1], terms.max_move)
    notes = (*_compared(table, past, run, offset), *_moved(table))
    return recent(table, offset, own, run), age, notes


def _compared(
    prices: PriceTable, past: PriceTable, run: Path, offset: int | None
) -> tuple[str, ...]:
    """A warning where too little of the past could be compared."""
    common = 0 if offset is None else int((prices.dates <= past.dates[-1]).sum())
    if common >= SHORT_PAST:
        return ()
    return (
        f"The prices have {common} days in common with those that {run} was trained on, up to "
        f"{past.dates[-1]}: that they are of the same assets is hardly tested. Train it further "
        "with finflow finetune --resume and --prices.",
    )


def _moved(prices: PriceTable) -> tuple[str, ...]:
    """A warning where the last rows look like copies."""
    moved, last = last_move(prices), prices.dates[-1]
    if moved == last:
        return ()
    return (f"No price has moved since {moved}: look whether rows up to {last} are copies.",)


def observed_last(policies: Policies, prices: PriceTable, watch: Watch) -> ObservedMarket:
    """Prices as the policies see them, with the scaler that they were trained with."""
    settings = policies.settings
    rows = len(prices)
    first = max(WARMUP, int(refit_rows(rows, settings.market)[0]))
    empty = Span(rows, rows)
    market = observe(
        prices,
        settings.market,
        settings.env_kwargs,
        policies.scaler,
        on_progress=functools.partial(watch.progress, "anchors"),
        splits=Splits(Span(first, rows), empty, empty),
    )
    market.layout.require_equal(policies.layout, str(policies.runs[0]))
    if settings.env_kwargs.reward != "differential_sharpe":
        return market
    return dataclasses.replace(market, moments=_moments(policies, watch))


def _moments(policies: Policies, watch: Watch) -> tuple[float, float]:
    """Moments of the reward that observations begin with, of the run's own training split."""
    own = policies.settings.replace(market={"prices": str(policies.runs[0] / PRICES)})
    return open_market(own, policies.scaler, watch).moments
