"""The map from observations to target weights in torch, and integrated gradients of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from explain_fixtures import market_of, random_policies, state_of
from torch import Tensor

from finflow_sb3.errors import DataError
from finflow_sb3.explain.gradients import (
    attribute_features,
    baseline_of,
    feature_names,
    integrated_gradients,
    varied,
)
from finflow_sb3.explain.mapping import TargetMap
from finflow_sb3.explain.state import ask

BASES = ("anchors", "drift", "none")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("count", "combination", "shrinkage"),
    [
        (1, "mean", 0.0),
        (3, "mean", 0.0),
        (2, "median", 0.0),
        (3, "median", 0.0),
        (2, "validation", 0.0),
        (2, "mean", 0.4),
    ],
)
def test_the_map_is_what_the_environment_does(
    base: str, partial: bool, count: int, combination: str, shrinkage: float
) -> None:
    market = market_of(base, partial)
    policies = random_policies(market, count, combination, shrinkage)
    for days in (7, 40):
        batch = state_of(market, days=days)
        asked = ask(policies, batch)
        mapped = TargetMap(policies, batch)
        seen = torch.from_numpy(batch.observations().astype(np.float64))
        with torch.no_grad():
            np.testing.assert_allclose(mapped(seen)[0].numpy(), asked.combined, atol=1e-6)
            for i, member in enumerate(asked.members):
                np.testing.assert_allclose(mapped.member(i, seen)[0].numpy(), member, atol=1e-6)
        assert np.abs(asked.combined - batch.held[0]).sum() > 1e-4


def linear(matrix: Tensor, constant: Tensor) -> Any:
    return lambda x: x @ matrix.T + constant


def test_a_linear_policy_has_the_closed_form() -> None:
    """φ_{i,d} = W_{i,d}·(x_d − x'_d)."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    constant = torch.randn(4, generator=generator, dtype=torch.float64)
    rng = np.random.default_rng(1)
    x, start = rng.normal(size=30), rng.normal(size=30)
    parts, ends, gap, _ = integrated_gradients(linear(matrix, constant), x, start)
    np.testing.assert_allclose(parts, matrix.numpy() * (x - start), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ends[0], matrix.numpy() @ x + constant.numpy(), atol=1e-12)
    assert gap < 1e-6  # captum weighs steps in single precision


@pytest.mark.parametrize("base", BASES)
def test_a_network_has_the_integral_of_its_gradient(base: str) -> None:
    """Beside the integral by finite differences and the trapezoid rule, without autograd."""
    market = market_of(base)
    policies, batch = random_policies(market), state_of(market)
    mapped = TargetMap(policies, batch)
    x = batch.observations()[0].astype(np.float64)
    found = attribute_features(mapped, market.layout, market.scaler, x, tolerance=2e-5)
    start = baseline_of(market.layout, x)
    places = varied(market.layout)
    for j in (int(np.abs(found.parts).sum(axis=0).argmax()), 3, len(places) - 4):
        expected = _by_differences(mapped, x, start, int(places[j]))
        np.testing.assert_allclose(found.parts[:, j], expected, rtol=2e-3, atol=5e-5)
    assert np.abs(found.parts).max() > 1e-4


def _by_differences(mapped: TargetMap, x: Any, start: Any, place: int) -> Any:
    alphas, step = np.linspace(0.0, 1.0, 2001), 1e-2
    path = start + alphas[:, None] * (x - start)
    up, down = path.copy(), path.copy()
    up[:, place] += step
    down[:, place] -= step
    with torch.no_grad():
        slope = (mapped(torch.from_numpy(up)) - mapped(torch.from_numpy(down))) / (2 * step)
    return np.trapezoid(slope.numpy(), alphas, axis=0) * (x[place] - start[place])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("partial", [False, True])
def test_attributions_are_complete(base: str, partial: bool) -> None:
    market = market_of(base, partial)
    policies, batch = random_policies(market, 2), state_of(market)
    mapped = TargetMap(policies, batch)
    x = batch.observations()[0].astype(np.float64)
    found = attribute_features(mapped, market.layout, market.scaler, x)
    missed = found.parts.sum(axis=1) - (found.weights - found.baseline)
    # The networks' single precision apart.
    assert np.abs(missed).max() == pytest.approx(found.gap, abs=1e-6)
    assert found.gap <= 1e-4
    blocks = found.by_block()
    np.testing.assert_allclose(sum(blocks.values()), found.parts.sum(axis=1), atol=1e-12)
    # Weights sum to one at both ends: what one asset gains the others lose.
    assert found.parts.sum() == pytest.approx(0.0, abs=1e-3)
    assert len(found.features) == found.parts.shape[1] == len(found.values)


def test_a_policy_that_jumps_is_refused() -> None:
    def jumps(x: Tensor) -> Tensor:
        step = (x[:, :1] > 0.5).to(torch.float64)
        return torch.cat([step, 1.0 - step], dim=1) + 0.0 * x[:, :2]

    with pytest.raises(DataError, match="miss the change of a weight by 1"):
        integrated_gradients(jumps, np.ones(3), np.zeros(3))


def test_the_baseline_keeps_portfolio_and_anchors() -> None:
    market = market_of("anchors", execution_lag=1, reward="differential_sharpe")
    layout, cut = market.layout, market.layout.slices
    x = state_of(market).observations()[0].astype(np.float64)
    start = baseline_of(layout, x)
    for name in ("anchor_weights", "weights", "pending"):
        np.testing.assert_array_equal(start[cut[name]], x[cut[name]])
    for name in ("momentum", "market", "anchor_record"):
        assert np.all(start[cut[name]] == 0.0)
    scalars = cut["scalars"].start
    assert start[scalars] == 0.0
    np.testing.assert_array_equal(start[scalars + 1 : scalars + 3], x[scalars + 1 : scalars + 3])


def test_features_have_the_names_of_their_places() -> None:
    market = market_of("anchors")
    layout, names = market.layout, feature_names(market.layout)
    assert len(names) == len(varied(layout))
    x = state_of(market).observations()[0].astype(np.float64)
    policies, batch = random_policies(market), state_of(market)
    found = attribute_features(TargetMap(policies, batch), layout, market.scaler, x)
    place = next(i for i, f in enumerate(names) if f.label == "S03 rank_12_1")
    assert -0.5 <= found.natural[place] <= 0.5
    record = next(i for i, f in enumerate(names) if f.label == "anchor growth: drawdown_252")
    assert -1.0 < found.natural[record] <= 1e-6
    market_row = next(i for i, f in enumerate(names) if f.label == "market_ret_63")
    place_in_row = layout.slices["market"].start + layout.market.index("market_ret_63")
    assert found.values[market_row] == x[place_in_row]
