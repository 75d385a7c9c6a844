"""Gradient updates a second: CQSAC against TQC and SAC, in one process.

    python benchmarks/updates.py --out docs/images/updates.png

All at batch 256, nets [256, 256], observation 240, action 20, 2 × 32 quantiles; the last rows
on the embedded market's observations (587) with the five experts over assets. A round times
every algorithm of a group once with each number of threads, one after the other, so that all
meet the same load; ratios to the group's TQC are taken within a round, each side at its better
number of threads, and their median is printed with the range over rounds. The floor is what the
matrix products of the bare update take at the speed of one large product.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finflow_sb3.quiet import silence_gym_notice

silence_gym_notice()

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
import torch as th  # noqa: E402
from gymnasium import spaces  # noqa: E402
from sb3_contrib import TQC  # noqa: E402
from stable_baselines3 import SAC  # noqa: E402
from stable_baselines3.common.logger import configure  # noqa: E402

from finflow_sb3.config import EnvSettings, MarketSettings  # noqa: E402
from finflow_sb3.cqsac.cqsac import CQSAC  # noqa: E402
from finflow_sb3.cqsac.replay import PortfolioReplayBuffer  # noqa: E402
from finflow_sb3.envs.observations import observe_source  # noqa: E402
from finflow_sb3.envs.vec import PortfolioVecEnv  # noqa: E402
from finflow_sb3.evaluation import plot_style as style  # noqa: E402
from finflow_sb3.files import write_whole  # noqa: E402

OBSERVATION, ACTION, BATCH, HIDDEN, QUANTILES = 240, 20, 256, 256, 32
WARM_UP, UPDATES = 3, 12
TRANSITIONS = 2_000

EXPERTS = {"expert_hidden": 64, "gate_hidden": 64, "critic_hidden": [HIDDEN, HIDDEN]}
CQL = {"cql_alpha": 5.0, "cql_n_actions": 4}
MARKET = {"balance_coef": 0.01, "prior_coef": 2.0, "backup_entropy": False, **CQL}


class Noise(gym.Env[Any, Any]):
    """Random observations: only the sizes matter."""

    observation_space = spaces.Box(-1.0, 1.0, (OBSERVATION,))
    action_space = spaces.Box(-1.0, 1.0, (ACTION,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), float(self.np_random.normal()), False, False, {}


@dataclass
class Subject:
    """One algorithm, and its updates a second by number of threads, round by round."""

    name: str
    model: Any
    rates: dict[int, list[float]] = field(default_factory=dict)

    def measure(self, threads: int, updates: int) -> None:
        th.set_num_threads(threads)
        self.model.train(WARM_UP, BATCH)
        begin = time.perf_counter()
        self.model.train(updates, BATCH)
        rate = updates / (time.perf_counter() - begin)
        self.rates.setdefault(threads, []).append(rate)

    @property
    def better(self) -> np.ndarray:
        """Rates with the number of threads whose median is higher."""
        return np.array(max(self.rates.values(), key=np.median))


def make(cls: Any, policy: str, env: Any = None, **kwargs: Any) -> Any:
    """A model with a filled buffer."""
    model = cls(
        policy,
        env or Noise(),
        device="cpu",
        seed=0,
        buffer_size=10 * TRANSITIONS,
        learning_starts=10**9,
        batch_size=BATCH,
        **kwargs,
    )
    model.learn(TRANSITIONS, log_interval=10**9)
    model.set_logger(configure(None, []))
    return model


def bare(quick: bool) -> list[Subject]:
    """One expert and no penalty: what TQC does."""
    net = {"n_quantiles": QUANTILES}
    out = [
        Subject("TQC", make(TQC, "MlpPolicy", policy_kwargs=dict(net))),
        Subject("SAC", make(SAC, "MlpPolicy")),
        Subject("CQSAC, eager", make(CQSAC, "MlpPolicy", policy_kwargs=dict(net))),
    ]
    if not quick:
        faster = make(CQSAC, "MlpPolicy", policy_kwargs=dict(net), compile="on")
        half = make(CQSAC, "MlpPolicy", policy_kwargs=dict(net), mixed_precision="bf16")
        out += [Subject("CQSAC, compiled", faster), Subject("CQSAC, bf16", half)]
    return out


def experts(quick: bool) -> list[Subject]:
    """Five experts and the penalty, with critics as wide as TQC's."""
    net = {"n_quantiles": QUANTILES}

    def ours(**kwargs: Any) -> Any:
        return make(CQSAC, "MultiExpertPolicy", policy_kwargs={**net, **EXPERTS}, **kwargs)

    out = [
        Subject("TQC", make(TQC, "MlpPolicy", policy_kwargs=dict(net))),
        Subject("experts", ours()),
        Subject("experts, CQL on 32 of 256 states", ours(cql_batch_size=32, **CQL)),
        Subject("experts, CQL on all states", ours(**CQL)),
    ]
    if not quick:
        faster = [ours(cql_batch_size=n, compile="on", **CQL) for n in (32, None)]
        out.append(Subject("experts, CQL on 32 states, compiled", faster[0]))
        out.append(Subject("experts, CQL on all states, compiled", faster[1]))
    return out


