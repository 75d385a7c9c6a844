"""What a trade costs: proportional and fixed fees, slippage and impact by real volume.

With x_i = |μ·w_i − w⁻_i| the traded value of asset i over the portfolio's value V (money) before
the trade, and p_i = min(1, x_i·V / ADV_i) its participation in the mean daily traded value ADV_i,
μ solves μ = 1 − Σ_i c_i over risky assets, where c_i is the sum of

- fee: max(c_i·x_i, m/V), the minimum m for assets that are traded at μ = 1 only;
- ticket: τ/V for the same assets;
- slippage: x_i·Y·σ_i·g(p_i), g(p) = p (linear; Kyle 1985), √p (Torre 1997; near the exponent
  0.6 of Almgren et al. 2005) or (exp(p) − 1)/(e − 1), σ_i the asset's daily volatility;
- impact: x_i·η·p_i, the temporary impact of Almgren & Chriss (2000), linear in the rate of
  trading and, other than slippage, the same for a calm and a volatile asset.

Volume and volatility are those of the trailing days up to and including the day of the trade.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.config_trading import require_consistent
from finflow_sb3.envs.accounting import Trade, trade
from finflow_sb3.envs.constraints import per_asset
from finflow_sb3.envs.roots import solve
from finflow_sb3.envs.rows import row_sums
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span

__all__ = ["PARTS", "Costs", "proportional_fee", "slippage_curve", "traded_value", "volatility"]

Float = NDArray[np.float64]

PARTS = ("fee", "ticket", "slippage", "impact")
"""What a cost is the sum of."""
# Weights nearer than this are the same: no ticket for a rounding error.
SMALLEST_TRADE = 1e-12
# Slope of the marginal cost above which the cost of selling could eat up what it raises.
STEEPEST = 0.9
# d(p·g)/dp at p = 1, where it is largest.
MARGINAL = {"none": 0.0, "linear": 2.0, "square_root": 1.5, "exponential": 1.0 + np.e / (np.e - 1)}


def proportional_fee(env: EnvSettings, assets: tuple[str, ...]) -> Float | float:
    """c: one number, or shape [n] where `fees` differ.

    Raises
    ------
    ConfigError
        If `fees` names an unknown asset.
    """
    return per_asset("fees", env.fees, env.fee, assets) if env.fees else env.fee


def slippage_curve(kind: str, participation: Float) -> Float:
    """g(p) for p in [0, 1]: 0 at 0, and 1 at 1 in each model."""
    if kind == "linear":
        return participation
    if kind == "square_root":
        return np.asarray(np.sqrt(participation))
    return np.asarray(np.expm1(participation) / np.expm1(1.0))


def traded_value(prices: PriceTable, window: int, rows: Span) -> Float:
    """Mean daily traded value in money of the trailing `window` days, shape [len(rows), n].

    Volume times the raw close where the prices have one, else times the close. Infinite where an
    asset was not listed on all of these days: nothing of it is traded then.

    Raises
    ------
    DataError
        If the prices have no volume, or no or unknown volume in a window of a listed asset.
    """
    if prices.volume is None:
        raise DataError(
            f"{prices.source}: has no volume, which slippage and impact need; give prices in "
            "long form with a column volume, or set slippage to none and impact to 0"
        )
    price = prices.close if prices.raw_close is None else prices.raw_close
    traded = np.where(prices.volume == 0.0, 0.0, prices.volume * price)
    mean = np.array(_windows(traded, window, rows).mean(axis=-1))
    if prices.listed is not None:
        mean[~_windows(prices.listed, window, rows).all(axis=-1)] = np.inf
    bad = ~(mean > 0.0)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{prices.source}: volume of {prices.assets[column]!r} in the {window} days up to "
            f"{prices.dates[rows.start + row]} is missing or 0; leave the asset out, or set "
            "slippage to none and impact to 0"
        )
    return mean


def volatility(prices: PriceTable, window: int, rows: Span) -> Float:
    """Standard deviation of the trailing `window` daily returns, shape [len(rows), n]."""
    return np.asarray(_windows(prices.returns(), window, rows).std(axis=-1, ddof=1))


def _windows(values: NDArray[Any], window: int, rows: Span) -> NDArray[Any]:
    """The trailing days of each row, its own last: shape [len(rows), n, window]."""
    known = values[rows.start - window + 1 : rows.stop]
    return np.asarray(sliding_window_view(known, window, axis=0))


@dataclass(frozen=True)
class Costs:
    """The costs of one market and environment.

    Attributes
    ----------
    fee : proportional, one number or shape [n]
    ticket, minimum : in units of the initial value
    slippage : one of its settings
    first_row : the row that `volume` and `depth` begin with
    volume : mean daily traded value in units of the initial value, shape [rows, n], or None
    depth : Y·σ_i, shape [rows, n], or None
    impact : η
    """

    fee: Float | float
    ticket: float = 0.0
    minimum: float = 0.0
    slippage: str = "none"
    impact: float = 0.0
    first_row: int = 0
    volume: Float | None = None
    depth: Float | None = None

    @classmethod
    def of(cls, env: EnvSettings, prices: PriceTable, rows: Span) -> Costs:
        """The costs of these settings on these rows of the prices.

        Raises
        ------
        ConfigError
            If settings contradict each other, or costs could exceed what a sale raises.
        DataError
            If volume is needed and not there.
        """
        require_consistent(env)
        fee = proportional_fee(env, prices.assets)
        if env.capital is None:
            return cls(fee)
        fixed = (env.ticket / env.capital, env.minimum_fee / env.capital)
        if env.slippage == "none" and env.impact == 0.0:
            return cls(fee, *fixed)
        window = env.liquidity_window
        volume = traded_value(prices, window, rows) / env.capital
        depth = env.slippage_scale * volatility(prices, window, rows)
        _require_gentle(env, prices, rows, fee, depth)
        return cls(fee, *fixed, env.slippage, env.impact, rows.start, volume, depth)

    @property
    def proportional(self) -> bool:
        """Whether costs are a multiple of traded value, and nothing else."""
        return self.volume is None and self.ticket == 0.0 and self.minimum == 0.0

    def trade(
        self, held: Float, target: Float, value: Float, row: NDArray[np.int64]
    ) -> tuple[Trade, Float | None]:
        """Trade from `held` to `target`, paying all costs out of the portfolio.

        A trade that would cost more than the portfolio is worth is not made.

        Parameters
        ----------
        held, target : shape [B, n+1], cash last
        value : shape [B], before the trade, in units of the initial value
        row : shape [B], of the prices at which is traded

        Returns
        -------
        trade
        parts : shape [4, B], costs by `PARTS` over the value before the trade; None if all of
            them is the proportional fee
        """
        if self.proportional:
            return trade(held, target, self.fee), None
        order = _Order.of(self, held, target, value, row)
        mu, found = solve(lambda mu, which: order.some(which).parts(mu).sum(axis=0), len(held))
        if not found.all():
            target = np.where(found[:, None], target, held)
            order = _Order.of(self, held, target, value, row)
        return Trade(target, mu, row_sums(order.traded(mu))), order.parts(mu)

    def by_asset(self, traded: Float, value: Float, row: NDArray[np.int64]) -> Float:
        """What it costs to trade each asset, shape [B, n], over the value before the trade.

        Parameters
        ----------
        traded : shape [B, n], traded value of each asset over the value before the trade
        value, row : as for `trade`
        """
        bought = np.concatenate([np.abs(traded), np.zeros((len(traded), 1))], axis=1)
        order = _Order.of(self, np.zeros_like(bought), bought, value, row)
        return order.each(np.ones(len(traded)))


def _require_gentle(
    env: EnvSettings, prices: PriceTable, rows: Span, fee: Float | float, depth: Float
) -> None:
    """Refuse costs with which value after trading would not fall in what is traded."""
    slope = fee + MARGINAL[env.slippage] * depth + 2.0 * env.impact
    if float(slope.max()) <= STEEPEST:
        return
    row, column = (int(i) for i in np.argwhere(slope == slope.max())[0])
    raise ConfigError(
        f"slippage_scale: on {prices.dates[rows.start + row]} the last unit of "
        f"{prices.assets[column]} in a day's whole volume would cost {slope.max():.2f} of its "
        f"value, over {STEEPEST}; lower it, impact or fee"
    )


@dataclass(frozen=True)
class _Order:
    """A batch of trades before μ is known: all arrays have B rows."""

    costs: Costs
    held: Float
    target: Float
    value: Float
    counted: NDArray[np.bool_]
    fee: Float
    size: Float | None  # V/ADV: participation of a trade of the whole value
    depth: Float | None

    @classmethod
    def of(
        cls, costs: Costs, held: Float, target: Float, value: Float, row: NDArray[np.int64]
    ) -> _Order:
        have, want = held[:, :-1], target[:, :-1]
        size = depth = None
        if costs.volume is not None and costs.depth is not None:
            at = row - costs.first_row
            size = value[:, None] / costs.volume.take(at, axis=0)
            depth = costs.depth.take(at, axis=0)
        counted = np.abs(want - have) > SMALLEST_TRADE
        fee = np.broadcast_to(np.asarray(costs.fee, dtype=np.float64), have.shape)
        return cls(costs, have, want, value, counted, fee, size, depth)

    def some(self, which: NDArray[np.int64]) -> _Order:
        """The rows `which`, all of them without a copy."""
        if len(which) == len(self.held):
            return self
        take = [a if a is None else a.take(which, axis=0) for a in self._arrays()]
        return _Order(self.costs, *take)  # type: ignore[arg-type]

    def _arrays(self) -> tuple[NDArray[np.generic] | None, ...]:
        arrays = (self.held, self.target, self.value, self.counted, self.fee)
        return (*arrays, self.size, self.depth)

    def traded(self, mu: Float) -> Float:
        """x, shape [B, n]."""
        return np.asarray(np.abs(mu[:, None] * self.target - self.held))

    def parts(self, mu: Float) -> Float:
        """Costs by `PARTS` over the value before the trade, shape [4, B]."""
        costs, x = self.costs, self.traded(mu)
        out = np.zeros((len(PARTS), len(mu)))
        out[0] = row_sums(self._fees(x))
        if costs.ticket > 0.0:
            out[1] = costs.ticket / self.value * np.add.reduce(self.counted, axis=1)
        if self.size is not None and self.depth is not None:
            p = np.minimum(x * self.size, 1.0)
            if costs.slippage != "none":
                out[2] = row_sums(x * self.depth * slippage_curve(costs.slippage, p))
            if costs.impact > 0.0:
                out[3] = costs.impact * row_sums(x * p)
        return out

    def each(self, mu: Float) -> Float:
        """All parts together, asset by asset: shape [B, n]."""
        costs, x = self.costs, self.traded(mu)
        out = self._fees(x) + self.counted * (costs.ticket / self.value)[:, None]
        if self.size is not None and self.depth is not None:
            p = np.minimum(x * self.size, 1.0)
            if costs.slippage != "none":
                out = out + x * self.depth * slippage_curve(costs.slippage, p)
            out = out + costs.impact * x * p
        return out

    def _fees(self, x: Float) -> Float:
        fee = self.fee * x
        if self.costs.minimum > 0.0:
            least = self.costs.minimum / self.value
            fee = np.where(self.counted, np.maximum(fee, least[:, None]), fee)
        return fee
