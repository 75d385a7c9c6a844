"""What the tests of learning code share: tiny networks, states, artefacts and runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from d3rlpy.torch_utility import TorchMiniBatch
from markets import batch_of, random_prices, small_market

from finflow_sb3.config import (
    CollectSettings,
    CQSACSettings,
    EnvSettings,
    IQLSettings,
    MarketSettings,
    OfflineAlgorithm,
    RunSettings,
    Settings,
    TD3BCSettings,
)
from finflow_sb3.config_files import read_config
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.market.features import FEATURES, MARKET_FEATURES
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.offline.collect import collect_dataset
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.pretrain.artefact import Artefact
from finflow_sb3.pretrain.iql import ExpertIQL
from finflow_sb3.pretrain.learner import Learner
from finflow_sb3.pretrain.run import make_learner
from finflow_sb3.runs.checkpoints import read_checkpoint

TINY: dict[str, Any] = {
    "expert_hidden": 4,
    "gate_hidden": 6,
    "token_hidden": 6,
    "critic_hidden": [8, 8],
    "n_critics": 2,
    "n_quantiles": 5,
}


@lru_cache(maxsize=8)
def layout_of(
    n_assets: int, action_base: str = "anchors", lagged: bool = False
) -> ObservationLayout:
    """A layout of the real feature set for `n_assets` made-up assets."""
    return ObservationLayout(
        assets=tuple(f"A{i}" for i in range(n_assets)),
        anchors=tuple(FEATURES),
        scalars=("drawdown",),
        action_base=action_base,
        lagged=lagged,
        market=MARKET_FEATURES,
    )


def random_states(layout: ObservationLayout, count: int, seed: int = 0) -> torch.Tensor:
    """Observations that could be: normal features, weights on the simplex."""
    rng = np.random.default_rng(seed)
    out = rng.normal(0.0, 1.0, size=(count, layout.size)).astype(np.float32)
    n, cut = layout.n_assets, layout.slices
    anchors = rng.dirichlet(np.ones(n + 1), size=(count, layout.n_anchors))[:, :, :-1]
    out[:, cut["anchor_weights"]] = anchors.reshape(count, -1)
    for name in ("weights", "pending"):
        if name in cut:
            out[:, cut[name]] = rng.dirichlet(np.ones(n + 1), size=count)
    return torch.from_numpy(out)


def random_box(layout: ObservationLayout, count: int, seed: int = 0) -> torch.Tensor:
    """Actions, uniform on the box."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, layout.action_size, generator=generator) * 2.0 - 1.0


def shake(module: torch.nn.Module, scale: float = 0.3, seed: int = 0) -> None:
    """Move every parameter away from its start, where means and tilts are exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def market_states(market: ObservedMarket, count: int, seed: int = 0) -> torch.Tensor:
    """Observations of portfolios that started on random days of the training split."""
    batch = batch_of(market, n_envs=count, span=market.splits.train, evaluation=False, seed=seed)
    return torch.from_numpy(batch.observations())


@lru_cache(maxsize=4)
def small_dataset(env: EnvSettings | None = None) -> OfflineDataset:
    market = small_market(env)
    return collect_dataset(market, market.env, CollectSettings(episodes=16, n_envs=16), seed=0)


def mini_batch(count: int = 6, seed: int = 3) -> TorchMiniBatch:
    """Transitions of the small dataset; the last two are made terminal."""
    data = small_dataset()
    batch = data.gather(
        torch.randint(len(data), (count,), generator=torch.Generator().manual_seed(seed))
    )
    terminals = torch.zeros(count, 1)
    terminals[-2:] = 1.0
    return TorchMiniBatch(
        observations=batch.observations,
        actions=batch.actions,
        rewards=batch.rewards,
        next_observations=batch.next_observations,
        next_actions=batch.actions,
        returns_to_go=torch.zeros_like(batch.rewards),
        terminals=terminals,
        intervals=torch.ones_like(batch.rewards),
        device="cpu",
    )


def trained(
    algo: OfflineAlgorithm, updates: int = 30, env: EnvSettings | None = None, **changes: Any
) -> Any:
    """An algorithm after some updates on the small dataset, fast enough to move every network."""
    fast = {"batch_size": 64, "actor_lr": 3e-3, "critic_lr": 3e-3, "tau": 0.1}
    settings = Settings().replace(**{algo: {**fast, "policy_kwargs": TINY, **changes}})
    torch.manual_seed(0)
    learner = make_learner(settings.offline(algo), small_market(env).layout)
    data = small_dataset(env)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        learner.update_on(data.gather(torch.randint(len(data), (64,), generator=generator)))
    return learner


def trained_iql(updates: int = 30, env: EnvSettings | None = None, **changes: Any) -> ExpertIQL:
    learner: ExpertIQL = trained("iql", updates, env, **changes)
    return learner


def artefact_of(algo: Learner, market: ObservedMarket) -> Artefact:
    return Artefact(
        algo=algo.algo,
        weights=algo.weights(),
        sizes=algo.sizes,
        gate_scale=algo.gate_scale,
        layout=market.layout,
        scaler=market.scaler,
        facts={"epoch": 1},
    )


def write_prices(prices: PriceTable, path: Path) -> Path:
    """A wide CSV file of a table's closes."""
    frame = pd.DataFrame(prices.close, columns=list(prices.assets))
    frame.insert(0, "date", prices.dates.astype(str))
    frame.to_csv(path, index=False)
    return path


