"""Seeding is exact: what d3rlpy's modules compute, the seeded CQSAC computes."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import (
    TINY,
    artefact_of,
    market_states,
    random_box,
    small_dataset,
    trained,
    trained_iql,
)
from markets import small_market
from stable_baselines3.common.vec_env import VecNormalize

from finflow_sb3.config import (
    OFFLINE_ALGORITHMS,
    CQSACSettings,
    EnvSettings,
    OfflineAlgorithm,
    RunSettings,
    Settings,
)
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.seeding import policy_kwargs_for, seed, seeded_entropy
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.nets.distributions import log_prob
from finflow_sb3.pretrain.artefact import Artefact, read_artefact, write_artefact
from finflow_sb3.training.finetune import prepare

STATES = 1000
EXACT = {"rtol": 0.0, "atol": 1e-5}
ENVS = [
    pytest.param(EnvSettings(), id="anchors"),
    pytest.param(EnvSettings(action_base="drift"), id="drift"),
    pytest.param(EnvSettings(execution_lag=1, action_base="none"), id="none-lagged"),
    pytest.param(EnvSettings(reward="differential_sharpe"), id="differential-sharpe"),
]


def model_for(artefact: Artefact, env: EnvSettings | None = None, **kwargs: Any) -> CQSAC:
    market = small_market(env)
    torch.manual_seed(99)  # anything but the seed that the artefact was made with
    return CQSAC(
        "MultiExpertPolicy",
        PortfolioVecEnv(market, 2),
        policy_kwargs=policy_kwargs_for(artefact),
        buffer_size=100,
        device="cpu",
        **kwargs,
    )


@dataclasses.dataclass(frozen=True)
class Seeded:
    name: OfflineAlgorithm
    algo: Any
    artefact: Artefact
    model: CQSAC
    report: Any
    states: torch.Tensor
    actions: torch.Tensor


@lru_cache(maxsize=8)
def seeded_by(name: OfflineAlgorithm, env: EnvSettings) -> Seeded:
    """An algorithm after real updates, through the disk, into a fresh CQSAC."""
    market = small_market(env)
    algo = trained(name, 40, env)
    with tempfile.TemporaryDirectory() as folder:
        write_artefact(artefact_of(algo, market), Path(folder) / "best")
        artefact = read_artefact(Path(folder) / "best")
    model = model_for(artefact, env)
    report = seed(model, artefact)
    states = market_states(market, STATES, seed=7)
    actions = random_box(market.layout, STATES, seed=7)
    return Seeded(name, algo, artefact, model, report, states, actions)


@pytest.fixture(params=ENVS)
def env(request: pytest.FixtureRequest) -> EnvSettings:
    found: EnvSettings = request.param
    return found


@pytest.fixture(params=OFFLINE_ALGORITHMS)
def seeded(request: pytest.FixtureRequest, env: EnvSettings) -> Seeded:
    return seeded_by(request.param, env)


@pytest.fixture
def by_iql(env: EnvSettings) -> Seeded:
    return seeded_by("iql", env)


@pytest.fixture
def by_td3bc(env: EnvSettings) -> Seeded:
    return seeded_by("td3bc", env)


@torch.no_grad()
def test_mean_and_gates(seeded: Seeded) -> None:
    theirs: Any = seeded.algo.modules.policy(seeded.states)
    mine = seeded.model.policy.actor.evaluate(seeded.states)
    torch.testing.assert_close(mine.mean, theirs.mu, **EXACT)
    torch.testing.assert_close(mine.gates, theirs.gates, **EXACT)
    assert theirs.mu.abs().max() > 1e-2, "an untrained policy would prove nothing"


@torch.no_grad()
def test_deterministic_action_is_tanh_of_the_mean(seeded: Seeded) -> None:
    actions, _ = seeded.model.predict(seeded.states.numpy(), deterministic=True)
    theirs: Any = seeded.algo.modules.policy(seeded.states)
    np.testing.assert_allclose(actions, torch.tanh(theirs.mu).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        actions, seeded.algo.predict(seeded.states.numpy()), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_sigma(by_iql: Seeded) -> None:
    theirs: Any = by_iql.algo.modules.policy(by_iql.states)
    mine = by_iql.model.policy.actor.evaluate(by_iql.states)
    torch.testing.assert_close(mine.log_std.exp(), theirs.logstd.exp(), **EXACT)


@torch.no_grad()
def test_log_pi(by_iql: Seeded) -> None:
    """log N(u; μ, σ) − Σ log(1 − tanh²u + ε) with IQL's own μ and σ."""
    torch.manual_seed(5)
    theirs: Any = by_iql.algo.modules.policy(by_iql.states)
    normal = torch.randn_like(theirs.mu)
    step = by_iql.model._act(by_iql.states, normal[:, None])
    u = theirs.mu + theirs.logstd.exp() * normal
    torch.testing.assert_close(step.actions[:, 0], torch.tanh(u), **EXACT)
    same = torch.distributions.Normal(theirs.mu, theirs.logstd.exp()).log_prob(u).sum(dim=1)
    same -= torch.log(1 - torch.tanh(u) ** 2 + 1e-6).sum(dim=1)
    torch.testing.assert_close(step.log_prob[:, 0], same, rtol=1e-6, atol=1e-5)
    # And by hand, in double precision: next to a corner 1 − a² has few digits in single.
    mu, sigma, wide = theirs.mu.double(), theirs.logstd.double().exp(), u.double()
    expected = -0.5 * ((wide - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    expected = (expected - torch.log(1 - torch.tanh(wide) ** 2 + 1e-6)).sum(dim=1)
    out = by_iql.model.policy.actor.evaluate(by_iql.states)
    mine = log_prob(out.mean.double(), out.log_std.double(), torch.tanh(wide))
    torch.testing.assert_close(mine, expected, **EXACT)


@pytest.mark.parametrize("which", ["critic", "critic_target"])
@torch.no_grad()
def test_every_quantile_of_every_critic(seeded: Seeded, which: str) -> None:
    modules = seeded.algo.modules
    ensemble = modules.q_funcs if which == "critic" else modules.targ_q_funcs
    mine = getattr(seeded.model, which)(seeded.states, seeded.actions)
    assert mine.shape == (STATES, TINY["n_critics"], TINY["n_quantiles"])
    for c, q_function in enumerate(ensemble):
        theirs = q_function(seeded.states, seeded.actions).quantiles
        torch.testing.assert_close(mine[:, c], theirs, **EXACT)


@torch.no_grad()
def test_targets_are_the_targets_not_the_critics(seeded: Seeded) -> None:
    model = seeded.model
    gap = model.critic(seeded.states, seeded.actions) - model.critic_target(
        seeded.states, seeded.actions
    )
    assert gap.abs().max() > 1e-4


@torch.no_grad()
def test_value(by_iql: Seeded) -> None:
    reference = by_iql.model.policy.reference_value
    assert reference is not None
    torch.testing.assert_close(
        reference(by_iql.states), by_iql.algo.modules.value_func(by_iql.states), **EXACT
    )
    assert not any(p.requires_grad for p in reference.parameters())


def count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def test_report_names_what_was_copied_and_what_is_fresh(by_iql: Seeded) -> None:
    policy, report = by_iql.model.policy, by_iql.report
    assert report.copied == {
        "policy": count(policy.actor),
        "critics": count(policy.critic),
        "target critics": count(policy.critic_target),
        "value": count(policy.reference_value),
    }
    assert report.fresh == ("optimisers", "entropy coefficient", "replay buffer")
    assert report.absent == ()


def test_report_without_sigma_and_value(by_td3bc: Seeded) -> None:
    policy, report = by_td3bc.model.policy, by_td3bc.report
    experts = policy.actor.experts
    # One row for each mean, and as many for log σ.
    sigma = (count(experts.score) + count(experts.gate_head)) // 2
    assert report.copied == {
        "policy mean": count(policy.actor) - sigma,
        "critics": count(policy.critic),
        "target critics": count(policy.critic_target),
    }
    assert report.fresh == ("σ", "optimisers", "entropy coefficient", "replay buffer")
    assert report.absent == ("V",)
    assert policy.reference_value is None


@torch.no_grad()
def test_sigma_is_a_fresh_networks(by_td3bc: Seeded) -> None:
    """Bit for bit the rows of a model that was made from the same seed and never seeded."""
    experts = by_td3bc.model.policy.actor.experts
    other = model_for(by_td3bc.artefact, seeded_env(by_td3bc)).policy.actor.experts
    k = experts.n_experts
    for kind in ("weight", "bias"):
        mine, fresh = getattr(experts.score, kind), getattr(other.score, kind)
        assert torch.equal(mine[..., 1:], fresh[..., 1:])
        mine, fresh = getattr(experts.gate_head, kind), getattr(other.gate_head, kind)
        assert torch.equal(mine[k:], fresh[k:])
    states = by_td3bc.states
    sigmas = [network(states).log_std.exp() for network in (experts, other)]
    for sigma in sigmas:  # near e⁻¹ everywhere, behind layers that have learned or not
        assert (sigma - math.exp(-1.0)).abs().max() < 0.02


def test_report_says_it_in_lines(seeded: Seeded) -> None:
    report = seeded.report
    text = "\n".join(report.lines())
    for name in (*report.copied, *report.fresh, *report.absent):
        assert name in text
    model = seeded.model
    assert not model.actor.optimizer.state and not model.critic.optimizer.state
    assert model.replay_buffer.size() == 0


def test_optimisers_hold_the_seeded_parameters(seeded: Seeded) -> None:
    """The optimisers were made before seeding: they must move what was seeded."""
    model = seeded.model
    for module in (model.actor, model.critic):
        held = {id(p) for group in module.optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in module.parameters()} == held


def test_seeding_takes_a_copy(seeded: Seeded) -> None:
    other = model_for(seeded.artefact, seeded_env(seeded))
    seed(other, seeded.artefact)
    before = {k: v.clone() for k, v in seeded.artefact.weights.items()}
    with torch.no_grad():
        for parameter in other.policy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in seeded.artefact.weights.items())


def seeded_env(seeded: Seeded) -> EnvSettings:
    env: Any = seeded.model.env
    return env.market.env


# ------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def artefact() -> Artefact:
    return artefact_of(trained_iql(2), small_market())


def changed(artefact: Artefact, **layout: Any) -> Artefact:
    return dataclasses.replace(artefact, layout=dataclasses.replace(artefact.layout, **layout))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assets": ("S00", "S01", "S02", "S03", "XYZ")}, "assets: .*XYZ"),
        ({"market": ("something_else",)}, "market: .*something_else"),
        ({"action_base": "drift"}, "action_base 'anchors' where 'drift'|action_base"),
        ({"lagged": True}, "lagged"),
        ({"scalars": ("drawdown", "mood")}, "scalars: .*mood"),
    ],
)
def test_a_foreign_layout_is_refused_by_name(
    artefact: Artefact, change: dict[str, Any], message: str
) -> None:
    model = model_for(artefact)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    with pytest.raises(ArtefactError, match=message) as caught:
        seed(model, changed(artefact, **change))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.policy.state_dict().items())


