"""The market as an environment shows it: scaled rows, anchors and splits, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings, MarketSettings
from finflow_sb3.envs.accounting import grow, trade
from finflow_sb3.envs.costs import proportional_fee
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.market.anchors import Anchors, fit_anchors
from finflow_sb3.market.features import WARMUP, FeatureTable, compute_features
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.market.listing import even_weights, tradable_days
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Splits, make_splits

__all__ = [
    "ObservedMarket",
    "Scaler",
    "observe",
    "observe_source",
    "unscaled_blocks",
    "with_interest",
]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
CLIP = 5.0
TRADING_DAYS = 252


@dataclass(frozen=True)
class Scaler:
    """Mean and deviation of every feature over the training split, shared by all assets.

    Scaled features are clipped to ±5.
    """

    means: dict[str, tuple[float, ...]]
    deviations: dict[str, tuple[float, ...]]

    @classmethod
    def fit(cls, blocks: dict[str, Float]) -> Scaler:
        """From unscaled blocks of training rows, each of shape [T, ..., f]; NaN is left out."""
        means, deviations = {}, {}
        for name, block in blocks.items():
            flat = block.reshape(-1, block.shape[-1])
            unknown = np.isnan(flat).any(axis=1)
            if unknown.any():
                flat = flat[~unknown]
            means[name] = tuple(float(x) for x in flat.mean(axis=0))
            deviations[name] = tuple(max(float(x), 1e-8) for x in flat.std(axis=0))
        return cls(means, deviations)

    def __call__(self, name: str, block: Float) -> Float:
        scaled = (block - np.array(self.means[name])) / np.array(self.deviations[name])
        return np.asarray(np.clip(scaled, -CLIP, CLIP))

    def as_dict(self) -> dict[str, Any]:
        return {"means": self.means, "deviations": self.deviations}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scaler:
        try:
            return cls(
                {name: tuple(map(float, x)) for name, x in data["means"].items()},
                {name: tuple(map(float, x)) for name, x in data["deviations"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(
                f"scaler.json is not whole ({error}); use another artefact"
            ) from None


@dataclass(frozen=True)
class ObservedMarket:
    """Everything about a market that does not depend on a portfolio.

    Attributes
    ----------
    returns : shape [T, n+1], simple daily returns, cash last; row t is from t-1 to t
    frames : float32, shape [T, layout.size], observations without their portfolio part, which
        is zero: a batch copies a row whole and writes its portfolio over that. Row t is computed
        from prices at or before t. Rows before the first usable one are zero.
    sigma : standard deviation of the daily equal-weight return over the training split
    moments : first and second moment of the reward's return over the training split
    equal_weight : shape [T], the listed assets' average return
    tradable : shape [T, n], where an asset may be held until the next close; None where all
        assets are listed on all days. Features of an asset that is not are zero.
    """

    prices: PriceTable
    settings: MarketSettings
    env: EnvSettings
    layout: ObservationLayout
    anchors: Anchors
    scaler: Scaler
    splits: Splits
    returns: Float
    equal_weight: Float
    frames: NDArray[np.float32]
    sigma: float
    moments: tuple[float, float]
    tradable: Bool | None = None

    def even_weights(self, row: int) -> Float:
        """The same of every tradable asset, shape [n+1]."""
        if self.tradable is not None:
            return even_weights(self.tradable[row])
        n = self.layout.n_assets
        return np.append(np.full(n, 1.0 / n), 0.0)

    @property
    def rows(self) -> NDArray[np.float32]:
        """The market part of observations, shape [T, layout.market_size]: a view of `frames`."""
        return self.frames[:, : self.layout.market_size]


def observe(
    prices: PriceTable,
    market: MarketSettings | None = None,
    env: EnvSettings | None = None,
    scaler: Scaler | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    anchors: Anchors | None = None,
    splits: Splits | None = None,
) -> ObservedMarket:
    """Compute features, anchors, scaler and splits of a market.

    Parameters
    ----------
    scaler : the one of an artefact; fitted on the training split if not given
    anchors : of these prices; fitted (minutes for hundreds of assets) if not given
    splits : of these prices; those that `market` asks for if not given

    Raises
    ------
    DataError
        If there are too few rows for the longest window or for the splits.
    ConfigError
        If `cash_rate` is set and the prices have a rate of their own.
    """
    market = market or MarketSettings()
    env = env or EnvSettings()
    prices = with_interest(prices, env.cash_rate)
    anchors = anchors or fit_anchors(prices, market, on_progress)
    first = max(WARMUP, anchors.first_row)
    if splits is None:
        splits = make_splits(prices.dates, first, market, purge=env.execution_lag + 1)
    returns = np.concatenate([prices.returns(), prices.cash_rate[:, None]], axis=1)
    record, paper = anchor_record(returns, anchors, proportional_fee(env, prices.assets))
    tradable = tradable_days(prices.listed, WARMUP)
    blocks = _blocks(compute_features(prices), record, tradable)
    if scaler is None:
        span = splits.train
        scaler = Scaler.fit({name: b[span.start : span.stop] for name, b in blocks.items()})
    layout = make_layout(prices, anchors, env)
    equal_weight = _average(returns[:, :-1], prices)
    train = slice(splits.train.start, splits.train.stop)
    return ObservedMarket(
        prices=prices,
        settings=market,
        env=env,
        layout=layout,
        anchors=anchors,
        scaler=scaler,
        splits=splits,
        returns=returns,
        equal_weight=equal_weight,
        frames=_frames(blocks, anchors, layout, scaler, first, partial=tradable is not None),
        sigma=float(np.std(equal_weight[train], ddof=1)),
        moments=_moments(paper, equal_weight, train, env),
        tradable=tradable,
    )


def _average(returns: Float, prices: PriceTable) -> Float:
    """Average return of the listed assets, shape [T]; zero where there is none."""
    if prices.listed is None:
        return np.asarray(returns.mean(axis=1))
    # Returns of assets that are not listed are zero.
    return np.asarray(returns.sum(axis=1) / np.maximum(prices.earning().sum(axis=1), 1))


def with_interest(prices: PriceTable, annual: float | None) -> PriceTable:
    """The prices with cash that earns `annual` / 252 a day; unchanged where it is None.

    Raises
    ------
    ConfigError
        If they have another rate already.
    """
    if annual is None:
        return prices
    rate = np.full(len(prices), annual / TRADING_DAYS)
    if prices.cash_rate.any() and not np.array_equal(prices.cash_rate, rate):
        raise ConfigError(
            f"cash_rate: {prices.source} has a cash rate of its own; leave the setting out, or "
            "that column"
        )
    return dataclasses.replace(prices, cash_rate=rate)


@lru_cache(maxsize=4)
def observe_source(source: str, market: MarketSettings, env: EnvSettings) -> ObservedMarket:
    """`observe` for a named source, remembered: environments of one market share it."""
    from finflow_sb3.market.sources import load_prices

    prices = load_prices(source, max_gap=market.max_gap, partial=market.partial)
    return observe(prices, market, env)


def make_layout(prices: PriceTable, anchors: Anchors, env: EnvSettings) -> ObservationLayout:
    scalars: tuple[str, ...] = ("drawdown",)
    if env.reward == "differential_sharpe":
        scalars += ("moment_1", "moment_2")
    return ObservationLayout(
        assets=prices.assets,
        anchors=anchors.names,
        scalars=scalars,
        action_base=env.action_base,
        lagged=env.execution_lag > 0,
        masked=env.asset_dropout > 0.0,
    )


def anchor_record(returns: Float, anchors: Anchors, fee: Float | float) -> tuple[Float, Float]:
    """How each anchor has done, as a paper portfolio that trades on refit days, net of fees.

    Parameters
    ----------
    fee : proportional, one number or shape [n]; a paper portfolio has no size, so that fixed
        fees, slippage and impact do not concern it

    Returns
    -------
    record : shape [T, K, 3], trailing log net return and volatility (63 days), drawdown from
        the highest value of 252 days; row t knows returns up to t
    net : shape [T, K], net simple returns
    """
    import pandas as pd

    k = len(anchors.names)
    net = np.zeros((len(returns), k))
    held = anchors.weights[0]
    refits = set(anchors.refits.tolist())
    for row in range(anchors.first_row, len(returns) - 1):
        mu = np.ones(k)
        if row in refits:
            done = trade(held, anchors.at(row), fee)
            held, mu = done.weights, done.mu
        growth, held = grow(held, returns[row + 1])
        net[row + 1] = mu * growth - 1.0
    table = pd.DataFrame(net)
    log = np.log1p(table)
    value = log.cumsum()
    record = (
        log.rolling(63, min_periods=1).sum(),
        table.rolling(63, min_periods=1).std(ddof=0),
        np.exp(value - value.rolling(252, min_periods=1).max()) - 1.0,
    )
    return np.stack([column.to_numpy() for column in record], axis=-1), net


def _blocks(features: FeatureTable, record: Float, tradable: Bool | None) -> dict[str, Float]:
    """All features, NaN where an asset is not tradable."""
    groups = features.groups
    if tradable is not None:
        groups = {k: np.where(tradable[..., None], block, np.nan) for k, block in groups.items()}
    return {**groups, "market": features.market, "anchor_record": record}


def unscaled_blocks(market: ObservedMarket) -> dict[str, Float]:
    """What the scaler was given, by name: features by group, market block and anchors' record.

    Returns
    -------
    float64 arrays: groups [T, n, f_g], market [T, m], anchor_record [T, K, 3]; NaN where an asset
    is not tradable, and on rows before the first usable one
    """
    fee = proportional_fee(market.env, market.prices.assets)
    record, _ = anchor_record(market.returns, market.anchors, fee)
    return _blocks(compute_features(market.prices), record, market.tradable)


def _frames(
    blocks: dict[str, Float],
    anchors: Anchors,
    layout: ObservationLayout,
    scaler: Scaler,
    first: int,
    partial: bool,
) -> NDArray[np.float32]:
    n_rows = len(anchors.index)
    rows = np.zeros((n_rows, layout.size), dtype=np.float32)
    for name, block in blocks.items():
        scaled = scaler(name, block[first:])
        if partial:
            scaled = np.where(np.isnan(scaled), 0.0, scaled)
        rows[first:, layout.slices[name]] = scaled.reshape(n_rows - first, -1)
    weights = anchors.at(np.arange(first, n_rows))[:, :, :-1]
    rows[first:, layout.slices["anchor_weights"]] = weights.reshape(n_rows - first, -1)
    return rows


def _moments(
    paper: Float, equal_weight: Float, train: slice, env: EnvSettings
) -> tuple[float, float]:
    """What a differential Sharpe ratio starts from: the anchors' average over the baseline."""
    returns = paper[train].mean(axis=1)
    if env.reward_baseline == "equal_weight":
        returns = returns - equal_weight[train]
    return float(returns.mean()), float(np.mean(returns**2))
