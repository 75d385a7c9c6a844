"""What an update reports for the monitor, norms of gradients, and the scale of learning rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from algorithm_checkers import pendulum
from learning_fixtures import TINY
from markets import small_market
from stable_baselines3.common.logger import configure
from torch import nn
from torch.nn.utils import get_total_norm

from finflow_sb3.config import MonitorSettings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.precision import Precision
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.training.monitor import Event, Monitor

ARCH: dict[str, Any] = {"net_arch": [8], "n_quantiles": 5}
NORMS = {"train/grad_norm_actor", "train/grad_norm_critic"}


def model_of(kind: str = "mlp", **kwargs: Any) -> CQSAC:
    """A tiny model with random transitions in its buffer, not updated yet."""
    env: Any = pendulum() if kind == "mlp" else PortfolioVecEnv(small_market(), 2, seed=0)
    sizes = ARCH if kind == "mlp" else {**TINY, "mixture": kind}
    policy = "MlpPolicy" if kind == "mlp" else "MultiExpertPolicy"
    fixed = {"buffer_size": 200, "learning_starts": 10**9, "seed": 0, "device": "cpu"}
    model = CQSAC(policy, env, policy_kwargs=sizes, **{**fixed, **kwargs})
    model.learn(40, log_interval=10**9)
    model.set_logger(configure(None, []))
    return model


def train(model: CQSAC, steps: int = 1) -> dict[str, float]:
    """What `train` logs, the same for the same model."""
    torch.manual_seed(0)
    np.random.seed(0)
    model.logger.name_to_value.clear()
    model.train(steps, batch_size=16)
    return dict(model.logger.name_to_value)


def record_gradients(optimizer: Any) -> list[list[torch.Tensor]]:
    """Gradients at each of an optimiser's steps from now on."""
    seen: list[list[torch.Tensor]] = []
    step = optimizer.step

    def stepping(*args: Any, **kwargs: Any) -> Any:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([p.grad.clone() for p in parameters if p.grad is not None])
        return step(*args, **kwargs)

    optimizer.step = stepping
    return seen


# ------------------------------------------------------------------- norms


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("mlp", {}),
        ("mlp", {"use_sde": True}),
        ("mlp", {"cql_alpha": 2.0, "cql_target_action_gap": 1.0, "mixed_precision": "bf16"}),
        ("soft", {"cql_alpha": 1.0, "gradient_checkpointing": True}),
        ("full", {"utd_ratio": 2, "policy_delay": 2}),
    ],
)
def test_norms_are_of_the_gradients_that_the_last_steps_took(
    kind: str, kwargs: dict[str, Any]
) -> None:
    model = model_of(kind, **kwargs)
    model.track_gradients = True
    actor, critic = map(record_gradients, (model.actor.optimizer, model.critic.optimizer))
    logged = train(model, steps=2)
    # With a delay of two the policy moved at the first of two, and figures are of that update.
    told = critic[1] if kind == "full" else critic[-1]
    for name, gradients in (("actor", actor[-1]), ("critic", told)):
        by_hand = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        assert by_hand > 0.0
        assert logged[f"train/grad_norm_{name}"] == pytest.approx(by_hand, rel=1e-5)
        by_torch = float(get_total_norm(gradients))
        assert logged[f"train/grad_norm_{name}"] == pytest.approx(by_torch, rel=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "soft"])
