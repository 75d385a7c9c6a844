"""`policy_kwargs` do in CQSAC what they do in SB3's SAC and sb3-contrib's TQC."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithm_checkers import (
    EVERY,
    PERCEPTRONS,
    QUANTILES,
    Subject,
    check_learns,
    check_predicts,
    filled,
    over,
    pendulum,
)
from stable_baselines3.common.torch_layers import FlattenExtractor


@over(QUANTILES)
@pytest.mark.parametrize(
    ("critics", "quantiles", "dropped"),
    [(1, 1, 0), (1, 25, 24), (2, 25, 2), (2, 3, 0), (2, 3, 1), (2, 3, 2), (5, 5, 3)],
)
def test_any_number_of_critics_and_quantiles(
    subject: Subject, critics: int, quantiles: int, dropped: int
) -> None:
    nets = {"n_critics": critics, "n_quantiles": quantiles}
    model = subject.build(pendulum(), nets=nets, top_quantiles_to_drop_per_net=dropped)
    check_learns(model)
    observation, action = torch.zeros(4, 3), torch.zeros(4, 1)
    assert model.critic(observation, action).shape == (4, critics, quantiles)


class Scaled(FlattenExtractor):
    """A features extractor of one's own, with something to learn."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 4):
        super().__init__(observation_space)
        self._features_dim = features_dim
        size = int(np.prod(observation_space.shape))
        self.layer = torch.nn.Linear(size, features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layer(self.flatten(observations))


def widths(module: torch.nn.Module) -> set[int]:
    return {size for parameter in module.parameters() for size in parameter.shape}


@over(PERCEPTRONS)
def test_net_arch_as_list_and_as_dict(subject: Subject) -> None:
    model = check_learns(subject.build(pendulum(), nets={"net_arch": [11, 13]}))
    assert {11, 13} <= widths(model.actor) and {11, 13} <= widths(model.critic)
    model = check_learns(subject.build(pendulum(), nets={"net_arch": {"pi": [11], "qf": [13]}}))
    assert 11 in widths(model.actor) and 13 not in widths(model.actor)
    assert 13 in widths(model.critic) and 11 not in widths(model.critic)
    check_learns(subject.build(pendulum(), nets={"net_arch": []}))


@over(PERCEPTRONS)
def test_activation(subject: Subject) -> None:
    nets = ({"activation_fn": kind} for kind in (torch.nn.Tanh, torch.nn.ReLU))
    models = [filled(subject.build(pendulum(), nets=each)) for each in nets]
    for model in models:
        with torch.no_grad():
            for parameter in [*model.actor.parameters(), *model.critic.parameters()]:
                parameter.fill_(0.1)
    states, actions = torch.ones(2, 3), torch.ones(2, 1)
    for of in (lambda m: m.actor(states, True), lambda m: m.critic(states, actions)[0]):
        tanh, relu = (of(model) for model in models)
        assert not torch.allclose(tanh, relu, atol=1e-5)
    check_learns(models[0])


@over(EVERY)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.5}),
        (torch.optim.Adam, {"eps": 1e-3, "betas": (0.5, 0.9)}),
        (torch.optim.SGD, {"momentum": 0.25}),
    ],
)
def test_optimiser(subject: Subject, kind: Any, settings: dict[str, Any]) -> None:
    nets = {"optimizer_class": kind, "optimizer_kwargs": settings}
    model = check_learns(subject.build(pendulum(), nets=nets))
    for part in (model.actor, model.critic):
        assert type(part.optimizer) is kind
        for name, value in settings.items():
            assert part.optimizer.param_groups[0][name] == value


@over(EVERY)
@pytest.mark.parametrize("shared", [False, True])
def test_features_extractor_of_ones_own(subject: Subject, shared: bool) -> None:
    nets = {
        "features_extractor_class": Scaled,
        "features_extractor_kwargs": {"features_dim": 6},
        "share_features_extractor": shared,
    }
    model = subject.build(pendulum(), nets=nets)
    extractors = [
        part.features_extractor for part in (model.actor, model.critic, model.critic_target)
    ]
    assert all(extractor.features_dim == 6 for extractor in extractors)
    assert (extractors[0] is extractors[1]) == shared
    assert extractors[1] is not extractors[2]
    before = [extractor.layer.weight.detach().clone() for extractor in extractors]
    check_predicts(check_learns(model))
    for extractor, weight in zip(extractors[: 1 if shared else 3], before, strict=False):
        assert not torch.equal(extractor.layer.weight, weight)
