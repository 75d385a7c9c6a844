"""What was traded in an offline dataset, worked out from what it stores.

Weights after a trade are not stored, but all that decides them is: the weights before it and the
waiting order (portfolio block), the anchors (market rows), the action, and the environment's
settings. Float32 in the file leaves errors of about 1e-7. Neither value nor volume is stored:
costs beyond the proportional fee, which shrink a trade by as much as they cost, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs import accounting, simplex
from finflow_sb3.envs.batch import default_trade_rate
from finflow_sb3.envs.constraints import Limits, constrain, sell_untradable
from finflow_sb3.envs.costs import proportional_fee
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.listing import tradable_part
from finflow_sb3.offline.dataset import PARTIAL, OfflineDataset

__all__ = ["Traded", "environment_of", "trades"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Traded:
    """The trades of a stretch of transitions.

    Attributes
    ----------
    turnover : shape [B], Σ over risky assets of |μ·w_i − w⁻_i|, in units of the value before
    gap : shape [B], half the sum of |w_i − order_i|: how far the weights after the trade are
        from the order that it filled (the action's target; with execution lag 1 that of the day
        before). Trade rate, limits and the no-trade band keep them apart.
    """

    turnover: Float
    gap: Float


def environment_of(dataset: OfflineDataset) -> EnvSettings | None:
    """The environment that a dataset was collected in; None where it does not say."""
    try:
        env = EnvSettings(**dataset.settings["env"])
    except (KeyError, TypeError, ConfigError):
        return None
    layout = dataset.layout
    fits = env.action_base == layout.action_base and layout.lagged == (env.execution_lag > 0)
    return env if fits else None


def trades(dataset: OfflineDataset, env: EnvSettings, start: int, stop: int) -> Traded:
    """The trades of transitions `start` to `stop`; only these are read.

    Parameters
    ----------
    env : `environment_of(dataset)`
    """
    episode = np.asarray(dataset.episode[start:stop])
    block = _blocks(dataset, start, stop, episode)
    held, pending = _portfolios(dataset, block)
    present = _present(dataset, block, start, stop)
    if env.execution_lag:
        order = np.where(_idle(dataset, env, start, stop)[:, None], held, pending)
    else:
        order = _targets(dataset, env, held, present, start, stop)
        if present is not None:
            order = tradable_part(order, present)
    target = accounting.move_towards(held, order, default_trade_rate(env))
    assets = dataset.layout.assets
    target = constrain(held, target, Limits.of(env, assets))
    if present is not None:
        target = sell_untradable(target, present)
    done = accounting.trade(held, target, proportional_fee(env, assets))
    return Traded(done.turnover, 0.5 * np.abs(done.weights - order).sum(axis=1))


def _blocks(
    dataset: OfflineDataset, start: int, stop: int, episode: NDArray[Any]
) -> NDArray[np.float32]:
    """Portfolio blocks before each transition, [B, portfolio_size]."""
    # The states of a stretch of transitions and of the episodes' ends in it lie together.
    low = start + int(episode[0])
    block = np.asarray(dataset.states[low : stop + int(episode[-1])])
    return np.asarray(block[np.arange(start, stop) + episode - low])


def _portfolios(dataset: OfflineDataset, block: NDArray[np.float32]) -> tuple[Float, Float]:
    """Weights before the trade and the waiting order, each [B, n+1]; zeros where none waits."""
    layout = dataset.layout
    width = layout.n_assets + 1
    held = _normalised(block[:, :width])
    pending = _normalised(block[:, -width:]) if layout.lagged else np.zeros_like(held)
    return held, pending


def _normalised(weights: NDArray[np.float32]) -> Float:
    """Float32 has cut them off: their sum is one again."""
    wide = weights.astype(np.float64)
    return np.asarray(wide / wide.sum(axis=1, keepdims=True))


def _targets(
    dataset: OfflineDataset,
    env: EnvSettings,
    held: Float,
    present: NDArray[np.bool_] | None,
    start: int,
    stop: int,
) -> Float:
    """What the actions ask for, [B, n+1]."""
    action = np.asarray(dataset.action[start:stop], dtype=np.float64)
    if env.action_base == "drift":
        return simplex.drift_target(action, held, env.drift_scale)
    if env.action_base == "none":
        return simplex.softmax_target(action, env.softmax_scale)
    layout = dataset.layout
    rows = np.asarray(dataset.row[start:stop])
    anchors = dataset.market_rows[rows, layout.slices["anchor_weights"]].astype(np.float64)
    anchors = anchors.reshape(len(rows), layout.n_anchors, layout.n_assets)
    cash = np.maximum(1.0 - anchors.sum(axis=2, keepdims=True), 0.0)
    anchors = np.concatenate([anchors, cash], axis=2)
    if layout.masked and present is not None:
        anchors = tradable_part(anchors, present[:, None])
    return simplex.anchor_target(action, anchors, env.gate_scale, env.tilt_scale)


def _present(
    dataset: OfflineDataset, block: NDArray[np.float32], start: int, stop: int
) -> NDArray[np.bool_] | None:
    """Which assets could be held, [B, n]; None where that is all of them."""
    layout = dataset.layout
    if layout.masked:
        place = layout.slices["present"]
        return block[:, place.start - layout.market_size : place.stop - layout.market_size] > 0.5
    return _tradable(dataset, start, stop) if dataset.settings.get(PARTIAL) else None


def _tradable(dataset: OfflineDataset, start: int, stop: int) -> NDArray[np.bool_]:
    """Which assets could be held, [B, n]: all features of those that could not are zero."""
    layout, rows = dataset.layout, np.asarray(dataset.row[start:stop])
    days, place = np.unique(rows, return_inverse=True)
    shown = np.zeros((len(days), layout.n_assets), dtype=np.bool_)
    for name, _ in layout.groups:
        block = np.asarray(dataset.market_rows[days, layout.slices[name]])
        shown |= (block.reshape(len(days), layout.n_assets, -1) != 0.0).any(axis=2)
    return np.asarray(shown[place])


def _idle(dataset: OfflineDataset, env: EnvSettings, start: int, stop: int) -> NDArray[np.bool_]:
    """Where no order waits, [B]: on an episode's first day, and after idle ones in base `drift`."""
    before = max(start - 1, 0)
    episode = np.asarray(dataset.episode[before:stop])
    first = np.diff(episode, prepend=-1) != 0
    if env.action_base == "drift":
        zero = ~np.any(np.asarray(dataset.action[before:stop]) != 0.0, axis=1)
        first[1:] |= zero[:-1]
    return np.asarray(first[start - before :])