def test_tracking_changes_nothing_else(kind: str) -> None:
    plain, tracked = model_of(kind, cql_alpha=1.0), model_of(kind, cql_alpha=1.0)
    tracked.track_gradients = True
    logs, more = train(plain, 3), train(tracked, 3)
    assert set(more) - set(logs) == NORMS
    assert {name: more[name] for name in logs} == logs
    for one, other in zip(plain.policy.parameters(), tracked.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_untracked_updates_compute_no_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("a norm was computed")

    model = model_of()
    monkeypatch.setattr(Precision, "gradient_norm", refuse)
    assert not NORMS & set(train(model))


def test_norms_are_of_averaged_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    model.track_gradients = True
    plain = model_of()
    plain.track_gradients = True

    def average(parameters: Any) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= 0.25

    monkeypatch.setattr(model.workers, "average_gradients", average)
    ours, theirs = train(model), train(plain)
    assert ours["train/grad_norm_critic"] == pytest.approx(theirs["train/grad_norm_critic"] / 4)


@pytest.mark.parametrize("asked", [True, False])
def test_norms_of_scaled_gradients(asked: bool) -> None:
    """As with fp16: without the scale, none where the step is left out, and steps as ever."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    precision = Precision("off", torch.device("cpu"))
    precision.scalers = {}
    scales = []
    for slopes, norm in (([3.0, -4.0], 5.0), ([math.inf, 1.0], 0.0), ([6.0, -8.0], 10.0)):
        weight.grad = None
        precision.backward((weight * torch.tensor(slopes)).sum(), optimizer)
        if asked:
            assert float(precision.gradient_norm([weight], optimizer)) == pytest.approx(norm)
        precision.step(optimizer)
        scales += [state["scale"] for state in precision.state([optimizer])]
    assert weight.tolist() == pytest.approx([1.0 - 0.9, -2.0 + 1.2], abs=1e-6)
    assert scales == [2.0**16, 2.0**15, 2.0**15]


def test_a_gradient_that_overflows_without_a_scale_is_reported() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    precision = Precision("bf16", torch.device("cpu"))
    precision.backward((weight * math.inf).sum(), optimizer)
    assert float(precision.gradient_norm([weight], optimizer)) == math.inf


def test_a_monitor_sees_the_update_that_ruins_the_networks() -> None:
    """Not one later, when the policy acts already with what is NaN."""
    model = model_of("soft")
    model.track_gradients = True
    monitor = Monitor(MonitorSettings(), n_envs=2, action_size=model.action_space.shape[0])

    def events() -> list[Event]:
        logged = train(model)
        monitor.update({name.removeprefix("train/"): value for name, value in logged.items()})
        return monitor.verdict(model.num_timesteps)

    assert events() == [] and monitor.healthy
    assert {"entropy", "effective_experts", "q_value", "grad_norm_actor"} <= set(monitor.figures())
    assert 0.01 < monitor.figures()["entropy"] <= 1.0
    assert 1.0 < monitor.figures()["effective_experts"] <= 5.0
    model.replay_buffer.rewards[:] = math.nan
    assert all(torch.isfinite(p).all() for p in model.critic.parameters())
    (event,) = events()
    assert event.action == "rollback"
    assert {"critic_loss", "grad_norm_critic"} <= set(event.message.replace(",", "").split())
    assert not all(torch.isfinite(p).all() for p in model.critic.parameters())


# ------------------------------------------------------------------- learning rates


def rates(model: CQSAC) -> dict[str, float]:
    optimizers: dict[str, Any] = {
        "actor": model.actor.optimizer,
        "critic": model.critic.optimizer,
        "temperature": model.ent_coef_optimizer,
        "multiplier": model.cql_alpha_optimizer,
    }
    found = {}
    for name, optimizer in optimizers.items():
        (found[name],) = {group["lr"] for group in optimizer.param_groups}
    return found


def test_the_scale_multiplies_what_the_schedules_give(tmp_path: Path) -> None:
    model = model_of(
        learning_rate=lambda remaining: remaining * 4e-3,
        critic_lr=1e-3,
        cql_alpha=1.0,
        cql_target_action_gap=0.5,
    )
    model._current_progress_remaining = 0.5
    scheduled = {"actor": 2e-3, "critic": 1e-3, "temperature": 2e-3, "multiplier": 2e-3}
    assert "train/lr_scale" not in train(model) and rates(model) == scheduled
    model.lr_scale = 0.25
    for _ in range(2):  # cuts do not pile up
        assert train(model)["train/lr_scale"] == 0.25
        assert rates(model) == {name: rate * 0.25 for name, rate in scheduled.items()}
    model._current_progress_remaining = 0.25
    train(model)
    assert rates(model)["actor"] == 0.25e-3 and rates(model)["critic"] == 0.25e-3
    model.track_gradients = True
    model.save(tmp_path / "model")
    # A schedule is code: SB3 keeps it in a pickle, or takes it from the caller.
    loaded = CQSAC.load(tmp_path / "model", device="cpu")
    assert (loaded.lr_scale, loaded.track_gradients) == (0.25, True)
    model.lr_scale = 1.0
    train(model)
    assert rates(model)["critic"] == 1e-3


def test_a_halved_scale_is_half_the_learning_rate() -> None:
    halved, slower = model_of(learning_rate=1e-2), model_of(learning_rate=5e-3)
    halved.lr_scale = 0.5
    train(halved, 3), train(slower, 3)
    for one, other in zip(halved.policy.parameters(), slower.policy.parameters(), strict=True):
        assert torch.equal(one, other)
