"""Risk measures: closed forms on a Gaussian, weights by hand, and the actor's use of them."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning_fixtures import TINY, shake
from markets import small_market

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.risk import risk_weights

F64 = torch.float64
MEAN, SIGMA = 1.5, 2.0
MEASURES = ["neutral", "cvar:0.05", "cvar:0.375", "cvar:1", "wang:0.75", "wang:-0.75"]


def on_a_gaussian(measure: str) -> float:
    """The measure of N(1.5, 2²), from 20,000 quantiles at the midpoints."""
    count = 20_000
    u = (torch.arange(count, dtype=F64) + 0.5) / count
    quantiles = MEAN + SIGMA * torch.special.ndtri(u)
    return float(risk_weights(measure, count).double() @ quantiles)


def test_neutral_is_the_mean() -> None:
    assert on_a_gaussian("neutral") == pytest.approx(MEAN, abs=1e-3)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.25, 0.5, 0.9, 1.0])
def test_cvar_of_a_gaussian(level: float) -> None:
    """μ − σ·φ(Φ⁻¹(α))/α."""
    z = float(torch.special.ndtri(torch.tensor(level, dtype=F64)))
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    assert on_a_gaussian(f"cvar:{level}") == pytest.approx(MEAN - SIGMA * density / level, abs=1e-3)


@pytest.mark.parametrize("strength", [-1.5, -0.75, -0.1, 0.0, 0.1, 0.75, 1.5])
def test_wang_of_a_gaussian(strength: float) -> None:
    """μ − η·σ: averse where η is positive.

    The outermost quantile weighs 0.8 % at η = 1.5 and is off by a third of σ: 3e-3.
    """
    assert on_a_gaussian(f"wang:{strength}") == pytest.approx(MEAN - strength * SIGMA, abs=4e-3)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("0.25", [1.0, 0.0, 0.0, 0.0]),
        ("0.375", [2 / 3, 1 / 3, 0.0, 0.0]),
        ("0.5", [0.5, 0.5, 0.0, 0.0]),
        ("0.1", [1.0, 0.0, 0.0, 0.0]),
        ("1", [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_weights_of_cvar_by_hand(level: str, expected: list[float]) -> None:
    assert risk_weights(f"cvar:{level}", 4).tolist() == pytest.approx(expected, abs=1e-7)


def test_weights_of_wang_by_hand() -> None:
    """Two quantiles: Φ(Φ⁻¹(½) + η) = Φ(η) for the lower one."""
    phi = 0.5 * (1.0 + math.erf(0.75 / math.sqrt(2.0)))
    assert risk_weights("wang:0.75", 2).tolist() == pytest.approx([phi, 1.0 - phi], abs=1e-7)


@given(
    kind=st.sampled_from(["cvar", "wang"]),
    number=st.floats(0.001, 1.0),
    sign=st.sampled_from([-9.0, -1.0, 1.0, 9.0]),
    count=st.integers(1, 200),
)
def test_weights_are_a_distribution(kind: str, number: float, sign: float, count: int) -> None:
    value = number if kind == "cvar" else sign * number
    weights = risk_weights(f"{kind}:{value}", count)
    assert weights.shape == (count,) and weights.dtype == torch.float32
    assert (weights >= 0.0).all()
    assert float(weights.double().sum()) == pytest.approx(1.0, abs=1e-5)


@given(
    level=st.floats(0.01, 1.0),
    strength=st.floats(0.0, 3.0),
    count=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_averse_measures_lie_under_the_mean(
    level: float, strength: float, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    quantiles = torch.randn(count, generator=generator, dtype=F64).sort().values
    mean = float(quantiles.mean())
    for measure in (f"cvar:{level}", f"wang:{strength}"):
        assert float(risk_weights(measure, count).double() @ quantiles) <= mean + 1e-5
    seeking = risk_weights(f"wang:{-strength}", count).double() @ quantiles
    assert float(seeking) >= mean - 1e-5


def test_cvar_rises_with_its_level() -> None:
    quantiles = torch.arange(20.0)
    found = [float(risk_weights(f"cvar:{a / 20}", 20) @ quantiles) for a in range(1, 21)]
    assert found == sorted(found) and found[0] == 0.0 and found[-1] == pytest.approx(9.5)


BAD = ["", "mean", "cvar", "cvar:", "cvar:0", "cvar:1.5", "cvar:-0.1", "cvar:nan", "CVAR:0.25"]
BAD += ["wang", "wang:x", "wang:nan", "wang:inf", "wang:10", "neutral:1", "cvar:0.25:0.5"]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_measure_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"risk_measure: .*neutral, cvar:.* or wang:") as caught:
        risk_weights(bad, 5)
    assert repr(bad) in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------- in the algorithm


def model_of(policy: str, **kwargs: Any) -> CQSAC:
    market = policy == "MultiExpertPolicy"
    env: Any = PortfolioVecEnv(small_market(), 2, seed=0) if market else gym.make("Pendulum-v1")
    sizes: dict[str, Any] = dict(TINY) if market else {"net_arch": [8, 8], "n_quantiles": 5}
    model = CQSAC(policy, env, buffer_size=100, device="cpu", policy_kwargs=sizes, seed=0, **kwargs)
    shake(model.policy)
    return model


def states_of(model: CQSAC, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *model.observation_space.shape, generator=generator)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiExpertPolicy"])
@pytest.mark.parametrize("count", [1, 4])
def test_value_is_the_weighted_sum_of_the_quantiles(policy: str, count: int) -> None:
    model = model_of(policy)
    obs = states_of(model)
    actions = torch.rand(6, count, model.action_space.shape[0]) * 2.0 - 1.0
    for weights in (torch.rand(5), risk_weights("cvar:0.3", 5)):
        expected = (model.critic.score(obs, actions) * weights).sum(dim=3)
        assert expected.shape == (2, 6, count)
        found = model.critic.value(obs, actions, weights)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiExpertPolicy"])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_actor_climbs_the_measure(policy: str, measure: str) -> None:
    """Without entropy the loss is −mean over critics of Σ_i w_i·q_i at the policy's actions."""
    model = model_of(policy, risk_measure=measure)
    obs = states_of(model)
    now = model._act(obs, torch.randn(6, 1, model.action_space.shape[0]))
    found = model._actor_loss(obs, now, torch.tensor(0.0)).total
    quantiles = model.critic(obs, now.actions[:, 0])  # [B, C, N]
    each = (quantiles * risk_weights(measure, 5)).sum(dim=2)
    torch.testing.assert_close(found, -each.mean(), rtol=1e-5, atol=1e-5)
    if measure not in ("neutral", "cvar:1"):
        neutral = -quantiles.mean()
        assert not torch.isclose(found, neutral, atol=1e-4), "the measure would do nothing"


def test_the_penalty_and_the_target_stay_neutral() -> None:
    """CQL is about the mean over quantiles, whatever the actor climbs."""
    plain, averse = model_of("MlpPolicy"), model_of("MlpPolicy", risk_measure="cvar:0.2")
    assert torch.equal(plain.quantile_weights, averse.quantile_weights)
    assert averse.quantile_weights.tolist() == pytest.approx([0.2] * 5)
    assert averse.risk_weights.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0, 0.0])


def test_a_bad_measure_is_refused_by_the_algorithm() -> None:
    with pytest.raises(ConfigError, match="risk_measure: 'cvar:2'"):
        model_of("MlpPolicy", risk_measure="cvar:2")


def test_the_measure_is_kept(tmp_path: Any) -> None:
    model = model_of("MlpPolicy", risk_measure="wang:0.5")
    model.save(tmp_path / "model.zip")
    loaded = CQSAC.load(tmp_path / "model.zip", device="cpu")
    assert loaded.risk_measure == "wang:0.5"
    assert torch.equal(loaded.risk_weights, model.risk_weights)