def tiny_settings(folder: Path, **changes: dict[str, Any]) -> Settings:
    """A pipeline that runs in seconds: 5 assets, 600 days, tiny networks, 4 portfolios."""
    path = folder / "prices.csv"
    if not path.exists():
        write_prices(random_prices(5, 600, seed=0), path)
    settings = Settings(
        market=MarketSettings(prices=str(path), anchor_refit=63),
        env_kwargs=EnvSettings(episode_length=20),
        collect=CollectSettings(episodes=16, n_envs=16),
        iql=IQLSettings(epochs=2, steps_per_epoch=5, batch_size=32, policy_kwargs=TINY),
        td3bc=TD3BCSettings(epochs=2, steps_per_epoch=5, batch_size=32, policy_kwargs=TINY),
        cqsac=CQSACSettings(
            n_timesteps=240,
            n_envs=4,
            policy_kwargs=TINY,
            batch_size=16,
            buffer_size=80,
            learning_starts=40,
            cql_alpha=1.0,
            cql_alpha_final=0.2,
            cql_n_actions=2,
        ),
        run=RunSettings(
            log_dir=str(folder / "logs"),
            log_interval=40,
            evaluate_interval=5,
            checkpoint_interval=5,
            tensorboard=False,
            device="cpu",
        ),
    )
    return settings.replace(**changes)


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind, for comparison byte by byte."""

    metrics: bytes
    best: dict[str, bytes]
    checkpoint: dict[str, bytes]


def run_files(run: Path) -> RunFiles:
    """Metrics, `best/` and the latest checkpoint of a run."""
    latest = json.loads((run / "checkpoints" / "latest.json").read_text())["checkpoint"]
    folder = run / "checkpoints" / latest
    files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    # A run that stopped more often has its transitions in more files.
    del files["manifest.json"]
    return RunFiles(
        (run / "metrics.jsonl").read_bytes(),
        {p.name: p.read_bytes() for p in sorted((run / "best").iterdir())},
        files | replayed(folder),
    )


def replayed(checkpoint: Path) -> dict[str, bytes]:
    """The transitions that a checkpoint holds, whatever the files that they lie in."""
    stored = read_checkpoint(checkpoint)
    if "replay" not in stored.state:
        return {}
    pieces = list(stored.rows())
    size = read_config(checkpoint.parent.parent / "config.yml").cqsac
    first = max(0, stored.state["replay"]["stop"] - size.buffer_size // size.n_envs)
    skipped = first - pieces[0][0] if pieces else 0
    names = [] if not pieces else sorted(pieces[0][2])
    return {
        f"replay/{name}": torch.cat([file[name] for _, _, file in pieces])[skipped:]
        .numpy()
        .tobytes()
        for name in names
    }
