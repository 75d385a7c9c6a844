"""Actions to weights, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from checkers import check_budget
from hypothesis import given, settings
from hypothesis import strategies as st

from finflow_sb3.envs.simplex import (
    anchor_target,
    drift_target,
    gate_weights,
    invert_anchor,
    invert_drift,
    invert_softmax,
    simplex_least_squares,
    softmax_target,
    tilted_mixture,
)

EXAMPLES = settings(max_examples=40, deadline=None)
GATE, TILT, DRIFT, SOFTMAX = 5.0, 0.5, 0.1, 5.0
REACH = 0.998
seeds = st.integers(0, 10_000)
sizes = st.integers(2, 12)


def anchors_of(rng: np.random.Generator, rows: int, n: int, k: int = 5) -> np.ndarray:
    """Anchors [rows, k, n+1], in some of which assets are missing."""
    weights = rng.dirichlet(np.full(n + 1, 0.5), size=(rows, k))
    weights[:, 0] = np.where(weights[:, 0] < 0.05, 0.0, weights[:, 0])
    return np.asarray(weights / weights.sum(axis=2, keepdims=True))


def test_targets_by_hand() -> None:
    np.testing.assert_allclose(
        softmax_target(np.array([[math.log(2) / 5, 0.0, 0.0]]), SOFTMAX)[0], [0.5, 0.25, 0.25]
    )
    held = np.array([[0.25, 0.25, 0.5]])
    action = np.array([[math.log(2), 0.0, 0.0]])
    np.testing.assert_allclose(drift_target(action, held, 1.0)[0], [0.4, 0.2, 0.4])
    anchors = np.array([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]])
    action = np.array([[math.log(3) / 5, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        anchor_target(action, anchors, GATE, TILT)[0], [0.75, 0.125, 0.125], atol=1e-15
    )
    tilted = np.array([[0.0, 0.0, 2 * math.log(2), 0.0, 0.0]])
    np.testing.assert_allclose(
        anchor_target(tilted, anchors, GATE, TILT)[0], [2 / 3, 1 / 6, 1 / 6], atol=1e-15
    )


@EXAMPLES
@given(seed=seeds, n=sizes)
def test_targets_keep_the_budget(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    held = rng.dirichlet(np.full(n + 1, 0.1), size=8)
    action = rng.uniform(-1, 1, size=(8, n + 1))
    check_budget(softmax_target(action, SOFTMAX))
    check_budget(drift_target(action, held, DRIFT))
    gates = rng.uniform(-1, 1, size=(8, 5))
    whole = np.concatenate([gates, action], axis=1)
    check_budget(anchor_target(whole, anchors_of(rng, 8, n), GATE, TILT))


@EXAMPLES
@given(seed=seeds, n=sizes, rows=st.integers(2, 70))
def test_a_target_alone_has_the_same_bits(seed: int, n: int, rows: int) -> None:
    """Whatever else is in the batch; and a mixture of given gates is that of their action."""
    rng = np.random.default_rng(seed)
    anchors, held = anchors_of(rng, rows, n), rng.dirichlet(np.ones(n + 1), size=rows)
    action = rng.uniform(-1, 1, size=(rows, 5 + n + 1))
    gates = gate_weights(action[:, :5], GATE)
    mixture = tilted_mixture(gates, anchors, action[:, 5:], TILT)
    np.testing.assert_array_equal(mixture, anchor_target(action, anchors, GATE, TILT))
    soft, drifted = softmax_target(action[:, 5:], SOFTMAX), drift_target(action[:, 5:], held, DRIFT)
    for i in {0, seed % rows, rows - 1}:
        one = slice(i, i + 1)
        alone = anchor_target(action[one], anchors[one], GATE, TILT)
        np.testing.assert_array_equal(alone[0], mixture[i])
        np.testing.assert_array_equal(softmax_target(action[one, 5:], SOFTMAX)[0], soft[i])
        again = drift_target(action[one, 5:], held[one], DRIFT)
        np.testing.assert_array_equal(again[0], drifted[i])


@pytest.mark.parametrize("scale", [0.01, 20.0])
def test_targets_are_numbers_at_the_ends_of_the_scales(scale: float) -> None:
    """At 20, the largest that settings allow, a corner outweighs the others by e^40."""
    action = np.full((1, 12), -1.0)
    action[0, 3] = 1.0
    target = softmax_target(action, scale)
    check_budget(target)
    expected = 1.0 / (1.0 + 11.0 * math.exp(-2.0 * scale))
    assert target[0, 3] == pytest.approx(expected, rel=1e-12)


def test_zero_is_the_average_of_the_anchors() -> None:
    anchors = anchors_of(np.random.default_rng(0), 20, 6)
    target = anchor_target(np.zeros((20, 5 + 7)), anchors, GATE, TILT)
    np.testing.assert_allclose(target, anchors.mean(axis=1), atol=1e-15)


@pytest.mark.parametrize("k", range(5))
def test_corner_gate_is_its_anchor(k: int) -> None:
    """The other four gates keep 4·e^-10/(1 + 4·e^-10) < 4·e^-10 ≈ 1.8e-4 together."""
    anchors = anchors_of(np.random.default_rng(k), 20, 6)
    action = np.zeros((20, 12))
    action[:, :5] = -1.0
    action[:, k] = 1.0
    off = np.abs(anchor_target(action, anchors, GATE, TILT) - anchors[:, k])
    assert off.max() <= 4 * math.exp(-10)
    assert 1.0 - gate_weights(action[:, :5], GATE)[0, k] == pytest.approx(1.8e-4, rel=0.02)


def test_one_of_a_hundred_reaches_99_percent() -> None:
    action = np.full((1, 101), -1.0)
    action[0, 17] = 1.0
    target = softmax_target(action, SOFTMAX)
    assert target[0, 17] >= 0.99
    back = softmax_target(invert_softmax(target, SOFTMAX), SOFTMAX)
    np.testing.assert_allclose(back, target, atol=1e-4)


def test_drift_zero_is_exactly_the_held_weights() -> None:
    """Also those below the floor of 1e-6, which any other action lifts."""
    held = np.array([[0.0, 1e-9, 1.0 - 1e-9]])
    np.testing.assert_array_equal(drift_target(np.zeros((1, 3)), held, DRIFT), held)
    moved = drift_target(np.array([[0.0, 0.0, 1e-3]]), held, DRIFT)
    assert np.all(moved[0, :2] > 9e-7)


# ------------------------------------------------------------------ the inverse


@EXAMPLES
@given(seed=seeds, n=sizes)
def test_softmax_inverts(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    weights = softmax_target(rng.uniform(-REACH, REACH, size=(16, n + 1)), SOFTMAX)
    action = invert_softmax(weights, SOFTMAX)
    assert np.all(np.abs(action) <= 0.999)
    np.testing.assert_allclose(softmax_target(action, SOFTMAX), weights, atol=1e-6, rtol=0)


@EXAMPLES
@given(seed=seeds, n=sizes)
def test_drift_inverts(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    held = rng.dirichlet(np.full(n + 1, 0.2), size=16)
    weights = drift_target(rng.uniform(-REACH, REACH, size=(16, n + 1)), held, DRIFT)
    action = invert_drift(weights, held, DRIFT)
    assert np.all(np.abs(action) <= 0.999)
    np.testing.assert_allclose(drift_target(action, held, DRIFT), weights, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(invert_drift(held, held, DRIFT), 0.0)


@EXAMPLES
@given(seed=seeds, n=sizes, tilt=st.sampled_from([0.0, 0.2, 0.4]))
def test_anchors_invert(seed: int, n: int, tilt: float) -> None:
    """Any gates, and tilts up to 0.4 of their range.

    Gates and tilts overlap, so the inverse finds another action for the same weights; close
    to the corners of all tilts at once it may find none, though there is one.
    """
    rng = np.random.default_rng(seed)
    anchors = anchors_of(rng, 16, n)
    gates = rng.uniform(-REACH, REACH, size=(16, 5))
    tilts = rng.uniform(-tilt, tilt, size=(16, n + 1))
    weights = anchor_target(np.concatenate([gates, tilts], axis=1), anchors, GATE, TILT)
    action = invert_anchor(weights, anchors, GATE, TILT)
    assert np.all(np.abs(action) <= 0.999)
    back = anchor_target(action, anchors, GATE, TILT)
    np.testing.assert_allclose(back, weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", range(5))
def test_an_anchor_alone_inverts_to_its_corner(k: int) -> None:
    anchors = anchors_of(np.random.default_rng(k), 20, 6)
    action = invert_anchor(anchors[:, k], anchors, GATE, TILT)
    assert np.all(action[:, k] > 0.99)
    back = anchor_target(action, anchors, GATE, TILT)
    # Gates of ±0.999 leave 4·e^-9.99 to the others.
    np.testing.assert_allclose(back, anchors[:, k], atol=4 * math.exp(-9.99))


@EXAMPLES
@given(seed=seeds, n=sizes)
def test_unreachable_weights_give_valid_actions(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.eye(n + 1)[rng.integers(n + 1, size=8)]
    held = rng.dirichlet(np.full(n + 1, 0.3), size=8)
    for action in (
        invert_softmax(weights, SOFTMAX),
        invert_drift(weights, held, DRIFT),
        invert_anchor(weights, anchors_of(rng, 8, n), GATE, TILT),
    ):
        assert np.isfinite(action).all()
        assert np.all(np.abs(action) <= 0.999)


def test_equal_anchors_share_their_part() -> None:
    anchors = np.array([[[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]]])
    shares = simplex_least_squares(anchors, np.array([[0.3, 0.2, 0.5]]))
    np.testing.assert_allclose(shares[0], [0.25, 0.25, 0.5], atol=1e-3)


@EXAMPLES
@given(seed=seeds, k=st.integers(2, 5))
def test_least_squares_is_optimal(seed: int, k: int) -> None:
    """No step from the solution towards a corner, or another point, comes nearer."""
    rng = np.random.default_rng(seed)
    points, goal = rng.dirichlet(np.ones(7), size=(4, k)), rng.dirichlet(np.full(7, 0.3), size=4)
    found = simplex_least_squares(points, goal)
    check_budget(found)

    def distance(p: np.ndarray) -> np.ndarray:
        return np.asarray(((np.einsum("bk,bkm->bm", p, points) - goal) ** 2).sum(axis=1))

    others = [np.tile(corner, (4, 1)) for corner in np.eye(k)]
    others += list(rng.dirichlet(np.ones(k), size=(20, 4)))
    for other in others:
        for step in (1e-3, 0.1):
            moved = found + step * (other - found)
            assert np.all(distance(found) <= distance(moved) + 1e-10)
