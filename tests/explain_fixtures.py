"""Runs and markets for the tests of explanations: tiny ones, trained once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_fixtures import TINY, layout_of, shake, tiny_settings
from markets import batch_of, partial_market, small_market

from finflow_sb3.config import EnvSettings, Settings
from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.nets.experts import make_experts
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.pipeline import finetune, pretrain
from finflow_sb3.pretrain.run import policy_act
from finflow_sb3.training.trained import TrainedPolicy

__all__ = [
    "TINY",
    "Runs",
    "layout_of",
    "random_policies",
    "state_of",
    "trained_runs",
]


@dataclass(frozen=True)
class Runs:
    """A pretrained run and the run that it seeded."""

    iql: Path
    cqsac: Path


def trained_runs(folder: Path) -> Runs:
    """Two runs of a tiny market."""
    settings = tiny_settings(folder)
    pretrained = pretrain(settings).run
    return Runs(pretrained, finetune(settings, pretrained).run)


def random_policies(
    market: ObservedMarket,
    count: int = 1,
    combination: Any = "mean",
    shrinkage: float = 0.0,
    scale: float = 0.3,
) -> Policies:
    """Networks of experts with shaken weights, which stand for trained ones."""
    members = []
    for seed in range(count):
        torch.manual_seed(seed)
        layout = market.layout
        sizes = NetworkSizes(**{**TINY, "critic_hidden": tuple(TINY["critic_hidden"])})
        net: Any = make_experts(layout.size, layout.action_size, layout, sizes, 5.0)
        shake(net, scale, seed)
        net.eval()
        members.append(
            TrainedPolicy(
                name="iql",
                act=policy_act(net),
                layout=layout,
                scaler=market.scaler,
                facts={"validation": {"sharpe": 0.5 + seed}},
                action=lambda obs, net=net: net(obs).mean.tanh(),
                experts=net,
            )
        )
    settings = Settings().replace(env_kwargs={"action_base": market.layout.action_base})
    runs = tuple(Path(f"run_{i}") for i in range(count))
    return Policies(runs, tuple(members), settings, combination, shrinkage)


def state_of(
    market: ObservedMarket, env: EnvSettings | None = None, days: int = 30
) -> PortfolioBatch:
    """A portfolio in the test split after some days of random trades."""
    batch = batch_of(market, env, span=market.splits.test)
    rng = np.random.default_rng(5)
    for _ in range(days):
        batch.step(rng.uniform(-1.0, 1.0, (1, market.layout.action_size)))
    return batch


def market_of(base: str, partial: bool = False, **env: Any) -> ObservedMarket:
    settings = EnvSettings(action_base=base, **env)  # type: ignore[arg-type]
    return partial_market(settings) if partial else small_market(settings)
