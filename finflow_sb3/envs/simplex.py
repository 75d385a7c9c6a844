"""From actions to target weights, and back.

Weights have shape [B, n+1] with cash last and sum to one. Actions lie in [-1, 1]. Three bases:

- anchors: target ∝ (Σ_k softmax(κ_g·a_gate)_k · A_k) · exp(κ_t·a_tilt)
- drift:   target ∝ w⁻ · exp(κ·a)
- none:    target ∝ exp(κ·a)
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.rows import row_sums

__all__ = [
    "anchor_target",
    "drift_target",
    "gate_weights",
    "invert_anchor",
    "invert_drift",
    "invert_softmax",
    "nearest_on_simplex",
    "simplex_least_squares",
    "softmax_target",
    "tilted_mixture",
]

Float = NDArray[np.float64]

# Actions of the inverse stay off the corners, where a squashed Gaussian has no density.
LARGEST_ACTION = 0.999
DRIFT_FLOOR = 1e-6
# An inverse that misses by less needs no second attempt.
EXACT = 1e-9
# Weights below it count as if they were it where errors are relative.
RELATIVE_FLOOR = 1e-3


def gate_weights(gate_action: Float, gate_scale: float) -> Float:
    """softmax(κ_g·a), shape [B, K]."""
    return _softmax(gate_scale * gate_action)


def anchor_target(action: Float, anchors: Float, gate_scale: float, tilt_scale: float) -> Float:
    """Target weights of base `anchors`.

    Parameters
    ----------
    action : shape [B, K+n+1], gate numbers first
    anchors : shape [B, K, n+1]
    """
    k = anchors.shape[1]
    gates = gate_weights(action[:, :k], gate_scale)
    return tilted_mixture(gates, anchors, action[:, k:], tilt_scale)


def tilted_mixture(gates: Float, anchors: Float, tilt: Float, tilt_scale: float) -> Float:
    """∝ (Σ_k g_k·A_k)·exp(κ_t·a_tilt), shape [B, n+1]; gates [B, K], tilt [B, n+1]."""
    power = tilt_scale * tilt
    np.exp(power, out=power)
    power *= _mixed(gates, anchors)
    return _normalised(power)


def drift_target(action: Float, held: Float, scale: float) -> Float:
    """Target weights of base `drift`; an all-zero action is exactly the held weights."""
    target = _normalised(np.maximum(held, DRIFT_FLOOR) * np.exp(scale * action))
    idle = ~np.any(action != 0.0, axis=1, keepdims=True)
    return np.where(idle, held, target)


def softmax_target(action: Float, scale: float) -> Float:
    """Target weights of base `none`."""
    return _softmax(scale * action)


def invert_anchor(
    weights: Float,
    anchors: Float,
    gate_scale: float,
    tilt_scale: float,
    gate_floor: float = 0.0,
    largest: float = LARGEST_ACTION,
) -> Float:
    """The action of base `anchors` whose target is nearest to `weights`.

    Gates by least squares on the simplex; tilts are what is left as log-ratios, centred and
    clipped. Exact where both fit into [-largest, largest]. Where they do not, least squares
    of the relative errors (which are what tilts have to make up for) may come nearer.

    Parameters
    ----------
    gate_floor : share that the gates keep of every anchor at least; the tilts make up for it
        as far as they reach
    """
    scales = (gate_scale, tilt_scale, gate_floor, largest)
    action, error = _invert_by(weights, anchors, anchors, weights, *scales)
    again = np.flatnonzero(error > EXACT)
    if len(again):
        w, a = weights[again], anchors[again]
        unit = 1.0 / np.maximum(w, RELATIVE_FLOOR)
        second, other = _invert_by(w, a, a * unit[:, None], w * unit, *scales)
        better = other < error[again]
        action[again[better]] = second[better]
    return action


def _invert_by(
    weights: Float,
    anchors: Float,
    points: Float,
    goal: Float,
    gate_scale: float,
    tilt_scale: float,
    gate_floor: float,
    largest: float,
) -> tuple[Float, Float]:
    """The action whose gates bring `points` nearest to `goal`, and its distance, shape [B]."""
    free = 1.0 - points.shape[1] * gate_floor
    shares = gate_floor + free * simplex_least_squares(points, goal)
    gate = _centred_logs(shares, np.ones_like(shares), gate_scale, largest)
    # The tilt answers to the gates that the clipped action will give, not to the ideal ones.
    mixed = _mixed(gate_weights(gate, gate_scale), anchors)
    tilt = _centred_logs(weights, mixed, tilt_scale, largest)
    reached = _normalised(mixed * np.exp(tilt_scale * tilt))
    error = row_sums(np.abs(reached - weights))
    return np.concatenate([gate, tilt], axis=1), error


def invert_drift(
    weights: Float,
    held: Float,
    scale: float,
    largest: float = LARGEST_ACTION,
    free: Float | float = 1.0,
) -> Float:
    """The action of base `drift` whose target is nearest to `weights`.

    Parameters
    ----------
    free : shape [B, n+1], 1 where the target can have weight and 0 where it is taken away
    """
    action = _centred_logs(weights, np.maximum(held, DRIFT_FLOOR) * free, scale, largest)
    same = np.all(weights == held, axis=1)
    return np.where(same[:, None], 0.0, action)


def invert_softmax(
    weights: Float, scale: float, largest: float = LARGEST_ACTION, free: Float | float = 1.0
) -> Float:
    """The action of base `none` whose target is nearest to `weights`; `free` as above."""
    return _centred_logs(weights, np.ones_like(weights) * free, scale, largest)


def _centred_logs(weights: Float, base: Float, scale: float, largest: float) -> Float:
    """log(weights/base)/scale, centred and clipped to ±largest; 0 where `base` is 0.

    The centre is the mean, moved as little as lets all values fit where they can. A weight of
    zero counts as the smallest that the action can express.
    """
    if scale == 0.0:
        return np.zeros_like(weights)
    free = base > 0.0
    ratio = np.where(free & (weights > 0.0), weights / np.where(free, base, 1.0), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(ratio) / scale
    top = np.max(np.where(np.isnan(logs), -np.inf, logs), axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    logs = np.where(np.isnan(logs), -np.inf, logs)
    logs = np.where(free, np.maximum(logs, top - 2 * largest), 0.0)
    count = np.maximum(np.add.reduce(free, axis=1, keepdims=True), 1)
    mean = np.add.reduce(logs, axis=1, keepdims=True) / count
    low = np.min(np.where(free, logs, np.inf), axis=1, keepdims=True)
    low = np.where(np.isfinite(low), low, 0.0)
    centre = np.clip(mean, top - largest, low + largest)
    return np.where(free, np.clip(logs - centre, -largest, largest), 0.0)


def simplex_least_squares(points: Float, weights: Float) -> Float:
    """p on the simplex that minimises ‖Σ_k p_k·points_k − weights‖², for each row.

    Exact: where the solution on the full support has no negative part, that is it; else the
    optimality conditions are solved on every support (2^K − 1 of them, K ≤ 8) and the best
    feasible solution is taken.

    Parameters
    ----------
    points : shape [B, K, m]
    weights : shape [B, m]

    Returns
    -------
    shape [B, K]
    """
    k = points.shape[1]
    gram = points @ points.transpose(0, 2, 1)
    # A trace of ridge: equal anchors share their part instead of making the system singular.
    gram = gram + 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(k)
    dot = np.einsum("bkm,bm->bk", points, weights)
    best = _solve_on_supports(gram, dot, np.ones((1, k)))[:, 0]
    outside = np.flatnonzero(np.any(best < -1e-9, axis=1))
    if len(outside):
        best[outside] = _best_support(gram[outside], dot[outside])
    return _normalised(np.maximum(best, 0.0))


def nearest_on_simplex(points: Float) -> Float:
    """The weights nearest to `points` [B, m] in Euclidean distance (Duchi et al. 2008)."""
    falling = -np.sort(-points, axis=1)
    count = np.arange(1, points.shape[1] + 1)
    excess = (np.cumsum(falling, axis=1) - 1.0) / count
    last = np.sum(falling > excess, axis=1, keepdims=True) - 1
    return _normalised(np.maximum(points - np.take_along_axis(excess, last, axis=1), 0.0))


def _best_support(gram: Float, dot: Float) -> Float:
    """The best feasible solution over all supports, shape [B, K]."""
    supports = np.array([s for s in product((0.0, 1.0), repeat=dot.shape[1]) if any(s)])
    solution = _solve_on_supports(gram, dot, supports)
    cost = np.einsum("bsk,bkl,bsl->bs", solution, gram, solution)
    cost = cost - 2.0 * np.einsum("bsk,bk->bs", solution, dot)
    cost = np.where(np.all(solution >= -1e-9, axis=2), cost, np.inf)
    return np.asarray(solution[np.arange(len(dot)), np.argmin(cost, axis=1)])


def _solve_on_supports(gram: Float, dot: Float, supports: Float) -> Float:
    """Solutions of the equality-constrained problems, shape [B, S, K]; zero off the support."""
    b, k = dot.shape
    s = len(supports)
    inside = supports[None, :, :, None] * supports[None, :, None, :]
    outside = np.eye(k)[None, None] * (1.0 - supports)[None, :, :, None]
    system = np.zeros((b, s, k + 1, k + 1))
    system[:, :, :k, :k] = gram[:, None] * inside + outside
    system[:, :, :k, k] = supports
    system[:, :, k, :k] = supports
    right = np.zeros((b, s, k + 1))
    right[:, :, :k] = dot[:, None] * supports
    right[:, :, k] = 1.0
    return np.asarray(np.linalg.solve(system, right[..., None])[..., :k, 0])


def _mixed(shares: Float, points: Float) -> Float:
    """Σ_k p_k·points_k, shape [B, m]; the same bits for every B."""
    return np.asarray(np.einsum("bk,bkm->bm", shares, points))


def _softmax(logits: Float) -> Float:
    # Logits are a scale of at most 20 times an action in [-1, 1]: no maximum to take off first.
    return _normalised(np.exp(logits))


def _normalised(weights: Float) -> Float:
    return np.asarray(weights / row_sums(weights)[:, None])