def on_market() -> list[Subject]:
    """TQC and the experts over assets on the embedded market's observations."""
    market = observe_source("us20", MarketSettings(), EnvSettings())

    def env() -> PortfolioVecEnv:
        return PortfolioVecEnv(market, 16, seed=0)

    def ours(**kwargs: Any) -> Any:
        return make(
            CQSAC,
            "MultiExpertPolicy",
            env(),
            policy_kwargs={"n_quantiles": QUANTILES},
            replay_buffer_class=PortfolioReplayBuffer,
            replay_buffer_kwargs={"market_rows": market.rows, "layout": market.layout},
            **MARKET,
            **kwargs,
        )

    tqc = make(TQC, "MlpPolicy", env(), policy_kwargs={"n_quantiles": QUANTILES})
    return [
        Subject("TQC, us20", tqc),
        Subject("us20, CQL on 32 of 256 states", ours(cql_batch_size=32)),
        Subject("us20, CQL on all states", ours()),
    ]


def floor() -> dict[int, float]:
    """Updates a second if the matrix products of a bare update were all there is."""
    first, second = OBSERVATION * HIDDEN, HIDDEN * HIDDEN
    head = 2 * ACTION * HIDDEN
    actor_forward = first + second + head
    actor_backward = first + 2 * second + 2 * head
    seen = first + ACTION * HIDDEN
    critic_forward = seen + second + HIDDEN * QUANTILES
    critic_backward = seen + 2 * second + 2 * HIDDEN * QUANTILES
    through = 2 * second + seen + 4 * HIDDEN + ACTION * HIDDEN
    critics = 2 * (2 * critic_forward + critic_backward + through)
    flops = 2 * BATCH * (2 * actor_forward + actor_backward + critics)
    return {threads: speed(threads) / flops for threads in threads_here()}


def speed(threads: int) -> float:
    """Floating-point operations a second of one product of the nets' size."""
    th.set_num_threads(threads)
    a, b = th.randn(2, BATCH, HIDDEN), th.randn(2, HIDDEN, HIDDEN)
    best = np.inf
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(20):
            th.bmm(a, b)
        best = min(best, (time.perf_counter() - begin) / 20)
    return 4.0 * BATCH * HIDDEN * HIDDEN / best


def threads_here() -> list[int]:
    return sorted({1, os.cpu_count() or 1})


def middle(values: Any, form: str) -> str:
    return f"{np.median(values):{form}} ({np.min(values):{form}} to {np.max(values):{form}})"


def print_table(groups: list[list[Subject]]) -> None:
    heads = " | ".join(f"{n} thread{'s' if n > 1 else ''}, updates/s" for n in threads_here())
    print(f"| | {heads} | over TQC |")
    print("|---|" + "---:|" * (len(threads_here()) + 1))
    for group in groups:
        for one in group:
            rates = [middle(one.rates[n], ".1f") for n in threads_here()]
            ratio = middle(one.better / group[0].better, ".2f")
            print(f"| {one.name} | {' | '.join(rates)} | {ratio} |")
    limits = " | ".join(f"{rate:.0f}" for rate in floor().values())
    print(f"| floor of the bare update | {limits} | |")


def draw(groups: list[list[Subject]], path: Path) -> None:
    """Ratios to TQC as bars, with the range over rounds."""
    figure, axes = style.canvas(8.0, "Updates a second over TQC's, same batch")
    found = [one for group in groups for one in group[1:]]
    ratios = [one.better / group[0].better for group in groups for one in group[1:]]
    middles = np.array([np.median(ratio) for ratio in ratios])
    low = middles - np.array([ratio.min() for ratio in ratios])
    high = np.array([ratio.max() for ratio in ratios]) - middles
    place = np.arange(len(found))[::-1]
    colours = ["#8a8f98" if one.name == "SAC" else "#0b4f8a" for one in found]
    axes.barh(place, middles, color=colours, height=0.62)
    axes.errorbar(middles, place, xerr=np.stack([low, high]), fmt="none", ecolor="#333333", lw=1)
    axes.axvline(1.0, color="#333333", linewidth=0.8)
    axes.set_xlim(0.0, float(np.max(middles + high)) + 0.25)
    axes.set_yticks(place, [one.name for one in found], fontsize=style.SMALL)
    for y, value, above in zip(place, middles, high, strict=True):
        axes.annotate(f"{value:.2f}", (value + above + 0.04, y), va="center", fontsize=style.SMALL)
    write_whole(path, style.png_bytes(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=UPDATES, help="timed in a row")
    parser.add_argument("--quick", action="store_true", help="no compiling, no market")
    parser.add_argument("--out", type=Path, help="a PNG")
    options = parser.parse_args()
    makers = [lambda: bare(options.quick), lambda: experts(options.quick)]
    if not options.quick:
        makers.append(on_market)
    groups = [measured(make_group(), options.rounds, options.updates) for make_group in makers]
    print_table(groups)
    if options.out is not None:
        draw(groups, options.out)


def measured(group: list[Subject], rounds: int, updates: int) -> list[Subject]:
    """The group after its rounds. Groups follow each other: what large networks leave to the
    memory allocator changes how fast the small ones are.
    """
    for one in group:
        th.set_num_threads(1)
        one.model.train(WARM_UP, BATCH)  # compiles what is to be compiled
    for _ in range(rounds):
        for threads in threads_here():
            for one in group:
                one.measure(threads, updates)
    for one in group:
        one.model = None
    return group


if __name__ == "__main__":
    main()