def test_other_sizes_are_refused(artefact: Artefact) -> None:
    kwargs = {**policy_kwargs_for(artefact), "n_quantiles": 7}
    model = CQSAC(
        "MultiExpertPolicy",
        PortfolioVecEnv(small_market(), 2),
        policy_kwargs=kwargs,
        buffer_size=100,
        device="cpu",
    )
    with pytest.raises(ArtefactError, match="critics does not fit") as caught:
        seed(model, artefact)
    assert "\n" not in str(caught.value)


def test_another_policy_is_refused(artefact: Artefact) -> None:
    model = CQSAC("MlpPolicy", PortfolioVecEnv(small_market(), 2), buffer_size=100, device="cpu")
    with pytest.raises(ArtefactError, match="MultiExpertPolicy"):
        seed(model, artefact)


def test_new_normalisation_is_refused(artefact: Artefact) -> None:
    market = small_market()
    model = CQSAC(
        "MultiExpertPolicy",
        VecNormalize(PortfolioVecEnv(market, 2)),
        policy_kwargs=policy_kwargs_for(artefact),
        buffer_size=100,
        device="cpu",
    )
    with pytest.raises(ArtefactError, match="normalize"):
        seed(model, artefact)


@pytest.mark.parametrize("fault", ["missing", "of another shape"])
def test_a_mean_that_does_not_fit_is_refused(by_td3bc: Seeded, fault: str) -> None:
    name = "policy_mean.experts.score.weight"
    weights = dict(by_td3bc.artefact.weights)
    if fault == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:, :-1]
    damaged = dataclasses.replace(by_td3bc.artefact, weights=weights)
    with pytest.raises(ArtefactError, match="policy mean does not fit") as caught:
        seed(model_for(by_td3bc.artefact, seeded_env(by_td3bc)), damaged)
    assert "\n" not in str(caught.value)


