"""The verb `allocate`: what to buy and sell today, by the policies of one or several runs."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.allocation.account import Account, highest_value
from finflow_sb3.allocation.decision import Decided, decide, standing
from finflow_sb3.allocation.holdings import Holdings, Number, read_holdings
from finflow_sb3.allocation.market import latest_prices, observed_last
from finflow_sb3.allocation.orders import Ledger, Orders, place
from finflow_sb3.allocation.result import (
    Allocation,
    Position,
    cash_position,
    require_free,
    write_allocation,
)
from finflow_sb3.allocation.terms import MAX_AGE, MAX_MOVE, MAX_REVISION, Terms
from finflow_sb3.allocation.words import two_lines
from finflow_sb3.config import Settings
from finflow_sb3.ensembles import Runs, load_policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError
from finflow_sb3.evaluation.ensemble import Combination
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.results import Watch

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["allocate"]

Float = NDArray[np.float64]


def allocate(
    run: Runs,
    prices: str | Path | pd.DataFrame | PriceTable | None = None,
    holdings: Holdings | str | Path | None = None,
    *,
    cash: Number | None = None,
    lot: Number = 1,
    min_order: Number = 0,
    trade_rate: float | None = None,
    peak: Number | None = None,
    as_of: datetime.date | str | None = None,
    max_age: int = MAX_AGE,
    max_revision: float = MAX_REVISION,
    max_move: float = MAX_MOVE,
    combination: Combination | None = None,
    shrinkage: float | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
) -> Allocation:
    """Orders in shares that a run's policy gives at the last close of the prices.

    The decision, the part of the way that is traded, limits and costs are the environment's own;
    then orders are rounded to lots that cash can pay for. Nothing is sent anywhere.

    Parameters
    ----------
    run : a run, an ensemble's folder, or several runs that decide as one
    prices : the latest prices of the run's assets, in any order, with about four years of days;
        what the run was trained on, loaded anew, if not given
    holdings : a CSV file with symbol,shares and a row CASH, and lot by symbol if wanted
    cash : money, where the holdings say nothing of it or are not given
    lot : smallest order in shares
    min_order : orders of less money are left out
    trade_rate : part of the way to the target that is traded, in (0, 1]; the run's if not given
    peak : highest value of the portfolio so far, from which the policy's drawdown counts; the
        present value if not given
    as_of : the day that the allocation is for; later prices are left out. Today if not given
    max_age : business days that the last prices that moved may be older than that
    max_revision : largest difference between a daily return now and in training
    max_move : largest daily return of the days after training
    combination, shrinkage : of several runs, as for `load_policies`
    out : folder for `orders.csv` and `allocation.json`, which is replaced as a whole

    Raises
    ------
    ArtefactError
        If the run has no policy; if the prices lack or add an asset, or have another past.
    DataError
        If the prices are too old, too few or jump, an asset has none on the last day, or
        the holdings cannot be read or hold what the run does not know.
    ConfigError
        If it is not said what is held, or an argument is out of range.
    """
    watch = watch or Watch()
    folder = None if out is None else Path(out)
    if folder is not None:
        require_free(folder)
    terms = Terms.of(lot, min_order, trade_rate, as_of, max_age, max_revision, max_move)
    policies = load_policies(run, combination, shrinkage)
    assets = policies.layout.assets
    if not isinstance(holdings, Holdings):
        holdings = read_holdings(holdings, cash, assets)
    elif cash is not None:
        raise ConfigError("cash: the holdings have it already; leave one of them out")
    latest, age, notes = latest_prices(policies, prices, terms)
    account = Account.of(holdings, latest, terms.lot)
    highest = highest_value(peak, account.value)
    market = observed_last(policies, latest, watch)
    weights = account.weights
    env = policies.settings.env_kwargs
    batch = standing(market, env, weights, float(account.value), highest, terms.trade_rate)
    decided = decide(policies, batch)
    orders = _orders(account, decided, batch, terms.min_order)
    found = Allocation(
        runs=policies.runs,
        prices=latest.source,
        date=str(latest.dates[-1]),
        as_of=str(terms.as_of),
        age=age,
        price_kind="close" if latest.raw_close is None else "raw close",
        value=account.value,
        costs=sum(orders.costs, Decimal(0)),
        cash=orders.cash,
        turnover=float(sum(map(abs, orders.amounts), Decimal(0)) / account.value),
        trade_rate=batch.trade_rate,
        drawdown=decided.drawdown,
        disagreement=decided.disagreement,
        gates=_gates(decided, market),
        positions=_positions(account, decided, orders),
        lines=two_lines(decided, _moves(account, orders), assets, market.anchors.names),
        notes=(*notes, *_notes(policies.settings, market, peak)),
    )
    return found if folder is None else write_allocation(found, folder)


# ---------------------------------------------------------------- the orders


def _orders(
    account: Account, decided: Decided, batch: PortfolioBatch, min_order: Decimal
) -> Orders:
    value = float(account.value)

    def cost_of(traded: Float) -> Float:
        shares = batch.costs.by_asset((traded / value)[None], batch.value, batch.row)
        return np.asarray(shares[0] * value)

    ledger = Ledger(account.prices, account.lots, account.cash, cost_of, min_order)
    wanted, aim = (decided.mu * value * each[:-1] for each in (decided.weights, decided.aim))
    return place(account.shares, ledger, wanted, aim)


def _moves(account: Account, orders: Orders) -> Float:
    return np.array([float(amount / account.value) for amount in orders.amounts])


def _positions(account: Account, decided: Decided, orders: Orders) -> tuple[Position, ...]:
    """Sales and purchases, the largest first, then the rest, then cash."""
    costs = sum(orders.costs, Decimal(0))
    total = account.value - costs
    found = []
    for i, asset in enumerate(account.assets):
        after = account.values[i] + orders.amounts[i]
        found.append(
            Position(
                asset=asset,
                held=account.shares[i],
                price=account.prices[i],
                value=account.values[i],
                weight=float(account.values[i] / account.value),
                target=float(decided.target[i]),
                order=orders.shares[i],
                amount=orders.amounts[i],
                cost=orders.costs[i],
                after=account.shares[i] + orders.shares[i],
                value_after=after,
                weight_after=float(after / total),
            )
        )
    found.sort(key=lambda each: (_turn(each), -abs(each.amount), -each.value))
    last = float(decided.target[-1])
    return (*found, cash_position(account.cash, orders.cash, costs, account.value, last))


def _turn(position: Position) -> int:
    """0 of sales, which pay for the purchases after them; 2 without an order."""
    return 2 if not position.order else int(position.order > 0)


def _gates(decided: Decided, market: ObservedMarket) -> dict[str, float]:
    if decided.gates is None:
        return {}
    return dict(zip(market.anchors.names, decided.gates.tolist(), strict=True))


def _notes(settings: Settings, market: ObservedMarket, peak: Number | None) -> tuple[str, ...]:
    """What a reader of the orders has to know."""
    prices, env, last = market.prices, settings.env_kwargs, str(market.prices.dates[-1])
    notes = []
    if peak is None:
        notes.append("No --peak was given: the policy is shown a drawdown of 0.")
    if prices.raw_close is None:
        notes.append(
            "The prices have no raw closes: shares are counted at the closes as they are, which "
            "is right if these are adjusted up to their last day."
        )
    if env.reward == "differential_sharpe":
        notes.append("The reward's moments in the observation are those of the training split.")
    if env.execution_lag:
        notes.append(
            "The policy was trained to trade at the close after its decision; nothing that was "
            "ordered before is taken to be open."
        )
    if prices.listed is not None and not prices.listed[-1].all():
        names = [a for a, on in zip(prices.assets, prices.listed[-1], strict=True) if not on]
        notes.append(f"Without a price on {last}, and left out: {', '.join(names)}.")
    end = settings.market.validation_end
    if end is not None and last <= end:
        notes.append(
            f"{last} lies within the days that the policy was trained and chosen on (up to {end}): "
            "this is no forecast."
        )
    return tuple(notes)
