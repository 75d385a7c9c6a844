"""Which trades the limits let through, for a batch of portfolios.

Weights have shape [B, n+1], cash last. All is done row by row with the same operations in the
same order: a batch of one and a batch of a thousand give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.config_trading import require_consistent
from finflow_sb3.envs.rows import row_sums
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown

__all__ = ["Block", "Limits", "constrain", "per_asset", "sell_untradable"]

Float = NDArray[np.float64]
# Shares that add up to one in decimals need not in binary.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Block:
    """Assets with a common limit.

    Attributes
    ----------
    columns : their positions
    least, most : of the sum of their weights
    """

    columns: NDArray[np.int64]
    least: float
    most: float


@dataclass(frozen=True)
class Limits:
    """What `constrain` keeps to.

    Attributes
    ----------
    no_trade_band : changes of weight below it are left out
    max_turnover : largest Σ_risky |w_i − w⁻_i|, or None
    max_position : largest weight that purchases reach, one number or shape [n], or None
    floors : smallest weights, shape [n]; None without minima and without groups
    blocks : groups of assets, no asset in two of them
    """

    no_trade_band: float = 0.0
    max_turnover: float | None = None
    max_position: float | Float | None = None
    floors: Float | None = None
    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, env: EnvSettings, assets: tuple[str, ...]) -> Limits:
        """The limits of these settings in this universe.

        Raises
        ------
        ConfigError
            If an asset is unknown, or no portfolio could meet all of them.
        """
        require_consistent(env)
        floors = per_asset("min_position", env.min_position, 0.0, assets)
        most = env.max_position
        cap = per_asset("max_position", most, 1.0, assets) if isinstance(most, dict) else most
        blocks = tuple(_block(name, env, assets) for name in env.groups)
        _require_feasible(env, assets, floors, cap, blocks)
        bound = bool(blocks) or bool(floors.any())
        return cls(env.no_trade_band, env.max_turnover, cap, floors if bound else None, blocks)


def per_asset(
    setting: str, value: float | dict[str, float], otherwise: float, assets: tuple[str, ...]
) -> Float:
    """One number for each asset, shape [n], of a setting that is a number or a mapping."""
    if not isinstance(value, dict):
        return np.full(len(assets), float(value))
    out = np.full(len(assets), otherwise)
    for name, number in value.items():
        out[_position(setting, name, assets)] = number
    return out


def _position(setting: str, name: str, assets: tuple[str, ...]) -> int:
    if name not in assets:
        raise ConfigError(f"{setting}: {shown(name)} is no asset; {remedy(name, assets)}")
    return assets.index(name)


def _block(name: str, env: EnvSettings, assets: tuple[str, ...]) -> Block:
    columns = sorted(_position("groups", asset, assets) for asset in env.groups[name])
    low, high = env.group_limits[name]
    return Block(np.array(columns, dtype=np.int64), low, high)


def _require_feasible(
    env: EnvSettings,
    assets: tuple[str, ...],
    floors: Float,
    cap: float | Float | None,
    blocks: tuple[Block, ...],
) -> None:
    caps = np.broadcast_to(1.0 if cap is None else cap, floors.shape)
    over = np.flatnonzero(floors > caps)
    if len(over):
        i = over[0]
        raise ConfigError(
            f"min_position: {floors[i]:g} of {assets[i]} is over its max_position {caps[i]:g}; "
            "lower it"
        )
    alone = np.ones(len(floors), dtype=bool)
    needed = 0.0
    for name, block in zip(env.groups, blocks, strict=True):
        alone[block.columns] = False
        low, high = float(floors[block.columns].sum()), float(caps[block.columns].sum())
        if low > block.most + ROUNDING:
            raise ConfigError(
                f"group_limits: at most {block.most:g} of {name}, and the min_position of its "
                f"assets add up to {low:g}; raise the one or lower the others"
            )
        if high < block.least - ROUNDING:
            raise ConfigError(
                f"group_limits: at least {block.least:g} of {name}, and the max_position of its "
                f"assets add up to {high:g}; lower the one or raise the others"
            )
        needed += max(low, block.least)
    needed += float(floors[alone].sum())
    if needed > 1.0 + ROUNDING:
        raise ConfigError(
            f"min_position: with the least of group_limits they add up to {needed:g}, over 1; "
            "lower some"
        )


def constrain(held: Float, target: Float, limits: Limits) -> Float:
    """The trade that the limits let through, in this order.

    1. `no_trade_band`: changes smaller than the band are left out; the changed weights are
       scaled so that the total is one again (what they cannot take goes to cash).
    2. `max_turnover`: the whole trade is scaled down to Σ_risky |w_i − w⁻_i| ≤ max_turnover.
    3. `max_position`: purchases stop at the cap, w_i ≤ max(cap_i, w⁻_i); what is over stays in
       cash, so that the turnover limit still holds.
    4. Minima and groups, see `_within`; then 2 again, because minima may have been bought.

    With held weights and target inside all limits, so is the result: steps 2 and 4 stay in a
    convex set that holds both.

    Parameters
    ----------
    held, target : shape [B, n+1]
    """
    if limits.no_trade_band > 0.0:
        target = _leave_out_small(held, target, limits.no_trade_band)
    if limits.max_turnover is not None:
        target = _slowed(held, target, limits.max_turnover)
    if limits.max_position is not None:
        risky = np.minimum(target[:, :-1], np.maximum(limits.max_position, held[:, :-1]))
        target = _with_rest_in_cash(risky)
    if limits.floors is not None:
        target = _within(held, target, limits.floors, limits)
        if limits.max_turnover is not None:
            target = _slowed(held, target, limits.max_turnover)
    return target


def _slowed(held: Float, target: Float, max_turnover: float) -> Float:
    moved = row_sums(np.abs(target[:, :-1] - held[:, :-1]))
    scale = np.minimum(1.0, max_turnover / np.maximum(moved, 1e-300))
    return np.asarray(held + scale[:, None] * (target - held))


def _leave_out_small(held: Float, target: Float, band: float) -> Float:
    changed = np.abs(target - held) >= band
    kept = np.where(changed, 0.0, held)
    free = np.maximum(0.0, 1.0 - row_sums(kept))
    wanted = row_sums(np.where(changed, target, 0.0))
    scale = np.where(wanted > 0.0, free / np.where(wanted > 0.0, wanted, 1.0), 0.0)
    out = np.where(changed, target * scale[:, None], held)
    some = np.any(changed, axis=1, keepdims=True)
    stuck = some[:, 0] & (wanted <= 0.0)
    out[stuck] = _with_rest_in_cash(out[stuck, :-1])
    return np.where(some, out, held)


def _with_rest_in_cash(risky: Float) -> Float:
    rest = np.maximum(0.0, 1.0 - row_sums(risky))
    return np.concatenate([risky, rest[:, None]], axis=1)


# ---------------------------------------------------------------- minima and groups


def _within(held: Float, target: Float, floors: Float, limits: Limits) -> Float:
    """The target brought within minima and groups; budget and caps are kept.

    An asset's floor is its `min_position`, its ceiling what step 3 let it have at most. In turn:

    1. each asset is raised to its floor;
    2. a group above max(its most, what is held of it) has its purchases beyond the floors scaled
       back; if that is not enough, the rest is sold in proportion to what lies above the floors;
    3. a group below its least is filled in proportion to the room below its assets' ceilings;
    4. all that was added is paid from cash; where cash does not suffice, groups and single
       assets give in proportion to what they have above their own minima.

    Each step keeps what the ones before it reached, because a group's floors fit under its most
    and its least under its ceilings, and all minima together under one (`Limits.of`).
    """
    have, risky = held[:, :-1], np.maximum(target[:, :-1], floors)
    cap = 1.0 if limits.max_position is None else limits.max_position
    ceilings = np.maximum(np.maximum(cap, have), floors)
    for block in limits.blocks:
        at = block.columns
        mine, before, floor = risky.take(at, 1), have.take(at, 1), floors[at]
        most = np.maximum(block.most, row_sums(before))
        mine = _reduced(mine, np.maximum(before, floor), row_sums(mine) - most)
        mine = _reduced(mine, np.broadcast_to(floor, mine.shape), row_sums(mine) - most)
        room = np.maximum(ceilings.take(at, 1) - mine, 0.0)
        risky[:, at] = mine + room * _share(block.least - row_sums(mine), row_sums(room))[:, None]
    return _with_rest_in_cash(_affordable(risky, floors, limits.blocks))


def _reduced(weights: Float, floor: Float, excess: Float) -> Float:
    """`weights` less `excess` [B] at most, in proportion to what is above `floor`."""
    room = np.maximum(weights - floor, 0.0)
    return np.asarray(weights - room * _share(excess, row_sums(room))[:, None])


def _share(amount: Float, room: Float) -> Float:
    """The share of `room` [B] that `amount` takes: 0 where it is negative, 1 where it is more."""
    wanted = np.maximum(amount, 0.0)
    return np.asarray(np.minimum(wanted / np.where(room > 0.0, room, 1.0), 1.0))


def _affordable(risky: Float, floors: Float, blocks: tuple[Block, ...]) -> Float:
    """`risky` [B, n] with a sum of one at most, every minimum kept."""
    excess = row_sums(risky) - 1.0
    if not np.any(excess > 0.0):
        return risky
    room = np.maximum(risky - floors, 0.0)
    for block in blocks:  # of a group, only what it has above its least
        mine = room.take(block.columns, 1)
        spare = row_sums(risky.take(block.columns, 1)) - block.least
        room[:, block.columns] = mine * _share(spare, row_sums(mine))[:, None]
    return np.asarray(risky - room * _share(excess, row_sums(room))[:, None])


def sell_untradable(target: Float, tradable: NDArray[np.bool_]) -> Float:
    """Weights to trade to, with all of what is not tradable [B, n] in cash; no limit binds that."""
    gone = ~tradable & (target[:, :-1] != 0.0)
    rows = np.flatnonzero(gone.any(axis=1))
    if len(rows):
        target = target.copy()
        target[rows] = _with_rest_in_cash(np.where(gone[rows], 0.0, target[rows, :-1]))
    return target
