"""Seeding is exact: what d3rlpy's modules compute, the seeded CQSAC computes."""

from __future__ import annotations

import dataclasses
import math
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
    trained_iql,
)
from markets import small_market
from stable_baselines3.common.vec_env import VecNormalize

from finflow_sb3.config import CQSACSettings, EnvSettings, RunSettings, Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.seeding import policy_kwargs_for, seed, seeded_entropy
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.nets.distributions import log_prob
from finflow_sb3.pretrain.artefact import Artefact, read_artefact, write_artefact
from finflow_sb3.pretrain.iql import ExpertIQL
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
    algo: ExpertIQL
    artefact: Artefact
    model: CQSAC
    report: Any
    states: torch.Tensor
    actions: torch.Tensor


@pytest.fixture(scope="module", params=ENVS)
def seeded(request: Any, tmp_path_factory: Any) -> Seeded:
    """IQL after real updates, through the disk, into a fresh CQSAC."""
    env: EnvSettings = request.param
    market = small_market(env)
    algo = trained_iql(40, env)
    folder = tmp_path_factory.mktemp("artefact")
    write_artefact(artefact_of(algo, market), folder)
    artefact = read_artefact(folder)
    model = model_for(artefact, env)
    report = seed(model, artefact)
    states = market_states(market, STATES, seed=7)
    return Seeded(algo, artefact, model, report, states, random_box(market.layout, STATES, seed=7))


@torch.no_grad()
def test_mean_sigma_and_gates(seeded: Seeded) -> None:
    theirs: Any = seeded.algo.modules.policy(seeded.states)
    mine = seeded.model.policy.actor.evaluate(seeded.states)
    torch.testing.assert_close(mine.mean, theirs.mu, **EXACT)
    torch.testing.assert_close(mine.log_std.exp(), theirs.logstd.exp(), **EXACT)
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
def test_log_pi(seeded: Seeded) -> None:
    """log N(u; μ, σ) − Σ log(1 − tanh²u + ε) with IQL's own μ and σ."""
    torch.manual_seed(5)
    theirs: Any = seeded.algo.modules.policy(seeded.states)
    normal = torch.randn_like(theirs.mu)
    step = seeded.model._act(seeded.states, normal[:, None])
    u = theirs.mu + theirs.logstd.exp() * normal
    torch.testing.assert_close(step.actions[:, 0], torch.tanh(u), **EXACT)
    same = torch.distributions.Normal(theirs.mu, theirs.logstd.exp()).log_prob(u).sum(dim=1)
    same -= torch.log(1 - torch.tanh(u) ** 2 + 1e-6).sum(dim=1)
    torch.testing.assert_close(step.log_prob[:, 0], same, rtol=1e-6, atol=1e-5)
    # And by hand, in double precision: next to a corner 1 − a² has few digits in single.
    mu, sigma, wide = theirs.mu.double(), theirs.logstd.double().exp(), u.double()
    expected = -0.5 * ((wide - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    expected = (expected - torch.log(1 - torch.tanh(wide) ** 2 + 1e-6)).sum(dim=1)
    out = seeded.model.policy.actor.evaluate(seeded.states)
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
def test_value(seeded: Seeded) -> None:
    reference = seeded.model.policy.reference_value
    assert reference is not None
    torch.testing.assert_close(
        reference(seeded.states), seeded.algo.modules.value_func(seeded.states), **EXACT
    )
    assert not any(p.requires_grad for p in reference.parameters())


def test_report_names_what_was_copied_and_what_is_fresh(seeded: Seeded) -> None:
    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    policy, report = seeded.model.policy, seeded.report
    assert report.copied == {
        "policy": count(policy.actor),
        "critics": count(policy.critic),
        "target critics": count(policy.critic_target),
        "value": count(policy.reference_value),
    }
    assert report.fresh == ("optimisers", "entropy coefficient", "replay buffer")
    text = "\n".join(report.lines())
    for name in (*report.copied, *report.fresh):
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


# ------------------------------------------------------------------- hand-over


@pytest.mark.parametrize("kwargs", [{"n_quantiles": 9}, {"expert_hidden": 3}])
def test_other_sizes_than_the_seeded_are_refused(artefact: Artefact, kwargs: Any) -> None:
    settings = Settings(
        cqsac=CQSACSettings(n_envs=2, buffer_size=300, policy_kwargs=kwargs),
        run=RunSettings(device="cpu"),
    )
    with pytest.raises(ConfigError, match=f"{next(iter(kwargs))} .* differs from the pretrained"):
        prepare(settings, small_market(), artefact)


def test_target_entropy_is_the_seeded_policys(artefact: Artefact) -> None:
    """Mean of −log π over states and the policy's own actions; a Gaussian's, less the squash."""
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
