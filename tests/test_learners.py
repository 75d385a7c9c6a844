"""What every algorithm of the offline phase must do, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fixtures import TINY, artefact_of, small_dataset, trained
from markets import small_market

from finflow_sb3.config import (
    OFFLINE_ALGORITHMS,
    EnvSettings,
    OfflineAlgorithm,
    OfflineSettings,
    Settings,
)
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.pretrain.artefact import read_artefact, write_artefact
from finflow_sb3.pretrain.run import make_learner, run_offline
from finflow_sb3.training.trained import load_policy

PARTS = {
    "iql": {"policy", "critics", "target_critics", "value"},
    "td3bc": {"policy_mean", "critics", "target_critics"},
}


@pytest.fixture(params=OFFLINE_ALGORITHMS)
def algo(request: pytest.FixtureRequest) -> OfflineAlgorithm:
    name: OfflineAlgorithm = request.param
    return name


def test_updates_move_every_network_and_targets_follow(algo: OfflineAlgorithm) -> None:
    learner = trained(algo, updates=0)
    before = learner.weights()
    assert {name.partition(".")[0] for name in before} == PARTS[algo]
    data = small_dataset()
    for step in range(3):
        learner.update_on(data.gather(torch.arange(step * 32, step * 32 + 32)))
    after = learner.weights()
    for part in PARTS[algo]:
        moved = [k for k in before if k.startswith(f"{part}.") and (before[k] != after[k]).any()]
        assert moved, part
    # Targets go a part of the way (τ = 0.1, at each of the steps) to where the critics went.
    for name in (k for k in before if k.startswith("critics.head")):
        lag = (after[f"target_{name}"] - before[name]).norm()
        assert 0 < lag < 0.5 * (after[name] - before[name]).norm()


def test_targets_start_as_the_critics(algo: OfflineAlgorithm) -> None:
    weights = trained(algo, updates=0).weights()
    for name in (k for k in weights if k.startswith("critics.")):
        assert torch.equal(weights[name], weights[f"target_{name}"])


def test_weights_are_a_copy(algo: OfflineAlgorithm) -> None:
    learner = trained(algo, updates=1)
    kept = learner.weights()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    learner.update_on(small_dataset().gather(torch.arange(32)))
    learner.update_on(small_dataset().gather(torch.arange(32)))
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("updates", [0, 3])
def test_a_seed_gives_the_same_bits(algo: OfflineAlgorithm, updates: int) -> None:
    first, second = (trained(algo, updates).weights() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_losses_of_a_step_are_named(algo: OfflineAlgorithm) -> None:
    """The first step has them all, in the order in which they are logged."""
    learner = trained(algo, updates=0)
    found = learner.update_on(small_dataset().gather(torch.arange(32)))
    assert list(found) == list(learner.losses.values())
    assert all(isinstance(value, float) for value in found.values())


# ------------------------------------------------------------------- run and artefact


def own(algo: OfflineAlgorithm, **changes: Any) -> OfflineSettings:
    small = {"epochs": 4, "steps_per_epoch": 5, "batch_size": 32, "policy_kwargs": TINY}
    return Settings().replace(**{algo: {**small, **changes}}).offline(algo)


def test_run_keeps_the_best_epoch(algo: OfflineAlgorithm) -> None:
    market = small_market()
    kept: list[Any] = []
    outcome = run_offline(
        small_dataset(), market, market.env, own(algo, actor_lr=1e-2), 1, on_best=kept.append
    )
    sharpes = [epoch.validation["sharpe"] for epoch in outcome.epochs]
    assert len(outcome.epochs) == 4
    assert outcome.best is not None and outcome.artefact is not None
    assert outcome.best.validation["sharpe"] == max(sharpes)
    assert outcome.best.number == sharpes.index(max(sharpes)) + 1
    assert kept[-1].weights is outcome.artefact.weights
    assert kept[-1].facts == outcome.artefact.facts
    assert outcome.artefact.facts["epoch"] == outcome.best.number
    assert outcome.artefact.algo == algo


def test_losses_are_means_over_the_steps_that_had_them(algo: OfflineAlgorithm) -> None:
    market = small_market()
    settings = own(algo, epochs=2, steps_per_epoch=3)
    outcome = run_offline(small_dataset(), market, market.env, settings, seed=1)
    torch.manual_seed(1)
    learner = make_learner(settings, market.layout, market.env.gate_scale)
    generator = torch.Generator().manual_seed(1)
    for epoch in outcome.epochs:
        found: dict[str, list[float]] = {}
        for _ in range(3):
            index = torch.randint(len(small_dataset()), (32,), generator=generator)
            for name, value in learner.update_on(small_dataset().gather(index)).items():
                found.setdefault(name, []).append(value)
        assert epoch.losses == pytest.approx({k: sum(v) / len(v) for k, v in found.items()})


def test_run_refuses_another_dataset(algo: OfflineAlgorithm) -> None:
    other = small_market(EnvSettings(action_base="drift"))
    with pytest.raises(ArtefactError, match="action_base"):
        run_offline(small_dataset(), other, other.env, own(algo), seed=0)


def test_artefact_round_trip(algo: OfflineAlgorithm, tmp_path: Path) -> None:
    market = small_market()
    artefact = artefact_of(trained(algo, 3), market)
    write_artefact(artefact, tmp_path / "best")
    back = read_artefact(tmp_path / "best")
    assert back.layout == artefact.layout
    assert back.scaler == artefact.scaler
    assert (back.algo, back.sizes, back.gate_scale) == (algo, artefact.sizes, 5.0)
    assert back.facts == artefact.facts
    assert set(back.weights) == set(artefact.weights)
    assert all(torch.equal(back.weights[k], v) for k, v in artefact.weights.items())
    assert back.has_sigma == back.has_value == (algo == "iql")


def test_the_policy_on_disk_acts_as_the_one_that_was_trained(
    algo: OfflineAlgorithm, tmp_path: Path
) -> None:
    learner = trained(algo, 20)
    write_artefact(artefact_of(learner, small_market()), tmp_path / "best")
    policy = load_policy(tmp_path)
    states = small_dataset().gather(torch.arange(200)).observations
    assert policy.name == algo
    found = torch.from_numpy(policy.act(states.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(found, torch.tanh(learner.experts(states).mean))


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "artefact.json", "layout.json", "scaler.json"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_broken_artefact_is_named(
    algo: OfflineAlgorithm, tmp_path: Path, name: str, damage: str
) -> None:
    write_artefact(artefact_of(trained(algo, 0), small_market()), tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtefactError, match=name) as caught:
        read_artefact(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_algorithm_is_refused() -> None:
    name: Any = "td3"
    with pytest.raises(ConfigError, match=r"'td3'.*'td3bc'"):
        Settings().offline(name)
