"""The smallest change of features that moves a weight past a mark."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from explain_fixtures import market_of, random_policies, state_of
from scipy.optimize import minimize

from finflow_sb3.errors import ConfigError
from finflow_sb3.explain.counterfactual import Change, Goal, ranges, smallest_change
from finflow_sb3.explain.gradients import feature_names, varied
from finflow_sb3.explain.mapping import TargetMap
from finflow_sb3.explain.what_if import Counterfactual, WhatIf, answer

LOW, HIGH = -5.0, 5.0


def change(target: Any, x: Any, places: Any, goal: Goal) -> Change:
    """The search within ±5."""
    box = (np.full(len(places), LOW), np.full(len(places), HIGH))
    return smallest_change(target, x, places, goal, *box)


def linear(slope: Any) -> Any:
    """One weight that is 0.3 + slope·x, and what is left of one."""
    row = torch.as_tensor(slope, dtype=torch.float64)

    def target(x: torch.Tensor) -> torch.Tensor:
        weight = 0.3 + x @ row
        return torch.stack([weight, 1.0 - weight], dim=1)

    return target


@pytest.mark.parametrize(("side", "mark"), [("above", 0.45), ("below", 0.2)])
def test_a_linear_policy_has_the_closed_form(side: Literal["above", "below"], mark: float) -> None:
    """δ = (θ − w)·a/‖a‖²."""
    slope = np.random.default_rng(0).normal(0.0, 0.05, 12)
    x = np.random.default_rng(1).normal(0.0, 0.5, 12)
    found = change(linear(slope), x, np.arange(12), Goal(0, side, mark))
    missing = mark - (0.3 + slope @ x)
    np.testing.assert_allclose(found.delta, missing * slope / (slope @ slope), atol=2e-4)
    assert found.found
    assert found.reached > mark if side == "above" else found.reached < mark
    assert found.reached == pytest.approx(mark, abs=1e-5)


def test_the_box_binds_and_the_rest_makes_up_for_it() -> None:
    """The steepest feature stops at 5; λ·a of the others fills what is missing."""
    slope, x = np.array([0.1, 0.02, 0.02]), np.array([4.5, 0.0, 0.0])
    found = change(linear(slope), x, np.arange(3), Goal(0, "above", 0.3 + 0.45 + 0.1))
    np.testing.assert_allclose(found.delta, [0.5, 1.25, 1.25], atol=2e-3)


def test_features_that_may_not_move_do_not() -> None:
    slope = np.array([0.1, 0.05, 0.02])
    found = change(linear(slope), np.zeros(3), np.array([1, 2]), Goal(0, "above", 0.35))
    assert found.delta.shape == (2,)
    np.testing.assert_allclose(found.delta, 0.05 * slope[1:] / (slope[1:] @ slope[1:]), atol=2e-4)


def test_out_of_reach_says_how_far_it_went() -> None:
    slope = np.array([0.01, 0.02])
    found = change(linear(slope), np.zeros(2), np.arange(2), Goal(0, "above", 0.6))
    assert not found.found
    assert found.reached == pytest.approx(0.3 + 5 * 0.03)
    np.testing.assert_allclose(found.delta, [5.0, 5.0])


def test_a_goal_that_is_met_needs_nothing() -> None:
    found = change(linear([0.1]), np.zeros(1), np.arange(1), Goal(0, "below", 0.4))
    assert found.found
    assert found.size == 0.0


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
def test_a_network_s_is_as_short_as_slsqp_s(base: str) -> None:
    market = market_of(base)
    layout, policies, batch = market.layout, random_policies(market), state_of(market)
    mapped = TargetMap(policies, batch)
    x = batch.observations()[0].astype(np.float64)
    places = varied(layout, ("momentum",))
    with torch.no_grad():
        weight = float(mapped(torch.from_numpy(x[None]))[0, 1])
    goal = Goal(1, "above", weight + 0.001)
    found = change(mapped, x, places, goal)

    def at(delta: Any) -> Any:
        moved = torch.from_numpy(x[None].copy())
        moved[0, places] += torch.from_numpy(delta)
        return moved

    def missed(delta: Any) -> float:
        with torch.no_grad():
            return float(mapped(at(delta))[0, 1]) - goal.mark

    def slope(delta: Any) -> Any:
        moved = at(delta).requires_grad_()
        return torch.autograd.grad(mapped(moved)[0, 1], moved)[0][0, places].numpy()

    theirs = minimize(
        lambda delta: (0.5 * delta @ delta, delta),
        np.zeros(len(places)),
        jac=True,
        bounds=[(-5.0 - v, 5.0 - v) for v in x[places]],
        constraints=[{"type": "eq", "fun": missed, "jac": slope}],
        method="SLSQP",
    )
    assert theirs.success
    assert found.found
    assert found.size <= 1.01 * np.linalg.norm(theirs.x) + 1e-4
    # Verified by the policy in the environment.
    seen = at(found.delta).numpy().astype(np.float32)
    after = batch.target(policies.members[0].act(seen))[0, 1]
    assert after == pytest.approx(found.reached, abs=1e-6)
    assert after > goal.mark - 1e-6


def test_a_question_names_what_there_is() -> None:
    market = market_of("anchors")
    policies, batch = random_policies(market), state_of(market)
    known = answered(policies, market, batch, WhatIf("S01", above=0.0))
    assert known.change.found
    with pytest.raises(ConfigError, match="is no asset"):
        answered(policies, market, batch, WhatIf("S0l", above=0.5))
    with pytest.raises(ConfigError, match="is no group of features"):
        answered(policies, market, batch, WhatIf("S01", above=0.5, blocks=("moment",)))
    twice = answered(policies, market, batch, WhatIf("S01", 0.5, blocks=("momentum", "momentum")))
    once = answered(policies, market, batch, WhatIf("S01", 0.5, blocks=("momentum",)))
    np.testing.assert_array_equal(twice.after, once.after)
    with pytest.raises(ConfigError, match="give --above or --below"):
        WhatIf("S01")
    with pytest.raises(ConfigError, match="is no weight from 0 to 1"):
        WhatIf("S01", above=10.0)


def answered(policies: Any, market: Any, batch: Any, what_if: WhatIf) -> Counterfactual:
    mapped = TargetMap(policies, batch)
    x = batch.observations()[0].astype(np.float64)
    return answer(what_if, mapped, market, int(batch.row[0]), x)


def test_ranges_are_those_of_the_past_and_of_any_asset() -> None:
    market = market_of("anchors")
    layout, row = market.layout, market.splits.validation.start + 5
    places = varied(layout, ("defensive", "market"))
    features = tuple(f for f in feature_names(layout) if f.block in ("defensive", "market"))
    low, high = ranges(market, row, places, features)
    seen = market.rows[market.splits.train.start : row + 1]
    block = seen[:, layout.slices["defensive"]].reshape(len(seen), layout.n_assets, -1)
    for j, name in enumerate(dict(layout.groups)["defensive"]):
        mine = [i for i, f in enumerate(features) if f.name == name and f.block == "defensive"]
        assert len(mine) == layout.n_assets
        np.testing.assert_allclose(low[mine], block[:, :, j].min())
        np.testing.assert_allclose(high[mine], block[:, :, j].max())
    # A drawdown is never above zero.
    place = next(i for i, f in enumerate(features) if f.name == "drawdown_252")
    top = high[place] * market.scaler.deviations["defensive"][0]
    assert top + market.scaler.means["defensive"][0] <= 1e-6