def test_no_floor_without_a_value() -> None:
    """`finetune` turns Cal-QL off and says so; a model is not made without what it asks for."""
    market = small_market()
    artefact = artefact_of(trained("td3bc", 2), market)
    settings = Settings(
        cqsac=CQSACSettings(n_envs=2, buffer_size=300, cal_ql=True), run=RunSettings(device="cpu")
    )
    with pytest.raises(ConfigError, match=r"cal_ql: .*td3bc has none; set it to false"):
        prepare(settings, market, artefact)
    model, _ = prepare(settings.replace(cqsac={"cal_ql": False}), market, artefact)
    assert not model.cal_ql


# ------------------------------------------------------------------- hand-over


@pytest.mark.parametrize("kwargs", [{"n_quantiles": 9}, {"expert_hidden": 3}])
def test_other_sizes_than_the_seeded_are_refused(artefact: Artefact, kwargs: Any) -> None:
    settings = Settings(
        cqsac=CQSACSettings(n_envs=2, buffer_size=300, policy_kwargs=kwargs),
        run=RunSettings(device="cpu"),
    )
    with pytest.raises(ConfigError, match=f"{next(iter(kwargs))} .* differs from the pretrained"):
        prepare(settings, small_market(), artefact)


@pytest.mark.parametrize("name", OFFLINE_ALGORITHMS)
def test_target_entropy_is_the_seeded_policys(name: OfflineAlgorithm) -> None:
    """Mean of −log π over states and the policy's own actions; a Gaussian's, less the squash."""
    artefact = artefact_of(trained(name, 2), small_market())
    model = model_for(artefact)
    seed(model, artefact)
    states = market_states(small_market(), 400)
    torch.manual_seed(0)
    found = seeded_entropy(model, states, samples=64)
    with torch.no_grad():
        out = model.actor.evaluate(states)
        u = out.mean + out.log_std.exp() * torch.randn(200, *out.mean.shape)
        gaussian = (out.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=1).mean()
        squash = torch.log(1 - torch.tanh(u) ** 2 + 1e-6).sum(dim=2).mean()
    assert found == pytest.approx(float(gaussian + squash), abs=0.05)


def test_seeded_target_entropy_leaves_the_environment_alone(artefact: Artefact) -> None:
    market = small_market()
    base = {"n_envs": 2, "buffer_size": 300, "policy_kwargs": TINY}
    settings = Settings(
        cqsac=CQSACSettings(**base, target_entropy="seeded"), run=RunSettings(device="cpu")
    )
    plain = Settings(cqsac=CQSACSettings(**base), run=RunSettings(device="cpu"))
    with_entropy, _ = prepare(settings, market, artefact)
    without, _ = prepare(plain, market, artefact)
    again, _ = prepare(settings, market, artefact)
    assert again.target_entropy == with_entropy.target_entropy, "a seed gives the same number"
    size = market.layout.action_size
    assert -3.0 * size < float(with_entropy.target_entropy) < size * math.log(2.0)
    assert float(without.target_entropy) == -size
    assert np.array_equal(with_entropy.env.reset(), without.env.reset())


def test_a_seeded_run_mixes_the_offline_data(artefact: Artefact) -> None:
    settings = Settings(
        cqsac=CQSACSettings(n_envs=2, buffer_size=300, offline_fraction=0.5),
        run=RunSettings(device="cpu"),
    )
    model, _ = prepare(settings, small_market(), artefact, small_dataset())
    assert model.offline_data is small_dataset()
